"""SmolLM2 on a slice of tinyshakespeare: loss by seconds, of LoRA, of top-k with a cache, and of focus.

    python benchmarks/language.py tune     # LoRA's and top-6's rate, by the loss on held-out pieces of seed 0
    python benchmarks/language.py run      # each arm for 1, 2 and 3 epochs; resumes run by run
    python benchmarks/language.py table

A point of a curve is a whole run, its schedule decayed to its own length. 30,000 characters to train on, the 12,000
that follow to test, in pieces of 128 tokens: the end of the file is of other plays, for which held-out pieces of the
training text pick no rate. REALLOC_DATA names the folder of tinyshakespeare.txt. What a run found is kept.
"""

from __future__ import annotations

import argparse
import os
from dataclasses import dataclass
from pathlib import Path

import machine

from finetune import FOUND, RUNS, Bench, finetuned

EPOCHS = (1, 2, 3)
TRAIN, TEST = 30_000, 12_000  # characters
HEAD = ("arm", "rate", "epochs", "test loss", "seconds", "peak MB")
# arm: method, flags, whose rate it takes
ARMS: dict[str, tuple[str, tuple[str, ...], str]] = {
    "peft lora r8": ("peft_lora", (), "peft lora r8"),
    "focus": ("focus", (), "peft lora r8"),
    "top-6": ("topk", ("--set", "k=6"), "top-6"),
}
RATES = {"peft lora r8": (5e-4, 1e-3, 3e-3), "top-6": (1e-4, 3e-4, 6e-4)}


@dataclass(frozen=True)
class Piece:
    """A run; the fields are those of finetune.Case, so that one reader serves both."""

    task: str
    arm: str
    seed: int
    rate: float
    epochs: float = max(EPOCHS)

    def run(self) -> dict:
        method, flags, _ = ARMS[self.arm]
        words = ["--model", "smollm2", "--task", "causal-lm", "--tokens", "128", *_texts(), "--method", method, *flags]
        words += ["--seed", str(self.seed), "--lr", str(self.rate), "--batch-size", "8", "--epochs", f"{self.epochs:g}"]
        return finetuned(words)


def _texts() -> list[str]:
    train, test = RUNS / "data" / "shakespeare-train.txt", RUNS / "data" / "shakespeare-next.txt"
    if not test.exists():
        whole = (Path(os.environ["REALLOC_DATA"]) / "tinyshakespeare.txt").read_text()
        train.parent.mkdir(parents=True, exist_ok=True)
        train.write_text(whole[:TRAIN])
        test.write_text(whole[TRAIN : TRAIN + TEST])
    return ["--data", str(train), "--eval", str(test)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("act", choices=("tune", "run", "table"))
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=ARMS)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--beside", action="store_true", help="other work runs beside: seconds are not to be kept")
    parser.add_argument("--out", type=Path, default=FOUND / "language.jsonl")
    args = parser.parse_args()
    bench = Bench(args.out, args.out.with_name("language-tuning.jsonl"), case=Piece, arms=ARMS, rates=RATES)
    rates = {arm: bench.rate("shakespeare", arm, run=args.act != "table") for arm in args.arms}
    if args.act == "tune":
        print(rates)
        return
    print(f"`{machine.command()}`\n\n{machine.describe()}\n")
    print(f"| {' | '.join(HEAD)} |\n{'|---' * len(HEAD)}|")
    for epochs in EPOCHS:
        for arm in args.arms:
            rate = rates[arm]
            for seed in range(args.seeds):
                case = None if rate is None else Piece("shakespeare", arm, seed, rate, epochs)
                one = None if case is None else bench.get(case, run=args.act == "run", beside=args.beside)
                if one is not None:
                    seconds = "-" if one["beside"] else f"{one['train_seconds']:.0f}"
                    cells = [f"{arm} ({one['used']})", f"{rate:g}", str(epochs), f"{one['test']['loss']:.3f}", seconds]
                    print(f"| {' | '.join(cells)} | {one['peak_bytes'] / 1e6:.0f} |")


if __name__ == "__main__":
    main()
