"""Fine-tuning MiniLM: what each way to spend time and parameters brings, side by side.

    python benchmarks/finetune.py tune     # the rate of each arm on held-out texts of seed 0
    python benchmarks/finetune.py run      # three paired seeds at those rates; resumes run by run
    python benchmarks/finetune.py table
    python benchmarks/finetune.py run --beside   # accuracies beside other work: the table has no seconds of those
    python benchmarks/finetune.py run --epochs 5 --arms "peft lora r8" top-2 focus --tasks clinc150 sst2

2,000 training texts and 2,000 test texts a task, 2 epochs; SST-2 has 1,821 test texts, "shuffled" trains on all of its
6,920. Each run is a process of its own, arms interleaved seed by seed, so that times can be compared. REALLOC_DATA
names the folder of clinc150.json and sst2-*.txt. What a run found is kept in benchmarks/results/finetune/, with the
machine it ran on: times of two machines do not mix.
An arm's seconds stand beside LoRA's of the same machine; `run --here` runs again what was timed on others only.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import os
import statistics
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import machine
from scipy import stats

ROOT = Path(__file__).resolve().parent.parent
RUNS = ROOT / "runs" / "finetune"
TASKS = ("department", "rating", "clinc150", "sst2", "domains", "shuffled", "recommended")
FOUND = Path(__file__).resolve().parent / "results" / "finetune"
KEPT = (
    "used", "settings", "why", "steps", "epochs", "held", "test", "train_seconds", "trainable", "optimizer_bytes",
    "peak_bytes", "cached_bytes", "layers", "predicted_lora_seconds", "threads",
)  # fmt: skip
TEXTS = 2000
ALL_OF_SST2 = 6920
ROWS = {"shuffled": ALL_OF_SST2}  # 2,000 texts teach no arm that task
RIVAL = "peft lora r8"
TIE = 1.01
HERE = machine.describe().split(",")[0]  # the processor
# arm: method, flags, whose rate it takes
ARMS: dict[str, tuple[str, tuple[str, ...], str]] = {
    "peft lora r8": ("peft_lora", (), "peft lora r8"),
    "focus": ("focus", (), "top-2"),
    "peft lora, focus's seconds": ("peft_lora", (), "peft lora r8"),
    "focus at LoRA's rate": ("focus", (), "peft lora r8"),  # where it falls back to LoRA
    "top-1": ("topk", ("--set", "k=1"), "top-2"),
    "top-2": ("topk", ("--set", "k=2"), "top-2"),
    "top-3": ("topk", ("--set", "k=3"), "top-2"),
    "top-2 of 5 layers": ("topk", ("--set", "k=2", "--layers", "5"), "top-2"),
    "peft lora r8 of 5 layers": ("peft_lora", ("--layers", "5"), "peft lora r8"),
    "lora r8": ("lora", (), "peft lora r8"),
    "random ranks": ("random_ranks", (), "peft lora r8"),
    "adalora": ("adalora", (), "adalora"),  # B'A without peft's third factor: its rates are LoRA's
    "peft adalora": ("peft_adalora", (), "peft adalora"),
    "para": ("para", (), "peft lora r8"),
    "full": ("full", (), "full"),
    **{name: (name, (), "full") for name in ("lisa", "badam", "autofreeze", "egeria", "layer_gradient")},
    **{name: (name, (), "peft lora r8") for name in ("eva", "gora", "spiel")},
}
RATES = {
    "peft lora r8": (5e-4, 1e-3, 2e-3, 3e-3), "top-2": (5e-4, 1e-3, 2e-3), "peft adalora": (3e-3, 6e-3, 1.2e-2),
    "adalora": (3e-3, 6e-3, 1.2e-2),     "full": (1e-4, 3e-4, 6e-4),
}  # fmt: skip


def texts(task: str) -> list[str]:
    """Flags that name the task's data."""
    if task in ("department", "rating", "recommended"):
        return ["--data", f"reviews:{task}"]
    folder = RUNS / "data"
    train, test = folder / f"{task}-train.csv", folder / f"{task}-test.csv"
    if not test.exists():
        folder.mkdir(parents=True, exist_ok=True)
        for path, rows in zip((train, test), _rows(task), strict=True):
            with path.open("w", newline="", encoding="utf-8") as file:
                csv.writer(file).writerows([("text", "label"), *rows])
    return ["--data", str(train), "--eval", str(test)]


