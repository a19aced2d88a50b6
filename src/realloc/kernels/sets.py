"""Sorted sets of places: search, merge, random draw; and the best of many scores. Each is a walk or two."""

# mypy: disable-error-code="untyped-decorator"

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numba import njit

from realloc.kernels import task as w
from realloc.kernels import vectors as v
from realloc.kernels.csr import even, part_of

CHUNK: Final = 1 << 20  # numbers drawn from together: a bit for each fits the second-level cache
TOP: Final = 1 << 16  # digits of a key that are told apart in the first pass


def locate(task: Any) -> None:
    """OUT[i]: how many of POINTER int64 [LINES] lie below OTHER[i], int64 [SAMPLES]; both ascending, one walk."""
    word = v.words(task)
    held, count = v.long_integers(v.get(word, w.POINTER)), v.get(word, w.LINES)
    queries, out = v.long_integers(v.get(word, w.OTHER)), v.long_integers(v.get(word, w.OUT))
    at = 0
    for i in range(v.get(word, w.SAMPLES)):
        query = v.get(queries, i)
        while at < count and v.get(held, at) < query:
            at += 1
        v.put(out, i, at)


@njit
def _below(numbers: Any, count: int, limit: int) -> int:
    """How many of ascending numbers lie below a limit."""
    low, high = 0, count
    while low < high:
        middle = (low + high) // 2
        if v.get(numbers, middle) < limit:
            low = middle + 1
        else:
            high = middle
    return low


def merge(task: Any) -> None:
    """POINTER [LINES] less OTHER [SAMPLES] plus X [FEATURES] into OUT, all ascending int64; KEEP: room in OUT.

    GRADIENT: the position that each of OUT had in POINTER, plus BIAS; -1 for what came from X. Each part of the team
    has a range of POINTER, and what falls into it of the others.
    """
    word = v.words(task)
    held, count = v.long_integers(v.get(word, w.POINTER)), v.get(word, w.LINES)
    gone, leaving = v.long_integers(v.get(word, w.OTHER)), v.get(word, w.SAMPLES)
    come, coming = v.long_integers(v.get(word, w.X)), v.get(word, w.FEATURES)
    out, source = v.long_integers(v.get(word, w.OUT)), v.long_integers(v.get(word, w.GRADIENT))
    offset = v.get(word, w.BIAS)
    part, parts = part_of(word)
    unit, stop = even(count, part, parts)
    left = 0 if part == 0 else _below(gone, leaving, v.get(held, unit))
    new = 0 if part == 0 else _below(come, coming, v.get(held, unit))
    last_left = leaving if part + 1 == parts else _below(gone, leaving, v.get(held, stop))
    last_new = coming if part + 1 == parts else _below(come, coming, v.get(held, stop))
    at, end = unit - left + new, min(stop - last_left + last_new, v.get(word, w.KEEP))
    fault = at < 0
    while not fault and (unit < stop or new < last_new):
        place = v.get(held, unit) if unit < stop else np.int64(0x7FFFFFFFFFFFFFFF)
        arrives = new < last_new and v.get(come, new) <= place
        if not arrives and left < last_left and v.get(gone, left) == place:
            fault = left > 0 and v.get(gone, left - 1) >= place
            left, unit = left + 1, unit + 1
        elif at >= end:
            fault = True
        elif arrives:
            fault = v.get(come, new) == place or (new > 0 and v.get(come, new - 1) >= v.get(come, new))
            v.put(out, at, v.get(come, new))
            v.put(source, at, -1)
            at, new = at + 1, new + 1
        else:
            v.put(out, at, place)
            v.put(source, at, offset + unit)
            at, unit = at + 1, unit + 1
    if fault or at != end or left != last_left:
        v.put(word, w.FAULT, 1)


