"""The demonstration: five arms on real data, in two to three minutes on two cores."""

from __future__ import annotations

import statistics
import time

import torch
from torch import nn

import realloc.train.data as data
import realloc.train.models as models
import realloc.train.optimizers as optimizers
from realloc.compare.contest import Contest, contest
from realloc.train.config import RunConfig

# each arm's best rate on held-out training data; benchmarks/README.md has the command
RATES = {"dense": 2e-3, "small_dense": 4e-3, "static": 8e-3, "random_moves": 8e-3, "rigl": 8e-3}
ARMS = tuple(RATES)
MODEL, FEATURES, CLASSES = "mlp:1024,1024", 784, 10
BATCH, ROWS = 128, 54_000
SECONDS = 55.0  # for the dense arm and for the four others together, start-up left out
MOST_EPOCHS = 4


def demo_contest(seed: int = 0) -> Contest:
    """Choose data and length for this machine: Fashion-MNIST where it is found, else the digits."""
    source = data.usual()
    if source == "digits":
        return contest(RunConfig(data=source, model="mlp:256,256", density=0.1, seed=seed), ARMS, (seed,), {})
    epochs = max(1, min(MOST_EPOCHS, int(SECONDS / (dense_step() * ROWS / BATCH))))
    base = RunConfig(data=source, model=MODEL, density=0.05, epochs=epochs, seed=seed)
    return contest(base, ARMS, (seed,), {f"{arm}.lr": rate for arm, rate in RATES.items()})


def dense_step() -> float:
    """Seconds of one step of the dense arm here, the slowest of the five."""
    model = models.build(MODEL, FEATURES, CLASSES)
    optimizer = optimizers.make("adamw", model.parameters(), 1e-3)
    x, y = torch.zeros(BATCH, FEATURES), torch.zeros(BATCH, dtype=torch.int64)
    times = []
    for _ in range(12):
        begin = time.perf_counter()
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x), y)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        times.append(time.perf_counter() - begin)
    return statistics.median(times)
