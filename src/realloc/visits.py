"""Example visits under a budget: the sampler, the weight of each visit in the loss, and what was learnt of each."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from typing import Any, Final, final

import torch
from torch import Tensor
from torch.utils.data import Sampler

from realloc.allocate.visit_plan import plan_visits
from realloc.errors import ConfigError, RecordError, StateError, warn
from realloc.methods.example_method import Draw, ExampleMethod, exact, least_visited
from realloc.observe.ranks import Ranks, world_ranks
from realloc.observe.visited import Past, Visited
from realloc.rng import stream

FORMAT: Final = 1
FORWARD, TRAINED = 1, 3  # cost of a look and of a trained visit, in forward passes
ORDER: Final = "does your loop give every batch of this epoch to visits, in the order of the loader, once?"


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
            raise ConfigError(f"method is {method!r}; take one for examples, such as realloc.methods.rs2(share=0.5)")
        if isinstance(seed, bool) or not isinstance(seed, int):
            raise ConfigError(f"seed is {seed!r}; use an integer")
        self.method, self.epochs, self.seed = method, epochs, seed
        self._ranks: Ranks = world_ranks()
        self.plan = plan_visits(count, epochs, method.share, method.full, method.over, self._ranks.count)
        self._seen = Visited(count)
        self._draw: Draw | None = None
        self._epoch = -1  # being trained; -1: none yet
        self._place = 0  # candidates of this rank's epoch that the loop has given back
        self._trained = 0  # visits of earlier epochs, on all ranks
        self._reports = False  # whether the loop ever gave anything back
        self._ended = False  # the iterator of this epoch ran to its end
        self._loaded = False  # in the middle of an epoch, which goes on
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
        return self._epoch

    @property
    def spent(self) -> int:
        """Visits trained so far, on all ranks; of a loop that reports nothing, those that were handed out."""
        return self._trained + self._of_epoch()

    @property
    def cost(self) -> int:
        """Forward passes of one example so far: a trained visit is 3 (forward and backward), a look 1."""
        looks = 0
        if self.method.over > 1:
            looks = max(0, self._epoch) * self.plan.whole + self._place * self._ranks.count
        return TRAINED * self.spent + FORWARD * looks

    def steps(self, batch_size: int) -> int:
        """Batches of the whole run on each rank, to decay a rate over."""
        return self.plan.steps(batch_size)

    def __len__(self) -> int:
        """Candidates of the coming epoch on this rank: of the one that goes on, what is left of it."""
        epoch = self._epoch if self._goes_on else self._epoch + 1
        left = self.plan.share(min(epoch, self.epochs - 1))
        return left - self._place if self._goes_on else left

    # the epoch --------------------------------------------------------------------------------------------------

    @property
    def _goes_on(self) -> bool:
        """Whether the next iterator is of the epoch that is drawn: after a load, or where it was only peeked into."""
        untouched = not self._place and (self._reports or not self._ended)
        return self._draw is not None and (self._loaded or untouched)

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
        if not self._goes_on:
            self._next()
        return self._run(self._epoch, self._mine(self._place).tolist())

    def _run(self, epoch: int, examples: list[int]) -> Iterator[int]:
        yield from examples
        if epoch == self._epoch:
            self._ended = True

    def _next(self) -> None:
        epoch = self._epoch + 1
        if epoch >= self.epochs:
            raise StateError(f"all {self.epochs} epochs are drawn and {self.spent:,} visits spent; make a new Visits")
        dropped = self._seen.settle(self._ranks)
        if dropped:
            warn("RA401", f"{dropped} reports of epoch {self._epoch} are NaN or Inf; what was known before stays")
        past = self._seen.past
        if self.method.needs is not None and epoch and bool(getattr(past, self.method.needs).isnan().all()):
            given = "visits.loss(index, losses)" if self.method.needs == "loss" else "visits.loss(..., score=score)"
            raise StateError(f"{self.method.name} needs what {given} reports, and nothing was reported; {ORDER}")
        self._close()
        self._draw = self._drawn(epoch, self._seen.past)
        self._epoch, self._place, self._ended, self._loaded = epoch, 0, False, False
        self._seen.begin()

    def _close(self) -> None:
        """Count what was trained of an epoch that is over."""
        if self._draw is None:
            return
        count, gone = self._draw.index.numel(), self._given()
        if gone < count:
            warn("RA402", f"{count - gone} of the {count} visits of epoch {self._epoch} were drawn and never trained; "
                 "leave drop_last off; a trainer must ask for each epoch's length anew")  # fmt: skip
        self._trained += self._of_epoch()
        self._seen.drawn(self._draw.index[:gone])

    def _drawn(self, epoch: int, past: Past) -> Draw:
        count, random = self.plan.candidates(epoch), stream(self.seed, "visits", "", epoch)
        if epoch >= self.plan.full_from:
            drawn = Draw(least_visited(past, count, random), torch.ones(count, dtype=torch.float64))
        else:
            drawn = exact(self.method.draw(past, count, random), count, len(past), self.method.name)
        order = torch.randperm(count, generator=random)
        return Draw(drawn.index[order], drawn.weight[order])

    def _given(self) -> int:
        """Candidates of this epoch that the loop had, on all ranks."""
        if self._draw is None:
            return 0
        silent = self._ended and not self._reports
        return self._draw.index.numel() if silent else self._place * self._ranks.count

    def _of_epoch(self) -> int:
        """Visits of this epoch that were trained, on all ranks."""
        return self.plan.trained(self._given() // self._ranks.count)

    def _mine(self, start: int, stop: int | None = None) -> Tensor:
        """Examples of this rank, from one place of its epoch to another. Ranks take turns, as in a doubled batch."""
        assert self._draw is not None
        return self._draw.index[self._ranks.number :: self._ranks.count][start:stop]

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
        self._check(index, losses, score)
        weight = self._of_chosen(index) if self.method.over > 1 else self._take(index)
        self._seen.report(index, losses, score)
        return (losses * weight.to(losses)).mean() if index.numel() else losses.sum()

    def choose(self, index: Tensor, losses: Tensor) -> Tensor:
        """Which candidates of a batch to train: places in it, ascending; then give ``index[places]`` to `loss`.

        A batch smaller than ``over`` may have none: skip its step.

        Args:
            index: as in `loss`.
            losses: of the candidates now, made without a gradient.

        Raises:
            ConfigError: the method takes every visit that it draws.
            StateError: not the examples whose turn it is.
        """
        if self.method.worth is None:
            raise ConfigError(f"{self.method.name} trains every visit it draws; call loss() alone")
        self._check(index, losses, None)
        before = self._place
        self._take(index)
        count = self._place // self.method.over - before // self.method.over  # so that the epoch's sum is exact
        worth = self.method.worth(index.cpu(), losses.detach().to("cpu", torch.float64))
        worth = torch.nan_to_num(worth, nan=-torch.inf)
        places = torch.argsort(worth, descending=True, stable=True)[:count].sort().values
        self._chosen = index.cpu()[places]
        return places.to(index.device)

    def _take(self, index: Tensor) -> Tensor:
        """Weights of the examples whose turn it is; moves on."""
        if self._draw is None:
            raise StateError("no epoch has begun; iterate over the loader that has this sampler")
        start, stop = self._place, self._place + index.numel()
        if not torch.equal(index.cpu(), self._mine(start, stop)):
            raise StateError(f"these are not the examples whose turn it is in epoch {self._epoch}; {ORDER}")
        self._place, self._reports, self._loaded = stop, True, False
        return self._draw.weight[self._ranks.number :: self._ranks.count][start:stop]

    def _of_chosen(self, index: Tensor) -> Tensor:
        if self._chosen is None or not torch.equal(index.cpu(), self._chosen):
            raise StateError(f"{self.method.name} trains what choose() picked: give loss() index[places] of this batch")
        self._chosen = None
        return torch.ones(index.numel())

    def _check(self, index: Tensor, losses: Tensor, score: Tensor | None) -> None:
        if losses.dim() != 1:
            raise ConfigError(
                f"losses have shape {tuple(losses.shape)} where one loss a visit is needed: make them with "
                "reduction='none', and take the mean over anything but the batch yourself"
            )
        if index.dtype != torch.int64 or index.shape != losses.shape:
            raise ConfigError(
                f"index is {index.dtype} of shape {tuple(index.shape)} and losses of {tuple(losses.shape)}; pass the "
                "numbers that realloc.indexed(dataset) hands out beside each example"
            )
        if score is not None and (score.shape != losses.shape or bool((score < 0).any())):
            raise ConfigError(f"score has shape {tuple(score.shape)}; it is one number a visit, 0 or more")

    # the record -------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """What a resume needs, also in the middle of an epoch. With several ranks each saves its own."""
        longest = self.plan.longest
        index = torch.full((longest,), -1)  # of one length over the whole run, as checkpoints want it
        weight = torch.zeros(longest, dtype=torch.float64)
        if self._draw is not None:
            count = self._draw.index.numel()
            index[:count], weight[:count] = self._draw.index, self._draw.weight
        stands = [self._epoch, self._place, int(self._ended), int(self._reports), self._trained]
        numbers = torch.tensor([*self._identity(), *stands])
        return {"numbers": numbers, "index": index, "weight": weight, **self._seen.state()}

    def _identity(self) -> list[int]:
        """What a state must have in common with these visits."""
        method, plan = self.method, self.plan
        asked = zlib.crc32(repr((method.name, plan.count, plan.per_epoch, plan.over)).encode())
        return [FORMAT, self.seed, self.epochs, asked, self._ranks.count, self._ranks.number]

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state; the next iterator has what is left of its epoch.

        Raises:
            RecordError: it is of another method, data set, budget, seed or rank, or damaged. Nothing was changed then.
        """
        mine = self._identity()
        numbers = integers(state.get("numbers"), len(mine) + 5)
        if numbers[: len(mine)] != mine:
            raise RecordError(
                f"the state is of other visits: format, seed, epochs, method and budget, ranks, rank are "
                f"{numbers[: len(mine)]}, here {mine}; make Visits as they were, and load each rank's own state"
            )
        epoch, place, ended, reports, trained = numbers[len(mine) :]
        share = self.plan.share(epoch) if 0 <= epoch < self.epochs else 0
        fits = -1 <= epoch < self.epochs and 0 <= place <= share and {ended, reports} <= {0, 1}
        if not fits or not 0 <= trained <= self.budget:
            raise RecordError(f"the state is at visit {place} of epoch {epoch}: it is damaged")
        count = share * self._ranks.count
        index, weight = state.get("index"), state.get("weight")
        if not torch.is_tensor(index) or not torch.is_tensor(weight) or index.shape != (self.plan.longest,):
            raise RecordError(f"the state's draw is not of {self.plan.longest} visits: it is damaged")
        drawn = Draw(index[:count].cpu().clone(), weight[:count].cpu().clone())
        try:
            exact(drawn, count, self.plan.count, "the state")
        except StateError as error:
            raise RecordError(f"the state is damaged: {error}") from error
        self._seen.load(state)
        self._draw = drawn if epoch >= 0 else None
        self._epoch, self._place, self._trained, self._chosen = epoch, place, trained, None
        self._ended, self._reports = bool(ended), bool(reports)
        self._loaded = 0 < place < share

    def __repr__(self) -> str:
        done = f"epoch {self._epoch + 1} of {self.epochs}"
        return f"Visits({self.method.name}, {self.spent:,} of {self.budget:,} visits, {done})"


def integers(found: object, count: int) -> list[int]:
    """Read a tensor of integers that came from outside."""
    if not torch.is_tensor(found) or found.dtype != torch.int64 or found.shape != (count,):
        raise RecordError("the state is not one of realloc.Visits, or damaged")
    return found.tolist()
