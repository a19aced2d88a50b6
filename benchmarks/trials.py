"""What a short trial of other layers foretells of the rest of a run: the table of ADR 17.

    REALLOC_DATA=FOLDER python benchmarks/trials.py --task sst2 --layers 5 --k 1 --rate 1e-3

At a quarter and at half of a run, one layer more and one less train for the next steps, are judged on the held-out
texts and taken back; then they train to the end of the run, and are taken back too. A positive figure: the other layers
were better. Losses only, no times, so it may run beside other work.
"""

from __future__ import annotations

import argparse

import depths
import machine
import torch
from torch import Tensor

from realloc.allocate.prefix import paired
from realloc.attach import attach
from realloc.cache.settings import Cache
from realloc.finetune.aim import Judged
from realloc.finetune.arms.arm import Arm, optimizer_of
from realloc.finetune.fit import stepped
from realloc.finetune.pace import Course
from realloc.finetune.scene import Scene, prepared
from realloc.layer_handle import LayerHandle
from realloc.methods.topk import topk
from realloc.pool.snapshot import Mean
from realloc.shorten import shorten

STEPS = (6, 12, 24, 48)


class Race:
    """One run, and what becomes of it where other layers train."""

    def __init__(self, scene: Scene, k: int, rate: float) -> None:
        optimizer = optimizer_of(scene.loaded, rate)
        cache = Cache(epoch=len(scene.train.rows), compute="bfloat16")
        self.scene, self.total = scene, 2 * scene.train.per_epoch
        self.handle: LayerHandle = attach(scene.loaded.model, optimizer, topk(k, cache=cache))
        self.arm = Arm(scene.loaded.model, optimizer, self.handle)
        self.arm.model.train()

    @property
    def on(self) -> list[int]:
        return [number for number, trains in enumerate(self.handle.layers.values()) if trains]

    def go(self, first: int, last: int, mean: Mean | None = None) -> None:
        for step in range(first, last):
            torch.manual_seed(step)  # both branches drop the same
            stepped(self.arm, self.scene.train, self.scene.aim, Course(((0, self.total),)), step)
            if mean is not None:
                mean.add()

    def held(self) -> Tensor:
        return self.scene.aim.judge(self.arm.model, self.scene.held).losses

    def branch(self, step: int, layers: list[int]) -> tuple[dict[int, tuple[Tensor, Tensor]], Tensor, Judged]:
        """Held-out losses after some steps (as they are, and by the mean), at the end, and on the test texts."""
        found = {}
        for length in STEPS:
            with self.handle.trial(layers) as trial:
                self.go(step, step + length // 2)
                mean = Mean({name: p for name, p in trial.parameters.items() if p.requires_grad})
                self.go(step + length // 2, step + length, mean)
                plain = self.held()
                with mean.shown():
                    found[length] = plain, self.held()
        with self.handle.trial(layers):
            self.go(step, self.total)
            test = self.scene.test
            assert test is not None
            return found, self.held(), self.scene.aim.judge(self.arm.model, test)


def gain(own: Tensor, other: Tensor) -> str:
    mean, error = paired(own, other)
    return f"{mean:+.3f} ± {error:.3f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--task", default="sst2")
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--k", type=int, default=2)
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    scene = prepared(depths.config(args.task, args.seed, eval_rows=2000))
    torch.manual_seed(args.seed)
    if args.layers < 6:
        shorten(scene.loaded.base, args.layers)
    race = Race(scene, args.k, args.rate)
    print(f"`{machine.command()}`\n\n{machine.describe()}\n")
    head = ("layers", "from", *(f"after {n}" for n in STEPS), *(f"mean {n}" for n in STEPS), "end", "test", "accuracy")
    print(f"| {' | '.join(head)} |\n{'|---' * len(head)}|")
    step = 0
    for part in (0.25, 0.5):
        after = round(part * race.total)
        race.go(step, after)
        step = after
        on = race.on
        own, own_end, own_test = race.branch(step, on)
        for other in ([on[0] - 1, *on] if on[0] else [], on[1:]):
            if not other:
                continue
            found, end, test = race.branch(step, other)
            points = 100 * (test.metrics["accuracy"] - own_test.metrics["accuracy"])
            cells = [gain(own[n][0], found[n][0]) for n in STEPS] + [gain(own[n][1], found[n][1]) for n in STEPS]
            cells += [gain(own_end, end), gain(own_test.losses, test.losses), f"{points:+.1f}"]
            print(f"| {len(on)} to {len(other)} | {part:g} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
