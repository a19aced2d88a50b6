"""Numba kernels of packed sparse layers. Each runs as one part of a team; no part writes what another one writes.

Shapes: s samples, f features of the gathered side, l lines of the walked side (rows of the weight in the forward pass,
columns in the backward pass). A *panel* holds some samples feature-major, so that one unit is one multiply-add of
vectors; a panel is narrow enough to stay in the second-level cache. An *index* over lines is CSR: ``pointer[l + 1]``,
``other`` (the gathered feature) and ``order`` (position in the values; 0 if it is the identity).
The sums of one line are made by one part in one order, so the result does not depend on the number of threads.
"""

# mypy: disable-error-code="untyped-decorator"

from __future__ import annotations

from typing import Any, Final

from numba import njit

from realloc.kernels import task as w
from realloc.kernels import vectors as v

WIDE: Final = v.WIDE
NARROW: Final = v.NARROW


@njit
def part_of(word: Any) -> tuple[int, int]:
    """Which part this call is, of how many."""
    if v.get(word, w.PARTS_CALL) == 0:
        return v.get(word, w.PART), v.get(word, w.PARTS)
    return v.ask(v.get(word, w.PART_CALL)), v.ask(v.get(word, w.PARTS_CALL))


@njit
def even(tiles: int, part: int, parts: int) -> tuple[int, int]:
    """First and past-last tile of a part."""
    return part * tiles // parts, (part + 1) * tiles // parts


@njit
def _cut(pointer: Any, lines: int, lane: int, part: int, parts: int) -> int:
    """First tile of a part, so that every part gets about as many units, plus one for each line."""
    goal = (v.get(pointer, lines) + lines) * part // parts
    low, high = 0, (lines + lane - 1) // lane
    while low < high:
        middle = (low + high) // 2
        if v.get(pointer, middle * lane) + middle * lane < goal:
            low = middle + 1
        else:
            high = middle
    return low


@njit
def _width(left: int, lane: int, narrow: int) -> int:
    """Width of the panel for the samples that are left."""
    return lane * WIDE if narrow == 0 and left > lane * (WIDE - NARROW) else lane * NARROW


