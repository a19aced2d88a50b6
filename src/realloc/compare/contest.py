"""Running the arms of a comparison, one after the other, and again only what is missing."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import torch

import realloc.record.disk as disk
import realloc.record.sealed as sealed
import realloc.train.arms as arms
from realloc.compare.apart import finished, run_apart
from realloc.compare.table import Comparison, tabulate
from realloc.errors import ConfigError, RecordError, nearest, plain
from realloc.record.folder import read_sealed, refuse_foreign
from realloc.train.config import RunConfig, refuse_flag, run_config
from realloc.train.progress import Tell
from realloc.train.result import RunResult
from realloc.train.stop import Interrupted
from realloc.train.watch import RunError

CONTEST = "compare.json"
OURS = re.compile(r"[^/]+-seed\d+", re.ASCII)  # a damaged compare.json may be deleted: finished runs are kept
RATE = "lr"  # arms are at their best at different rates: one rate for all is no equal chance
Announce = Callable[[RunConfig, int, int], Tell]


@final
@dataclass(frozen=True)
class Contest:
    """Arms (one config each, whose seed is replaced) over the same seeds."""

    entries: tuple[RunConfig, ...]
    seeds: tuple[int, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """The arms, first one first: the one the others are compared with."""
        return tuple(entry.method for entry in self.entries)


def contest(base: RunConfig, methods: Sequence[str], seeds: Sequence[int], settings: Mapping[str, Any]) -> Contest:
    """Check arms, seeds and settings, and make the contest.

    A setting ``name`` goes to every arm that has it, ``arm.name`` to one arm; ``arm.lr`` is its learning rate.

    Raises ConfigError for an unknown arm or setting, and for an arm or seed named twice.
    """
    for what, values in (("method", list(methods)), ("seed", [str(s) for s in seeds])):
        if not values:
            raise ConfigError(f"there is no {what} to compare; name at least one by --{what}")
        twice = next((v for v in values if values.count(v) > 1), None)
        if twice is not None:
            raise ConfigError(f"{what} '{plain(twice)}' is named twice; name each once")
    given = _split(methods, settings)
    threads = base.threads or torch.get_num_threads()
    entries = []
    for method in methods:
        rate = given[method].pop(RATE, base.lr)
        named: dict[str, Any] = {"method": method, "settings": given[method], "threads": threads, RATE: rate}
        entries.append(run_config(base.model_dump() | named))
        arms.method_of(entries[-1])
    return Contest(tuple(entries), tuple(seeds))


def _split(methods: Sequence[str], settings: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    given: dict[str, dict[str, Any]] = {method: {} for method in methods}
    for method in methods:
        arms.check_name(method)
    for key, value in settings.items():
        owner, dot, name = key.rpartition(".")
        if dot and owner not in given:
            raise ConfigError(
                f"setting '{plain(key)}' is for '{plain(owner)}', which is not among the arms "
                f"({', '.join(methods)}){nearest(owner, methods, 1)}; add it by --method, or mend the name"
            )
        takers = [owner] if dot else [m for m in methods if name in (RATE, *arms.setting_names(m))]
        if not takers:
            refuse_flag(key, value)
            raise ConfigError(
                f"setting '{plain(key)}' is unknown to every arm ({', '.join(methods)}); see: realloc methods"
            )
        for method in takers:
            given[method][name] = value
    return given


def compare(contest: Contest, out: Path | None, announce: Announce) -> Comparison:
    """Run every arm with every seed, each in its own process; with ``out``, only what is not finished there.

    Raises:
        ConfigError: bad input, or ``out`` holds runs of another config.
        RecordError: ``out`` holds a single run, or other files; a disk error.
        RunError: a run failed, or an arm did not end at the budget of the others.
        Interrupted: Ctrl-C; with ``out``, the run has written its checkpoint.
    """
    results: dict[tuple[str, int], RunResult] = {}
    jobs = [(entry, seed) for seed in contest.seeds for entry in contest.entries]
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory())) if out is None else out
        if out is not None:
            _write(contest, out)
        for number, (entry, seed) in enumerate(jobs, 1):
            config = entry.model_copy(update={"seed": seed})
            tell = announce(config, number, len(jobs))
            try:
                results[entry.method, seed] = run_apart(config, folder / f"{entry.method}-seed{seed}", tell)
            except Interrupted:
                where = f"in {entry.method}, seed {seed} ({number} of {len(jobs)})"
                raise Interrupted(where, None if out is None else str(out)) from None
            _check_budget(results)
    return tabulate(contest.names, contest.seeds, results)


def _check_budget(results: Mapping[tuple[str, int], RunResult]) -> None:
    """Equal to the unit, or an error. The dense arm has no budget; the small dense one shows its excess.

    Of weights what is held at the end counts, since a density may fall; of rows, rates and visits the budget.
    """
    known: dict[str | None, tuple[str, int]] = {}
    for (arm, seed), run in results.items():
        spent = run.held if run.currency == "weights" else run.budget
        if spent is None:
            continue
        first, expected = known.setdefault(run.currency, (f"{arm} (seed {seed})", spent))
        if spent != expected:
            raise RunError(
                f"{arm} (seed {seed}) ended with {spent:,} {run.currency}, {first} with {expected:,}: not an equal "
                "budget"
            )


def _write(contest: Contest, out: Path) -> None:
    content = {"entries": [e.model_dump(mode="json") for e in contest.entries], "seeds": list(contest.seeds)}
    for entry in contest.entries:
        for seed in contest.seeds:
            finished(entry.model_copy(update={"seed": seed}), out / f"{entry.method}-seed{seed}")
    if (out / "config.json").exists():
        raise RecordError(f"{disk.shown(out)} holds a single run; choose another --out for a comparison")
    if not (out / CONTEST).exists():
        refuse_foreign(out, lambda name: OURS.fullmatch(name) is not None, "a comparison")
    with disk.told("write", out / CONTEST, "make room or rights there, or choose another --out"):
        disk.make_folder(out)
        disk.replace(out / CONTEST, sealed.seal(content))


def read(out: Path) -> Contest:
    """Read the contest that was begun in a folder.

    Raises RecordError when it is damaged, or was not written by this version.
    """
    values = read_sealed(out / CONTEST, sealed.MOST, "delete it and compare once more: finished runs are kept")
    return sealed.made(
        lambda: Contest(tuple(run_config(e) for e in values["entries"]), tuple(int(s) for s in values["seeds"])),
        out / CONTEST,
        "compare anew",
    )
