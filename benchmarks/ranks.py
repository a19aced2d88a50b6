"""A frozen linear layer with eight ranks: forward and backward beside the bare layer and beside peft's way.

    python benchmarks/ranks.py

The four take turns; each shape shows the fastest of sixty. "bare": the gradient of the input alone, which no method can
do without. "peft": ``W x + B(A(x)) * scale`` of three nn.Linear. "passed": ours, ranks beside the layer, as in half
precision. "added": ours, ranks added to the weight first.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import machine
import torch
from torch import Tensor, nn

import realloc.kernels.rank_product as product

RANK, SCALE, TURNS = 8, 2.0, 60
ROWS = (128, 420, 1024, 2400)  # tokens of a batch: 420 of CLINC150, 2,400 of the reviews
SHAPES = ((384, 384), (1536, 384), (384, 1536))  # [out, in] of MiniLM


def arms(rows: int, fan_out: int, fan_in: int) -> dict[str, Callable[[], Tensor]]:
    x = torch.randn(rows, fan_in, requires_grad=True)
    layer, a, b = nn.Linear(fan_in, fan_out), nn.Linear(fan_in, RANK, bias=False), nn.Linear(RANK, fan_out, bias=False)
    layer.requires_grad_(False)
    slots = torch.randn(RANK * (fan_in + fan_out), 1, requires_grad=True)

    def ours(folds: bool) -> Tensor:
        product._folds = lambda rows, weight: folds  # type: ignore[assignment]
        return product.rank_linear(x, layer.weight, layer.bias, slots, SCALE, 0)

    return {
        "bare": lambda: layer(x),
        "peft": lambda: layer(x) + b(a(x)) * SCALE,
        "passed": lambda: ours(folds=False),
        "added": lambda: ours(folds=True),
    }


def main() -> None:
    print(f"`{machine.command()}`\n\n{machine.describe()}\n")
    print("| rows | out x in | bare ms | peft | passed | added | taken |\n|---|---|---|---|---|---|---|")
    taken = product._folds
    for rows in ROWS:
        for fan_out, fan_in in SHAPES:
            torch.manual_seed(0)
            made = arms(rows, fan_out, fan_in)
            gradient, best = torch.randn(rows, fan_out), dict.fromkeys(made, float("inf"))
            for _ in range(TURNS):
                for name, act in made.items():
                    began = time.perf_counter()
                    act().backward(gradient)
                    best[name] = min(best[name], time.perf_counter() - began)
            ours = "added" if taken(gradient, torch.empty(fan_out, fan_in)) else "passed"
            cells = [f"{best[name] / best['bare']:.2f}" for name in ("peft", "passed", "added")]
            print(f"| {rows} | {fan_out} x {fan_in} | {1e3 * best['bare']:.2f} | {' | '.join(cells)} | {ours} |")


if __name__ == "__main__":
    main()
