"""Which row an id reads, and what a backward says of it: kernels on the CPU, plain torch elsewhere, and in a graph.

An embedding asks for rows at each forward, so that what it costs beside a plain look-up is mostly this.
"""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Protocol, cast, final

import torch
from torch import Tensor

from realloc.errors import ConfigError
from realloc.kernels import task as w
from realloc.kernels.mixing import below, mixed, mixed_plain
from realloc.kernels.sketch import WAYS
from realloc.kernels.team import fits, run

_transforming: Final = torch._C._functorch.peek_interpreter_stack
"""``() -> object or None``: the transform of `torch.func` that runs now, whose tensors have no memory of their own."""


def by_torch(ids: Tensor) -> bool:
    """Whether plain operations are wanted: ids without memory here, or somebody writes down what is done with them."""
    if ids.device.type != "cpu" or type(ids) is not Tensor or _transforming() is not None:
        return True
    return bool(torch._C._is_tracing()) or torch._C._len_torch_dispatch_stack() > 0


def check_ids(ids: Tensor) -> None:
    """Refuse what is no id.

    Raises:
        ConfigError: negative ids, or another dtype than int64 and int32.
    """
    if ids.dtype not in (torch.int64, torch.int32):
        raise ConfigError(f"ids are {ids.dtype}; pass int64 (a float cannot tell large ids apart)")
    if torch.compiler.is_compiling() or ids.is_meta or (ids.device.type == "cpu" and by_torch(ids)):
        return  # nothing can be read there
    if ids.numel() and int(ids.min()) < 0:
        raise ConfigError(
            f"an id is {int(ids.min())}; ids are 0 and more: give missing values an id of their own, or padding_idx"
        )


def hashed(ids: Tensor, table: int, shared: int, buckets: int) -> tuple[Tensor, Tensor]:
    """The shared row and the bucket of int64 ids ``[n]``, salted by table; the bucket is 0 where there is none."""
    first = mixed(ids ^ mixed_plain(table))
    return below(first, shared), below(mixed(first), max(1, buckets))


def two_rows(ids: Tensor, table: int, shared: int) -> tuple[Tensor, Tensor]:
    """Two hashed rows of each id ``[n]``, int64; `hashed` with as many buckets as rows, by a kernel on the CPU.

    Raises:
        ConfigError: ids that are negative, or no integers of 32 or 64 bits.
    """
    if torch.compiler.is_compiling() or by_torch(ids) or ids.dtype not in (torch.int64, torch.int32):
        check_ids(ids)
        return hashed(ids.long(), table, shared, shared)
    ids = ids.long().contiguous()
    rows, count = ids.new_empty(2, len(ids)), len(ids)
    words: w.Words = {w.X: ids, w.SAMPLES: count, w.OUT: rows, w.UNITS: shared, w.BIAS: mixed_plain(table)}
    if not fits("pair", torch.float32, words, 8 * count):
        check_ids(ids)
    return rows[0], rows[1]


def owned_rows(ids: Tensor, keys: Tensor, tables: Tensor, owned: Tensor, table: int, shared: int) -> Tensor:
    """The row that each id reads, int64, of the ids' shape: its own, else its shared one.

    Args:
        ids: of any shape, int64 or int32.
        keys: int64 ``[4B]``, the ids of a sketch, see `realloc.kernels.sketch.Sketch`; empty where none owns a row.
        tables: int32 ``[4B]``.
        owned: int32 ``[4B]``.
        table: number of the ids' table.
        shared: shared rows.

    Raises:
        ConfigError: ids that are negative, or no integers of 32 or 64 bits.
    """
    if ids.dtype not in (torch.int64, torch.int32):
        check_ids(ids)
    if torch.compiler.is_compiling():
        return cast("Tensor", _in_a_graph(ids, keys, tables, owned, table, shared))
    return _owned_rows(ids, keys, tables, owned, table, shared)


def _owned_rows(ids: Tensor, keys: Tensor, tables: Tensor, owned: Tensor, table: int, shared: int) -> Tensor:
    if by_torch(ids):
        return owned_rows_plain(ids, keys, tables, owned, table, shared)
    ids = ids.long().contiguous()
    rows, count = torch.empty_like(ids), ids.numel()
    words: w.Words = {
        w.X: ids, w.SAMPLES: count, w.OUT: rows, w.POINTER: keys, w.OTHER: tables, w.ORDER: owned,
        w.LINES: keys.numel() // WAYS, w.UNITS: shared, w.PANEL: table, w.BIAS: mixed_plain(table),
    }  # fmt: skip
    if not fits("seek", torch.float32, words, 8 * count):
        check_ids(ids)
    return rows


def owned_rows_plain(ids: Tensor, keys: Tensor, tables: Tensor, owned: Tensor, table: int, shared: int) -> Tensor:
    """The same in plain torch, on any device. The plain reference."""
    check_ids(ids)
    flat, buckets = ids.reshape(-1).long(), keys.numel() // WAYS
    rows, bucket = hashed(flat, table, shared, buckets)
    if buckets:
        slots = bucket.unsqueeze(1) * WAYS + torch.arange(WAYS, device=ids.device)
        mine = (keys[slots] == flat.unsqueeze(1)) & (tables[slots] == table)
        own = torch.where(mine, owned[slots], -1).amax(1).long()
        rows = torch.where(own >= 0, own, rows)
    return rows.view(ids.shape)


