"""The arithmetic of packed layers on plain tensors: by kernel, by scatter, or by gathering inputs. No autograd here."""

from __future__ import annotations

import threading
from typing import Final, NamedTuple, final

import torch
from torch import Tensor

from realloc.errors import StateError
from realloc.kernels import columns, reference
from realloc.kernels import task as w
from realloc.kernels.dispatch import SCATTER, not_supported
from realloc.kernels.team import DAMAGED, run
from realloc.kernels.walks import Index, Layout, by_columns, by_rows

CHUNK: Final = 1024  # samples laid out at a time: bounds the scratch memory
PADDING: Final = 128
_local: Final = threading.local()


@final
class Site(NamedTuple):
    """Where one site lies in its pool, and its shape."""

    whole: bool
    extents: Tensor
    site: int
    rowptr: Tensor
    columns: Tensor
    layout: Layout
    tap: int

    def bounds(self) -> tuple[int, int]:
        """First and past-last unit."""
        first, last = self.extents[self.site : self.site + 2].tolist()
        if not 0 <= first <= last <= self.columns.shape[0]:
            raise StateError(DAMAGED)
        return first, last

    def slots(self, values: Tensor, bounds: tuple[int, int]) -> Tensor:
        """The slots of the site, of a tensor that is the whole pool or the site's part already."""
        size = self.layout.r * self.layout.c
        first, last = (b * size for b in bounds)
        values = values[first:last] if self.whole else values
        if values.shape[0] != last - first:
            raise ValueError(f"site {self.site}: {values.shape[0]} values for {last - first} slots")
        return values

    def inputs(self, bounds: tuple[int, int]) -> Tensor:
        """The columns of its units, int32."""
        return self.columns[bounds[0] : bounds[1]]

    def rows(self, bounds: tuple[int, int]) -> Index:
        """Index by rows of elements."""
        return by_rows(self.tap, self.columns[bounds[0] : bounds[1]], self.rowptr, self.layout)

    def columns_index(self, bounds: tuple[int, int]) -> Index:
        """Index by columns of elements."""
        return by_columns(self.tap, self.columns[bounds[0] : bounds[1]], self.rowptr, self.layout)


def uses_kernel(x: Tensor, values: Tensor, compute: Tensor, site: int) -> bool:
    """Whether the kernel computes this; read when it runs, so that a move never recompiles a graph."""
    if x.dtype != values.dtype or not_supported(x.device, x.dtype):
        return False
    return int(compute[site]) != SCATTER


def rows_of(x: Tensor, width: int) -> Tensor:
    """``[b, width]`` with neighbouring elements of a row side by side."""
    flat = x.reshape(-1, width)
    return flat if flat.stride(1) == 1 or width == 1 else flat.contiguous()


def linear(x: Tensor, values: Tensor, bias: Tensor | None, site: Site, kernel: bool) -> Tensor:
    """``[..., out]``."""
    layout = site.layout
    if x.ndim == 0 or x.shape[-1] != layout.in_features:
        raise RuntimeError(f"input has shape {tuple(x.shape)}, the layer takes [..., {layout.in_features}]")
    if bias is not None and (bias.dtype != x.dtype or bias.shape != (layout.out_features,)):
        shape = (layout.out_features,)
        raise RuntimeError(f"bias is {bias.dtype} {tuple(bias.shape)}, the layer needs {x.dtype} {shape}")
    bounds = site.bounds()
    mine = site.slots(values, bounds)
    flat = rows_of(x, layout.in_features)
    # made in its own shape: a view could not be written to in place, as ReLU(inplace=True) does
    whole = x.new_empty(*x.shape[:-1], layout.out_features)
    out = whole.view(-1, layout.out_features)
    if layout.whole_columns:
        columns.product(flat, mine, bias, site.inputs(bounds), out)
        return whole
    if not kernel:
        weight = dense(mine, site, bounds).t()
        if bias is None:
            torch.mm(flat, weight, out=out)
        else:
            torch.addmm(bias, flat, weight, out=out)
        return whole
    index = site.rows(bounds)
    bias = None if bias is None else bias.contiguous()
    for start in range(0, flat.shape[0], CHUNK):
        part = flat[start : start + CHUNK]
        words = _lined(index, part.shape[0], layout.in_features, layout.out_features)
        words |= {
            w.PANEL: _panel(part, slim=True), w.VALUES: mine, w.BIAS: bias, w.OUT: out[start:],
            w.OUT_STEP: out.stride(0),
        }  # fmt: skip
        run("forward", x.dtype, words, mine.numel() * part.shape[0])
    return whole