def _rows(task: str) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    source = Path(os.environ["REALLOC_DATA"])
    if task in ("clinc150", "domains"):
        found = json.loads((source / "clinc150.json").read_text())
        name = {intent: intent for _, intent in found["train"]}
        if task == "domains":
            domains = json.loads((source / "clinc150-domains.json").read_text())
            name = {intent: domain for domain, intents in domains.items() for intent in intents}
        train, test = ([(text, name[intent]) for text, intent in found[part]] for part in ("train", "test"))
        return train, _spread(test)
    parts = []
    for part in ("train", "test"):
        lines = (source / f"sst2-{part}.txt").read_text("latin-1").split("\n")
        parts.append([(text, label) for label, _, text in (line.partition(" ") for line in lines) if text])
    if task == "shuffled":
        words = sorted({word for part in parts for text, _ in part for word in text.split()})
        other = dict(zip(words, _spread(words), strict=True))
        parts = [[(" ".join(other[w] for w in text.split()), label) for text, label in part] for part in parts]
    return parts[0], parts[1]


def _spread(rows: list) -> list:
    """A fixed permutation: test files are sorted by class, and a mapping of words must not be the identity."""
    import random

    return random.Random(0).sample(rows, len(rows))


@dataclass(frozen=True)
class Case:
    task: str
    arm: str
    seed: int
    rate: float
    epochs: float = 2
    seconds: float | None = None
    rows: int = TEXTS

    def run(self) -> dict:
        method, flags, _ = ARMS[self.arm]
        words = ["--model", "minilm", *texts(self.task), "--method", method]
        words += ["--seed", str(self.seed), "--lr", str(self.rate)]
        words += ["--rows", str(self.rows), "--eval-rows", str(TEXTS)]
        words += flags
        words += ["--epochs", f"{self.epochs:g}"] if self.seconds is None else ["--budget", f"{self.seconds:.2f}s"]
        return finetuned(words)


def case(
    task: str,
    arm: str,
    seed: int,
    rate: float,
    epochs: float = 2,
    seconds: float | None = None,
    rows: int | None = None,
) -> Case:
    """A run on as many texts as its task has here, unless said otherwise."""
    return Case(task, arm, seed, rate, epochs, seconds, ROWS.get(task, TEXTS) if rows is None else rows)


