"""Runs that are made once and kept, and the table of arms over paired seeds: what the benchmarks of units share."""

from __future__ import annotations

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


class Case(Protocol):
    """A run: its fields are its key, and ``run`` makes it. ``rate`` and ``seed`` are among the fields."""

    def run(self) -> dict[str, Any]:
        """``held`` (on held-out rows, the larger the better), ``test``, ``seconds`` and what else the table shows."""


@dataclass(frozen=True)
class Tuned:
    """A rate, and what was held out at each one that was tried."""

    rate: float
    tried: Mapping[float, float]


class Kept:
    """Records of runs, one JSON line each; a case is run where it has none."""

    def __init__(self, name: str, *, run: bool) -> None:
        self.file, self._run = FOUND / f"{name}.jsonl", run
        FOUND.mkdir(parents=True, exist_ok=True)
        lines = self.file.read_text().splitlines() if self.file.exists() else []
        self._known = {json.dumps(case): found for case, found in map(json.loads, lines)}

    def get(self, case: Any) -> dict[str, Any] | None:
        key = json.dumps(asdict(case))
        if key not in self._known and self._run:
            self._known[key] = case.run() | {"machine": machine.describe()}
            with self.file.open("a") as file:
                file.write(json.dumps([asdict(case), self._known[key]]) + "\n")
            print(case, self._known[key]["test"], flush=True)
        return self._known.get(key)

    def tuned(self, make: Callable[[float, int], Any], rates: Sequence[float]) -> Tuned | None:
        """The rate whose held-out figure is best, over the tuning seeds; beyond the ends until the best is inside."""
        tried: dict[float, float] = {}
        todo = list(rates)
        while todo:
            for rate in todo:
                found = [self.get(make(rate, seed)) for seed in TUNING]
                if any(one is None for one in found):
                    return None
                tried[rate] = statistics.mean(one["held"] for one in found if one is not None)
            best = max(tried, key=lambda rate: tried[rate])
            todo = [best / 2] if best == min(tried) else [best * 2] if best == max(tried) else []
        return Tuned(best, tried)


def interval(gaps: Sequence[float]) -> str:
    """Mean and half of the paired 95 % interval."""
    if len(gaps) < 2:
        return f"{statistics.mean(gaps):+.2f}" if gaps else "-"
    half = stats.t.ppf(0.975, len(gaps) - 1) * statistics.stdev(gaps) / math.sqrt(len(gaps))
    return f"{statistics.mean(gaps):+.2f} ± {half:.2f}"


def head(columns: Sequence[str]) -> str:
    """Two lines of a table."""
    return f"| {' | '.join(columns)} |\n{'|---' * len(columns)}|"


def title() -> str:
    """The command and the machine."""
    return f"`{machine.command()}`\n\n{machine.describe()}\n"
