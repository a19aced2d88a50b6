"""Fashion-MNIST, 784-1024-1024-10: every arm at the same number of weights, its rate tuned, over paired seeds.

    python benchmarks/accuracy.py --out runs/accuracy --epochs 6            # resumes run by run
    python benchmarks/accuracy.py --out runs/accuracy --epochs 6 --table    # only the tables, from finished runs

Each arm's learning rate is the best of RATES on a held-out slice of the training data (seed 1000, none of the paired
seeds); where the best is the highest, it is doubled until it is not. The test set is read once a run. Intervals:
Student t over the paired differences to small dense.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import warnings
from pathlib import Path

import machine
import torch
from scipy import stats

from realloc.train.config import RunConfig, run_config
from realloc.train.result import RunResult
from realloc.train.run import run_in

CAPACITY = 784 * 1024 + 1024 * 1024
BUDGETS = (37_000, 93_000, 186_000)
RATES = (1e-3, 2e-3, 4e-3, 8e-3)
TUNING_SEED = 1000
ARMS = (
    "small_dense", "static", "random_moves", "sparse_evolution", "rigl", "granet", "gse", "chts", "prune_after",
)  # fmt: skip


def config(arm: str, budget: int, rate: float, seed: int, epochs: int) -> RunConfig:
    density = budget / CAPACITY
    return run_config(
        {
            "data": "fashion-mnist",
            "model": "mlp:1024,1024",
            "method": arm,
            "density": density,
            "epochs": epochs,
            "lr": rate,
            "seed": seed,
            "threads": torch.get_num_threads(),
        }
    )


def run(out: Path, arm: str, budget: int, rate: float, seed: int, epochs: int, only_read: bool) -> RunResult | None:
    folder = out / f"{arm}-{budget}-lr{rate:g}-seed{seed}-e{epochs}"
    if only_read and not (folder / "result.json").exists():
        return None
    return run_in(folder, config(arm, budget, rate, seed, epochs))


def tuned(out: Path, arm: str, budget: int, epochs: int, only_read: bool) -> float | None:
    done: dict[float, float] = {}
    rates = list(RATES)
    for rate in rates:
        result = run(out, arm, budget, rate, TUNING_SEED, epochs, only_read)
        if result is None or result.validation_metric is None:
            return None
        done[rate] = result.validation_metric
        if rate == rates[-1] and done[rate] == max(done.values()):
            rates.append(2 * rate)
    return max(done, key=lambda rate: done[rate])


def interval(values: list[float]) -> str:
    if len(values) < 2:
        return "n/a"
    half = stats.t.ppf(0.975, len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))
    mean = statistics.mean(values)
    return f"{mean:+.2f} [{mean - half:+.2f}, {mean + half:+.2f}]"


def table(out: Path, chosen: argparse.Namespace) -> None:
    budgets, seeds, epochs, only_read = chosen.budgets, chosen.seeds, chosen.epochs, chosen.table
    for budget in budgets:
        rows: dict[str, list[RunResult]] = {}
        rates: dict[str, float] = {}
        for arm in chosen.arms:
            rate = tuned(out, arm, budget, epochs, only_read)
            if rate is None:
                continue
            rates[arm] = rate
            got = [run(out, arm, budget, rate, seed, epochs, only_read) for seed in seeds]
            rows[arm] = [r for r in got if r is not None]
        print(f"\n### {budget:,} weights ({budget / CAPACITY:.1%} of 784-1024-1024), {epochs} epochs\n")
        print(
            "| arm | rate | trainable numbers | test accuracy % | minus small dense, 95 % | train seconds |\n"
            "|---|---|---|---|---|---|"
        )
        base = {r.seed: r.test_accuracy or 0.0 for r in rows.get("small_dense", [])}
        for arm, results in rows.items():
            if not results:
                continue
            accuracies = [100 * (r.test_accuracy or 0.0) for r in results]
            gaps = [100 * ((r.test_accuracy or 0.0) - base[r.seed]) for r in results if r.seed in base]
            seconds = statistics.mean(r.train_seconds for r in results)
            difference = "" if arm == "small_dense" else interval(gaps)
            accuracy = f"{statistics.mean(accuracies):.2f} (n={len(results)})"
            print(f"| {arm} | {rates[arm]:g} | {results[0].params:,} | {accuracy} | {difference} | {seconds:.1f} |")


def pareto(out: Path, seeds: list[int], epochs: int, only_read: bool) -> None:
    """Dense nets of other widths: what the same seconds buy without any sparsity."""
    print("\n### Dense nets by width, same epochs (rate 1e-3), for the Pareto line of accuracy by seconds\n")
    print("| model | trainable numbers | test accuracy % | train seconds |\n|---|---|---|---|")
    for spec in ("mlp:32,32", "mlp:64,64", "mlp:128,128", "mlp:256,256", "mlp:1024,1024"):
        results = []
        for seed in seeds[:3]:
            folder = out / f"dense-{spec.replace(':', '').replace(',', '-')}-seed{seed}-e{epochs}"
            if only_read and not (folder / "result.json").exists():
                continue
            values = {
                "data": "fashion-mnist",
                "model": spec,
                "method": "dense",
                "epochs": epochs,
                "lr": 1e-3,
                "seed": seed,
                "threads": torch.get_num_threads(),
            }
            results.append(run_in(folder, run_config(values)))
        if results:
            accuracy = statistics.mean(100 * (r.test_accuracy or 0) for r in results)
            seconds = statistics.mean(r.train_seconds for r in results)
            print(f"| {spec} | {results[0].params:,} | {accuracy:.2f} (n={len(results)}) | {seconds:.1f} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/accuracy"))
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--seeds", type=json.loads, default=[0, 1, 2, 3, 4])
    parser.add_argument("--budgets", type=json.loads, default=list(BUDGETS))
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=ARMS)
    parser.add_argument("--no-pareto", action="store_true")
    parser.add_argument("--table", action="store_true", help="only print what is finished")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    print(f"`{machine.command()}`\n\n{machine.describe()}")
    table(args.out, args)
    if not args.no_pareto:
        pareto(args.out, args.seeds, args.epochs, args.table)


if __name__ == "__main__":
    main()
