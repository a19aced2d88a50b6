"""Small pieces of LLVM code that the kernels are made of: pointers, rows of accumulators in registers, tile transposes.

Plain Numba keeps a row of accumulators in memory and checks for aliasing at every unit; these keep it in vector
registers, which is 2-4 times faster. No flag is set that would let the compiler drop a NaN or an infinity.
"""

# mypy: disable-error-code="untyped-decorator"

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

from llvmlite import ir
from llvmlite.binding import get_host_cpu_features
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

BYTES: Final = 64  # one vector: 16 float32 or 8 float64
# Vectors of samples in a panel. Wide ones share the cost of a dot product's last sum, and need 2 * WIDE registers.
# Narrow ones stay in the second-level cache up to 8192 features: right for the forward pass and the last few samples.
WIDE: Final = 8 if get_host_cpu_features().get("avx512f", False) else 4
NARROW: Final = 2
FLAGS: Final = ("reassoc", "contract", "nsz")
I32: Final = ir.IntType(32)
I64: Final = ir.IntType(64)


def lanes(dtype: Any) -> int:
    """Elements of one vector."""
    return BYTES * 8 // int(dtype.bitwidth)


def _constant(value: int) -> ir.Constant:
    return ir.Constant(I64, value)


def _vector(context: Any, dtype: Any, vectors: int = 1) -> ir.VectorType:
    return ir.VectorType(context.get_value_type(dtype), lanes(dtype) * vectors)


def _splat(builder: Any, value: Any, kind: ir.VectorType) -> Any:
    empty = ir.Constant(kind, ir.Undefined)
    one = builder.insert_element(empty, value, ir.Constant(I32, 0))
    return builder.shuffle_vector(one, empty, ir.Constant(ir.VectorType(I32, kind.count), [0] * kind.count))


def _load(builder: Any, pointer: Any, kind: ir.VectorType, size: int) -> Any:
    return builder.load(builder.bitcast(pointer, kind.as_pointer()), align=size)


def _store(builder: Any, value: Any, pointer: Any, size: int) -> None:
    builder.store(value, builder.bitcast(pointer, value.type.as_pointer()), align=size)


# pointers ---------------------------------------------------------------------------------------------------------


@intrinsic
def words(typing: Any, task: Any) -> Any:
    """The task as a pointer to int64."""

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.bitcast(args[0], I64.as_pointer())

    return types.CPointer(types.int64)(task), code


@intrinsic
def numbers(typing: Any, task: Any, address: Any) -> Any:
    """An address as a pointer to the dtype of the task."""

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.inttoptr(args[1], context.get_value_type(signature.return_type))

    return task(task, types.int64), code


@intrinsic
def integers(typing: Any, address: Any) -> Any:
    """An address as a pointer to int32."""

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.inttoptr(args[0], I32.as_pointer())

    return types.CPointer(types.int32)(types.int64), code


@intrinsic
def long_integers(typing: Any, address: Any) -> Any:
    """An address as a pointer to int64."""

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.inttoptr(args[0], I64.as_pointer())

    return types.CPointer(types.int64)(types.int64), code


@intrinsic
def doubles(typing: Any, address: Any) -> Any:
    """An address as a pointer to float64, whatever the dtype of the task."""

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.inttoptr(args[0], ir.DoubleType().as_pointer())

    return types.CPointer(types.float64)(types.int64), code


@intrinsic
def shift(typing: Any, pointer: Any, count: Any) -> Any:
    """``pointer + count`` elements."""

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.gep(args[0], [args[1]])

    return pointer(pointer, types.int64), code


@intrinsic
def get(typing: Any, pointer: Any, index: Any) -> Any:
    """``pointer[index]``."""

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.load(builder.gep(args[0], [args[1]]))

    return pointer.dtype(pointer, types.int64), code


@intrinsic
def put(typing: Any, pointer: Any, index: Any, value: Any) -> Any:
    """``pointer[index] = value``."""

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        builder.store(args[2], builder.gep(args[0], [args[1]]))
        return context.get_dummy_value()

    return types.void(pointer, types.int64, pointer.dtype), code


@intrinsic
def ask(typing: Any, address: Any) -> Any:
    """Call a C function ``int f(void)`` at an address."""

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        kind = ir.FunctionType(I32, []).as_pointer()
        return builder.sext(builder.call(builder.inttoptr(args[0], kind), []), I64)

    return types.int64(types.int64), code


@intrinsic
def call(typing: Any, address: Any, task: Any) -> Any:
    """Call a kernel ``void f(void *task)``, both by address."""

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        kind = ir.FunctionType(ir.VoidType(), [I64.as_pointer()]).as_pointer()
        builder.call(builder.inttoptr(args[0], kind), [builder.inttoptr(args[1], I64.as_pointer())])
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), code


