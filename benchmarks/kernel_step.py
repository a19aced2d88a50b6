"""Whole training step of 784-H-H-10 with packed hidden layers, beside the same dense model: interleaved medians."""

from __future__ import annotations

import argparse
import itertools
import platform
import time
from pathlib import Path
from statistics import median

import numba
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from realloc.kernels.ops import packed_linear
from realloc.kernels.taps import Tap


class Packed(nn.Module):
    """784-H-H-10; both hidden weights live in one flat parameter, the classifier is dense."""

    def __init__(self, width: int, density: float, block: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.shapes = [(width, 784), (width, width)]
        self.block = block
        counts, self.taps = [0], [Tap(), Tap()]
        columns, values = [], []
        for number, (height, fan_in) in enumerate(self.shapes):
            mask = torch.rand(height // block, fan_in // block, generator=generator) < density
            pointer = torch.cat([torch.zeros(1, dtype=torch.int64), mask.sum(1).cumsum(0)])
            columns.append(mask.nonzero()[:, 1].int())
            counts.append(counts[-1] + columns[-1].numel())
            bound = (fan_in * density) ** -0.5
            values.append((torch.rand(columns[-1].numel() * block**2, generator=generator) * 2 - 1) * bound)
            self.register_buffer(f"rowptr{number}", pointer.int())
            self.register_parameter(f"bias{number}", nn.Parameter(torch.zeros(height)))
        self.pool = nn.Parameter(torch.cat(values).unsqueeze(1))
        self.register_buffer("columns", torch.cat(columns))
        self.register_buffer("extents", torch.tensor(counts))
        self.register_buffer("compute", torch.zeros(2, dtype=torch.int8))
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        size = self.block**2
        first, second = torch.split(self.pool, [k * size for k in self.extents.diff().tolist()])
        for number, part in enumerate((first, second)):
            height, fan_in = self.shapes[number]
            x = packed_linear(
                x, part, getattr(self, f"bias{number}"), False, self.extents, number, getattr(self, f"rowptr{number}"),
                self.columns, self.compute, height, fan_in, self.block, self.block, self.taps[number].number,
            ).relu()  # fmt: skip
        return self.head(x)


def dense(width: int) -> nn.Module:
    """The model a user would write."""
    return nn.Sequential(nn.Linear(784, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 10))


def timed(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor, parts: list[list[float]]) -> float:
    """Milliseconds of one step; forward, backward and optimizer apart in ``parts``."""
    marks = [time.perf_counter()]
    loss = F.cross_entropy(model(x), y)
    marks.append(time.perf_counter())
    loss.backward()
    marks.append(time.perf_counter())
    optimizer.step()
    optimizer.zero_grad()
    marks.append(time.perf_counter())
    for part, (a, b) in zip(parts, itertools.pairwise(marks), strict=True):
        part.append((b - a) * 1e3)
    return (marks[-1] - marks[0]) * 1e3


def break_even(width: int, batch: int, block: int, steps: int) -> None:
    """Kernel against scatter on forward and backward of the hidden layers, by density."""
    x, y = torch.randn(batch, 784), torch.randint(0, 10, (batch,))
    print(
        f"H={width} block {block}x{block}: forward + backward of 784-H-H-10, ms by kernel, by scatter, and their ratio"
    )
    for density in (0.02, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.7):
        model = Packed(width, density, block)
        taken: list[list[float]] = [[], []]
        for turn in range(steps):
            for compute, times in enumerate(taken):
                model.compute.fill_(compute)
                start = time.perf_counter()
                F.cross_entropy(model(x), y).backward()
                model.zero_grad()
                if turn >= 3:
                    times.append((time.perf_counter() - start) * 1e3)
        kernel, scatter = (median(t) for t in taken)
        least = min(taken[1]) / min(taken[0])
        ratios = f"{scatter / kernel:6.2f} (least: {least:.2f})"
        print(f"  density {density:4.0%} {kernel:8.2f} {scatter:8.2f} {ratios}", flush=True)


def processor() -> str:
    """Name of the processor."""
    info = Path("/proc/cpuinfo")
    names = [line.split(":")[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
    return names[0] if names else platform.processor()


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--case", nargs="+", default=["1024:0.05", "4096:0.02"], help="H:density")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--block", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--break-even", action="store_true", help="kernel against scatter, by density")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(f"torch {torch.__version__}, numba {numba.__version__}, {options.threads} threads, {processor()}")
    print("medians of interleaved steps in ms: forward + backward + AdamW(fused) = step; least step in brackets")
    x, y = torch.randn(options.batch, 784), torch.randint(0, 10, (options.batch,))
    if options.break_even:
        for case in options.case:
            break_even(int(case.split(":")[0]), options.batch, options.block, options.steps)
        return
    for case in options.case:
        width, density = int(case.split(":")[0]), float(case.split(":")[1])
        models = {"dense": dense(width), "packed": Packed(width, density, options.block)}
        optimizers = {n: torch.optim.AdamW(m.parameters(), lr=1e-3, fused=True) for n, m in models.items()}
        steps: dict[str, list[float]] = {n: [] for n in models}
        parts: dict[str, list[list[float]]] = {n: [[], [], []] for n in models}
        for turn in range(options.steps + 5):
            for name, model in models.items():
                taken = timed(model, optimizers[name], x, y, parts[name])
                if turn >= 5:
                    steps[name].append(taken)
        for name in models:
            f, b, o = (median(p[5:]) for p in parts[name])
            total, least = median(steps[name]), min(steps[name])
            print(
                f"H={width} density {density:.0%} {name:7} {f:7.2f} + {b:7.2f} + {o:6.2f} = {total:7.2f} ({least:.2f})"
            )
        ratio, least = (g(steps["dense"]) / g(steps["packed"]) for g in (median, min))
        print(
            f"H={width} density {density:.0%} dense / packed = {ratio:.1f} (of the least steps: {least:.1f})",
            flush=True,
        )
        if options.profile:
            with torch.profiler.profile() as profile:
                for _ in range(20):
                    timed(models["packed"], optimizers["packed"], x, y, parts["packed"])
            print(profile.key_averages().table(sort_by="self_cpu_time_total", row_limit=25))


if __name__ == "__main__":
    main()
