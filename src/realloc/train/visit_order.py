"""Batches of examples that a method chooses, in the place of shuffled ones."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any, final

import torch
from torch import Tensor

from realloc.methods.example_method import ExampleMethod
from realloc.scores.logit_gradient import logit_gradient
from realloc.train.dataset import Inputs, Rows, Task
from realloc.visits import Visits


@final
class VisitBatches:
    """Batches in the order of `Visits`; each step takes the next one, and its loss reports to the method."""

    def __init__(self, rows: Rows, size: int, method: ExampleMethod, epochs: int, *, task: Task, seed: int) -> None:
        self._rows, self._size, self._task = rows, size, task
        self.visits = Visits(len(rows.y), method, epochs=epochs, seed=seed)
        self._coming: Iterator[int] = iter(())
        self._index = torch.empty(0, dtype=torch.int64)

    def at(self, step: int) -> tuple[Inputs, Tensor]:
        """The next batch; steps come in order."""
        chosen = self._next()
        if not chosen:
            self._coming = iter(self.visits)
            chosen = self._next()
        self._index = torch.tensor(chosen)
        return self._rows.at(self._index)

    def _next(self) -> list[int]:
        return list(itertools.islice(self._coming, self._size))

    def loss(self, out: Tensor, y: Tensor) -> Tensor:
        """The weighted loss of the batch that `at` gave last."""
        if self._task == "classification":
            losses = torch.nn.functional.cross_entropy(out, y, reduction="none")
            return self.visits.loss(self._index, losses, score=logit_gradient(out, y))
        error = out.squeeze(1) - y
        return self.visits.loss(self._index, error.square(), score=error.detach().abs())

    def state_dict(self) -> dict[str, Any]:
        """Where the epoch stands."""
        return self.visits.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there."""
        self.visits.load_state_dict(state)
        self._coming = iter(())