@njit
def mixed(state: Any) -> Any:
    """64 random bits for each value of splitmix64's counter."""
    z = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def digest(task: Any) -> None:
    """The sum of X int64 [LINES], each mixed with its position, into OUT int64 [KEEP]: one sum for each part."""
    word = v.words(task)
    numbers, out = v.long_integers(v.get(word, w.X)), v.long_integers(v.get(word, w.OUT))
    part, parts = part_of(word)
    first, last = even(v.get(word, w.LINES), part, parts)
    total = np.uint64(0)
    for i in range(first, last):
        total += mixed(mixed(np.uint64(i)) ^ np.uint64(v.get(numbers, i)))
    v.put(out, part, np.int64(total))


@njit
def _drawn(bits: Any, state: Any, span: Any, count: int) -> None:
    """Set so many more bits below ``span``, each of two numbers of 32 random bits at a time."""
    half, low = np.uint64(32), np.uint64(0xFFFFFFFF)
    surplus = (np.uint64(1) << half) % span  # so many low products would favour some numbers (Lemire 1805.10941)
    both, second = np.uint64(0), False
    while count > 0:
        if second:
            both >>= half
        else:
            state += np.uint64(0x9E3779B97F4A7C15)
            both = mixed(state)
        second = not second
        product = (both & low) * span
        if (product & low) >= surplus:
            number = np.int64(product >> half)
            old, bit = v.get(bits, number >> 6), np.int64(1) << (number & 63)
            count -= 1 if old & bit == 0 else 0
            v.put(bits, number >> 6, old | bit)


def draw(task: Any) -> None:
    """Distinct numbers below FEATURES, none of OTHER int64 [ORDER], ascending in OUT, from the seed KEEP.

    OTHERS: all but those drawn.
    LINES chunks of CHUNK numbers; POINTER int64 [LINES + 1]: how many are drawn below each chunk. A chunk has random
    numbers of its own, so what is drawn does not depend on who draws it. PANEL: int64, a bit for each number, zero, in
    each of two rows of SAMPLES words: what may not be drawn any more, and what never could.
    """
    word = v.words(task)
    high, chunks = v.get(word, w.FEATURES), v.get(word, w.LINES)
    whole, out = v.long_integers(v.get(word, w.PANEL)), v.long_integers(v.get(word, w.OUT))
    taken, held = v.long_integers(v.get(word, w.OTHER)), v.get(word, w.ORDER)
    below, others = v.long_integers(v.get(word, w.POINTER)), v.get(word, w.OTHERS) != 0
    part, parts = part_of(word)
    first, last = even(chunks, part, parts)
    for chunk in range(first, last):
        base = chunk * CHUNK
        here = min(CHUNK, high - base)
        bits, at, few = v.shift(whole, base >> 6), v.get(below, chunk), v.get(below, chunk + 1) - v.get(below, chunk)
        never = v.shift(bits, v.get(word, w.SAMPLES))
        passed, stop, last_one = _below(taken, held, base), _below(taken, held, base + here), -1
        if others:
            at = base - passed - at
        if (chunk == 0 and passed != 0) or (chunk + 1 == chunks and stop != held):
            v.put(word, w.FAULT, 1)
            return
        for i in range(passed, stop):
            number = v.get(taken, i) - base
            if number <= last_one or number >= here:
                v.put(word, w.FAULT, 1)
                return
            last_one = number
            v.put(never, number >> 6, v.get(never, number >> 6) | (np.int64(1) << (number & 63)))
        for i in range((here + 63) >> 6):
            v.put(bits, i, v.get(never, i))
        _drawn(bits, mixed(np.uint64(v.get(word, w.KEEP)) + np.uint64(chunk)), np.uint64(here), few)
        for i in range((here + 63) >> 6):
            some = np.uint64(v.get(bits, i) ^ v.get(never, i))
            if others:
                whole_word = i < here >> 6
                inside = ~np.uint64(0) if whole_word else (np.uint64(1) << np.uint64(here & 63)) - np.uint64(1)
                some = ~np.uint64(v.get(bits, i)) & inside
            while some != np.uint64(0):
                v.put(out, at, base + (i << 6) + v.lowest_bit(some))
                some &= some - np.uint64(1)
                at += 1


