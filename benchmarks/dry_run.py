"""What `realloc finetune --dry-run` foretells beside what the run then takes: seconds and peak memory.

    python benchmarks/dry_run.py [--tasks sst2 department] [--rows 1000] [--epochs 2]

Each method's dry run and run are processes of their own, one right after the other; MiniLM. Seconds of a run are those
of its training without the judgement of held-out texts at its end, which a dry run does not foretell; so both are
shown. REALLOC_DATA names the folder of the data, as in finetune.py.
"""

from __future__ import annotations

import argparse

import machine

import finetune

METHODS = ("full", "peft_lora", "lora", "adalora", "topk", "lisa", "spiel", "focus")
HEAD = ("task", "method", "seconds foretold", "taken", "ratio", "peak MB foretold", "reached", "ratio")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", default=["sst2", "department"], choices=finetune.TASKS)
    parser.add_argument("--methods", nargs="+", default=list(METHODS))
    parser.add_argument("--rows", type=int, default=1000)
    parser.add_argument("--epochs", type=int, default=2)
    args = parser.parse_args()
    print(f"`{machine.command()}`\n\n{machine.describe()}\n\n| {' | '.join(HEAD)} |\n{'|---' * len(HEAD)}|")
    for task in args.tasks:
        for method in args.methods:
            words = ["--model", "minilm", *finetune.texts(task), "--method", method, "--rows", str(args.rows)]
            words += ["--eval-rows", "100", "--epochs", str(args.epochs)]
            before, after = finetune.told([*words, "--dry-run"]), finetune.told(words)
            seconds, peak = before["seconds"], before["peak_bytes"] / 1e6
            taken, reached = after["train_seconds"], after["peak_bytes"] / 1e6
            cells = (f"{seconds:.1f}", f"{taken:.1f}", f"{seconds / taken:.2f}", f"{peak:.0f}", f"{reached:.0f}",
                     f"{peak / reached:.2f}")  # fmt: skip
            print(f"| {task} | {method} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
