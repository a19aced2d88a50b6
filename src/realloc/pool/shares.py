"""Shares of learning rate: where they are kept, in buffers of the model, and how they reach the optimizer in a step."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from typing import Any, Final, final

import torch
from torch import Tensor, nn

from realloc.errors import RecordError

KEY: Final = "realloc_rates"
SUMS: Final = "realloc_rate_sums"
FIELDS: Final = ("format", "seed", "steps", "moves", "spent", "seen")
MEASURED: Final = ("gain", "movement", "weight", "gradient")
FORMAT: Final = 1


@final
class Shares:
    """Counts of one attached model, one integer share a group, and the sums of a window that is being measured."""

    def __init__(self, owner: nn.Module, groups: int, seed: int, even: int) -> None:
        self.owner = owner
        if KEY in owner._buffers:  # registered before, so that a checkpoint could be loaded into it
            return
        device = next(owner.parameters()).device
        numbers = dict.fromkeys(FIELDS, 0) | {"format": FORMAT, "seed": seed}
        owner.register_buffer(KEY, torch.tensor([*(numbers[f] for f in FIELDS), *[even] * groups], device=device))
        owner.register_buffer(SUMS, torch.zeros(len(MEASURED), groups, dtype=torch.float64, device=device))

    @property
    def tensor(self) -> Tensor:
        """The buffer of integers."""
        found = self.owner._buffers[KEY]
        assert found is not None
        return found

    @property
    def sums(self) -> Tensor:
        """Of what was measured in this window, ``[4, groups]``."""
        found = self.owner._buffers[SUMS]
        assert found is not None
        return found

    def read(self, name: str) -> int:
        """One number."""
        return int(self.tensor[FIELDS.index(name)])

    def write(self, name: str, value: int) -> None:
        """Set one number."""
        self.tensor[FIELDS.index(name)] = value

    def add(self, name: str) -> int:
        """Add one; returns the number."""
        return int(self.tensor[FIELDS.index(name)].add_(1))

    @property
    def held(self) -> tuple[int, ...]:
        """The shares."""
        return tuple(self.tensor[len(FIELDS) :].tolist())

    def give(self, shares: tuple[int, ...]) -> None:
        """Write the shares that count from now on."""
        self.tensor[len(FIELDS) :] = torch.tensor(shares, device=self.tensor.device)

    def measured(self, rows: Tensor) -> None:
        """Add one step's numbers, ``[4, groups]``."""
        self.sums.add_(rows)
        self.add("seen")

    def forget(self) -> None:
        """A new window."""
        self.sums.zero_()
        self.write("seen", 0)

    @property
    def stamp(self) -> int:
        """Equal on ranks that share alike."""
        return zlib.crc32(repr(self.tensor.tolist()).encode())

    def check(self, state: Mapping[str, Tensor], prefix: str) -> None:
        """Validate a state before anything of it is copied; one of a plain model has nothing to say.

        Raises:
            RecordError: it is that of other groups or of another version.
        """
        found, sums = state.get(prefix + KEY), state.get(prefix + SUMS)
        if found is None:
            return
        mine = self.tensor
        if found.dtype != torch.int64 or found.shape != mine.shape or int(found[0]) != FORMAT:
            raise RecordError(
                f"{prefix}{KEY} is not that of a model of {len(mine) - len(FIELDS)} groups in format {FORMAT}; load "
                "the state of a model attached with the same groups"
            )
        whole = sums is not None and sums.dtype == torch.float64 and sums.shape == self.sums.shape
        if not whole or bool((found[2 : len(FIELDS)] < 0).any()) or bool((found.abs()[len(FIELDS) :] > 2**40).any()):
            raise RecordError(f"{prefix}{KEY} holds numbers that no run writes: the state is damaged")


@final
class Split:
    """The optimizer's groups, split by rate for the length of one step.

    A scheduler sees the user's groups and their rates; the step sees finer ones, each with its multiple of the rate.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, unit_of: Mapping[int, int]) -> None:
        self._optimizer, self._unit_of = optimizer, unit_of
        self._whole: list[dict[str, Any]] | None = None
        self._parts: list[tuple[dict[str, Any], dict[str, Any]]] = []

    def open(self, rates: tuple[float, ...]) -> None:
        """Split, for one step."""
        self._whole = self._optimizer.param_groups
        self._parts = []
        for group in self._whole:
            places: dict[int, list[nn.Parameter]] = {}
            for parameter in group["params"]:
                places.setdefault(self._unit_of.get(id(parameter), -1), []).append(parameter)
            for unit, parameters in places.items():
                rate = group["lr"] if unit < 0 else group["lr"] * rates[unit]
                self._parts.append((group, {**group, "params": parameters, "lr": rate}))
        self._optimizer.param_groups = [part for _, part in self._parts]

    def close(self) -> str | None:
        """Put the user's groups back; returns what the optimizer wrote into a group, which would be lost."""
        if self._whole is None:
            return None
        wrote = next(
            (
                str(key)
                for group, part in self._parts
                for key in part
                if key not in ("params", "lr") and (key not in group or part[key] is not group[key])
            ),
            None,
        )
        self._optimizer.param_groups, self._whole, self._parts = self._whole, None, []
        return wrote