@intrinsic
def room(typing: Any, task: Any) -> Any:
    """A tile on the stack: one vector's worth of lines, as wide as a wide panel."""

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        kind = _vector(context, task.dtype, WIDE)
        place = cgutils.alloca_once(builder, kind, size=lanes(task.dtype))
        place.align = BYTES
        return builder.bitcast(place, context.get_value_type(task))

    return task(task), code


@intrinsic
def nothing(typing: Any, task: Any) -> Any:
    """A null pointer to the task's dtype."""

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return ir.Constant(context.get_value_type(task), None)

    return task(task), code


@intrinsic
def width_of(typing: Any, task: Any) -> Any:
    """Lanes of one vector of the task's dtype."""

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return _constant(lanes(task.dtype))

    return types.int64(task), code


@intrinsic
def zero(typing: Any, task: Any) -> Any:
    """0 of the task's dtype."""

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return ir.Constant(context.get_value_type(task.dtype), 0.0)

    return task.dtype(task), code


@intrinsic
def lowest_bit(typing: Any, word: Any) -> Any:
    """Position of the lowest bit that is set, of a word that is not zero."""

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.cttz(args[0], ir.Constant(ir.IntType(1), 1))

    return types.int64(types.uint64), code


# tiles ------------------------------------------------------------------------------------------------------------


@intrinsic
def flip(typing: Any, source: Any, source_step: Any, target: Any, target_step: Any) -> Any:
    """Transpose one square tile, a vector by a vector (Eklundh's exchange in log2 steps)."""

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        dtype = signature.args[0].dtype
        kind, count, size = _vector(context, dtype), lanes(dtype), dtype.bitwidth // 8
        rows = [
            _load(builder, builder.gep(args[0], [builder.mul(args[1], _constant(i))]), kind, size) for i in range(count)
        ]
        half = count // 2
        while half:
            low = [k if not k & half else count + k - half for k in range(count)]
            high = [k + half if not k & half else count + k for k in range(count)]
            for i in range(count):
                if not i & half:
                    a, b = rows[i], rows[i + half]
                    mask = ir.VectorType(I32, count)
                    rows[i] = builder.shuffle_vector(a, b, ir.Constant(mask, low))
                    rows[i + half] = builder.shuffle_vector(a, b, ir.Constant(mask, high))
            half //= 2
        for i, row in enumerate(rows):
            _store(builder, row, builder.gep(args[2], [builder.mul(args[3], _constant(i))]), size)
        return context.get_dummy_value()

    return types.void(source, types.int64, target, types.int64), code


@intrinsic
def sum_rows(typing: Any, source: Any, step: Any, count: Any, target: Any) -> Any:
    """``target[:lanes] += sum over count rows``, each ``step`` elements after the last."""

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        source, step, count, target = args
        dtype = signature.args[0].dtype
        kind, size = _vector(context, dtype), dtype.bitwidth // 8
        total = cgutils.alloca_once_value(builder, _load(builder, target, kind, size))
        with cgutils.for_range(builder, count) as loop:
            row = _load(builder, builder.gep(source, [builder.mul(loop.index, step)]), kind, size)
            builder.store(builder.fadd(builder.load(total), row), total)
        _store(builder, builder.load(total), target, size)
        return context.get_dummy_value()

    return types.void(source, types.int64, types.int64, source), code


# lines of an index ------------------------------------------------------------------------------------------------

_INTS: Final = types.CPointer(types.int32)
_LONG: Final = types.int64


@contextmanager
def _when(builder: Any, *conditions: Any) -> Iterator[None]:
    """A branch for one variant of a loop, so that the loop itself decides nothing."""
    both = conditions[0]
    for condition in conditions[1:]:
        both = builder.and_(both, condition)
    with builder.if_then(both):
        yield


def _is(builder: Any, flag: Any, wanted: bool) -> Any:
    return flag if wanted else builder.not_(flag)


def _present(builder: Any, pointer: Any) -> Any:
    return builder.icmp_unsigned("!=", builder.ptrtoint(pointer, I64), _constant(0))


def _unit(builder: Any, at: Any, other: Any, order: Any, limit: Any, worst: Any) -> tuple[Any, Any]:
    """Row of the panel and position in the values of one unit; an index beyond the limit is held back and noted."""
    found = builder.zext(builder.load(builder.gep(other, [at])), I64)
    outside = builder.icmp_unsigned(">", found, limit)
    builder.store(builder.or_(builder.load(worst), builder.zext(outside, I64)), worst)
    place = at if order is None else builder.zext(builder.load(builder.gep(order, [at])), I64)
    return builder.select(outside, _constant(0), found), place