@final
@dataclass(frozen=True, eq=False)
class Noted:
    """Ids of one table whose gradient came, each once, in the order in which they came first."""

    table: int
    ids: Tensor  # int64 [n]
    numbers: Tensor  # float64 [n, 2 + dim] or [n, 2]: occurrences, the norms of their gradients, the gradient summed


def tally(table: int, ids: Tensor, gradient: Tensor, sums: bool) -> Noted:
    """What the gradient ``[..., dim]`` of a look-up of ids ``[...]`` says of each id; ids below 0 are left out.

    Args:
        table: number of their table.
        ids: int64 or int32.
        gradient: any floating dtype, any device.
        sums: whether the summed gradients are wanted too.

    >>> noted = tally(0, torch.tensor([7, 5, 7]), torch.tensor([[3.0, 4.0], [0.0, 1.0], [0.0, 2.0]]), True)
    >>> noted.ids.tolist(), noted.numbers.tolist()
    ([7, 5], [[2.0, 7.0, 3.0, 6.0], [1.0, 1.0, 0.0, 1.0]])
    """
    count, width = ids.numel(), gradient.shape[-1]
    rows = gradient.detach().reshape(count, width)
    if not sums and rows.device.type != "cpu":  # a norm is less to send than a row, and is its own norm
        rows, width = torch.linalg.vector_norm(rows, dim=1, keepdim=True, dtype=torch.float64), 1
    flat, rows = ids.reshape(-1).long().cpu().contiguous(), rows.cpu()
    rows = (rows if rows.dtype in (torch.float32, torch.float64) else rows.float()).contiguous()
    keep, lines = width if sums else 0, 1 << (count + 1).bit_length()
    found, numbers = torch.empty(count + 1, dtype=torch.int64), torch.empty(count, 2 + keep, dtype=torch.float64)
    words: w.Words = {
        w.X: flat, w.SAMPLES: count, w.GRADIENT: rows, w.FEATURES: width, w.KEEP: keep, w.OUT: found,
        w.VALUES: numbers, w.ORDER: torch.empty(lines, dtype=torch.int32), w.LINES: lines,
    }  # fmt: skip
    run("tally", rows.dtype, words, 0)
    few = int(found[count])
    return Noted(table, found[:few], numbers[:few])


# in a compiled graph ----------------------------------------------------------------------------------------------


class Listener(Protocol):
    """Who is told of the gradients of look-ups, by number: a graph holds no objects."""

    number: int

    @property
    def listens(self) -> bool:
        """Whether it notes the gradients of the step that is under way. A graph asks in each backward."""

    def __call__(self, table: int, ids: Tensor, found: Tensor) -> None:
        """Of a look-up outside a graph: to put a hook on what was found."""

    def note(self, table: int, ids: Tensor, gradient: Tensor) -> None:
        """In a backward."""


_numbers: Final = itertools.count(1)
_listeners: Final[weakref.WeakValueDictionary[int, Listener]] = weakref.WeakValueDictionary()


def register(listener: Listener) -> int:
    """Give a listener its number."""
    number = next(_numbers)
    _listeners[number] = listener
    return number


@torch.library.custom_op("realloc::owned_rows", mutates_args=())
def _in_a_graph(ids: Tensor, keys: Tensor, tables: Tensor, owned: Tensor, table: int, shared: int) -> Tensor:
    return _owned_rows(ids, keys, tables, owned, table, shared)


@torch.library.custom_op("realloc::heard", mutates_args=())
def heard(found: Tensor, ids: Tensor, listener: int, table: int) -> Tensor:
    """What was found, as it is; its gradient is told to a listener."""
    return found.clone()


@torch.library.custom_op("realloc::told", mutates_args=())
def told(gradient: Tensor, ids: Tensor, listener: int, table: int) -> Tensor:
    """A gradient, as it is, on its way through a listener."""
    who = _listeners.get(listener)
    if who is not None:
        who.note(table, ids, gradient)
    return gradient.clone()


@_in_a_graph.register_fake
def _(ids: Tensor, *_: Any) -> Tensor:
    return ids.new_empty(ids.shape, dtype=torch.int64)


@heard.register_fake
def _(found: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(found)


@told.register_fake
def _(gradient: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(gradient)


def _save(ctx: Any, inputs: Any, output: Any) -> None:
    _, ids, listener, table = inputs
    ctx.save_for_backward(ids)
    ctx.rest = listener, table


def _backward(ctx: Any, gradient: Tensor) -> Any:
    (ids,) = ctx.saved_tensors
    return told(gradient, ids, *ctx.rest), None, None, None


heard.register_autograd(_backward, setup_context=cast("Callable[..., None]", _save))
