"""What the loop reported of each example: sums over the running epoch, means of the last one that visited it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, final

import torch
from torch import Tensor

from realloc.errors import ConfigError, RecordError
from realloc.observe.ranks import Ranks

KINDS: Final = ("loss", "score")


@final
@dataclass(frozen=True, eq=False)
class Past:
    """What a method may know of the examples when an epoch is drawn. Each of shape (n,), on the CPU."""

    loss: Tensor  # float64, mean over the last epoch that visited the example; NaN: never visited
    score: Tensor  # float64, the same of what the loop gave as ``score=``
    visits: Tensor  # int64, so far

    def __len__(self) -> int:
        return self.visits.numel()


@final
class Visited:
    """Numbers of ``count`` examples. Reports stay on their device until an epoch is over, or a state is taken."""

    def __init__(self, count: int) -> None:
        self._known = {kind: torch.full((count,), torch.nan, dtype=torch.float64) for kind in KINDS}
        self._visits = torch.zeros(count, dtype=torch.int64)
        self._waiting: list[tuple[str, Tensor, Tensor]] = []
        self.begin()

    def __len__(self) -> int:
        return self._visits.numel()

    @property
    def past(self) -> Past:
        """As of the last `settle`."""
        return Past(self._known["loss"], self._known["score"], self._visits)

    def drawn(self, index: Tensor) -> None:
        """Count the visits of an epoch that is over; every rank knows all of them."""
        self._visits = self._visits + torch.bincount(index, minlength=len(self))

    def unvisit(self) -> None:
        """No visit counts so far: the loop reported none."""
        self._visits = torch.zeros_like(self._visits)

    def begin(self) -> None:
        """A new epoch: no sums."""
        count = len(self)
        self._sums = {kind: torch.zeros(count, dtype=torch.float64) for kind in KINDS}
        self._counts = {kind: torch.zeros(count, dtype=torch.int64) for kind in KINDS}
        self._bad = 0

    def report(self, index: Tensor, losses: Tensor, score: Tensor | None) -> None:
        """Keep a batch's numbers as they are now, whatever the loop writes there later; none leaves its device yet."""
        index = index.clone()
        self._waiting.append(("loss", index, losses.detach().clone()))
        if score is not None:
            self._waiting.append(("score", index, score.detach().clone()))

    def settle(self, ranks: Ranks) -> int:
        """Let the sums of all ranks become what is known; returns how many reports were not finite.

        The mean over an example's visits, so that ranks and a doubled batch agree.
        """
        self._gather()
        bad = self._bad
        for kind in KINDS:
            sums, counts = ranks.sum(self._sums[kind]), ranks.sum(self._counts[kind])
            self._known[kind] = torch.where(counts > 0, sums / counts, self._known[kind])
        return bad

    def _gather(self) -> None:
        """Bring waiting reports into the sums, in the order in which they came."""
        for kind, index, values in self._waiting:
            where, numbers = index.cpu(), values.to("cpu", torch.float64)
            fine = numbers.isfinite()
            self._bad += int((~fine).sum())
            self._sums[kind] = self._sums[kind].index_add(0, where[fine], numbers[fine])
            self._counts[kind] = self._counts[kind].index_add(0, where, fine.long())
        self._waiting.clear()

    def state(self) -> dict[str, Tensor]:
        """Everything, as plain tensors."""
        self._gather()
        state = {"visits": self._visits, "bad": torch.tensor(self._bad)}
        for kind in KINDS:
            state |= {kind: self._known[kind], f"{kind}_sum": self._sums[kind], f"{kind}_count": self._counts[kind]}
        return {name: tensor.clone() for name, tensor in state.items()}

    def load(self, state: dict[str, Any]) -> None:
        """Take a state over, or nothing of it.

        Raises:
            RecordError: it is of another number of examples, or damaged.
        """
        mine = self.state()
        for name, tensor in mine.items():
            found = state.get(name)
            if not torch.is_tensor(found) or found.dtype != tensor.dtype or found.shape != tensor.shape:
                raise RecordError(
                    f"the state's {name!r} is not that of {len(self)} examples; load that of this data set"
                )
            whole = tensor.dtype == torch.int64
            if bool((found < 0).any() if whole else (found.isinf()).any()):
                raise RecordError(f"the state's {name!r} holds numbers that no run writes: the state is damaged")
        kept = {name: state[name].cpu().clone() for name in mine}
        self._visits, self._bad = kept["visits"], int(kept["bad"])
        for kind in KINDS:
            self._known[kind], self._sums[kind], self._counts[kind] = (
                kept[kind], kept[f"{kind}_sum"], kept[f"{kind}_count"]
            )  # fmt: skip
        self._waiting.clear()


def check_report(index: Tensor, losses: Tensor, score: Tensor | None) -> None:
    """Refuse a batch that does not say one loss a visit.

    Raises:
        ConfigError: losses that were reduced already, or shapes that do not fit.
    """
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
