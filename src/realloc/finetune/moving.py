"""A model as a checkpoint sees it: only what may change. The frozen weights are in the model's own folder already."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from typing import Any, final

import torch
from torch import Tensor, nn

from realloc.errors import RecordError
from realloc.pool.rights import held_by


@final
class Moving(nn.Module):
    """A view for saving and loading, never called.

    >>> model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
    >>> list(Moving(model, frozenset({"0.weight", "0.bias"})).state_dict())
    ['1.weight', '1.bias']
    """

    def __init__(self, model: nn.Module, frozen: frozenset[str]) -> None:
        super().__init__()
        self.__dict__["whole"] = model  # not a child: its names stay its own
        self.frozen = frozen

    def state_dict(self) -> dict[str, Any]:  # type: ignore[override]
        """What may change, by the model's own names."""
        return {name: value for name, value in self.__dict__["whole"].state_dict().items() if name not in self.frozen}

    def load_state_dict(self, values: Mapping[str, Any]) -> None:  # type: ignore[override]
        """Put it back."""
        self.__dict__["whole"].load_state_dict(values, strict=False)

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:  # type: ignore[override]
        """Of the whole model, for the optimizer's names."""
        found: Iterator[tuple[str, nn.Parameter]] = self.__dict__["whole"].named_parameters()
        return found


def frozen_names(model: nn.Module, optimizer: torch.optim.Optimizer, *, moves: bool) -> frozenset[str]:
    """Names of the parameters that can never train: frozen, and no layer's turn can come to them.

    Args:
        model: once its arm is made.
        optimizer: its optimizer.
        moves: whether what the optimizer holds may be let train later.
    """
    held = held_by(optimizer) if moves else frozenset()
    return frozenset(
        name for name, p in model.named_parameters(remove_duplicate=False) if not p.requires_grad and id(p) not in held
    )


def digest(model: nn.Module, frozen: frozenset[str]) -> str:
    """The sha256 of the frozen weights, by name."""
    found = hashlib.sha256()
    for name, p in model.named_parameters(remove_duplicate=False):
        if name in frozen:
            found.update(f"{name} {tuple(p.shape)} {p.dtype};".encode())
            found.update(_bytes(p.detach()))
    return found.hexdigest()


def check_digest(then: str, now: str) -> None:
    """Refuse to go on over other frozen weights.

    Raises:
        RecordError: they differ.
    """
    if then != now:
        raise RecordError(
            "the model's frozen weights are not those that the run began with; put the model back as it was, or start "
            "a new run"
        )


def _bytes(value: Tensor) -> memoryview:
    return value.contiguous().reshape(-1).view(torch.uint8).numpy().data
