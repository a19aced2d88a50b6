"""A small model over ids with a heavy tail, and its run."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

import realloc
from realloc import methods
from realloc.hot_row_handle import HotRowHandle

IDS, DIM = 400, 6


class Net(nn.Module):
    """Two tables in one store, the second one of bags."""

    def __init__(self, rows: int | str = 60, *, directions: int = 0, own: float = 0.5, moments: int = 2) -> None:
        super().__init__()
        torch.manual_seed(0)
        store = realloc.nn.Rows(DIM, rows, num_ids=2 * IDS, own=own, directions=directions, moments=moments)
        self.users = realloc.nn.Embedding(IDS, DIM, store)
        self.items = realloc.nn.EmbeddingBag(IDS, DIM, store, mode="mean", padding_idx=0)
        self.head = nn.Linear(2 * DIM, 1)

    @property
    def store(self) -> realloc.nn.Rows:
        return self.users.store

    def forward(self, users: Tensor, items: Tensor) -> Tensor:
        return self.head(torch.cat([self.users(users), self.items(items)], 1)).squeeze(1)


def batch(step: int, size: int = 24) -> tuple[Tensor, Tensor, Tensor]:
    draw = torch.Generator().manual_seed(step)
    users = (torch.rand(size, generator=draw, dtype=torch.float64) ** 3 * IDS).long()
    items = (torch.rand(size, 3, generator=draw, dtype=torch.float64) ** 3 * IDS).long()
    return users, items, ((users % 2) ^ (items[:, 0] % 2)).float()


class Run:
    def __init__(
        self, score: Any = "gradient", *, optimizer: Any = torch.optim.AdamW, every: int = 4, total: int = 40,
        record: Any = None, model: nn.Module | None = None, attach: bool = True, **settings: Any,
    ) -> None:  # fmt: skip
        self.model = model or Net(directions=4 if score == "conflict" else 0, **settings)
        self.optimizer = optimizer(self.model.parameters(), lr=1e-2)
        self.handle: HotRowHandle | None = None
        if attach:
            method = methods.rows(score, look=1) if isinstance(score, str) else score
            self.handle = realloc.attach(
                self.model, self.optimizer, method, schedule=realloc.every(every, total=total), seed=3,
                record=record,
            )  # fmt: skip

    def step(self, number: int) -> None:
        users, items, target = batch(number)
        self.optimizer.zero_grad()
        binary_cross_entropy_with_logits(self.model(users, items), target).backward()
        self.optimizer.step()

    def train(self, steps: range) -> Run:
        for number in steps:
            self.step(number)
        return self
