"""One fine-tuning run with several seeds, one after the other; each in a process of its own, and in its own folder."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple, final

import torch

import realloc.record.disk as disk
import realloc.record.sealed as sealed
from realloc.compare.apart import heard
from realloc.compare.student import Interval, interval
from realloc.errors import ConfigError, RecordError
from realloc.finetune.config import FinetuneConfig, finetune_config
from realloc.finetune.result import FinetuneResult, from_json
from realloc.finetune.run import KEY, refuse_other
from realloc.record.folder import read_config, read_result, read_sealed, refuse_foreign
from realloc.train.progress import Tell
from realloc.train.stop import Interrupted

SEEDS: Final = "seeds.json"
OURS: Final = re.compile(r"seed\d+", re.ASCII)  # a damaged seeds.json may be deleted: the runs are gone on with
_ANEW: Final = "delete it and give the command that began the runs once more: finished ones are kept"
CHILD: Final = "realloc.finetune.child"
Announce = Callable[[FinetuneConfig, int, int], Tell]


@final
@dataclass(frozen=True)
class Series:
    """The runs: one config, whose seed is replaced."""

    config: FinetuneConfig
    seeds: tuple[int, ...]

    @property
    def configs(self) -> tuple[FinetuneConfig, ...]:
        """One for each seed, in order."""
        return tuple(finetune_config({**self.config.model_dump(), "seed": seed}) for seed in self.seeds)


class Summary(NamedTuple):
    """What the seeds say together: a metric of the evaluation texts, or of the held-out ones where there are none."""

    metric: str
    of: str  # "test" or "held out"
    found: Interval  # of the mean
    n: int


def series(config: FinetuneConfig, seeds: Sequence[int]) -> Series:
    """Check the seeds.

    Raises:
        ConfigError: a seed out of range, or named twice.
    """
    twice = next((seed for seed in seeds if list(seeds).count(seed) > 1), None)
    if twice is not None:
        raise ConfigError(f"seed {twice} is named twice; name each once")
    found = Series(config.model_copy(update={"threads": config.threads or torch.get_num_threads()}), tuple(seeds))
    _ = found.configs
    return found


def run_all(found: Series, out: Path | None, announce: Announce, *, resumed: bool = False) -> Iterator[FinetuneResult]:
    """Run every seed that is not finished, in order, and hand out each result as soon as it is there.

    Args:
        found: the runs.
        out: a folder that gets one folder for each seed, such as ``seed0``; None: nothing is kept.
        announce: told of each run before it begins.
        resumed: whether ``out`` holds these runs already, or the first of them.

    Raises:
        ConfigError: bad input; runs of another config in the folders of these seeds.
        RecordError: ``out`` holds a single run, other files, or runs and ``resumed`` was not said; a disk error.
        Interrupted: Ctrl-C; with ``out``, a checkpoint is written.
    """
    if out is not None and not resumed:
        _check_free(out)
    if out is not None and (not resumed or read(out).seeds != found.seeds):
        for config in found.configs:  # before anything is written: runs of another config are refused
            finished(config, out / f"seed{config.seed}")
        _write(found, out)
    for number, config in enumerate(found.configs, 1):
        folder = None if out is None else out / f"seed{config.seed}"
        done = None if folder is None else finished(config, folder)
        if done is not None:
            yield done
            continue
        tell = announce(config, number, len(found.seeds))
        where = f"seed {config.seed} ({number} of {len(found.seeds)})"
        job = {"config": config.model_dump(mode="json"), "folder": None if folder is None else str(folder)}
        try:
            yield from_json(heard(CHILD, job, where, tell))
        except Interrupted:
            raise Interrupted(f"in {where}", None if out is None else str(out)) from None
        except ConfigError:
            _give_up(found, out)
            raise


def finished(config: FinetuneConfig, folder: Path) -> FinetuneResult | None:
    """Read the result of a finished run of this config, or None where there is none yet.

    Raises:
        ConfigError: the folder holds a run of another config.
    """
    if not (folder / "config.json").exists():
        return None
    refuse_other(read_config(folder).get(KEY, {}), config.model_dump(mode="json"), folder)
    result = read_result(folder)
    return None if result is None else from_json(result)


def summary(results: Sequence[FinetuneResult]) -> Summary:
    """Mean over the seeds, with its 95 % interval by Student's t; the bounds are None for a single seed."""
    metric = results[0].metric
    judged = [run.test_metric for run in results if run.test_metric is not None]
    if len(judged) == len(results):
        return Summary(metric, "test", interval(judged), len(judged))
    return Summary(metric, "held out", interval([run.held[metric] for run in results]), len(results))


def is_series(folder: Path) -> bool:
    """Whether a folder holds the runs of several seeds."""
    return (folder / SEEDS).exists()


def read(folder: Path) -> Series:
    """Read the runs that were begun in a folder.

    Raises:
        RecordError: damaged, or not written by this version.
    """
    values = read_sealed(folder / SEEDS, sealed.MOST, _ANEW)
    return sealed.made(
        lambda: Series(finetune_config(values["config"]), tuple(int(seed) for seed in values["seeds"])),
        folder / SEEDS,
        "start new runs",
    )


def check_same(folder: Path, given: Mapping[str, Any], seeds: Sequence[int] | None) -> Series:
    """Read the runs of a folder, and refuse flags that say something else than they were started with.

    Seeds may be added: where those that were begun come first, the others follow.

    Raises:
        ConfigError: the first flag that differs; seeds without those that were begun.
    """
    found = read(folder)
    asked = finetune_config({**found.config.model_dump(), **given})
    refuse_other(found.config.model_dump(), {key: getattr(asked, key) for key in given}, folder)
    if seeds is None:
        return found
    if tuple(seeds[: len(found.seeds)]) != found.seeds:
        raise ConfigError(
            f"the runs in {disk.shown(folder)} were started with seeds {_listed(found.seeds)}, not {_listed(seeds)}; "
            "leave the flag out to go on with them, name more behind them, or give another --out"
        )
    return series(found.config, seeds)


def _check_free(out: Path) -> None:
    if is_series(out):
        raise RecordError(f"{disk.shown(out)} holds runs already; go on with them by --resume, or choose another --out")
    if (out / "config.json").exists():
        raise RecordError(f"{disk.shown(out)} holds a single run; choose another --out for several seeds")
    refuse_foreign(out, lambda name: OURS.fullmatch(name) is not None, "a series of runs")


def _write(found: Series, out: Path) -> None:
    content = {"config": found.config.model_dump(mode="json"), "seeds": list(found.seeds)}
    with disk.told("write", out / SEEDS, "make room or rights there, or choose another --out"):
        disk.make_folder(out)
        disk.replace(out / SEEDS, sealed.seal(content))


def _give_up(found: Series, out: Path | None) -> None:
    """Leave no trace where nothing was trained: the same command must work once its input is mended."""
    if out is not None and not any((out / f"seed{seed}").exists() for seed in found.seeds):
        (out / SEEDS).unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            out.rmdir()


def _listed(seeds: Sequence[int]) -> str:
    return ", ".join(map(str, seeds))
