"""LoRA ranks in the layers above a frozen prefix, reading its cache, beside whole layers there.

    python benchmarks/ranks_above.py run     # rates on held-out texts of seed 0, then three paired seeds; resumes
    python benchmarks/ranks_above.py table
    python benchmarks/ranks_above.py clock   # seconds of both in turn, seed 0, at those rates; wants a quiet machine

Both train the top two layers of MiniLM on 2,000 texts for 2 epochs. Ranks are stock peft's, 8 on every linear layer of
the two; ``attach`` with ``topk`` and its cache is the same for both.
"""

from __future__ import annotations

import argparse
import json
import statistics
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import machine
from scipy import stats

import finetune
import realloc.finetune.arms.table as arms
from realloc.attach import attach
from realloc.finetune.arms.arm import Arm, Kind, Order, optimizer_of
from realloc.finetune.arms.peft_lora import peft, targets, wrapped
from realloc.finetune.config import finetune_config
from realloc.finetune.run import finetune as tune
from realloc.finetune.weights import Loaded
from realloc.methods.topk import topk
from realloc.sites.blocks import blocks_of

FILE = finetune.FOUND / "ranks_above.jsonl"
K = 2
RATES = {"ranks": (1e-3, 2e-3, 4e-3), "whole": (5e-4, 1e-3, 2e-3)}
TURNS = 3
KEPT = ("held", "test", "train_seconds", "trainable", "optimizer_bytes", "peak_bytes", "cached_bytes")


def ranks_above(loaded: Loaded, order: Order) -> Arm:
    """Adapters in the top layers alone; all below them is frozen, and read from the cache."""
    top = blocks_of(loaded.base).names[-K:]
    chosen = targets(loaded)
    chosen["target_modules"] = [n for n in chosen["target_modules"] if n.startswith(tuple(f"{t}." for t in top))]
    library, rank = peft(), int(order.settings["rank"])
    adapter = wrapped(library, loaded, library.LoraConfig(r=rank, lora_alpha=2 * rank, **chosen), order.seed)
    optimizer = optimizer_of(loaded, order.rate)
    handle = attach(loaded.model, optimizer, topk(K, cache=order.cache), seed=order.seed)
    return Arm(loaded.model, optimizer, handle, adapter=adapter)


METHODS = {"ranks": ("ranks_above", {}), "whole": ("topk", {"k": K})}
arms.KINDS = {**arms.KINDS, "ranks_above": Kind(ranks_above, 1e-3, {"rank": 8})}
arms.NAMES = (*arms.NAMES, "ranks_above")


@dataclass(frozen=True)
class Case:
    task: str
    arm: str
    rate: float
    seed: int

    def run(self) -> dict[str, Any]:
        method, settings = METHODS[self.arm]
        words = finetune.texts(self.task)
        files = {word.removeprefix("--"): value for word, value in zip(words[::2], words[1::2], strict=True)}
        config = {"model": "minilm", **files, "method": method, "settings": settings, "lr": self.rate, "epochs": 2}
        found = tune(finetune_config(config | {"seed": self.seed, "rows": 2000, "eval_rows": 2000})).as_json()
        return {key: found[key] for key in KEPT} | {"machine": machine.describe()}


class Kept:
    """Records of runs, one JSON line each."""

    def __init__(self, file: Path, *, run: bool) -> None:
        self.file, self._run = file, run
        lines = file.read_text().splitlines() if file.exists() else []
        self._known = {json.dumps(case): found for case, found in map(json.loads, lines)}

    def get(self, case: Case) -> dict[str, Any] | None:
        key = json.dumps(asdict(case))
        if key not in self._known and self._run:
            self._known[key] = case.run()
            with self.file.open("a") as file:
                file.write(json.dumps([asdict(case), self._known[key]]) + "\n")
            print(case, self._known[key]["held"], self._known[key]["test"], flush=True)
        return self._known.get(key)

    def rate(self, task: str, arm: str) -> float | None:
        """The rate with the smallest held-out loss on seed 0; beyond the ends until it is inside."""
        tried: dict[float, float] = {}
        todo = list(RATES[arm])
        while todo:
            for rate in todo:
                found = self.get(Case(task, arm, rate, 0))
                if found is None:
                    return None
                tried[rate] = found["held"]["loss"]
            best = min(tried, key=lambda rate: tried[rate])
            todo = [best / 2] if best == min(tried) else [best * 2] if best == max(tried) else []
        return best


def table(kept: Kept, tasks: list[str], seeds: int) -> None:
    print("| task | arm | rate | test accuracy % | minus whole layers, 95 % | trained | optimizer MB | peak MB |")
    print("|---" * 8 + "|")
    for task in tasks:
        shown: dict[str, list[float]] = {}
        for arm in ("whole", "ranks"):
            rate = kept.rate(task, arm)
            runs = [kept.get(Case(task, arm, rate, seed)) for seed in range(seeds)] if rate else []
            there = [one for one in runs if one is not None]
            if not there:
                continue
            shown[arm] = [100 * one["test"]["accuracy"] for one in there]
            gaps = [a - b for a, b in zip(shown["ranks"], shown["whole"], strict=False)] if arm == "ranks" else []
            half = stats.t.ppf(0.975, len(gaps) - 1) * stats.sem(gaps) if len(gaps) > 1 else float("nan")
            gap = f"{statistics.mean(gaps):+.2f} ± {half:.2f}" if gaps else ""
            one = there[0]
            peak = statistics.mean(each["peak_bytes"] for each in there) / 1e6
            print(f"| {task} | {arm} | {rate:g} | {statistics.mean(shown[arm]):.2f} (n={len(there)}) | {gap} | "
                  f"{one['trainable']:,} | {one['optimizer_bytes'] / 1e6:.1f} | {peak:.0f} |")  # fmt: skip


def clock(kept: Kept, tasks: list[str]) -> None:
    print("| task | turn | whole layers, s | ranks, s | ratio |\n|---|---|---|---|---|")
    for task in tasks:
        for turn in range(TURNS):
            rates = {arm: kept.rate(task, arm) for arm in METHODS}
            whole, ranks = (Case(task, arm, rates[arm], 0).run()["train_seconds"] for arm in ("whole", "ranks"))
            print(f"| {task} | {turn} | {whole:.1f} | {ranks:.1f} | {ranks / whole:.2f} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("act", choices=("run", "table", "clock"))
    parser.add_argument("--tasks", nargs="+", default=["sst2", "clinc150"], choices=finetune.TASKS)
    parser.add_argument("--seeds", type=int, default=3)
    args = parser.parse_args()
    kept = Kept(FILE, run=args.act == "run")
    print(f"`{machine.command()}`\n\n{machine.describe()}\n")
    if args.act == "clock":
        clock(kept, args.tasks)
    else:
        table(kept, args.tasks, args.seeds)


if __name__ == "__main__":
    main()
