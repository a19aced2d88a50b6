"""Runs that are made once and kept, and the table of arms over paired seeds: what the benchmarks of units share."""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from scipy import stats

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # machine.py lies beside this folder

import machine

FOUND = Path(__file__).resolve().parent.parent / "results" / "units"
TUNING = (1000, 1001)  # seeds of the rates: none of the paired ones
WORST = -1e9  # held out, of a run that diverged: no rate for anybody


class Case(Protocol):
    """A run: its fields are its key, and ``run`` makes it. ``rate`` and ``seed`` are among the fields."""

    def run(self) -> dict[str, Any]:
        """``held`` (on held-out rows, the larger the better), ``test``, ``seconds`` and what else the table shows."""


@dataclass(frozen=True)
class Tuned:
    """A rate, and what was held out at each one that was tried."""

    rate: float
    tried: Mapping[float, float]


@dataclass(frozen=True)
class Arm:
    """The paired runs of one arm at its rate, by seed."""

    rate: float
    runs: tuple[dict[str, Any], ...]

    def mean(self, key: str = "test", scale: float = 1.0) -> float:
        return statistics.mean(scale * one[key] for one in self.runs)

    def less(self, rival: Arm | None, key: str = "test", scale: float = 1.0, places: int = 2) -> str:
        """Mean and half of the paired 95 % interval of the difference to another arm; "" beside itself."""
        if rival is self:
            return ""
        pairs = zip(self.runs, () if rival is None else rival.runs, strict=False)
        return interval([scale * (one[key] - other[key]) for one, other in pairs], places)

    @property
    def seconds(self) -> str:
        """Mean; marked where other work ran on the machine."""
        return f"{self.mean('seconds'):.1f}" + " (beside)" * any(one.get("beside", False) for one in self.runs)


class Kept:
    """Records of runs, one JSON line each; a case is run where it has none.

    ``beside``: other work runs on the machine, which goes into the record: accuracy counts, seconds do not.
    """

    def __init__(self, name: str, *, run: bool, beside: bool = False) -> None:
        self.file, self._run, self._beside = FOUND / f"{name}.jsonl", run, beside
        FOUND.mkdir(parents=True, exist_ok=True)
        lines = self.file.read_text().splitlines() if self.file.exists() else []
        self._known = {json.dumps(case): found for case, found in map(json.loads, lines)}

    def allow(self, *, run: bool, beside: bool) -> None:
        """Set both anew, of records that more than one function reads."""
        self._run, self._beside = run, beside

    def get(self, case: Any) -> dict[str, Any] | None:
        key = json.dumps(asdict(case))
        if key not in self._known and self._run:
            mark = {"beside": True} if self._beside else {}
            self._known[key] = case.run() | mark | {"machine": machine.describe()}
            with self.file.open("a") as file:
                file.write(json.dumps([asdict(case), self._known[key]]) + "\n")
            print(case, self._known[key]["test"], flush=True)
        return self._known.get(key)

    def tuned(
        self, make: Callable[[float, int], Any], rates: Sequence[float], seeds: Sequence[int] = TUNING
    ) -> Tuned | None:
        """The rate whose held-out figure is best, over the tuning seeds; beyond the ends until the best is inside."""
        tried: dict[float, float] = {}
        todo = list(rates)
        while todo:
            for rate in todo:
                found = [self.get(make(rate, seed)) for seed in seeds]
                if any(one is None for one in found):
                    return None
                tried[rate] = statistics.mean(one["held"] for one in found if one is not None)
            best = max(tried, key=lambda rate: tried[rate])
            todo = [best / 2] if best == min(tried) else [best * 2] if best == max(tried) else []
        return Tuned(best, tried)

    def arm(
        self, make: Callable[[float, int], Any], rates: Sequence[float], seeds: int, tuning: Sequence[int] = TUNING
    ) -> Arm | None:
        """An arm at its best rate over seeds 0, 1, ...; None without a rate or a run. One rate is not tuned."""
        tuned = Tuned(rates[0], {}) if len(rates) == 1 else self.tuned(make, rates, tuning)
        if tuned is None:
            return None
        runs = [self.get(make(tuned.rate, seed)) for seed in range(seeds)]
        there = tuple(one for one in runs if one is not None)
        return Arm(tuned.rate, there) if there else None


def arguments(doc: str | None, arms: Sequence[str], acts: Sequence[str] = ()) -> argparse.Namespace:
    """What every script of units is asked: run or table, which arms, how many seeds, whether other work runs."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("act", choices=("run", "table", *acts))
    parser.add_argument("--arms", nargs="+", default=list(arms), choices=arms)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--beside", action="store_true", help="other work runs: mark the seconds")
    return parser.parse_args()


def interval(gaps: Sequence[float], places: int = 2) -> str:
    """Mean and half of the paired 95 % interval."""
    if len(gaps) < 2:
        return f"{statistics.mean(gaps):+.{places}f}" if gaps else "-"
    half = stats.t.ppf(0.975, len(gaps) - 1) * statistics.stdev(gaps) / math.sqrt(len(gaps))
    return f"{statistics.mean(gaps):+.{places}f} ± {half:.{places}f}"


def row(cells: Sequence[str]) -> str:
    """One line of a table."""
    return f"| {' | '.join(cells)} |"


def head(columns: Sequence[str]) -> str:
    """Two lines of a table."""
    return f"{row(columns)}\n{'|---' * len(columns)}|"


def title() -> str:
    """The command and the machine."""
    return f"`{machine.command()}`\n\n{machine.describe()}\n"