def told(words: list[str]) -> dict:
    """The JSON of one call of the command line, a process of its own."""
    command = [sys.executable, "-m", "realloc.cli.main", "finetune", *words, "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    if done.returncode:
        raise SystemExit(f"{words}: {done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def finetuned(words: list[str]) -> dict:
    """What one run found, with the machine it ran on."""
    found = told(words)
    return {key: found[key] for key in KEPT} | {"machine": machine.describe()}


class Bench:
    """Runs, each made once and kept."""

    def __init__(self, file: Path, tuning: Path | None = None, case: Any = case, arms: Any = ARMS, rates: Any = RATES):
        self.case, self.arms, self.rates = case, arms, rates
        self.tuning = None if tuning is None else Bench(tuning, None, case, arms, rates)
        self.file = file
        file.parent.mkdir(parents=True, exist_ok=True)
        lines = file.read_text().splitlines() if file.exists() else []
        self.known: dict[str, list[dict]] = {}
        for case, found in map(json.loads, lines):
            self.known.setdefault(json.dumps(case), []).append(found)

    def get(self, case: Any, *, run: bool = True, beside: bool = True, here: bool = False) -> dict | None:
        """What a run found, last. One made beside other work, or for tuning, is made again for its seconds."""
        records = self.all(case)
        if (beside or not run) and self.tuning is not None and not records:
            records.extend(self.tuning.all(case))
        enough = [one for one in records if (beside or not one["beside"]) and (not here or cpu(one) == HERE)]
        if run and not enough:
            found = case.run() | {"beside": beside}
            records.append(found)
            with self.file.open("a") as file:
                file.write(json.dumps([list(case.__dict__.values()), found]) + "\n")
            print(f"{case.task} {case.arm} seed {case.seed} rate {case.rate:g}: held {found['held']} test "
                  f"{found['test']} {found['train_seconds']:.1f} s", flush=True)  # fmt: skip
        return records[-1] if records else None

    def all(self, case: Any) -> list[dict]:
        """Every record of a run, the oldest first: one for each machine it was timed on."""
        return self.known.setdefault(json.dumps(list(case.__dict__.values())), [])

    def rate(self, task: str, arm: str, *, run: bool) -> float | None:
        """The rate with the smallest held-out loss on seed 0, of the arm whose rate this one takes.

        By the loss, since 200 held-out texts tell accuracies apart by three points only: by accuracy LoRA was given a
        rate on department beside one at which it learns nothing.

        Of rates that are level within 1 % the middle one is taken, the higher of two. Where the best is the lowest or
        the highest one tried, half or twice of it is tried too, until it is neither.
        """
        leader = self.arms[arm][2]
        tuned = self if self.tuning is None else self.tuning  # timed runs are not those that were made for tuning
        rates = list(self.rates[leader])
        while True:
            found = {rate: tuned.get(self.case(task, leader, 0, rate), run=run) for rate in rates}
            if any(one is None for one in found.values()):
                return None
            best = min(rates, key=lambda rate: found[rate]["held"]["loss"])
            if rates[0] < best < rates[-1]:
                level = [rate for rate in rates if found[rate]["held"]["loss"] <= TIE * found[best]["held"]["loss"]]
                return level[len(level) // 2]
            rates = sorted({*rates, best / 2 if best == rates[0] else best * 2})


def cpu(record: dict) -> str:
    return record["machine"].split(",")[0]


def runs(
    bench: Bench, tasks: list[str], names: list[str], seeds: int, *, run: bool, beside: bool, here: bool, epochs: float,
    rows: int | None = None,
) -> dict:  # fmt: skip
    found: dict = {}
    for seed in range(seeds):
        for task in tasks:
            for arm in names:
                rate = bench.rate(task, arm, run=run)
                if rate is None:
                    continue
                seconds = None
                if arm == "peft lora, focus's seconds":
                    focus = found.get((task, "focus", seed))
                    if focus is None:
                        continue
                    seconds = focus["train_seconds"]
                    if not run:  # what was timed beside an earlier run of focus stands until it is made again
                        kept = [one["train_seconds"] for one in focus["records"]]
                        seconds = next(
                            (s for s in kept if bench.all(case(task, arm, seed, rate, epochs, s, rows))), seconds
                        )
                asked = case(task, arm, seed, rate, epochs, seconds, rows)
                one = bench.get(asked, run=run, beside=beside, here=here)
                if one is not None:
                    records = bench.all(asked)
                    timed = {each["machine"]: each["train_seconds"] for each in records if not each["beside"]}
                    found[task, arm, seed] = one | {"rate": rate, "timed": timed, "records": records[::-1]}
    return found


HEAD = ("arm", "rate", "test accuracy %", "minus LoRA, 95 %", "seconds", "of LoRA's", "trained", "optimizer MB",
        "peak MB", "cache MB")  # fmt: skip


def table(found: dict, tasks: list[str], names: list[str], seeds: int) -> None:
    print(f"`{machine.command()}`\n\n{_made_on(found)}\n")
    for task in tasks:
        print(f"### {task}\n\n| {' | '.join(HEAD)} |\n{'|---' * len(HEAD)}|")
        for arm in names:
            mine = {seed: found[task, arm, seed] for seed in range(seeds) if (task, arm, seed) in found}
            rival = {seed: found[task, RIVAL, seed] for seed in mine if (task, RIVAL, seed) in found}
            if mine:
                print("| " + " | ".join(_cells(arm, mine, rival)) + " |")
        print()


def _made_on(found: dict) -> str:
    """Processors, threads and commits of the runs that are shown: not of the process that prints them."""
    parts = [one["machine"].split(", ") for one in found.values()]
    cpus, threads, commits = (sorted({part[place] for part in parts}) for place in (0, 1, -1))
    commits = sorted({commit.removeprefix("commit ") for commit in commits})
    return f"Runs of {' and '.join(cpus)}; {' or '.join(threads)}; commits {', '.join(commits)}."


def _cells(arm: str, mine: dict[int, dict], rival: dict[int, dict]) -> list[str]:
    def mean(key: str) -> float:
        return statistics.mean(one[key] for one in mine.values())

    one = next(iter(mine.values()))
    gap = "" if arm == RIVAL else less(mine, rival)
    pairs = [pair for s in rival for pair in _paired(mine[s]["timed"], rival[s]["timed"])]
    # of machines that timed most seeds the last one
    on = statistics.mode(pair[0] for pair in reversed(pairs)) if pairs else ""
    pairs = [pair for pair in pairs if pair[0] == on]
    share = f"{statistics.mean(own / theirs for _, own, theirs in pairs):.2f} (n={len(pairs)})" if pairs else "-"
    seconds = f"{statistics.mean(own for _, own, _ in pairs):.1f} ({on.split()[0].partition('(')[0]})" if pairs else "-"
    if arm == "focus":
        kept = {len(each["layers"] or ()) for each in mine.values()}
        arm += f" ({one['used']} {', '.join(map(str, one['settings'].values()))}; {one['epochs']:.1f} epochs"
        arm += f"; {' or '.join(map(str, sorted(kept)))} layers)"
    accuracy = statistics.mean(100 * each["test"]["accuracy"] for each in mine.values())
    return [
        arm, f"{one['rate']:g}", f"{accuracy:.2f} (n={len(mine)})", gap, seconds, share,
        f"{one['trainable']:,}", f"{mean('optimizer_bytes') / 1e6:.1f}", f"{mean('peak_bytes') / 1e6:.0f}",
        f"{mean('cached_bytes') / 1e6:.0f}",
    ]  # fmt: skip


def less(mine: dict[int, dict], rival: dict[int, dict]) -> str:
    """Points of accuracy over a rival's, by seed: mean and half of the paired 95 % interval."""
    gaps = [100 * (mine[s]["test"]["accuracy"] - rival[s]["test"]["accuracy"]) for s in rival]
    if len(gaps) < 2:
        return f"{gaps[0]:+.2f}" if gaps else ""
    half = stats.t.ppf(0.975, len(gaps) - 1) * statistics.stdev(gaps) / math.sqrt(len(gaps))
    return f"{statistics.mean(gaps):+.2f} ± {half:.2f}"


def _paired(own: dict[str, float], theirs: dict[str, float]) -> list[tuple[str, float, float]]:
    """On each processor the last seconds, and the rival's of the same commit (the same hour), else its last."""
    last = {where.split(",")[0]: (where, seconds) for where, seconds in own.items()}
    rivals = {where.split(",")[0]: seconds for where, seconds in theirs.items()}
    return [(on, own, theirs.get(where, rivals[on])) for on, (where, own) in last.items() if on in rivals]


def _whole(word: str) -> float:
    """2 and 2.0 are one key."""
    value = float(word)
    return int(value) if value.is_integer() else value


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("act", choices=("tune", "run", "table"))
    parser.add_argument("--tasks", nargs="+", default=list(TASKS[:4]), choices=TASKS)
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=ARMS)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=_whole, default=2)
    parser.add_argument("--rows", type=int, help="training texts; the rates stay those of the task's usual ones")
    parser.add_argument("--beside", action="store_true", help="other work runs beside: seconds are not to be kept")
    parser.add_argument("--here", action="store_true", help="run again what has no seconds of this machine")
    parser.add_argument("--out", type=Path, default=FOUND / "runs.jsonl")
    args = parser.parse_args()
    bench = Bench(args.out, args.out.with_name("tuning.jsonl"))
    if args.act == "tune":
        for task in args.tasks:
            for arm in args.arms:
                print(task, arm, bench.rate(task, arm, run=True), flush=True)
        return
    found = runs(
        bench,
        args.tasks,
        args.arms,
        args.seeds,
        run=args.act == "run",
        beside=args.beside,
        here=args.here,
        epochs=args.epochs,
        rows=args.rows,
    )
    table(found, args.tasks, args.arms, args.seeds)


if __name__ == "__main__":
    main()
