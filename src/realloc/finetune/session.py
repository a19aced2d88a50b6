"""The inside of a fine-tuning run: load, decide, train, judge. Time and memory are booked here."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final, final

import torch
from torch import Tensor

import realloc.finetune.arms as arms
import realloc.finetune.focus as focus
import realloc.finetune.texts as texts
import realloc.finetune.weights as weights
from realloc.cache.settings import Cache
from realloc.errors import ConfigError
from realloc.finetune.aim import Aim, Judged
from realloc.finetune.batches import Batches, chunked, tokenise
from realloc.finetune.config import FinetuneConfig
from realloc.finetune.fit import fit
from realloc.finetune.pace import Length
from realloc.finetune.result import FinetuneResult
from realloc.finetune.save import write_model
from realloc.finetune.weights import Loaded
from realloc.layer_handle import LayerHandle
from realloc.observe.probes import one_hot
from realloc.pool.rights import moments_bytes
from realloc.train.memory import Peak
from realloc.train.progress import LOADING, Progress, Tell
from realloc.train.stop import Stop

EPOCHS: Final = 3.0


@final
@dataclass(frozen=True, eq=False)
class Scene:
    """What stays the same over a run."""

    config: FinetuneConfig
    loaded: Loaded
    aim: Aim
    train: Batches
    held: Batches
    test: Batches | None
    classes: tuple[str, ...]


def prepared(config: FinetuneConfig) -> Scene:
    """Load texts and weights, and tokenise: all that is slow and happens before the clock runs.

    Raises:
        ConfigError: anything a user can mend.
    """
    settings = arms.check(config.method, config.settings)
    del settings
    found = texts.read(config)
    loaded = weights.load(config, max(1, len(found.classes)))
    labels = torch.tensor([row.label for row in found.train])
    aim = Aim(config.task)
    if config.task == "regression":
        spread = float(labels.std())
        if not spread > 0:
            raise ConfigError("every label of the training texts is the same number; there is nothing to learn")
        aim = Aim(config.task, float(labels.mean()), spread)

    def made(rows: tuple[texts.Row, ...], where: str) -> Batches:
        if config.task == "causal-lm":
            tokens = chunked(rows, loaded.tokenizer, config.tokens)
            marks = torch.zeros(len(tokens))
        else:
            tokens = tokenise(rows, loaded.tokenizer, config.tokens, where)
            marks = torch.tensor([row.label for row in rows])
        return Batches(tokens, marks, config.batch_size, config.seed, loaded.tokenizer.pad_token_id)

    test = made(found.test, config.eval or config.data) if found.test else None
    return Scene(
        config, loaded, aim, made(found.train, config.data), made(found.held, config.data), test, found.classes
    )


def run(config: FinetuneConfig, folder: Path | None, tell: Tell) -> FinetuneResult:
    """Train and judge; with a folder, the model is written there at the end."""
    torch.set_num_threads(config.threads or torch.get_num_threads())
    tell(Progress(LOADING))
    scene = prepared(config)
    with Stop() as stop, Peak() as peak:
        clock = time.perf_counter()
        torch.manual_seed(config.seed)
        decided = decide(scene)
        arm = begun(scene, decided)
        peak.training()
        steps = fit(arm, scene.train, scene.aim, decided.length, config, clock, tell, stop)
        held = scene.aim.judge(arm.model, scene.held)
        seconds = time.perf_counter() - clock
        peak.look()
        result = _result(scene, decided, arm, steps, seconds, held, peak)
    if scene.test is not None:
        judged = scene.aim.judge(arm.model, scene.test)
        result = replace(result, test=judged.metrics)
    if isinstance(arm.handle, LayerHandle):
        arm.handle.detach()
    if folder is not None:
        write_model(folder, scene.loaded, arm, scene.classes, config.model)
    return result


@final
@dataclass(frozen=True)
class Decided:
    """What a run does: a method of the table, its settings, and its length."""

    method: str
    settings: Mapping[str, Any]
    length: Length
    compute: str
    why: str = ""
    choice: focus.Choice | None = None


def decide(scene: Scene) -> Decided:
    """Fix method, settings and length; focus measures before it does."""
    config, spend = scene.config, scene.config.spend
    settings = dict(arms.check(config.method, config.settings))
    epochs = config.epochs or EPOCHS
    most = spend.parameters_of(sum(p.numel() for p in scene.loaded.model.parameters()))
    choice = None
    why, compute, method = "", "float32", config.method
    if method == arms.FOCUS:
        if config.task == "causal-lm":
            raise ConfigError("focus probes labels, and causal-lm has none; use --method topk, lora or full")
        choice = focus.choose(scene.loaded, scene.train, epochs, float(settings["share"]), _targets(scene))
        why, compute = choice.why, choice.compute
        method, settings = ("lora", {"rank": 8}) if choice.k is None else ("topk", {"k": choice.k})
        epochs = choice.epochs
    if most is not None:
        settings = arms.within(method, settings, most, scene.loaded)
    endless = spend.seconds is not None
    steps = 10**7 if endless else max(1, math.ceil(epochs * scene.train.per_epoch))
    return Decided(method, settings, Length(steps, spend.seconds), compute, why, choice)


def _targets(scene: Scene) -> Tensor:
    labels = scene.train.labels
    return one_hot(labels.long()).argmax(1) if scene.classes else (labels - scene.aim.mean) / scene.aim.scale


def begun(scene: Scene, decided: Decided) -> arms.Arm:
    """Make what the loop trains."""
    config, kind = scene.config, arms.KINDS[decided.method]
    cache = Cache(epoch=len(scene.train.rows), compute=decided.compute)  # type: ignore[arg-type]
    rate = config.lr or kind.rate
    order = arms.Order(rate, decided.length.steps, config.seed, decided.settings, cache)
    return kind.make(scene.loaded, order)


def _result(
    scene: Scene, decided: Decided, arm: arms.Arm, steps: int, seconds: float, held: Judged, peak: Peak
) -> FinetuneResult:
    config = scene.config
    trainable = sum(p.numel() for p in arm.model.parameters() if p.requires_grad)
    return FinetuneResult(
        method=config.method, used=decided.method, settings=dict(decided.settings), why=decided.why,
        model=config.model, data=config.data, task=config.task, seed=config.seed, steps=steps,
        epochs=steps / scene.train.per_epoch, lr=config.lr or arms.KINDS[decided.method].rate,
        train_seconds=seconds, held=held.metrics, test=None, trainable=trainable,
        parameters=sum(p.numel() for p in arm.model.parameters()),
        optimizer_bytes=moments_bytes(arm.optimizer, arm.model.parameters()),
        cached_bytes=arm.handle.cached_bytes if isinstance(arm.handle, LayerHandle) else 0,
        peak_bytes=peak.bytes, layers=dict(arm.handle.layers) if isinstance(arm.handle, LayerHandle) else None,
        predicted_lora_seconds=None if decided.choice is None else decided.choice.lora_seconds,
        costs=None if decided.choice is None else asdict(decided.choice.costs), threads=torch.get_num_threads(),
    )  # fmt: skip