def panels(task: Any) -> None:
    """Lay x ``[s, f]`` out feature-major in panels, padded with zeros; ``bias`` (if any) gains the sum over samples."""
    word = v.words(task)
    lane = v.width_of(task)
    x, step = v.numbers(task, v.get(word, w.X)), v.get(word, w.X_STEP)
    samples, features = v.get(word, w.SAMPLES), v.get(word, w.FEATURES)
    panel, total = v.numbers(task, v.get(word, w.PANEL)), v.numbers(task, v.get(word, w.BIAS))
    part, parts = part_of(word)
    first, last = even((features + lane - 1) // lane, part, parts)
    zero = v.zero(task)
    for tile in range(first, last):
        column = tile * lane
        base = 0
        while base < samples:
            width = _width(samples - base, lane, v.get(word, w.SLIM))
            for inner in range(0, width, lane):
                sample, start = base + inner, base * features + column * width + inner
                if sample + lane <= samples and column + lane <= features:
                    v.flip(v.shift(x, sample * step + column), step, v.shift(panel, start), width)
                else:
                    for j in range(min(lane, features - column)):
                        for i in range(lane):
                            inside = sample + i < samples
                            value = v.get(x, (sample + i) * step + column + j) if inside else zero
                            v.put(panel, start + j * width + i, value)
            base += width
        if v.get(word, w.BIAS) != 0:
            if column + lane <= features:
                v.sum_rows(v.shift(x, column), step, samples, v.shift(total, column))
            else:
                for j in range(column, features):
                    sum_ = v.get(total, j)
                    for i in range(samples):
                        sum_ += v.get(x, i * step + j)
                    v.put(total, j, sum_)


@njit
def _load_tile(x: Any, step: int, samples: int, lines: int, lane: int, width: int, tile: Any, zero: Any) -> None:
    """A tile ``[lane, width]`` of x transposed; what lies outside is zero."""
    for i in range(0, width, lane):
        if i + lane <= samples and lane <= lines:
            v.flip(v.shift(x, i * step), step, v.shift(tile, i), width)
        else:
            for k in range(i, i + lane):
                for j in range(lane):
                    value = v.get(x, k * step + j) if k < samples and j < lines else zero
                    v.put(tile, j * width + k, value)


@njit
def _store_tile(tile: Any, out: Any, step: int, samples: int, lines: int, lane: int, width: int) -> None:
    """The inverse: write the part of a tile that exists."""
    for i in range(0, min(width, samples), lane):
        if i + lane <= samples and lane <= lines:
            v.flip(v.shift(tile, i), width, v.shift(out, i * step), step)
        else:
            for k in range(i, min(i + lane, samples)):
                for j in range(min(lane, lines)):
                    v.put(out, k * step + j, v.get(tile, j * width + k))


def forward(task: Any) -> None:
    """``out[s, l] = bias[l] + sum over units of values * panel``."""
    word = v.words(task)
    lane = v.width_of(task)
    samples, features, lines = v.get(word, w.SAMPLES), v.get(word, w.FEATURES), v.get(word, w.LINES)
    units = v.get(word, w.UNITS)
    panel, values = v.numbers(task, v.get(word, w.PANEL)), v.numbers(task, v.get(word, w.VALUES))
    pointer, other = v.integers(v.get(word, w.POINTER)), v.integers(v.get(word, w.OTHER))
    order = v.integers(v.get(word, w.ORDER))
    out, step = v.numbers(task, v.get(word, w.OUT)), v.get(word, w.OUT_STEP)
    bias, biased = v.numbers(task, v.get(word, w.BIAS)), v.get(word, w.BIAS) != 0
    part, parts = part_of(word)
    first, last = _cut(pointer, lines, lane, part, parts), _cut(pointer, lines, lane, part + 1, parts)
    if v.get(pointer, 0) != 0 or v.get(pointer, lines) != units:
        v.put(word, w.FAULT, 1)
        return
    tile, zero, fault, width = v.room(task), v.zero(task), 0, lane * NARROW
    for sample in range(0, samples, width):
        mine = v.shift(panel, sample * features)
        for number in range(first, last):
            row = number * lane
            count = min(lane, lines - row)
            for j in range(count):
                a, z = v.get(pointer, row + j), v.get(pointer, row + j + 1)
                if not 0 <= a <= z <= units:
                    fault, z = 1, a
                start = v.get(bias, row + j) if biased else zero
                target = v.shift(tile, j * width)
                fault |= v.gather(values, other, order, a, z, mine, features - 1, start, target)
            _store_tile(tile, v.shift(out, sample * step + row), step, samples - sample, count, lane, width)
    if fault:
        v.put(word, w.FAULT, 1)


def backward(task: Any) -> None:
    """Walk lines of x ``[s, l]`` against a panel of the other side.

    ``gradient[unit] = sum over samples of x * panel`` if a gradient is wanted; ``out[s, l] = sum of values * panel``
    if an out is wanted. Walked by columns this is both gradients of a layer with a single read of the panel.
    """
    word = v.words(task)
    lane = v.width_of(task)
    x, x_step = v.numbers(task, v.get(word, w.X)), v.get(word, w.X_STEP)
    samples, features, lines = v.get(word, w.SAMPLES), v.get(word, w.FEATURES), v.get(word, w.LINES)
    units = v.get(word, w.UNITS)
    panel, values = v.numbers(task, v.get(word, w.PANEL)), v.numbers(task, v.get(word, w.VALUES))
    gradient, dots = v.numbers(task, v.get(word, w.GRADIENT)), v.get(word, w.GRADIENT) != 0
    pointer, other = v.integers(v.get(word, w.POINTER)), v.integers(v.get(word, w.OTHER))
    order = v.integers(v.get(word, w.ORDER))
    out, step, sums = v.numbers(task, v.get(word, w.OUT)), v.get(word, w.OUT_STEP), v.get(word, w.OUT) != 0
    part, parts = part_of(word)
    first, last = _cut(pointer, lines, lane, part, parts), _cut(pointer, lines, lane, part + 1, parts)
    if v.get(pointer, 0) != 0 or v.get(pointer, lines) != units:
        v.put(word, w.FAULT, 1)
        return
    tile, total, zero, fault, sample = v.room(task), v.room(task), v.zero(task), 0, 0
    while sample < samples:
        width = _width(samples - sample, lane, 0)
        mine, wide = v.shift(panel, sample * features), width != lane * NARROW
        keep = v.get(word, w.KEEP) != 0 or sample > 0
        for number in range(first, last):
            row = number * lane
            count = min(lane, lines - row)
            if dots:
                start = v.shift(x, sample * x_step + row)
                _load_tile(start, x_step, samples - sample, count, lane, width, tile, zero)
            for j in range(count):
                a, z = v.get(pointer, row + j), v.get(pointer, row + j + 1)
                if not 0 <= a <= z <= units:
                    fault, z = 1, a
                line, target = v.shift(tile, j * width), v.shift(total, j * width) if sums else v.nothing(task)
                fault |= v.walk(
                    values, gradient, other, order, a, z, mine, features - 1, line, target, keep, wide
                )  # fmt: skip
            if sums:
                _store_tile(total, v.shift(out, sample * step + row), step, samples - sample, count, lane, width)
        sample += width
    if fault:
        v.put(word, w.FAULT, 1)


def scatter(task: Any) -> None:
    """``out[line, other] = values`` into a matrix of zeros."""
    word = v.words(task)
    lane, lines, features = v.width_of(task), v.get(word, w.LINES), v.get(word, w.FEATURES)
    units = v.get(word, w.UNITS)
    values, out, step = (
        v.numbers(task, v.get(word, w.VALUES)),
        v.numbers(task, v.get(word, w.OUT)),
        v.get(word, w.OUT_STEP),
    )
    pointer, other = v.integers(v.get(word, w.POINTER)), v.integers(v.get(word, w.OTHER))
    order, ordered, fault = v.integers(v.get(word, w.ORDER)), v.get(word, w.ORDER) != 0, False
    part, parts = part_of(word)
    first, last = _cut(pointer, lines, lane, part, parts), _cut(pointer, lines, lane, part + 1, parts)
    if v.get(pointer, 0) != 0 or v.get(pointer, lines) != units:
        v.put(word, w.FAULT, 1)
        return
    for line in range(first * lane, min(last * lane, lines)):
        a, z = v.get(pointer, line), v.get(pointer, line + 1)
        sound = 0 <= a <= z <= units
        fault |= not sound
        for unit in range(a, z if sound else a):
            column, place = v.get(other, unit), v.get(order, unit) if ordered else unit
            if 0 <= column < features:
                v.put(out, line * step + column, v.get(values, place))
            else:
                fault = True
    if fault:
        v.put(word, w.FAULT, 1)


def collect(task: Any) -> None:
    """``gradient = x[line, other]``: the inverse of `scatter`."""
    word = v.words(task)
    lane, lines, features = v.width_of(task), v.get(word, w.LINES), v.get(word, w.FEATURES)
    units = v.get(word, w.UNITS)
    gradient, x, step = (
        v.numbers(task, v.get(word, w.GRADIENT)),
        v.numbers(task, v.get(word, w.X)),
        v.get(word, w.X_STEP),
    )
    pointer, other = v.integers(v.get(word, w.POINTER)), v.integers(v.get(word, w.OTHER))
    order, ordered, fault = v.integers(v.get(word, w.ORDER)), v.get(word, w.ORDER) != 0, False
    part, parts = part_of(word)
    first, last = _cut(pointer, lines, lane, part, parts), _cut(pointer, lines, lane, part + 1, parts)
    if v.get(pointer, 0) != 0 or v.get(pointer, lines) != units:
        v.put(word, w.FAULT, 1)
        return
    for line in range(first * lane, min(last * lane, lines)):
        a, z = v.get(pointer, line), v.get(pointer, line + 1)
        sound = 0 <= a <= z <= units
        fault |= not sound
        for unit in range(a, z if sound else a):
            column, place = v.get(other, unit), v.get(order, unit) if ordered else unit
            if 0 <= column < features:
                v.put(gradient, place, v.get(x, line * step + column))
            else:
                fault = True
    if fault:
        v.put(word, w.FAULT, 1)


def each(task: Any) -> None:
    """Run the kernel at address OTHER on each task of the table X int64 [SAMPLES]; a part takes one after the other."""
    word = v.words(task)
    tasks = v.long_integers(v.get(word, w.X))
    part, parts = part_of(word)
    for number in range(part, v.get(word, w.SAMPLES), parts):
        v.call(v.get(word, w.OTHER), v.get(tasks, number))


def gather(task: Any) -> None:
    """``out[i] = x[source[i]]``, or the fill where source is negative, for SAMPLES tensors at once.

    POINTER is int64 ``source [lines]``; X, OUT and BIAS are tables of addresses of each tensor, of what it becomes and
    of its fills; ORDER is a table of steps: 1 where there is a fill for each slot, 0 where there is one for all.
    """
    word = v.words(task)
    source, lines, count = v.long_integers(v.get(word, w.POINTER)), v.get(word, w.LINES), v.get(word, w.SAMPLES)
    old, new = v.long_integers(v.get(word, w.X)), v.long_integers(v.get(word, w.OUT))
    fills, steps = v.long_integers(v.get(word, w.BIAS)), v.long_integers(v.get(word, w.ORDER))
    limit, fault = v.get(word, w.FEATURES), False
    part, parts = part_of(word)
    first, last = even(lines, part, parts)
    for k in range(count):
        x, out = v.numbers(task, v.get(old, k)), v.numbers(task, v.get(new, k))
        fill, step = v.numbers(task, v.get(fills, k)), v.get(steps, k)
        for i in range(first, last):
            at = v.get(source, i)
            inside = (at >= 0) & (at < limit)
            value = v.get(x, at if inside else 0)
            v.put(out, i, value if inside else v.get(fill, i * step))
            fault |= at >= limit
    if fault:
        v.put(word, w.FAULT, 1)
