"""What a run would do, and what it would take: told before anything is trained for good."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final, final

import torch

from realloc.finetune.arms import Arm
from realloc.finetune.config import FinetuneConfig
from realloc.finetune.session import Scene, begun, decide, prepared
from realloc.sites.blocks import blocks_of
from realloc.train.memory import Peak

FLOAT: Final = 4  # bytes of a float32
QUANTILES: Final = (0.5, 0.1, 0.9)  # of length, at which steps are timed


@final
@dataclass(frozen=True)
class Preview:
    """Layers, budget, and predictions from a few timed steps of a model that is thrown away."""

    method: str
    used: str
    settings: Mapping[str, Any]
    why: str
    layers: Mapping[str, bool]
    texts: int
    steps: int
    trainable: int
    parameters: int
    weight_bytes: int
    gradient_bytes: int
    optimizer_bytes: int
    peak_bytes: int | None  # measured over the timed steps: gradients, optimizer, activations and all else
    seconds: float  # of the whole run, held-out judgement left out

    def as_json(self) -> dict[str, Any]:
        """As plain data."""
        return asdict(self)

    def __str__(self) -> str:
        peak = (
            ""
            if self.peak_bytes is None
            else f", {_mb(self.peak_bytes)} at the peak over the loaded weights (measured)"
        )
        chosen = ", ".join(f"{key}={value}" for key, value in self.settings.items())
        lines = [
            f"{self.method}: {self.used} {chosen}".rstrip() + f" on {self.texts:,} texts, {self.steps:,} steps",
            *([f"  {self.why}"] if self.why else []),
            f"  trains {self.trainable:,} of {self.parameters:,} parameters",
            *(f"    {name}: {'trains' if on else 'frozen'}" for name, on in self.layers.items()),
            f"  memory: {_mb(self.weight_bytes)} weights, {_mb(self.gradient_bytes)} gradients, "
            f"{_mb(self.optimizer_bytes)} optimizer state{peak}",
            f"  about {self.seconds:.0f} s, from a few timed steps",
        ]
        return "\n".join(lines)


def _mb(value: int) -> str:
    return f"{value / 1e6:.1f} MB"


def preview(config: FinetuneConfig) -> Preview:
    """Load, decide, time a few steps, and say so."""
    torch.set_num_threads(config.threads or torch.get_num_threads())
    scene = prepared(config)
    with Peak() as peak:
        began = time.perf_counter()
        decided = decide(scene)
        deciding = time.perf_counter() - began
        arm = begun(scene, decided)
        first, later = _timed(scene, arm)
    epochs = decided.length.steps / scene.train.per_epoch
    seconds = decided.length.seconds
    if seconds is None:
        seconds = deciding + scene.train.tokens * (first * min(1.0, epochs) + later * max(0.0, epochs - 1))
    steps = decided.length.steps
    if decided.length.seconds is not None:
        steps = int(seconds / (later * scene.train.tokens / scene.train.per_epoch))
    blocks = blocks_of(scene.loaded.model)
    trains = [any(p.requires_grad for p in module.parameters()) for module in blocks.modules]
    numbers = sum(p.numel() for p in arm.model.parameters() if p.requires_grad)
    whole = sum(p.numel() for p in arm.model.parameters())
    return Preview(
        method=config.method, used=decided.method, settings=dict(decided.settings), why=decided.why,
        layers=dict(zip(blocks.names, trains, strict=True)), texts=len(scene.train.rows), steps=steps,
        trainable=numbers, parameters=whole, weight_bytes=FLOAT * whole, gradient_bytes=FLOAT * numbers,
        optimizer_bytes=2 * FLOAT * numbers, peak_bytes=peak.bytes, seconds=seconds,
    )  # fmt: skip


def _timed(scene: Scene, arm: Arm) -> tuple[float, float]:
    """Seconds a token takes at the first visit of a batch, and at a later one."""
    order = sorted(range(len(scene.train.rows)), key=lambda i: len(scene.train.rows[i]))
    size = min(scene.config.batch_size, len(order))
    visits: list[list[float]] = [[], []]
    tokens = 0
    arm.model.train()
    for number, quantile in enumerate((QUANTILES[0], *QUANTILES)):
        start = min(int(quantile * len(order)), len(order) - size)
        if number == 1:
            start = max(0, start - size)  # other rows than those that warmed the code up
        batch, labels = scene.train.of(order[start : start + size])
        for visit in visits:
            began = time.perf_counter()
            arm.optimizer.zero_grad()
            scene.aim.losses(arm.model, batch, labels)[0].mean().backward()  # type: ignore[no-untyped-call]
            arm.optimizer.step()
            if number:
                visit.append(time.perf_counter() - began)
        tokens += int(batch["attention_mask"].sum()) if number else 0
    first, later = (sum(visit) / tokens for visit in visits)
    return first, later
