"""What a run would do, and what it would take: told before anything is trained for good."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final, final

import torch
from torch import Tensor

from realloc.errors import plain
from realloc.finetune.arms.arm import Arm, ledger_of, parameters_of
from realloc.finetune.batches import Batch
from realloc.finetune.config import FinetuneConfig
from realloc.finetune.decided import decide
from realloc.finetune.guide import Guide
from realloc.finetune.scene import Scene, prepared
from realloc.finetune.session import begun
from realloc.handle import Handle
from realloc.sites.blocks import blocks_of
from realloc.train.loop import Clock
from realloc.train.memory import Peak
from realloc.train.threads import threads

FLOAT: Final = 4  # bytes of a float32
QUANTILES: Final = (0.5, 0.1, 0.9)  # of length, at which steps are timed


@final
@dataclass(frozen=True)
class Preview:
    """Layers, budget, and predictions from a few timed steps of a model that is thrown away.

    ``weight``, ``gradient`` and ``optimizer`` bytes are counted: 4, 4 and 8 for each parameter that they concern.
    ``peak_bytes`` is measured over these and a step of the longest texts, as anonymous memory over the loaded weights;
    ``activation_bytes`` is what remains of it without gradients and optimizer: activations, the arm's own weights, and
    all else.
    ``seconds``: of the run, without the judgement of the held-out texts; with a budget of seconds, all of that.
    """

    method: str
    used: str
    settings: Mapping[str, Any]
    budget: str | None
    why: str
    layers: Mapping[str, str]  # trains, frozen or dropped
    texts: int
    held_out: int
    judged: int
    steps: int
    trainable: int
    parameters: int
    ledger: Mapping[str, int] | None
    weight_bytes: int
    gradient_bytes: int
    optimizer_bytes: int
    activation_bytes: int | None
    peak_bytes: int | None
    seconds: float

    def as_json(self) -> dict[str, Any]:
        """As plain data."""
        return {"dry_run": True} | asdict(self)

    def __str__(self) -> str:
        chosen = ", ".join(f"{key}={value}" for key, value in self.settings.items())
        memory = (
            f"{_mb(self.weight_bytes)} weights, {_mb(self.gradient_bytes)} gradients, "
            f"{_mb(self.optimizer_bytes)} optimizer state (counted)"
        )
        if self.peak_bytes is not None and self.activation_bytes is not None:
            memory += f", {_mb(self.activation_bytes)} activations and all else (measured over a few steps)"
        lines = [
            f"{self.method}: {self.used} {chosen}".rstrip(),
            *([f"  {self.why}"] if self.why else []),
            f"  texts: {self.texts:,} to train on, {self.held_out:,} held out, {self.judged:,} to judge by",
            f"  budget: {self.budget or 'none'}; {self.steps:,} steps; trains {self.trainable:,} of "
            f"{self.parameters:,} parameters, the head among them",
            *([] if self.ledger is None else [f"  ledger: {account(self.ledger)}"]),
            *(f"    {plain(name)}: {word}" for name, word in self.layers.items()),
            f"  memory: {memory}",
            f"  time: about {self.seconds:.0f} s, from a few timed steps on batches of three lengths",
        ]
        return "\n".join(lines)


def account(ledger: Mapping[str, int]) -> str:
    """The ledger in words."""
    parts = " + ".join(f"{ledger[name]:,} {name}" for name in ("head", "held", "parked"))
    return f"{ledger['budget']:,} parameters = {parts}"


def _mb(value: int) -> str:
    return f"{value / 1e6:.1f} MB"


def preview(config: FinetuneConfig, timing: Callable[[], None] = lambda: None) -> Preview:
    """Load, decide, time a few steps, and say so; raises ConfigError where a run would. ``timing``: told before it."""
    with threads(config.threads), torch.random.fork_rng(devices=[]):  # loading seeds them
        return _measured(prepared(config), timing)


def _measured(scene: Scene, timing: Callable[[], None]) -> Preview:
    config = scene.config
    with Peak() as peak:
        clock = Clock()
        clock.start()
        decided = decide(scene)
        names = blocks_of(scene.loaded.base).names
        arm = begun(scene, decided)
        clock.stop()
        guide = Guide(decided.length, clock, scene.train)
        guide.start(len(scene.held.rows))
        ledger = ledger_of(arm)  # before the timed steps: ranks may move in them
        timing()
        first, later = _timed(scene, arm)
    seconds, steps = decided.length.seconds, decided.length.steps
    if seconds is None:
        epochs = steps / scene.train.per_epoch
        seconds = clock.seconds + scene.train.tokens * (first * min(1.0, epochs) + later * max(0.0, epochs - 1))
    else:
        steps = max(1, int(guide.left / (later * scene.train.tokens / scene.train.per_epoch)))
    blocks = blocks_of(scene.loaded.base)
    ranked = [s.name for s in arm.handle.sites.values() if s.held] if isinstance(arm.handle, Handle) else []
    words = dict.fromkeys(names, "dropped")
    for name, module in zip(blocks.names, blocks.modules, strict=True):
        held = any(p.requires_grad for p in module.parameters())
        words[name] = "trains" if held or any(f"{name}." in site for site in ranked) else "frozen"
    numbers = sum(p.numel() for p in arm.model.parameters() if p.requires_grad)
    whole = parameters_of(arm)
    rest = None if peak.bytes is None else max(0, peak.bytes - 3 * FLOAT * numbers)
    return Preview(
        method=config.method, used=decided.method, settings=dict(decided.settings), budget=config.budget,
        why=decided.why, layers=words, texts=len(scene.train.rows),
        held_out=len(scene.held.rows), judged=0 if scene.test is None else len(scene.test.rows), steps=steps,
        trainable=numbers, parameters=whole, ledger=ledger, weight_bytes=FLOAT * whole,
        gradient_bytes=FLOAT * numbers, optimizer_bytes=2 * FLOAT * numbers, activation_bytes=rest,
        peak_bytes=peak.bytes, seconds=seconds,
    )  # fmt: skip


def _timed(scene: Scene, arm: Arm) -> tuple[float, float]:
    """Seconds a token takes at the first visit of a batch, and at a later one; the longest batch is not timed."""
    order = scene.train.by_length()
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
            _step(scene, arm, batch, labels)
            if number:
                visit.append(time.perf_counter() - began)
        tokens += int(batch["attention_mask"].sum()) if number else 0
    _step(scene, arm, *scene.train.of(order[-size:]))  # the longest: what a run takes most memory for
    first, later = (sum(visit) / tokens for visit in visits)
    return first, later


def _step(scene: Scene, arm: Arm, batch: Batch, labels: Tensor) -> None:
    arm.optimizer.zero_grad()
    scene.aim.losses(arm.model, batch, labels)[0].mean().backward()  # type: ignore[no-untyped-call]
    arm.optimizer.step()
