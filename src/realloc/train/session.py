"""The inside of a run: load, rehearse, train, judge. Time and memory are booked here."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from statistics import mean
from typing import Any, final

import torch

import realloc.train.arms as arms
import realloc.train.data as data
import realloc.train.rehearse as rehearse
from realloc.handle import Handle
from realloc.methods.example_method import ExampleMethod
from realloc.record.checkpoint import Checkpoint
from realloc.train.arms import Arm
from realloc.train.compiling import announced
from realloc.train.config import RunConfig
from realloc.train.dataset import Dataset
from realloc.train.evaluate import METRIC, Quality, evaluate, loss_of
from realloc.train.held_inputs import held_inputs
from realloc.train.keep import Account, Keep
from realloc.train.length import Length, Pace, by_budget, by_epochs, chosen
from realloc.train.loop import Clock, Trainee, fit
from realloc.train.memory import Peak, highest
from realloc.train.models import parameters
from realloc.train.order import Batches
from realloc.train.progress import COMPILING, LOADING, WARMING, Progress, Tell
from realloc.train.prune_after import turn
from realloc.train.result import RunResult
from realloc.train.stop import Interrupted, Stop
from realloc.train.threads import threads
from realloc.train.watch import Doings, OutOfTime, Tally, Watch


@final
@dataclass(frozen=True, eq=False)
class Scene:
    """What stays the same over a run."""

    config: RunConfig
    data: Dataset
    arm: Arm
    batches: Batches
    length: Length
    keep: Keep | None
    tell: Tell
    stop: Stop


def session(config: RunConfig, keep: Keep | None, tell: Tell) -> RunResult:
    """Run to the end, from the newest checkpoint if ``keep`` has one."""
    clock = Clock()
    with threads(config.threads), Stop() as stop:
        with clock.apart("setup"):
            tell(Progress(LOADING))
            loaded = data.load(config.data, config.task, config.label, config.ids or ())
            batches = Batches(loaded.train, config.batch_size, config.seed)
            with nullcontext() if config.method == "dense" else announced(lambda: tell(Progress(COMPILING))):
                arm = arms.resolve(config, loaded)
                length = _rehearsed(config, loaded, arm, batches, keep, tell)
        scene = Scene(config, loaded, arm, batches, length, keep, tell, stop)
        if stop.asked:
            raise Interrupted("in set-up", str(keep.path) if keep else None)
        with Peak() as peak:
            return _train(scene, clock, peak)


def _rehearsed(config: RunConfig, loaded: Dataset, arm: Arm, batches: Batches, keep: Keep | None, tell: Tell) -> Length:
    """Fix the length, once, and warm the code up. An explicit interval that never fires is refused first."""
    known = keep.length() if keep else None
    if known is None and config.budget_seconds is None:
        known = by_epochs(config, batches.per_epoch)
    tell(Progress(WARMING))

    def make(length: Length) -> Trainee:
        return arms.begin(arm, config, loaded, length)

    def make_pruned(length: Length) -> Trainee:
        return arms.prune(make(length), config, length)

    stages = [make, make_pruned] if arm.name == "prune_after" else [make]
    compute = loss_of(loaded.task)
    if known is not None:
        for stage in stages:
            rehearse.warm_up(stage, batches, compute)
    else:
        budget = config.budget_seconds or 0.0
        paces = [rehearse.measure(stage, batches, compute, budget / len(stages)) for stage in stages]
        pace = Pace(mean(p.step for p in paces), mean(p.move for p in paces))
        known = by_budget(config, batches.per_epoch, pace)
    if isinstance(arm.method, ExampleMethod) and known.epochs is None:
        known = chosen(config, known, arm.method, len(loaded.train.y))
    if keep:
        keep.write_length(known)
    return known


def _train(scene: Scene, clock: Clock, peak: Peak) -> RunResult:
    config, length, keep = scene.config, scene.length, scene.keep
    sink = keep.log if keep else None
    half = turn(length.total) if scene.arm.name == "prune_after" else None
    account, found = Account(), None
    with clock.apart("setup"):
        found = keep.latest() if keep else None
        first = found.step if found else 0
        trainee = arms.begin(scene.arm, config, scene.data, length, sink)
        if half is not None and first > half:
            trainee = arms.prune(trainee, config, length, sink)
        if keep and found:
            account = _restored(keep, found, trainee, clock)
    watch = _watch(scene, trainee, first, account, clock, peak)
    finished = True
    peak.training()
    clock.start()
    try:
        visits = trainee.visits
        batches, compute = (scene.batches, loss_of(scene.data.task)) if visits is None else (visits, visits.loss)
        if half is not None and first <= half:
            fit(trainee, batches, compute, range(first, half), watch)
            trainee = watch.trainee = arms.prune(trainee, config, length, sink)
            first = half
        fit(trainee, batches, compute, range(first, length.total), watch)
    except OutOfTime:
        finished = False
    return _result(scene, watch, account, finished=finished, resumed_from=found.step if found else None)


def _restored(keep: Keep, found: Checkpoint, trainee: Trainee, clock: Clock) -> Account:
    account = keep.restore(found, trainee)
    clock.resume(account.train_seconds, account.elsewhere or {})
    return account


def _watch(scene: Scene, trainee: Trainee, first: int, account: Account, clock: Clock, peak: Peak) -> Watch:
    keep = scene.keep
    tally = Tally(account.epoch_loss, account.epoch_steps, account.validation)

    def validate() -> Quality:
        return evaluate(watch.trainee.model, scene.data.validation, scene.data.task)

    def save(step: int) -> None:
        assert keep is not None
        keep.save(step, watch.trainee, _account(watch, account))

    doings = Doings(
        scene.tell, validate,
        save=save if keep else None,
        note=keep.log.metric if keep else None,
        folder=str(keep.path) if keep else None,
        most_seconds=scene.config.budget_seconds,
    )  # fmt: skip
    watch = Watch(trainee, scene.length, doings, tally=tally, clock=clock, peak=peak, stop=scene.stop)
    watch.step = first
    return watch


def _account(watch: Watch, before: Account) -> Account:
    tally, clock, peak = watch.tally, watch.clock, watch.peak
    return Account(
        train_seconds=clock.seconds, elsewhere=dict(clock.elsewhere),
        epoch_loss=tally.epoch_loss, epoch_steps=tally.epoch_steps, validation=tally.validation,
        peak_bytes=highest(before.peak_bytes, peak.bytes),
        train_peak_bytes=highest(before.train_peak_bytes, peak.training_bytes),
        mapped_bytes=highest(before.mapped_bytes, peak.mapped_bytes),
    )  # fmt: skip


def _result(scene: Scene, watch: Watch, before: Account, *, finished: bool, resumed_from: int | None) -> RunResult:
    config, arm, clock, spent = scene.config, scene.arm, watch.clock, watch.trainee.spent
    clock.stop()
    scene.tell(watch.progress(watch.step, None))
    with clock.apart("evaluate"):
        quality = evaluate(watch.trainee.model, scene.data.test, scene.data.task)
    watch.peak.look()
    account = _account(watch, before)
    handle, inputs, widths = watch.trainee.handle, None, None
    for one in (handle, watch.trainee.rows):
        if one is not None:
            one.summary()  # says aloud where nothing has moved
    if isinstance(handle, Handle) and arm.chooses_inputs:
        inputs = held_inputs(handle, scene.data, arm.tables)
    if isinstance(handle, Handle) and arm.moves_widths:
        widths = dict(handle.units)
    whole = parameters(watch.trainee.model)
    params = whole if spent.weights is None else arm.rest + spent.weights
    classes = scene.data.task == "classification"
    result = RunResult(
        method=arm.name, data=config.data, model=arm.model, seed=config.seed, density=arm.density,
        currency=spent.currency, budget=spent.budget, held=spent.held, parked=spent.parked, moves=spent.moves,
        units_moved=spent.units_moved,
        metric=METRIC[scene.data.task], test_metric=quality.metric,
        test_accuracy=quality.metric if classes else None, test_loss=quality.loss,
        test_rmse=None if classes else quality.loss**0.5 * scene.data.label_scale,
        validation_metric=watch.tally.validation,
        train_seconds=clock.seconds, evaluate_seconds=clock.elsewhere.get("evaluate", 0.0),
        save_seconds=clock.elsewhere.get("save", 0.0), setup_seconds=clock.elsewhere.get("setup", 0.0),
        peak_bytes=account.peak_bytes, train_peak_bytes=account.train_peak_bytes, mapped_bytes=account.mapped_bytes,
        params=params, excess=params - arm.target if arm.name == "small_dense" else None,
        steps=watch.step, every=scene.length.every if arm.moves else None,
        optimizer=config.optimizer, lr=config.rate, threads=config.threads or torch.get_num_threads(),
        finished=finished, resumed_from=resumed_from,
        folder=str(scene.keep.path) if scene.keep else None,
        tables=_tables(arm, watch.trainee), inputs=inputs, widths=widths,
    )  # fmt: skip
    if scene.keep:
        scene.keep.finish(result.as_json())
    return result


def _tables(arm: Arm, trainee: Trainee) -> dict[str, Any] | None:
    """How ids were looked up, and what became of the bytes."""
    if arm.tables is None:
        return None
    spent = trainee.spent_on_rows
    return arm.tables.as_json() | {
        "held": spent.held, "parked": spent.parked, "moves": spent.moves, "rows_given": spent.units_moved,
    }  # fmt: skip