@njit
def _signed(short: Any, long: Any, narrow: bool, at: int) -> Any:
    """An integer that is ordered as the float is; both zeros are one."""
    bits = np.int64(v.get(short, at)) if narrow else v.get(long, at)
    key = bits ^ ((bits >> 63) & (np.int64(0x7FFFFFFF) if narrow else np.int64(0x7FFFFFFFFFFFFFFF)))
    return key + (1 if key == -1 else 0)


@njit
def _digit(key: Any, shift: int, width: int, narrow: bool) -> Any:
    lift = np.uint64(0x80000000) if narrow else np.uint64(0x8000000000000000)
    return np.int64(((np.uint64(key) + lift) >> np.uint64(shift)) & np.uint64((1 << width) - 1))


@njit
def _reach(room: Any, digit: int, left: int) -> tuple[int, int]:
    """Going down from a digit: the one that has the last of those wanted, and how many of it are wanted."""
    while v.get(room, digit) < left:
        left -= v.get(room, digit)
        digit -= 1
    return digit, left


@njit
def _level(short: Any, long: Any, narrow: bool, count: int, left: int, room: Any, side: Any) -> tuple[int, int, int]:
    """Key of the last of the ``left`` highest; how many have it, and how many of those are wanted.

    By digits from the top: 16 bits of all, then 8 at a time of those that share what was found so far.
    """
    shift = 16 if narrow else 48
    for digit in range(TOP):
        v.put(room, digit, 0)
    for i in range(count):
        digit = _digit(_signed(short, long, narrow, i), shift, 16, narrow)
        v.put(room, digit, v.get(room, digit) + 1)
    found, left = _reach(room, TOP - 1, left)
    tied = 0
    for i in range(count):
        if _digit(_signed(short, long, narrow, i), shift, 16, narrow) == found:
            v.put(side, tied, i)
            tied += 1
    while shift > 0:
        shift -= 8
        for digit in range(256):
            v.put(room, digit, 0)
        for k in range(tied):
            digit = _digit(_signed(short, long, narrow, v.get(side, k)), shift, 8, narrow)
            v.put(room, digit, v.get(room, digit) + 1)
        found, left = _reach(room, 255, left)
        still = 0
        for k in range(tied):
            i = v.get(side, k)
            if _digit(_signed(short, long, narrow, i), shift, 8, narrow) == found:
                v.put(side, still, i)
                still += 1
        tied = still
    return _signed(short, long, narrow, v.get(side, 0)), tied, left


def best(task: Any) -> None:
    """Positions of the SAMPLES highest of X [LINES], ties to the lower one, in OUT; the others in POINTER. Ascending.

    Both int64 and one longer than needed. GRADIENT: room for a histogram, int32 [65536]. ORDER: room for those that
    tie, int32 [LINES].
    """
    word = v.words(task)
    narrow, count, wanted = v.width_of(task) == 16, v.get(word, w.LINES), v.get(word, w.SAMPLES)
    short, long = v.integers(v.get(word, w.X)), v.long_integers(v.get(word, w.X))
    room, side = v.integers(v.get(word, w.GRADIENT)), v.integers(v.get(word, w.ORDER))
    out, others = v.long_integers(v.get(word, w.OUT)), v.long_integers(v.get(word, w.POINTER))
    if wanted == 0 or wanted == count:
        for i in range(count):
            v.put(out if wanted else others, i, i)
        return
    level, equal, left = _level(short, long, narrow, count, wanted, room, side)
    at, over = 0, 0
    if equal == left:  # nothing to tell apart among equal ones
        for i in range(count):
            taken = 1 if _signed(short, long, narrow, i) >= level else 0
            v.put(out, at, i)  # written first and kept or not: a branch here would be guessed wrong
            v.put(others, over, i)
            at, over = at + taken, over + 1 - taken
        return
    for i in range(count):
        key = _signed(short, long, narrow, i)
        tied = 1 if key == level and left > 0 else 0
        taken = 1 if key > level else tied
        v.put(out, at, i)
        v.put(others, over, i)
        at, over, left = at + taken, over + 1 - taken, left - tied
