"""A small table, a small net on it, and the same training written out plainly over a dense weight."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import realloc
from realloc.handle import Handle
from realloc.methods.column_method import ColumnMethod

INPUTS, HIDDEN, CLASSES = 12, 8, 3
RATE, BETAS, EPS, DECAY = 1e-2, (0.9, 0.999), 1e-8, 0.1
SITE = "0.weight"


def net(inputs: int = INPUTS, hidden: int = HIDDEN) -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, CLASSES)).double()


def rows(step: int, inputs: int = INPUTS) -> tuple[Tensor, Tensor]:
    x = torch.randn(24, inputs, generator=torch.Generator().manual_seed(step), dtype=torch.float64)
    return x, (x[:, 0] > 0).long() + (x[:, -1] > 0).long()


def made(method: ColumnMethod, model: nn.Module | None = None, **parts) -> tuple[nn.Module, torch.optim.AdamW, Handle]:
    model = net() if model is None else model
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, betas=BETAS, eps=EPS, weight_decay=DECAY)
    parts.setdefault("schedule", realloc.every(4, until=22, total=30))
    return model, optimizer, realloc.attach(model, optimizer, method, **parts)


def step_on(model: nn.Module, optimizer: torch.optim.Optimizer, step: int, inputs: int = INPUTS) -> float:
    x, y = rows(step, inputs)
    optimizer.zero_grad()
    loss = F.cross_entropy(model(x), y)
    loss.backward()
    optimizer.step()
    return loss.item()


class Plain:
    """The same net over a dense first weight whose columns outside ``held`` are zero; AdamW of that weight by hand."""

    def __init__(self, held: list[int]) -> None:
        model = net()
        self.held, self.steps = list(held), 0
        self.weight = torch.zeros(HIDDEN, INPUTS, dtype=torch.float64)
        self.weight[:, self.held] = model[0].weight.detach()[:, self.held]
        self.first, self.second = torch.zeros_like(self.weight), torch.zeros_like(self.weight)
        self.bias, self.head = model[0].bias, model[2]
        self.others = torch.optim.AdamW(
            [self.bias, *self.head.parameters()], lr=RATE, betas=BETAS, eps=EPS, weight_decay=DECAY
        )

    def logits(self, x: Tensor, weight: Tensor | None = None) -> Tensor:
        return self.head(F.relu(F.linear(x, self.weight if weight is None else weight, self.bias)))

    def step(self, number: int) -> Tensor:
        """One step. Returns the gradient of the dense weight, of every column."""
        x, y = rows(number)
        weight = self.weight.clone().requires_grad_()
        self.others.zero_grad()
        F.cross_entropy(self.logits(x, weight), y).backward()
        self.others.step()
        self.steps += 1
        gradient, here = weight.grad, self.held
        self.weight[:, here] *= 1 - RATE * DECAY
        self.first[:, here] = BETAS[0] * self.first[:, here] + (1 - BETAS[0]) * gradient[:, here]
        self.second[:, here] = BETAS[1] * self.second[:, here] + (1 - BETAS[1]) * gradient[:, here] ** 2
        root = (self.second[:, here] / (1 - BETAS[1] ** self.steps)).sqrt() + EPS
        self.weight[:, here] -= RATE / (1 - BETAS[0] ** self.steps) * self.first[:, here] / root
        return gradient

    def move(self, held: list[int]) -> None:
        """Who went is forgotten; who comes starts at zero, its second moments at the layer's median (without zeros)."""
        known = self.second[:, self.held].flatten()
        median = known[known != 0].median()
        gone, come = set(self.held) - set(held), set(held) - set(self.held)
        for state in (self.weight, self.first, self.second):
            state[:, sorted(gone)] = 0.0
        self.second[:, sorted(come)] = median
        self.held = sorted(held)


def best(scores: dict[int, float], count: int) -> list[int]:
    """The columns of the highest scores; the lower column wins a tie."""
    return sorted(sorted(scores, key=lambda column: (-scores[column], column))[:count])
