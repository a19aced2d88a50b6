"""Placement buffers written to by hand: an error, never a read outside them. In a process that must live."""

from __future__ import annotations

import random
import subprocess
import sys
import warnings

import torch
from torch import nn

import realloc
from realloc import methods
from realloc.errors import ReallocError

VALUES = (-1, -(2**31) + 1, 2**31 - 1, 10**6, 0, 1, 64, 96)


def case(seed: int) -> str:
    chance = random.Random(seed)
    torch.manual_seed(seed)
    name, block = chance.choice(["rigl", "gse", "sparse_evolution", "snfs"]), chance.choice([(1, 1), (1, 1), (2, 4)])
    model = nn.Sequential(nn.Linear(64, 96), nn.ReLU(), nn.Linear(96, 64), nn.ReLU(), nn.Linear(64, 8))
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    method = getattr(methods, name)(0.2).on(block=block)
    handle = realloc.attach(model, optimizer, method, schedule=realloc.every(1, total=50), seed=seed)

    def go(steps: int) -> None:
        for _ in range(steps):
            loss = nn.functional.cross_entropy(model(torch.randn(40, 64)), torch.randint(8, (40,)))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    go(2)
    part = chance.choice(["columns", "rows", "extents"])
    buffer = model.get_buffer(f"realloc_{part}0")
    for _ in range(chance.choice([1, 1, 3, 20])):
        buffer[chance.randrange(buffer.numel())] = chance.choice([*VALUES, chance.randrange(-100, 10_000)])
    try:
        go(3)
        handle.mask("0")
        realloc.export.dense(model)
    except (ReallocError, RuntimeError, IndexError, ValueError) as error:
        return f"{part}: {type(error).__name__}"
    return f"{part}: nothing"


def test_damaged_buffers_are_an_error_and_never_a_crash() -> None:
    done = subprocess.run([sys.executable, __file__, "60"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, (done.returncode, done.stdout[-500:], done.stderr[-2000:])
    ends = done.stdout.split("\n")
    assert sum("Error" in end for end in ends) > 40, ends


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    for number in range(int(sys.argv[1])):
        print(case(number), flush=True)
