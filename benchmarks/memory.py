"""Peak memory of training 784-H-H-10 with AdamW, dense against packed with moves, each in its own process.

    python benchmarks/memory.py --width 4096 --density 0.02

Three figures. "state": bytes of parameters, gradients, moments and placements. "state at a move": the same and the most
that one optimizer step with its move allocates on top. "peak anonymous": the most anonymous memory over its
value before the model exists; it has activations and the kernels' scratch in it. Anonymous memory is RssAnon, sampled
every millisecond, with malloc told to give freed memory back at once (MALLOC_MMAP_THRESHOLD_ and MALLOC_TRIM_THRESHOLD_
65536, both arms), so that it follows what lives. Attaching starts from a dense model: sampling begins after attach.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import os
import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path

import machine
import torch
from torch import nn

import realloc
from realloc import methods


def anonymous() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon"):
            return int(line.split()[1]) * 1024
    return 0


class Peak:
    def __init__(self) -> None:
        self.most, self._stop = 0, threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def _watch(self) -> None:
        while not self._stop.is_set():
            self.most = max(self.most, anonymous())
            time.sleep(0.001)

    def __enter__(self) -> Peak:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()


def child(arm: str, width: int, density: float, steps: int) -> dict[str, int]:
    warnings.simplefilter("ignore")
    x, y = torch.randn(128, 784), torch.randint(10, (128,))
    # every kernel, BLAS buffer and thread exists before the first reading
    _train(_model(64), x, y, "dense", 1.0, 3)
    _train(_model(64), x, y, "rigl", 0.2, 8)
    gc.collect()
    base = anonymous()
    model = _model(width)
    optimizer, handle = _begin(model, arm, density, steps)
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    extra = 0
    with Peak() as peak:
        for _ in range(steps):
            nn.functional.cross_entropy(model(x), y).backward()
            extra = max(extra, _step(optimizer))
            optimizer.zero_grad()
    nn.functional.cross_entropy(model(x), y).backward()
    state = sum(t.numel() * t.element_size() for t in _tensors(model, optimizer))
    moves = handle.moves if handle is not None else 0
    return {"anonymous": peak.most - base, "state": state, "at_move": state + extra, "moves": moves}


def _step(optimizer: torch.optim.Optimizer) -> int:
    """Take one optimizer step; most anonymous memory within it over its start, once its state exists."""
    known = bool(optimizer.state)
    before = anonymous()
    with Peak() as peak:
        optimizer.step()
    return max(0, peak.most - before) if known else 0


def _model(width: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(784, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 10))


def _begin(
    model: nn.Module, arm: str, density: float, steps: int
) -> tuple[torch.optim.Optimizer, realloc.Handle | None]:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    if arm == "dense":
        return optimizer, None
    method = getattr(methods, arm)(density=density)
    return optimizer, realloc.attach(model, optimizer, method, schedule=realloc.every(4, total=steps))


def _loop(model: nn.Module, optimizer: torch.optim.Optimizer, x: torch.Tensor, y: torch.Tensor, steps: int) -> None:
    for _ in range(steps):
        loss = nn.functional.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def _train(model: nn.Module, x: torch.Tensor, y: torch.Tensor, arm: str, density: float, steps: int) -> None:
    optimizer, _ = _begin(model, arm, density, steps)
    _loop(model, optimizer, x, y, steps)


def _tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    found = [*model.parameters(), *model.buffers(), *(p.grad for p in model.parameters() if p.grad is not None)]
    return found + [v for s in optimizer.state.values() for v in s.values() if torch.is_tensor(v)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--width", type=int, default=4096)
    parser.add_argument("--density", type=float, default=0.02)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--arms", nargs="+", default=["dense", "static", "gse", "rigl"])
    parser.add_argument("--child", default=None)
    args = parser.parse_args()
    if args.child:
        print(json.dumps(child(args.child, args.width, args.density, args.steps)))
        return
    print(f"`{machine.command()}`\n\n{machine.describe()}\n")
    print(
        f"784-{args.width}-{args.width}-10, batch 128, AdamW(fused=True), density {args.density:.0%}, "
        "a move every 4 steps\n"
    )
    print("| arm | moves | state MB | of dense | state at a move MB | of dense | peak anonymous MB | of dense |")
    print("|---|---|---|---|---|---|---|---|")
    first: dict[str, int] = {}
    for arm in args.arms:
        own = [sys.executable, __file__, "--child", arm, "--width", str(args.width), "--density", str(args.density)]
        malloc = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
        done = subprocess.run(
            [*own, "--steps", str(args.steps)], capture_output=True, text=True, check=True, env={**os.environ, **malloc}
        )
        got = json.loads(done.stdout.splitlines()[-1])
        first = first or got
        shares = [f"{got[k] / 1e6:.1f} | 1/{first[k] / got[k]:.1f}" for k in ("state", "at_move", "anonymous")]
        print(f"| {arm} | {got['moves']} | {' | '.join(shares)} |", flush=True)


if __name__ == "__main__":
    main()