def _horizontal(builder: Any, value: Any) -> Any:
    """Sum of a vector's lanes, as a fixed tree."""
    while value.type.count > 1:
        half = value.type.count // 2
        mask = ir.VectorType(I32, half)
        low = builder.shuffle_vector(value, value, ir.Constant(mask, list(range(half))))
        high = builder.shuffle_vector(value, value, ir.Constant(mask, list(range(half, 2 * half))))
        value = builder.fadd(low, high)
    return builder.extract_element(value, ir.Constant(I32, 0))


@intrinsic
def gather(
    typing: Any, values: Any, other: Any, order: Any, first: Any, last: Any, panel: Any, limit: Any, start: Any,
    target: Any,
) -> Any:  # fmt: skip
    """``target = start + sum over units of value * panel[other]``; nonzero if an index was too large."""

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        values, other, order, first, last, panel, limit, start, target = args
        dtype = signature.args[0].dtype
        size = dtype.bitwidth // 8
        worst = cgutils.alloca_once_value(builder, _constant(0))
        ordered = _present(builder, order)
        kind = _vector(context, dtype, NARROW)
        for by_order in (False, True):
            with _when(builder, _is(builder, ordered, by_order)):
                total = cgutils.alloca_once_value(builder, _splat(builder, start, kind))
                with cgutils.for_range_slice(builder, first, last, _constant(1)) as (at, _):
                    row, place = _unit(builder, at, other, order if by_order else None, limit, worst)
                    weight = _splat(builder, builder.load(builder.gep(values, [place])), kind)
                    x = _load(builder, builder.gep(panel, [builder.mul(row, _constant(kind.count))]), kind, size)
                    product = builder.fmul(weight, x, flags=FLAGS)
                    builder.store(builder.fadd(builder.load(total), product, flags=FLAGS), total)
                _store(builder, builder.load(total), target, size)
        return builder.load(worst)

    return _LONG(values, _INTS, _INTS, _LONG, _LONG, values, _LONG, values.dtype, values), code


@intrinsic
def walk(
    typing: Any, values: Any, gradient: Any, other: Any, order: Any, first: Any, last: Any, panel: Any, limit: Any,
    line: Any, target: Any, keep: Any, wide: Any,
) -> Any:  # fmt: skip
    """One read of the panel serves both gradients; a null pointer means: not wanted.

    ``gradient = keep * gradient + line . panel[other]`` and ``target = sum of value * panel[other]``.
    """

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        values, gradient, other, order, first, last, panel, limit, line, target, keep, wide = args
        dtype = signature.args[0].dtype
        size = dtype.bitwidth // 8
        worst = cgutils.alloca_once_value(builder, _constant(0))
        flags = [_present(builder, p) for p in (order, gradient, target)]
        for vectors, wanted in itertools.product((WIDE, NARROW), _WALKS):
            by_order, dots, sums = wanted
            kind = _vector(context, dtype, vectors)
            variant = [_is(builder, flag, want) for flag, want in zip(flags, wanted, strict=True)]
            with _when(builder, _is(builder, wide, vectors == WIDE), *variant):
                total = cgutils.alloca_once_value(builder, ir.Constant(kind, [0.0] * kind.count))
                mine = _load(builder, line, kind, size) if dots else None
                with cgutils.for_range_slice(builder, first, last, _constant(1)) as (at, _):
                    row, place = _unit(builder, at, other, order if by_order else None, limit, worst)
                    x = _load(builder, builder.gep(panel, [builder.mul(row, _constant(kind.count))]), kind, size)
                    if sums:
                        weight = _splat(builder, builder.load(builder.gep(values, [place])), kind)
                        product = builder.fmul(weight, x, flags=FLAGS)
                        builder.store(builder.fadd(builder.load(total), product, flags=FLAGS), total)
                    if dots:
                        dot = _horizontal(builder, builder.fmul(mine, x))
                        spot = builder.gep(gradient, [place])
                        old = builder.select(keep, builder.load(spot), ir.Constant(dot.type, 0.0))
                        builder.store(builder.fadd(old, dot), spot)
                if sums:
                    _store(builder, builder.load(total), target, size)
        return builder.load(worst)

    long = _LONG
    return long(
        values, values, _INTS, _INTS, long, long, values, long, values, values, types.boolean, types.boolean
    ), code


# (through an order, dots, sums): rows are walked for dots only, columns always through an order
_WALKS: Final = ((False, True, False), (True, True, False), (True, False, True), (True, True, True))
