"""The epoch of visits that is drawn, and how far the loop has come in it; both as a state, for a resume."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, final

import torch
from torch import Tensor

from realloc.allocate.visit_plan import VisitPlan
from realloc.errors import RecordError, StateError, warn
from realloc.methods.example_method import Draw, exact
from realloc.observe.ranks import Ranks

ORDER: Final = "does your loop give every batch of this epoch to visits, in the order of the loader, once?"
STANDS: Final = 6  # integers of a state that say how far the loop has come
ENDED, OVER = 1, 2  # the iterator ran to its end; and its loop gets nothing more of it


@final
@dataclass
class End:
    """How an iterator ended. A batch sampler that drops a short last batch asks once after the last example, and goes.

    One that hands it out holds the iterator meanwhile, and asks again.
    """

    asked: int = 0  # times after the last example
    gone: bool = False  # nobody holds the iterator
    paced: bool = False  # it was pulled as the loop went on, not as a list before it

    @property
    def dropped(self) -> bool:
        """Whether a rest of less than a batch was dropped, as far as one can see."""
        return self.asked == 1 and self.gone


@final
class Pull(Iterator[int]):
    """What a loader pulls: the examples of this rank that are left of an epoch."""

    def __init__(self, epoch: Epoch, examples: list[int]) -> None:
        self._epoch, self._left, self._start, self._end = epoch, iter(examples), epoch.place, epoch.end

    def __next__(self) -> int:
        for example in self._left:
            return example
        self._end.asked += 1
        if self._end.asked == 1:
            self._end.paced = self._epoch.place > self._start or self._epoch.short
        raise StopIteration

    def __del__(self) -> None:
        self._end.gone = True
        if self._epoch.end is self._end:
            self._epoch.tell_dropped()


@final
class Epoch:
    """One epoch, as this rank sees it. Ranks take turns among its examples, as in a doubled batch.

    ``number`` is -1 before the first; ``before`` are the visits that earlier ones trained, on all ranks.
    """

    def __init__(self, ranks: Ranks, number: int = -1, draw: Draw | None = None, before: int = 0) -> None:
        self.ranks, self.number, self.draw, self.before = ranks, number, draw, before
        self.place = 0  # candidates of this rank that the loop has given back
        self.batch = 0  # the most that the loop ever gave back at once
        self.reports = False  # whether the loop ever gave anything back
        self.end = End()  # of its latest iterator
        self.again = False  # it comes once more, since nothing of it was reported
        self.loaded = False  # in the middle of it, which goes on
        self.last = False  # no other comes after it
        self.told = False  # what of it is lost

    @property
    def goes_on(self) -> bool:
        """Whether the next iterator is of this epoch: after a load, or where it was only peeked into.

        Less than a batch comes once: a loader that drops a short last one gives nothing of it, however often it asks.
        """
        untouched = not self.place and (self.reports or not self.ended)
        return self.draw is not None and (untouched or self.loaded) and not (self.ended and self.short)

    @property
    def ended(self) -> bool:
        """Whether its latest iterator ran to its end."""
        return self.end.asked > 0

    @property
    def left(self) -> int:
        """Candidates of this rank that the loop has not given back."""
        return self.count // self.ranks.count - self.place

    @property
    def short(self) -> bool:
        """Whether less than a batch is left of it."""
        return 0 < self.left < self.batch

    @property
    def silent(self) -> bool:
        """Whether all of it was handed out, to a loop that never gave anything back."""
        return self.ended and not self.reports

    @property
    def count(self) -> int:
        """Candidates, on all ranks."""
        return 0 if self.draw is None else self.draw.index.numel()

    @property
    def given(self) -> int:
        """Candidates that the loop had, on all ranks; of one that reports nothing, those that were handed out."""
        return self.count if self.silent else self.place * self.ranks.count

    def mine(self, start: int, stop: int | None = None) -> Draw:
        """Visits of this rank, from one place to another."""
        assert self.draw is not None
        turns = slice(self.ranks.number, None, self.ranks.count)
        return Draw(self.draw.index[turns][start:stop], self.draw.weight[turns][start:stop])

    def rest(self) -> Iterator[int]:
        """The examples of this rank that are left, as of now."""
        self.end = End()
        return Pull(self, self.mine(self.place).index.tolist())

    def comes_again(self) -> bool:
        """Whether to give out once more what a loop took in silence, as a look may have."""
        if not self.silent or self.again:
            return False
        self.again = True
        warn("RA402", f"nothing of epoch {self.number} was reported, so it comes again, once; {ORDER} A look at a "
             "batch belongs into another loader")  # fmt: skip
        return True

    def tell_dropped(self) -> None:
        """Say at once what no later epoch says: of the last one, or of a rest after a load, which is an empty loop."""
        if self.told or not (self.short and self.end.dropped and (self.loaded or self.last)):
            return
        self.told = True
        after = "; it was the last" if self.last else f"; the next iterator is of epoch {self.number + 1}"
        rest = "what was left after the load, " if self.loaded else ""
        warn("RA402", f"a loader took {rest}{self.left * self.ranks.count} of the {self.count} visits of epoch "
             f"{self.number}, less than a batch, and let go of them before any was reported, as drop_last does{after}. "
             "Leave drop_last off")  # fmt: skip

    def tell_lost(self) -> None:
        """Say, when the next one begins, what was never trained of it."""
        if self.given < self.count and not self.told:
            self.told = True
            warn("RA402", f"{self.count - self.given} of the {self.count} visits of epoch {self.number} were drawn and "
                 "never trained; leave drop_last off; a trainer must ask for each epoch's length anew")  # fmt: skip

    def take(self, index: Tensor) -> Tensor:
        """Weights of the examples whose turn it is; moves on.

        Raises:
            StateError: they are others.
        """
        if self.draw is None:
            raise StateError("no epoch has begun; iterate over the loader that has this sampler")
        stop = self.place + index.numel()
        turn = self.mine(self.place, stop)
        if not torch.equal(index.cpu(), turn.index):
            raise StateError(f"these are not the examples whose turn it is in epoch {self.number}; {ORDER}")
        self.place, self.reports, self.loaded = stop, True, False
        self.batch = max(self.batch, index.numel())
        return turn.weight

    def after(self, draw: Draw, trained: int) -> Epoch:
        """The next one, where this one trained so many visits, on all ranks."""
        coming = Epoch(self.ranks, self.number + 1, draw, self.before + trained)
        coming.reports, coming.batch = self.reports, self.batch
        return coming

    def state(self, identity: Sequence[int], longest: int) -> dict[str, Tensor]:
        """It as plain tensors, of one length over the whole run, as checkpoints want it."""
        index, weight = torch.full((longest,), -1), torch.zeros(longest, dtype=torch.float64)
        if self.draw is not None:
            index[: self.count], weight[: self.count] = self.draw.index, self.draw.weight
        over = self.short and self.end.dropped and self.end.paced
        ended = OVER if over else ENDED if self.ended else 0
        stands = [self.number, self.place, ended, int(self.reports), self.before, self.batch]
        return {"numbers": torch.tensor([*identity, *stands]), "index": index, "weight": weight}


def epoch_of(state: dict[str, Any], identity: Sequence[int], plan: VisitPlan, ranks: Ranks) -> Epoch:
    """The epoch of a state that came from outside.

    Args:
        state: as `Epoch.state` writes it.
        identity: what it must have in common with the visits that load it.
        plan: of those visits.
        ranks: the same.

    Raises:
        RecordError: it is of other visits, or damaged.
    """
    mine = list(identity)
    numbers = integers(state.get("numbers"), len(mine) + STANDS)
    if numbers[: len(mine)] != mine:
        raise RecordError(
            f"the state is of other visits: format, seed, epochs, method and budget, ranks, rank are "
            f"{numbers[: len(mine)]}, here {mine}; make Visits as they were, and load each rank's own state"
        )
    number, place, ended, reports, before, batch = numbers[len(mine) :]
    epochs = len(plan.per_epoch)
    share = plan.share(number) if 0 <= number < epochs else 0
    fits = -1 <= number < epochs and 0 <= place <= share and reports in (0, 1)
    fits &= ended in (0, ENDED, OVER)
    if not fits or not 0 <= before <= plan.budget or not 0 <= batch <= plan.longest:
        raise RecordError(f"the state is at visit {place} of epoch {number}: it is damaged")
    count = share * ranks.count
    index, weight = state.get("index"), state.get("weight")
    if not torch.is_tensor(index) or not torch.is_tensor(weight) or index.shape != (plan.longest,):
        raise RecordError(f"the state's draw is not of {plan.longest} visits: it is damaged")
    drawn = Draw(index[:count].cpu().clone(), weight[:count].cpu().clone())
    try:
        exact(drawn, count, plan.count, "the state")
    except StateError as error:
        raise RecordError(f"the state is damaged: {error}") from error
    epoch = Epoch(ranks, number, drawn if number >= 0 else None, before)
    epoch.place, epoch.batch, epoch.reports, epoch.loaded = place, batch, bool(reports), 0 < place < share
    epoch.last = number == epochs - 1
    if ended == OVER or (ended and not reports):  # else workers ran ahead of the loop: what they held comes again
        epoch.end = End(1, gone=True, paced=True)
    return epoch


def integers(found: object, count: int) -> list[int]:
    """Read a tensor of integers that came from outside."""
    if not torch.is_tensor(found) or found.dtype != torch.int64 or found.shape != (count,):
        raise RecordError("the state is not one of realloc.Visits, or damaged")
    return found.tolist()
