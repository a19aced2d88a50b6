"""The inside of a fine-tuning run: load, decide, train, judge. Time and memory are booked here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from typing import Any, final

import torch

import realloc.finetune.arms.table as arms
from realloc.cache.known import Known
from realloc.errors import warn
from realloc.finetune.aim import Judged
from realloc.finetune.arms.arm import Arm, Order, ledger_of, parameters_of
from realloc.finetune.config import FinetuneConfig
from realloc.finetune.decided import Decided, decide
from realloc.finetune.fit import fit
from realloc.finetune.focus import KEPT
from realloc.finetune.guide import Guide
from realloc.finetune.keep import Account, Keep
from realloc.finetune.moving import frozen_names
from realloc.finetune.result import FinetuneResult
from realloc.finetune.save import write_model
from realloc.finetune.scene import Scene, prepared
from realloc.finetune.trials import Trials
from realloc.finetune.watch import Watch
from realloc.handle import Handle
from realloc.layer_handle import LayerHandle
from realloc.pool.rights import moments_bytes
from realloc.shorten import shorten
from realloc.train.loop import Clock
from realloc.train.memory import Peak
from realloc.train.progress import LOADING, Progress, Tell
from realloc.train.stop import Interrupted, Stop
from realloc.train.threads import threads

METRICS = {"text-classification": "accuracy", "regression": "rmse", "causal-lm": "loss"}
MEASURING = "measuring"
PACKAGES = ("realloc", "torch", "transformers", "peft")


def session(config: FinetuneConfig, keep: Keep | None, tell: Tell) -> FinetuneResult:
    """Run to the end, from the newest checkpoint if ``keep`` has one.

    Global random numbers and the number of torch's threads end as they were.
    """
    clock = Clock()
    with threads(config.threads), Stop() as stop, torch.random.fork_rng(devices=[]):
        with clock.apart("setup"):
            tell(Progress(LOADING))
            scene = prepared(config)
        if stop.asked:
            raise Interrupted("in set-up", str(keep.path) if keep else None)
        tell(Progress(MEASURING))
        with Peak() as peak:
            done = _train(scene, keep, Tools(tell, clock, peak, stop))
        with clock.apart("evaluate"):
            test = None if scene.test is None else scene.aim.judge(done.arm.model, scene.test)
        return _result(scene, keep, done, clock, test)


@final
@dataclass(frozen=True, eq=False)
class Tools:
    """What a run is watched and measured with."""

    tell: Tell
    clock: Clock
    peak: Peak
    stop: Stop


@final
@dataclass(frozen=True, eq=False)
class Done:
    """A run after its last step."""

    decided: Decided
    arm: Arm
    steps: int
    held: Judged
    account: Account
    resumed_from: int | None


def _train(scene: Scene, keep: Keep | None, tools: Tools) -> Done:
    clock, peak = tools.clock, tools.peak
    found = keep.latest() if keep else None
    torch.manual_seed(scene.config.seed)
    if found is None:
        clock.start()
    decided = keep.decided() if keep else None
    known = Known(min(KEPT, scene.config.room.bytes))
    if decided is None:
        decided = decide(scene, known)
        if keep:
            keep.write_decided(decided)
    arm = begun(scene, decided, keep, known)
    course, write = (keep.course(), keep.write_course) if keep else (None, None)
    guide = Guide(decided.length, clock, scene.train, course, write)
    trials = None
    if decided.trial:
        trials = Trials(scene, arm, guide, decided.trial, keep.log.metric if keep else lambda step, values: None)
        arm = replace(arm, parts={**(arm.parts or {}), "trials": trials})
    watch = Watch(scene, guide, arm, keep, tell=tools.tell, clock=clock, peak=peak, stop=tools.stop)
    torch.manual_seed(scene.config.seed)
    if keep and found:
        watch.resume(keep.restore(found, arm))
        clock.start()
    else:
        guide.start(len(scene.held.rows))
    with clock.apart("setup"):  # it collects garbage, which may take half a second
        peak.training()
    steps = fit(arm, scene.train, scene.aim, guide, found.step if found else 0, _both(trials, watch))
    if isinstance(arm.handle, Handle) and (due := arm.handle.next_due) is not None:
        warn("RA006", f"the seconds ended at step {steps}, before the last move (step {due}): units are not where they "
             "were to be; give --budget more, or --epochs")  # fmt: skip
    held = scene.aim.judge(arm.model, scene.held)
    clock.stop()
    peak.look()
    if trials:
        decided = replace(decided, why="; ".join([decided.why, *trials.words]))
    return Done(decided, arm, steps, held, watch.account(), found.step if found else None)


def _both(trials: Trials | None, watch: Watch) -> Callable[[int, float], None]:
    """After a step the trials come first: the watch may save, and what it saves has them in it."""
    if trials is None:
        return watch

    def after(step: int, loss: float) -> None:
        trials(step)
        watch(step, loss)

    return after


def begun(scene: Scene, decided: Decided, keep: Keep | None = None, known: Known | None = None) -> Arm:
    """Make what the loop trains."""
    config, kind = scene.config, arms.KINDS[decided.method]
    if decided.kept is not None:
        shorten(scene.loaded.base, decided.kept)
    file = None if keep is None else keep.cache
    compute: Any = decided.compute  # a word that was written down
    cache = replace(config.room, epoch=len(scene.train.rows), compute=compute, file=file, known=known)
    rate = rate_of(config, decided)
    sink = keep.log if keep else None
    order = Order(
        rate, decided.expected, config.seed, decided.settings, scene.aim, scene.train, cache, sink, decided.table
    )
    arm = kind.make(scene.loaded, order)
    return replace(arm, frozen=frozen_names(arm.model, arm.optimizer, moves=kind.moves or decided.trial > 0))


def rate_of(config: FinetuneConfig, decided: Decided) -> float:
    """The rate of the pre-trained part."""
    return (config.lr or arms.KINDS[decided.method].rate) * decided.rate


def _result(scene: Scene, keep: Keep | None, done: Done, clock: Clock, test: Judged | None) -> FinetuneResult:
    config, decided, arm, account = scene.config, done.decided, done.arm, done.account
    judged = {} if test is None else test.metrics
    metric = METRICS[config.task]
    handle = arm.handle if isinstance(arm.handle, LayerHandle) else None
    result = FinetuneResult(
        method=config.method, used=decided.method, settings=dict(decided.settings), why=decided.why,
        model=config.model, data=config.data, task=config.task, seed=config.seed, steps=done.steps,
        epochs=done.steps / scene.train.per_epoch, batch_size=config.batch_size,
        lr=rate_of(config, decided),
        metric=metric, test_metric=judged.get(metric), test_accuracy=judged.get("accuracy"),
        test=judged or None, test_loss=judged.get("loss"), test_rmse=judged.get("rmse"), held=done.held.metrics,
        train_seconds=clock.seconds, evaluate_seconds=clock.elsewhere.get("evaluate", 0.0),
        save_seconds=clock.elsewhere.get("save", 0.0), setup_seconds=clock.elsewhere.get("setup", 0.0),
        trainable=sum(p.numel() for p in arm.model.parameters() if p.requires_grad),
        parameters=parameters_of(arm), ledger=ledger_of(arm),
        optimizer_bytes=moments_bytes(arm.optimizer, arm.model.parameters()),
        cached_bytes=0 if handle is None else handle.cached_bytes,
        peak_bytes=account.peak_bytes, train_peak_bytes=account.train_peak_bytes, mapped_bytes=account.mapped_bytes,
        layers=None if handle is None else dict(handle.layers),
        predicted_lora_seconds=decided.lora_seconds, costs=decided.costs,
        versions={name: _version(name) for name in PACKAGES}, threads=torch.get_num_threads(),
        finished=True, resumed_from=done.resumed_from, folder=str(keep.path) if keep else None,
    )  # fmt: skip
    if handle is not None:
        handle.detach()
    if keep is not None:
        labels = {"task": config.task, "classes": list(scene.classes)}
        write_model(keep.path, scene.loaded, arm, labels, scene.aim)
        keep.finish(result.as_json())
    return result


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
