"""What the probes of each depth say of each task, on several samples: the tables behind ADR 16.

    REALLOC_DATA=FOLDER python benchmarks/depths.py

Leave-one-out error of linear probes on the training texts of some seeds: what `focus` decides by, and nothing else.
"""

from __future__ import annotations

import argparse

import machine
import torch

import finetune
from realloc.depths import compare_depths, pooled_depths
from realloc.finetune.config import FinetuneConfig
from realloc.finetune.scene import Scene, prepared


def probed(scene: Scene, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Pooled outputs of the first texts of a run, and their labels, in the texts' own order."""
    order, rows = [], []
    for index, batch, _ in scene.train.sorted(64, slice(0, count)):
        order += index
        rows.append(batch)
    found = pooled_depths(scene.loaded.model, rows, compute="bfloat16")
    return found[torch.tensor(order).argsort()], scene.train.labels[: len(order)].long()


def config(task: str, seed: int, eval_rows: int = 1) -> FinetuneConfig:
    flags = dict(zip(words := finetune.texts(task), words[1:], strict=False))
    files = {name.removeprefix("--"): value for name, value in flags.items() if name.startswith("--")}
    return FinetuneConfig(model="minilm", seed=seed, rows=finetune.TEXTS, eval_rows=eval_rows, **files)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tasks", nargs="+", default=list(finetune.TASKS), choices=finetune.TASKS)
    parser.add_argument("--texts", nargs="+", type=int, default=[512, 1024, 1800])
    parser.add_argument("--seeds", type=int, default=3)
    args = parser.parse_args()
    print(f"`{machine.command()}`\n\n{machine.describe()}\n")
    print("Error by depth, the best in bold; + marks a best depth that surely knows more than the top, - one that does")
    print("not surely know more than the embeddings.\n")
    head = ("task", "seed", "texts", *map(str, range(7)), "frozen", "kept")
    print(f"| {' | '.join(head)} |\n{'|---' * len(head)}|")
    for task in args.tasks:
        for seed in range(args.seeds):
            features, labels = probed(prepared(config(task, seed)), max(args.texts))
            for count in args.texts:
                found = compare_depths(features[:count], labels[:count]) if count <= len(features) else None
                if found is None:
                    continue
                marks = ("+" if found.kept < found.layers else "") + ("" if found.frozen else "-")
                cells = [f"**{e:.3f}**{marks}" if d == found.best else f"{e:.3f}" for d, e in enumerate(found.errors)]
                print(
                    f"| {task} | {seed} | {count} | {' | '.join(cells)} | {found.frozen} | {found.kept} |", flush=True
                )


if __name__ == "__main__":
    main()
