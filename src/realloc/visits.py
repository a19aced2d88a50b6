"""Example visits under a budget: the sampler, the weight of each visit in the loss, and what was learnt of each."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from typing import Any, Final, final

import torch
from torch import Tensor
from torch.utils.data import Sampler

from realloc.allocate.visit_plan import plan_visits
from realloc.epoch import ORDER, Epoch, epoch_of
from realloc.errors import ConfigError, StateError, warn
from realloc.methods.example_method import Draw, ExampleMethod, exact, least_visited
from realloc.observe.ranks import Ranks, world_ranks
from realloc.observe.visited import Visited, check_report
from realloc.rng import stream

FORMAT: Final = 2
FORWARD, TRAINED = 1, 3  # cost of a look and of a trained visit, in forward passes


@final
class Visits(Sampler[int]):
    """A sampler whose epochs cost a fixed number of visits, and the loss that goes with them.

    Each ``for`` over the loader is the next epoch. Epochs are drawn from (seed, epoch, what was reported), so that a
    resume and every rank draw the same.

    Args:
        count: examples of the data set.
        method: from `realloc.methods`, such as ``methods.rs2(share=0.5)``.
        epochs: of the whole run; the budget is ``share * count * epochs`` visits, rounded down.
        seed: of the draws; the same on all ranks.

    Raises:
        ConfigError: bad input, or a budget of less than one visit an epoch and rank.

    Example:
        >>> import torch, realloc
        >>> from torch.utils.data import DataLoader, TensorDataset
        >>> data = TensorDataset(torch.randn(100, 4), torch.randint(2, (100,)))
        >>> model = torch.nn.Linear(4, 2)
        >>> visits = realloc.Visits(len(data), realloc.methods.rs2(share=0.5), epochs=2)
        >>> loader = DataLoader(realloc.indexed(data), batch_size=25, sampler=visits)
        >>> for epoch in range(2):
        ...     for index, (x, y) in loader:
        ...         losses = torch.nn.functional.cross_entropy(model(x), y, reduction="none")
        ...         visits.loss(index, losses).backward()
        >>> visits.budget, visits.spent, visits.parked
        (100, 100, 0)
    """

    def __init__(self, count: int, method: ExampleMethod, *, epochs: int, seed: int = 0) -> None:
        for name, value in (("count", count), ("epochs", epochs)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ConfigError(f"{name} is {value!r}; it is a whole number from 1")
        if not isinstance(method, ExampleMethod):
            name = getattr(method, "name", method if isinstance(method, str) else type(method).__name__)
            raise ConfigError(f"{name!r} is no method of examples; take one, such as realloc.methods.rs2(share=0.5)")
        if isinstance(seed, bool) or not isinstance(seed, int):
            raise ConfigError(f"seed is {seed!r}; use an integer")
        self.method, self.epochs, self.seed = method, epochs, seed
        self._ranks: Ranks = world_ranks()
        self.plan = plan_visits(count, epochs, method.share, method.full, method.over, self._ranks.count)
        self._seen = Visited(count)
        self._epoch = Epoch(self._ranks)  # that is drawn
        self._chosen: Tensor | None = None

    # numbers ----------------------------------------------------------------------------------------------------

    @property
    def budget(self) -> int:
        """Visits of the whole run, on all ranks."""
        return self.plan.budget

    @property
    def per_epoch(self) -> tuple[int, ...]:
        """Visits that each epoch trains, on all ranks."""
        return self.plan.per_epoch

    @property
    def parked(self) -> int:
        """Visits that no epoch gets: what is left where ranks, or candidates, need equal numbers."""
        return self.plan.parked

    @property
    def epoch(self) -> int:
        """Number of the epoch that is drawn, from 0; -1 before the first."""
        return self._epoch.number

    @property
    def spent(self) -> int:
        """Visits trained so far, on all ranks; of a loop that reports nothing, those that were handed out."""
        return self._epoch.before + self._of_epoch()

    @property
    def cost(self) -> int:
        """Forward passes of one example so far: a trained visit is 3 (forward and backward), a look 1."""
        looks = 0
        if self.method.over > 1:
            looks = max(0, self.epoch) * self.plan.whole + self._epoch.place * self._ranks.count
        return TRAINED * self.spent + FORWARD * looks

    def steps(self, batch_size: int) -> int:
        """Batches of the whole run on each rank, to decay a rate over."""
        return self.plan.steps(batch_size)

    def __len__(self) -> int:
        """Candidates of the coming epoch on this rank: of the one that goes on, what is left of it."""
        if self._epoch.goes_on:
            return self.plan.share(self.epoch) - self._epoch.place
        return self.plan.share(min(self.epoch + 1, self.epochs - 1))

    # the epoch --------------------------------------------------------------------------------------------------

    def __iter__(self) -> Iterator[int]:
        """The examples of the next epoch on this rank.

        Raises:
            StateError: the budget is spent, the method needs what the loop never reported, or there are other ranks
                than when this was made.
        """
        if world_ranks().count != self._ranks.count:
            raise StateError(
                f"there are {world_ranks().count} ranks and these visits were made for {self._ranks.count}: make them "
                "after torch.distributed.init_process_group"
            )
        if not self._epoch.goes_on and (self.method.needs is None or not self._epoch.comes_again()):
            self._next()
        return self._epoch.rest()

    def _next(self) -> None:
        epoch = self.epoch + 1
        if epoch >= self.epochs:
            raise StateError(f"all {self.epochs} epochs are drawn and {self.spent:,} visits spent; make a new Visits")
        dropped = self._seen.settle(self._ranks)
        if dropped:
            warn("RA401", f"{dropped} reports of epoch {self.epoch} are NaN or Inf; what was known before stays")
        past = self._seen.past
        if self.method.needs is not None and epoch and bool(getattr(past, self.method.needs).isnan().all()):
            given = "visits.loss(index, losses)" if self.method.needs == "loss" else "visits.loss(..., score=score)"
            raise StateError(f"{self.method.name} needs what {given} reports, and nothing was reported; {ORDER}")
        self._close()
        self._epoch = self._epoch.after(self._drawn(epoch), self._of_epoch())
        self._epoch.last = epoch == self.epochs - 1
        self._seen.begin()

    def _close(self) -> None:
        """Count the visits of an epoch that is over."""
        if self._epoch.draw is not None:
            self._epoch.tell_lost()
            self._seen.drawn(self._epoch.draw.index[: self._epoch.given])

    def _drawn(self, epoch: int) -> Draw:
        count, random, past = self.plan.candidates(epoch), stream(self.seed, "visits", "", epoch), self._seen.past
        if epoch >= self.plan.full_from:
            drawn = Draw(least_visited(past, count, random), torch.ones(count, dtype=torch.float64))
        else:
            drawn = exact(self.method.draw(past, count, random), count, len(past), self.method.name)
        order = torch.randperm(count, generator=random)
        return Draw(drawn.index[order], drawn.weight[order])

    def _of_epoch(self) -> int:
        """Visits of this epoch that were trained, on all ranks."""
        return self.plan.trained(self._epoch.given // self._ranks.count)

    # the loop ---------------------------------------------------------------------------------------------------

    def loss(self, index: Tensor, losses: Tensor, *, score: Tensor | None = None) -> Tensor:
        """The weighted mean of a batch's losses, to call ``backward()`` on; reports them to the method.

        Args:
            index: example numbers as `realloc.indexed` hands them out, int64 of shape (b,).
            losses: one a visit, of shape (b,): ``reduction="none"``. Of no visit (`choose` may pick none) it is 0.
            score: anything that grows with an example's gradient, of shape (b,), 0 or more; see `logit_gradient`.

        Raises:
            ConfigError: losses that were reduced already, or shapes that do not fit.
            StateError: not the examples whose turn it is.
        """
        check_report(index, losses, score)
        weight = self._of_chosen(index) if self.method.over > 1 else self._take(index)
        self._seen.report(index, losses, score)
        return (losses * weight.to(losses)).mean() if index.numel() else losses.sum()

    def choose(self, index: Tensor, losses: Tensor) -> Tensor:
        """Which candidates of a batch to train: places in it, ascending; then give ``index[places]`` to `loss`.

        A batch smaller than ``over`` may have none: skip its step. The best are those of this batch alone, so give it
        ``over`` candidates and more. Each rank chooses among its own, as many as every other: all take the same steps,
        but not those of one process with the doubled batch.

        Args:
            index: as in `loss`.
            losses: of the candidates now, made without a gradient.

        Raises:
            ConfigError: the method takes every visit that it draws.
            StateError: not the examples whose turn it is.
        """
        if self.method.worth is None:
            raise ConfigError(f"{self.method.name} trains every visit it draws; call loss() alone")
        check_report(index, losses, None)
        before, over = self._epoch.place, self.method.over
        self._take(index)
        count = self._epoch.place // over - before // over  # so that the epoch's sum is exact
        worth = self.method.worth(index.cpu(), losses.detach().to("cpu", torch.float64))
        worth = torch.nan_to_num(worth, nan=-torch.inf)
        places = torch.argsort(worth, descending=True, stable=True)[:count].sort().values
        self._chosen = index.cpu()[places]
        return places.to(index.device)

    def _take(self, index: Tensor) -> Tensor:
        """Weights of a batch whose turn it is. Of what was handed out in silence before, nothing was trained."""
        unheard = 0 if self._epoch.reports else self._epoch.before
        weight = self._epoch.take(index)
        if unheard:
            self._epoch.before = 0
            self._seen.unvisit()
            warn("RA402", f"{unheard} visits before epoch {self.epoch} were handed out and nothing of them was "
                 "reported: they do not count as trained. A look at a batch belongs into another loader: one that "
                 "reaches the end of an epoch spends it")  # fmt: skip
        return weight

    def _of_chosen(self, index: Tensor) -> Tensor:
        if self._chosen is None or not torch.equal(index.cpu(), self._chosen):
            raise StateError(f"{self.method.name} trains what choose() picked: give loss() index[places] of this batch")
        self._chosen = None
        return torch.ones(index.numel())

    # the record -------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """What a resume needs, also in the middle of an epoch. With several ranks each saves its own."""
        return {**self._epoch.state(self._identity(), self.plan.longest), **self._seen.state()}

    def _identity(self) -> list[int]:
        """What a state must have in common with these visits."""
        method, plan = self.method, self.plan
        asked = zlib.crc32(repr((method.name, plan.count, plan.per_epoch, plan.over)).encode())
        return [FORMAT, self.seed, self.epochs, asked, self._ranks.count, self._ranks.number]

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state; the next iterator has what is left of its epoch.

        Nothing is left of one that the loop ran to its end, also where ``drop_last`` took the rest. Of one that the
        loop broke off, less than a batch comes once: RA402 says so where a loader drops it and the loop is empty.

        Raises:
            RecordError: it is of another method, data set, budget, seed or rank, or damaged. Nothing was changed then.
        """
        epoch = epoch_of(state, self._identity(), self.plan, self._ranks)
        self._seen.load(state)
        self._epoch.told = True  # an iterator of before that goes now has lost nothing
        self._epoch, self._chosen = epoch, None

    def __repr__(self) -> str:
        done = f"epoch {self.epoch + 1} of {self.epochs}"
        return f"Visits({self.method.name}, {self.spent:,} of {self.budget:,} visits, {done})"