def linear_backward(
    gy: Tensor, x: Tensor, values: Tensor, site: Site, kernel: bool, needs: tuple[bool, bool, bool]
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of x, values and bias, each only if needed."""
    layout, bounds = site.layout, site.bounds()
    need_x, need_values, need_bias = needs
    if gy.numel() * layout.in_features != x.numel() * layout.out_features:
        raise RuntimeError(f"the gradient has shape {tuple(gy.shape)}, the input had {tuple(x.shape)}")
    mine = site.slots(values, bounds)
    gy2, x2 = rows_of(gy, layout.out_features), rows_of(x, layout.in_features)
    full, part = None, None
    if need_values:
        # what the kernel leaves alone: other sites' slots, and everything if there is no sample
        untouched = (site.whole and mine.numel() < values.numel()) or gy2.shape[0] == 0
        full = torch.zeros_like(values) if untouched else torch.empty_like(values)
        part = site.slots(full, bounds)
    if layout.whole_columns:
        held = site.inputs(bounds)
        if part is not None:
            columns.gradient(gy2, x2, held, part)
        gx = columns.spread(gy2, mine, held, layout.in_features).view(x.shape) if need_x else None
        return gx, full, gy2.sum(0) if need_bias else None
    if not kernel:
        gx = gy @ dense(mine, site, bounds) if need_x else None
        if part is not None:
            part.copy_(gathered(gy2.t() @ x2, site, bounds).view_as(part))
        return gx, full, gy2.sum(0) if need_bias else None
    gb = torch.zeros(layout.out_features, dtype=gy.dtype) if need_bias else None
    if need_x:
        if mine.numel() == 0:
            return torch.zeros_like(x, memory_format=torch.contiguous_format), full, gy2.sum(0) if need_bias else None
        gx = torch.empty(x2.shape, dtype=gy.dtype)
        _by_columns(gy2, x2, mine, site.columns_index(bounds), (gx, part, gb))
        return gx.view(x.shape), full, gb
    if part is not None and mine.numel():
        sampled_product(gy2, x2, site.rows(bounds), part)
    return None, full, gy2.sum(0) if need_bias else None


def _by_columns(
    gy: Tensor, x: Tensor, values: Tensor, index: Index, out: tuple[Tensor, Tensor | None, Tensor | None]
) -> None:
    """Everything with one read of the output's gradient for each unit."""
    gx, gradient, gb = out
    for start in range(0, gy.shape[0], CHUNK):
        part = gy[start : start + CHUNK]
        words = _lined(index, part.shape[0], gy.shape[1], x.shape[1])
        words |= {
            w.X: x[start:], w.X_STEP: x.stride(0), w.PANEL: _panel(part, gb), w.VALUES: values,
            w.GRADIENT: gradient, w.OUT: gx[start:], w.OUT_STEP: gx.stride(0), w.KEEP: start,
        }  # fmt: skip
        run("backward", gy.dtype, words, values.numel() * part.shape[0])


def sampled_product(gy: Tensor, x: Tensor, index: Index, gradient: Tensor, keep: bool = False) -> None:
    """``gradient = keep * gradient + gy[:, o] . x[:, j]`` at the units of an index by rows."""
    for start in range(0, gy.shape[0], CHUNK):
        part = x[start : start + CHUNK]
        words = _lined(index, part.shape[0], x.shape[1], gy.shape[1])
        words |= {
            w.X: gy[start:], w.X_STEP: gy.stride(0), w.PANEL: _panel(part), w.GRADIENT: gradient,
            w.KEEP: int(keep or start > 0),
        }  # fmt: skip
        run("backward", gy.dtype, words, gradient.numel() * part.shape[0])


def _lined(index: Index, samples: int, features: int, lines: int) -> dict[int, Tensor | int | None]:
    return {
        w.POINTER: index.pointer, w.OTHER: index.other, w.ORDER: index.order,
        w.SAMPLES: samples, w.FEATURES: features, w.LINES: lines, w.UNITS: index.other.numel(),
    }  # fmt: skip


def _panel(x: Tensor, total: Tensor | None = None, slim: bool = False) -> Tensor:
    """x ``[s, f]`` feature-major, in scratch memory of this thread; ``total`` gains the sum over samples."""
    samples, features = x.shape
    need = -(-samples // PADDING) * PADDING * features
    rooms: dict[torch.dtype, Tensor] = _local.__dict__.setdefault("rooms", {})
    room = rooms.get(x.dtype)
    if room is None or room.numel() < need:
        rooms[x.dtype] = room = torch.empty(need, dtype=x.dtype)
    words: w.Words = {
        w.X: x, w.X_STEP: x.stride(0), w.SAMPLES: samples, w.FEATURES: features, w.PANEL: room, w.BIAS: total,
        w.SLIM: int(slim),
    }  # fmt: skip
    run("panels", x.dtype, words, x.numel())
    return room


def dense(mine: Tensor, site: Site, bounds: tuple[int, int]) -> Tensor:
    """The dense weight ``[out, in]`` of a site's slots."""
    layout = site.layout
    if layout.whole_columns:
        return columns.dense(mine, site.inputs(bounds), layout.out_features, layout.in_features)
    if not_supported(mine.device, mine.dtype):
        return reference.packed_weight(
            mine, False, site.extents, site.site, site.rowptr, site.columns,
            layout.out_features, layout.in_features, layout.r, layout.c,
        )  # fmt: skip
    out = torch.zeros(layout.out_features, layout.in_features, dtype=mine.dtype)
    words = _lined(site.rows(bounds), 0, layout.in_features, layout.out_features)
    run("scatter", mine.dtype, words | {w.VALUES: mine, w.OUT: out, w.OUT_STEP: out.stride(0)}, mine.numel())
    return out


def gathered(gradient: Tensor, site: Site, bounds: tuple[int, int]) -> Tensor:
    """A dense gradient ``[out, in]`` at the slots of a site: ``[m]``."""
    layout = site.layout
    if layout.whole_columns:
        return columns.cut(gradient.reshape(layout.out_features, layout.in_features), site.inputs(bounds))
    if not_supported(gradient.device, gradient.dtype):
        spots = reference.elements_of(
            site.extents, site.site, site.rowptr, site.columns, layout.in_features, layout.r, layout.c
        )
        return gradient.reshape(-1)[spots]
    gradient = rows_of(gradient, layout.in_features)
    size = (bounds[1] - bounds[0]) * layout.r * layout.c
    out = torch.empty(size, dtype=gradient.dtype)
    words = _lined(site.rows(bounds), 0, layout.in_features, layout.out_features)
    run("collect", out.dtype, words | {w.X: gradient, w.X_STEP: gradient.stride(0), w.GRADIENT: out}, size)
    return out


def weight_backward(gw: Tensor, values: Tensor, site: Site) -> Tensor:
    """Gradient of values from the gradient of the dense weight, in the shape of ``values``."""
    bounds = site.bounds()
    full = torch.zeros_like(values) if site.whole else torch.empty_like(values)
    part = site.slots(full, bounds)
    part.copy_(gathered(gw, site, bounds).view_as(part))
    return full
