"""LoRA ranks in the layers above a frozen prefix, reading its cache, beside whole layers there.

    python benchmarks/ranks_above.py run     # rates on held-out texts of seed 0, then three paired seeds; resumes
    python benchmarks/ranks_above.py table
    python benchmarks/ranks_above.py clock   # seconds of both in turn, seed 0, at those rates; wants a quiet machine

Both train the top two layers of MiniLM on 2,000 texts for 2 epochs. Ranks are stock peft's, 8 on every linear layer of
the two; ``attach`` with ``topk`` and its cache is the same for both.
"""

from __future__ import annotations

import argparse
import statistics
from dataclasses import dataclass

import machine

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
# arm: method, its settings, whose rate it takes
ARMS = {"whole": ("topk", {"k": K}, "whole"), "ranks": ("ranks_above", {}, "ranks")}
RATES = {"ranks": (1e-3, 2e-3, 4e-3), "whole": (5e-4, 1e-3, 2e-3)}
TURNS = 3
HEAD = ("task", "arm", "rate", "test accuracy %", "minus whole layers, 95 %", "trained", "optimizer MB", "peak MB")


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


arms.KINDS = {**arms.KINDS, "ranks_above": Kind(ranks_above, 1e-3, {"rank": 8})}
arms.NAMES = (*arms.NAMES, "ranks_above")


@dataclass(frozen=True)
class Case:
    """A run in this process, which knows one method more than the command line."""

    task: str
    arm: str
    seed: int
    rate: float

    def run(self) -> dict:
        method, settings, _ = ARMS[self.arm]
        words = finetune.texts(self.task)
        files = {word.removeprefix("--"): value for word, value in zip(words[::2], words[1::2], strict=True)}
        rows = {"rows": finetune.TEXTS, "eval_rows": finetune.TEXTS, "epochs": 2}
        config = {"model": "minilm", **files, **rows, "method": method, "settings": settings, "lr": self.rate}
        found = tune(finetune_config(config | {"seed": self.seed})).as_json()
        return {key: found[key] for key in finetune.KEPT} | {"machine": machine.describe()}


def table(bench: finetune.Bench, tasks: list[str], seeds: int, *, run: bool) -> None:
    """Each arm at its own rate."""
    print(f"| {' | '.join(HEAD)} |\n{'|---' * len(HEAD)}|")
    for task in tasks:
        shown: dict[str, dict[int, dict]] = {}
        for arm in ARMS:
            rate = bench.rate(task, arm, run=run)
            runs = {} if rate is None else {s: bench.get(Case(task, arm, s, rate), run=run) for s in range(seeds)}
            mine = shown[arm] = {seed: one for seed, one in runs.items() if one is not None}
            if not mine:
                continue
            accuracy = statistics.mean(100 * one["test"]["accuracy"] for one in mine.values())
            peak = statistics.mean(one["peak_bytes"] for one in mine.values()) / 1e6
            gap = (
                ""
                if arm == "whole"
                else finetune.less(mine, {s: shown["whole"][s] for s in mine if s in shown["whole"]})
            )
            one = mine[0]
            print(f"| {task} | {arm} | {rate:g} | {accuracy:.2f} (n={len(mine)}) | {gap} | {one['trainable']:,} | "
                  f"{one['optimizer_bytes'] / 1e6:.1f} | {peak:.0f} |")  # fmt: skip


def clock(bench: finetune.Bench, tasks: list[str]) -> None:
    """Seconds in turn."""
    print("| task | turn | whole layers, s | ranks, s | ratio |\n|---|---|---|---|---|")
    for task in tasks:
        for turn in range(TURNS):
            cases = [Case(task, arm, 0, bench.rate(task, arm, run=False)) for arm in ARMS]
            whole, ranks = (one.run()["train_seconds"] for one in cases)
            print(f"| {task} | {turn} | {whole:.1f} | {ranks:.1f} | {ranks / whole:.2f} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("act", choices=("run", "table", "clock"))
    parser.add_argument("--tasks", nargs="+", default=["sst2", "clinc150"], choices=finetune.TASKS)
    parser.add_argument("--seeds", type=int, default=3)
    args = parser.parse_args()
    bench = finetune.Bench(FILE, case=Case, arms=ARMS, rates=RATES)
    print(f"`{machine.command()}`\n\n{machine.describe()}\n")
    if args.act == "clock":
        clock(bench, args.tasks)
    else:
        table(bench, args.tasks, args.seeds, run=args.act == "run")


if __name__ == "__main__":
    main()
