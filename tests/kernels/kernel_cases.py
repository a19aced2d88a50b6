"""Placements for the tests of the kernels: a site between two others in a pool."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from realloc.kernels.taps import Tap


@dataclass(frozen=True, eq=False)
class Case:
    x: Tensor
    values: Tensor
    bias: Tensor | None
    whole: bool
    extents: Tensor
    rowptr: Tensor
    columns: Tensor
    compute: Tensor
    shape: tuple[int, int]
    block: tuple[int, int]
    tap: Tap

    def linear(self) -> tuple[Any, ...]:
        return (
            self.x, self.values, self.bias, self.whole, self.extents, 1, self.rowptr, self.columns, self.compute,
            *self.shape, *self.block, self.tap.number,
        )  # fmt: skip

    def weight(self) -> tuple[Any, ...]:
        return (
            self.values, self.whole, self.extents, 1, self.rowptr, self.columns, *self.shape, *self.block,
            self.tap.number,
        )  # fmt: skip

    def changed(self, **fields: Any) -> Case:
        return replace(self, **fields)


def case(
    shape: tuple[int, int] = (12, 8), batch: tuple[int, ...] = (5,), density: float = 0.4,
    dtype: torch.dtype = torch.float64,
    block: tuple[int, int] = (1, 1), whole: bool = False, compute: int = 0, seed: int = 0, bias: bool = True,
) -> Case:  # fmt: skip
    draw = torch.Generator().manual_seed(seed)
    mask = torch.rand(shape[0] // block[0], shape[1] // block[1], generator=draw) < density
    rowptr = torch.cat([torch.zeros(1, dtype=torch.int64), mask.sum(1).cumsum(0)]).int()
    mine = mask.nonzero()[:, 1].int()
    count, size = mine.numel(), block[0] * block[1]
    values = torch.randn((count + 5 if whole else count) * size, 1, generator=draw, dtype=dtype)
    return Case(
        x=torch.randn(*batch, shape[1], generator=draw, dtype=dtype).requires_grad_(),
        values=values.requires_grad_(),
        bias=torch.randn(shape[0], generator=draw, dtype=dtype).requires_grad_() if bias else None,
        whole=whole,
        extents=torch.tensor([0, 3, 3 + count, 3 + count]),
        rowptr=rowptr,
        columns=torch.cat([torch.zeros(3, dtype=torch.int32), mine, torch.zeros(2, dtype=torch.int32)]),
        compute=torch.full((3,), compute, dtype=torch.int8),
        shape=shape,
        block=block,
        tap=Tap(listens=True),
    )
