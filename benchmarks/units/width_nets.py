"""Nets whose widths move, two small image sets, and one way to train: what `width.py` measures with.

Fashion-MNIST: the first 12,800 training images. CIFAR-10: the first 12,800, each 2 x 2 pixels averaged to 16 x 16.
REALLOC_DATA may name the folder of `cifar10-jpeg.npz`.
"""

from __future__ import annotations

import io
import os
import time
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import realloc
from realloc.methods.width_method import WidthMethod
from realloc.train import fashion_mnist
from realloc.train.dataset import Dataset, Rows

TRAIN, HELD_OUT, CLASSES = 12_800, 3_000, 10
BATCH = {"fashion-mnist": 128, "cifar-10": 64}
MOVES, UNTIL = 15, 0.75
PIXELS = {"fashion-mnist": 784, "cifar-10": 3}
# outputs of each layer that a weight takes part in, for one example
POSITIONS = {"fashion-mnist": (1, 1, 1), "cifar-10": (64, 64, 16, 1)}
EXAMPLE = {"fashion-mnist": (1, 784), "cifar-10": (1, 3, 16, 16)}


@cache
def images(name: str) -> Dataset:
    """Standardised; the same rows are held out and tested whatever the seed of a run."""
    if name == "fashion-mnist":
        found = fashion_mnist.load()
        parts = (found.train, TRAIN), (found.validation, HELD_OUT), (found.test, None)
        rows = [Rows(part.x[:most], part.y[:most]) for part, most in parts]
        return Dataset(name, "classification", rows[0], rows[1], rows[2], found.classes)
    file = Path(os.environ.get("REALLOC_DATA", "../shared/data")) / "cifar10-jpeg.npz"
    with np.load(file) as kept:
        x, y = _decoded(kept, "train", TRAIN + HELD_OUT)
        test_x, test_y = _decoded(kept, "test", None)
    mean, scale = x[:TRAIN].mean((0, 2, 3), keepdim=True), x[:TRAIN].std((0, 2, 3), keepdim=True)
    x, test_x = (x - mean) / scale, (test_x - mean) / scale
    parts = Rows(x[:TRAIN], y[:TRAIN]), Rows(x[TRAIN:], y[TRAIN:]), Rows(test_x, test_y)
    return Dataset(name, "classification", *parts, tuple(str(one) for one in range(CLASSES)))


def _decoded(kept: Any, part: str, most: int | None) -> tuple[Tensor, Tensor]:
    from PIL import Image

    offsets, packed, labels = (kept[f"{part}_{key}"] for key in ("offsets", "bytes", "labels"))
    labels = labels[:most]
    found = np.stack([
        np.asarray(Image.open(io.BytesIO(packed[offsets[i] : offsets[i + 1]].tobytes())).convert("RGB"))
        for i in range(len(labels))
    ])  # fmt: skip
    x = torch.from_numpy(found).permute(0, 3, 1, 2).float().div_(255)
    return nn.functional.avg_pool2d(x, 2), torch.from_numpy(labels.astype(np.int64))


def net(name: str, widths: Sequence[int]) -> nn.Sequential:
    """An MLP of two hidden layers, or three convolutions with batch norms, at these widths."""
    if name == "fashion-mnist":
        a, b = widths
        return nn.Sequential(
            nn.Linear(PIXELS[name], a), nn.ReLU(), nn.Linear(a, b), nn.ReLU(), nn.Linear(b, CLASSES)
        )  # fmt: skip
    a, b, c = widths
    return nn.Sequential(
        nn.Conv2d(PIXELS[name], a, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(a), nn.ReLU(),
        nn.Conv2d(a, b, 3, padding=1, bias=False), nn.BatchNorm2d(b), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(b, c, 3, padding=1, bias=False), nn.BatchNorm2d(c), nn.ReLU(), nn.AdaptiveAvgPool2d(1),
        nn.Flatten(), nn.Linear(c, CLASSES),
    )  # fmt: skip


def costs(name: str, model: nn.Module) -> dict[str, int]:
    """Parameters whose number follows a width, and FLOPs of one example's forward, counted on a plain model."""
    layers = [one for one in model.modules() if isinstance(one, (nn.Linear, nn.Conv2d))]
    total = sum(one.numel() for one in model.parameters()) - CLASSES  # the last bias follows none
    products = sum(p * one.weight.numel() for p, one in zip(POSITIONS[name], layers, strict=True))
    return {"parameters": total, "FLOPs": 2 * products}


def cost_at(name: str, widths: Sequence[int], currency: str) -> int:
    """What a net of these widths costs."""
    with torch.device("meta"):
        return costs(name, net(name, widths))[currency]


def widest(name: str, shape: Sequence[float], budget: int, currency: str) -> tuple[int, ...]:
    """The widest net of these proportions that a budget pays for; then unit by unit, until no layer's fits."""
    low, high = 0.0, 1e4
    while high - low > 1e-3:
        middle = (low + high) / 2
        pays = cost_at(name, [max(1, int(middle * part)) for part in shape], currency) <= budget
        low, high = (middle, high) if pays else (low, middle)
    widths = [max(1, int(low * part)) for part in shape]
    while True:
        more = [[*widths[:i], width + 1, *widths[i + 1 :]] for i, width in enumerate(widths)]
        fits = [one for one in more if cost_at(name, one, currency) <= budget]
        if not fits:
            return tuple(widths)
        widths = max(fits, key=lambda one: cost_at(name, one, currency))


def fit(name: str, widths: Sequence[int], method: WidthMethod, rate: float, seed: int, epochs: int) -> dict[str, Any]:
    """Train as every arm is trained; what is judged and counted is the plain model that comes out."""
    rows, size = images(name), BATCH[name]
    torch.manual_seed(seed)
    model = net(name, widths)
    steps = epochs * (TRAIN // size)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate)
    falling = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    schedule = realloc.every(int(UNTIL * steps) // MOVES, until=UNTIL, total=steps) if method.moves else None
    handle = realloc.attach(model, optimizer, method, schedule=schedule, seed=seed)
    weights = [one for one in handle.sites.values() if one.name.endswith(".weight") and len(one.shape) > 1]
    order, began, products, moved = torch.Generator().manual_seed(seed), time.perf_counter(), 0, -1
    forward = 0
    for _ in range(epochs):
        for batch in torch.randperm(TRAIN, generator=order).split(size):
            if handle.moves != moved:
                moved = handle.moves
                forward = 2 * sum(p * one.held for p, one in zip(POSITIONS[name], weights, strict=True))
            products += 3 * size * forward  # forward, and both gradients
            loss = nn.functional.cross_entropy(model(rows.train.x[batch]), rows.train.y[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            falling.step()
    spent = time.perf_counter() - began
    plain = realloc.export.dense(model).eval()
    layers = [one for one in plain.modules() if isinstance(one, (nn.Linear, nn.Conv2d))]
    return {
        "held": accuracy(plain, rows.validation), "test": accuracy(plain, rows.test), "seconds": spent,
        "training FLOPs": products, "widths": [one.weight.shape[0] for one in layers[:-1]],
        "moves": handle.moves, "units moved": handle.units_moved, **costs(name, plain),
    }  # fmt: skip


@torch.no_grad()
def accuracy(model: nn.Module, rows: Rows) -> float:
    """In percent."""
    found = torch.cat([model(part).argmax(1) for part in rows.x.split(1_000)])
    return 100 * float((found == rows.y).double().mean())
