"""Shares of learning rate: where they are kept, in buffers of the model, and how they reach the optimizer in a step."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, final

import torch
from torch import Tensor, nn

from realloc.allocate.rate_shares import Hold
from realloc.errors import RecordError
from realloc.pool.book import Book

KEY: Final = "realloc_rates"
SUMS: Final = "realloc_rate_sums"
FIELDS: Final = ("format", "made", "seed", "steps", "moves", "spent", "seen")
MEASURED: Final = ("gain", "movement", "weight", "gradient")
ROWS: Final = len(MEASURED) + 1  # the last: whether a step since the last decision had a gradient
FORMAT: Final = 3
OURS: Final = "realloc_"  # begins an entry of a group that says whose moments it has


@final
@dataclass(frozen=True)
class Terms:
    """What shares are of: a state under other terms is another's."""

    method: str
    hold: Hold
    most: float
    groups: tuple[str, ...]

    @property
    def stamp(self) -> int:
        """A number for all of them."""
        return zlib.crc32(repr((self.method, self.hold.name, self.most, self.groups)).encode())

    def fit(self, shares: tuple[int, ...], spent: int) -> bool:
        """Whether shares are within their bounds and hold the budget."""
        low, high = self.hold.bounds(self.most)
        budget = self.hold.budget(len(self.groups))
        exact = spent <= budget if self.hold.needs_movement else sum(shares) == spent == budget
        return exact and all(low <= one <= high for one in shares)


@final
class Shares:
    """Counts of one attached model, one integer share a group, and the sums of a window that is being measured."""

    def __init__(self, owner: nn.Module, terms: Terms, seed: int) -> None:
        self.owner, self.terms = owner, terms
        count, device = len(terms.groups), next(owner.parameters()).device
        self.book = Book(owner, KEY, FIELDS, FORMAT)
        # of a copied or pickled model, which goes on where the terms are the same
        self.goes_on = self.book.there and len(self.book.tail) == count and self.book.read("made") == terms.stamp
        if self.goes_on:
            return
        self.book.register({"made": terms.stamp, "seed": seed}, [terms.hold.even] * count, device)
        # doubles, kept as their bits: model.float() and model.half() leave integers alone
        owner.register_buffer(SUMS, torch.zeros(ROWS, count, dtype=torch.int64, device=device))

    @property
    def sums(self) -> Tensor:
        """Of what was measured in this window, ``[4, groups]``."""
        return self._rows[:-1]

    @property
    def heard(self) -> tuple[bool, ...]:
        """By group, whether a step since the last decision had a gradient."""
        return tuple(one > 0 for one in self._rows[-1].tolist())

    def hear(self, group: int) -> None:
        """A step has a gradient for a group."""
        self._rows[-1, group] = 1.0

    @property
    def _rows(self) -> Tensor:
        found = self.owner._buffers[SUMS]
        assert found is not None
        return found.view(torch.float64)

    @property
    def held(self) -> tuple[int, ...]:
        """The shares."""
        return tuple(self.book.tail.tolist())

    def give(self, shares: tuple[int, ...]) -> None:
        """Write the shares that count from now on."""
        self.book.tail[:] = torch.tensor(shares)

    def measured(self, rows: Tensor) -> None:
        """Add one step's numbers, ``[4, groups]``."""
        self.sums.add_(rows)
        self.book.add("seen")

    def forget(self) -> None:
        """After a decision: a new window."""
        self._rows.zero_()
        self.book.write("seen", 0)

    def load(self, found: Mapping[str, Tensor]) -> None:
        """Go on from what a state says.

        Raises:
            RecordError: as `check`; nothing was changed then.
        """
        self.check(found, "")
        for name, value in found.items():
            self.owner.get_buffer(name).copy_(value)

    @property
    def stamp(self) -> int:
        """Equal on ranks that share alike."""
        return zlib.crc32(repr(self.book.tensor.tolist()).encode())

    def check(self, state: Mapping[str, Tensor], prefix: str) -> None:
        """Validate a state before anything of it is copied; one of a plain model has nothing to say.

        Raises:
            RecordError: it is that of other groups or of another version.
        """
        found, sums = state.get(prefix + KEY), state.get(prefix + SUMS)
        if found is None and sums is None:
            return
        if found is None or sums is None:
            raise RecordError(f"{prefix}{KEY} and {prefix}{SUMS} belong together, and one of them is missing")
        numbers = self.book.named(found) if self.book.fits(found) else {}
        if numbers.get("made") != self.book.read("made"):
            raise RecordError(
                f"{prefix}{KEY} is not of {self.terms.method} over these {len(self.held)} groups, with the same "
                f"hold and bounds, in format {FORMAT}; attach the method that the state was saved under"
            )
        whole = sums is not None and sums.dtype == torch.int64 and sums.shape == self._rows.shape
        counts = min(numbers[name] for name in ("steps", "moves", "seen")) >= 0
        if not whole or not counts or not self.terms.fit(tuple(found[len(FIELDS) :].tolist()), numbers["spent"]):
            raise RecordError(f"{prefix}{KEY} holds numbers that no run writes: the state is damaged")


@final
class Split:
    """The optimizer's groups, split by rate for the length of one step, in the list that was there.

    A scheduler sees the user's groups and their rates; the step sees finer ones, each with its multiple of the rate.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, unit_of: Mapping[int, int]) -> None:
        self._optimizer, self.unit_of = optimizer, unit_of
        self._parts: list[tuple[dict[str, Any], dict[str, Any], Any]] = []  # the user's, ours, and the rate it got

    def open(self, rates: tuple[float, ...]) -> None:
        """Split, for one step; while it is open, as where a step runs its closure twice, a second call does nothing."""
        if self._parts:
            return
        groups = self._optimizer.param_groups
        for group in groups:
            places: dict[int, list[nn.Parameter]] = {}
            for parameter in group["params"]:
                places.setdefault(self.unit_of.get(id(parameter), -1), []).append(parameter)
            for unit, parameters in places.items():
                rate = group["lr"] if unit < 0 else group["lr"] * rates[unit]
                self._parts.append((group, {**group, "params": parameters, "lr": rate}, rate))
        groups[:] = [part for _, part, _ in self._parts]

    def close(self) -> str | None:
        """Put the user's groups back; returns what was written into a group meanwhile, which would be lost."""
        if not self._parts:
            return None
        groups = self._optimizer.param_groups
        wrote = "a new group" if len(groups) != len(self._parts) else None
        before = {id(group): dict(group) for group, _, _ in self._parts}
        for group, part, rate in self._parts:
            for key, value in part.items():
                kept = rate if key == "lr" else before[id(group)].get(key, self)
                if key == "params" or value is kept:
                    continue
                if key.startswith(OURS):  # of another kind of unit, which found its parameters in this part
                    group[key] = value
                else:
                    wrote = wrote or key
        whole = {id(group): group for group, _, _ in self._parts}
        groups[:], self._parts = list(whole.values()), []
        return wrote
