"""Fashion-MNIST, 784-1024-1024-10: every arm at the same number of weights, its rate tuned, over paired seeds.

    python benchmarks/accuracy.py --out runs/accuracy             # resumes run by run
    python benchmarks/accuracy.py --out runs/accuracy --timing    # once all are done, on an idle machine: seconds
    python benchmarks/accuracy.py --out runs/accuracy --table     # only the tables, from what is there

Each arm's learning rate is the best of RATES on a held-out slice of the training data (seed 1000, none of the paired
seeds); where the best is the highest, it is doubled until it is not. Dense nets are nearly flat over rates, so chance
would choose theirs: they get the mean of three seeds. The test set is read once a run. Intervals: Student t over the
paired differences to small dense. Accuracy does not depend on how busy the machine is, seconds do:
those are of one more run of each arm (seed 0, its tuned rate, all threads).
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import machine
import torch
from scipy import stats

from realloc.train.config import RunConfig, run_config
from realloc.train.result import RunResult
from realloc.train.run import run_in

CAPACITY = 784 * 1024 + 1024 * 1024
BUDGETS = (37_000, 93_000, 186_000)
WIDTHS = (32, 64, 128, 256, 512)
RATES = (1e-3, 2e-3, 4e-3, 8e-3)
TUNING_SEEDS = (1000, 1001, 1002)
ARMS = (
    "small_dense", "static", "random_moves", "sparse_evolution", "rigl", "granet", "gse", "chts", "prune_after",
)  # fmt: skip


@dataclass(frozen=True)
class Entry:
    """One arm at one budget, or a dense net of one width."""

    arm: str
    size: int

    @property
    def name(self) -> str:
        return f"{self.arm}-{self.size}"

    @property
    def tuning_seeds(self) -> tuple[int, ...]:
        return TUNING_SEEDS if self.arm in ("dense", "small_dense") else TUNING_SEEDS[:1]

    def config(self, rate: float, seed: int, epochs: int, threads: int) -> RunConfig:
        dense = self.arm == "dense"
        values = {
            "data": "fashion-mnist", "method": self.arm, "epochs": epochs, "lr": rate, "seed": seed,
            "threads": threads, "model": f"mlp:{self.size},{self.size}" if dense else "mlp:1024,1024",
        }  # fmt: skip
        return run_config(values if dense else values | {"density": self.size / CAPACITY})


@dataclass(frozen=True)
class Bench:
    """Where runs are kept, how long they are, and whether missing ones are made."""

    out: Path
    epochs: int
    seeds: tuple[int, ...]
    only_read: bool

    def run(self, entry: Entry, rate: float, seed: int) -> RunResult | None:
        folder = self.out / f"{entry.name}-lr{rate:g}-seed{seed}-e{self.epochs}"
        return self._in(folder, entry.config(rate, seed, self.epochs, 1))

    def timed(self, entry: Entry, rate: float, make: bool) -> RunResult | None:
        folder = self.out / "timing" / f"{entry.name}-lr{rate:g}-e{self.epochs}"
        if not make and not (folder / "result.json").exists():
            return None
        return run_in(folder, entry.config(rate, 0, self.epochs, torch.get_num_threads()))

    def _in(self, folder: Path, config: RunConfig) -> RunResult | None:
        if self.only_read and not (folder / "result.json").exists():
            return None
        return run_in(folder, config)

    def tried(self, entry: Entry) -> dict[float, float]:
        """Accuracy on the held-out slice by rate; empty where a run is missing."""
        done: dict[float, float] = {}
        rates = list(RATES)
        for rate in rates:
            results = [self.run(entry, rate, seed) for seed in entry.tuning_seeds]
            metrics = [r.validation_metric for r in results if r is not None and r.validation_metric is not None]
            if len(metrics) < len(results):
                return {}
            done[rate] = statistics.mean(metrics)
            if rate == rates[-1] and done[rate] == max(done.values()):
                rates.append(2 * rate)
        return done


def best_of(tried: dict[float, float]) -> float:
    return max(tried, key=lambda rate: tried[rate])


@dataclass(frozen=True)
class Line:
    """What is known of one entry."""

    entry: Entry
    tried: dict[float, float]
    runs: dict[int, RunResult]
    timed: RunResult | None

    @property
    def rate(self) -> float:
        return best_of(self.tried)

    @property
    def accuracies(self) -> dict[int, float]:
        return {seed: 100 * (run.test_accuracy or 0.0) for seed, run in self.runs.items()}

    @property
    def mean(self) -> float:
        return statistics.mean(self.accuracies.values())

    @property
    def seconds(self) -> str:
        return "" if self.timed is None else f"{self.timed.train_seconds:.1f}"


def lines(bench: Bench, entries: list[Entry], timing: bool) -> Iterator[Line]:
    for entry in entries:
        tried = bench.tried(entry)
        if not tried:
            continue
        rate = best_of(tried)
        found = {seed: bench.run(entry, rate, seed) for seed in bench.seeds}
        runs = {seed: run for seed, run in found.items() if run is not None}
        if runs:
            yield Line(entry, tried, runs, bench.timed(entry, rate, timing))


def interval(values: list[float]) -> str:
    if len(values) < 2:
        return "n/a"
    half = stats.t.ppf(0.975, len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))
    mean = statistics.mean(values)
    return f"{mean:+.2f} [{mean - half:+.2f}, {mean + half:+.2f}]"


def table(budget: int, epochs: int, found: list[Line]) -> None:
    print(f"\n### {budget:,} weights ({budget / CAPACITY:.1%} of 784-1024-1024), {epochs} epochs\n")
    print(
        "| arm | rate | trainable numbers | test accuracy % | minus small dense, 95 % | seconds |\n"
        "|---|---|---|---|---|---|"
    )
    base = next((line.accuracies for line in found if line.entry.arm == "small_dense"), {})
    for line in found:
        mine = line.accuracies
        gaps = [mine[seed] - base[seed] for seed in mine if seed in base]
        difference = "" if line.entry.arm == "small_dense" else interval(gaps)
        params = next(iter(line.runs.values())).params
        print(
            f"| {line.entry.arm} | {line.rate:g} | {params:,} | {line.mean:.2f} (n={len(mine)}) | {difference} | "
            f"{line.seconds} |"
        )


def pareto(found: list[Line]) -> None:
    """Accuracy by seconds: an entry is on the line if nothing is both quicker and better."""
    known = sorted((line for line in found if line.timed is not None), key=lambda line: line.timed.train_seconds)
    print("\n### Accuracy by seconds: sparse arms and dense nets of other widths, each at its tuned rate\n")
    print("| entry | rate | trainable numbers | seconds | test accuracy % | on the line |\n|---|---|---|---|---|---|")
    best = 0.0
    for line in known:
        on = line.mean > best
        best = max(best, line.mean)
        what = (
            f"dense, {line.entry.size} wide" if line.entry.arm == "dense" else f"{line.entry.arm}, {line.entry.size:,}"
        )
        params = next(iter(line.runs.values())).params
        print(
            f"| {what} | {line.rate:g} | {params:,} | {line.seconds} | {line.mean:.2f} (n={len(line.runs)}) | "
            f"{'yes' if on else ''} |"
        )


def tuning(found: list[Line]) -> None:
    print("\n### Rates tried: accuracy % on held-out training data\n")
    rates = sorted({rate for line in found for rate in line.tried})
    print("| entry | runs | " + " | ".join(f"{rate:g}" for rate in rates) + " |\n|---|---|" + "---|" * len(rates))
    for line in found:
        cells = [f"{100 * line.tried[rate]:.2f}" if rate in line.tried else "" for rate in rates]
        print(f"| {line.entry.name} | {len(line.entry.tuning_seeds)} | " + " | ".join(cells) + " |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/accuracy"))
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--seeds", type=json.loads, default=[0, 1, 2, 3, 4])
    parser.add_argument("--budgets", type=json.loads, default=list(BUDGETS))
    parser.add_argument("--widths", type=json.loads, default=list(WIDTHS), help="of dense nets, for the Pareto line")
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=ARMS)
    parser.add_argument("--table", action="store_true", help="only print what is finished")
    parser.add_argument("--timing", action="store_true", help="time finished arms; the machine must be idle")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    print(f"`{machine.command()}`\n\n{machine.describe()}")
    bench = Bench(args.out, args.epochs, tuple(args.seeds), args.table or args.timing)
    every: list[Line] = []
    for budget in args.budgets:
        found = list(lines(bench, [Entry(arm, budget) for arm in args.arms], args.timing))
        table(budget, args.epochs, found)
        every += found
    few = Bench(args.out, args.epochs, bench.seeds[:3], bench.only_read)
    every += lines(few, [Entry("dense", width) for width in args.widths], args.timing)
    pareto(every)
    tuning(every)


if __name__ == "__main__":
    main()
