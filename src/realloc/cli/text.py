"""Plain tables and numbers for people: the same in a terminal, a pipe and a file."""

from __future__ import annotations

from collections.abc import Sequence

from realloc.errors import plain


def table(header: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> str:
    """Align columns; the first ``left`` to the left, the others to the right.

    >>> print(table(["arm", "weights"], [["dense", "1,000"], ["rigl", "100"]]))
    arm    weights
    dense    1,000
    rigl       100
    """
    lines = [[plain(cell) for cell in row] for row in (header, *rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if i < left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def count(value: int | None) -> str:
    """A whole number, or a dash."""
    return "-" if value is None else f"{value:,}"


def share(value: float | None) -> str:
    """A fraction as percent."""
    return "-" if value is None else f"{100 * value:.2f} %"


def size(value: int | None) -> str:
    """Bytes in a unit that people read.

    >>> size(7_400_000), size(None)
    ('7.4 MB', '-')
    """
    if value is None:
        return "-"
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if value >= scale:
            return f"{value / scale:.1f} {unit}"
    return f"{value} B"


def measure(metric: str, value: float | None) -> str:
    """A metric: accuracy in percent, others as they are."""
    if value is None:
        return "-"
    return share(value) if metric == "accuracy" else f"{value:.4f}"


def time(value: float) -> str:
    """Seconds.

    >>> time(3.14159), time(75), time(4000)
    ('3.1 s', '1 min 15 s', '1 h 06 min')
    """
    if value < 60:
        return f"{value:.1f} s"
    if value < 3600:
        return f"{int(value // 60)} min {int(value % 60):02d} s"
    return f"{int(value // 3600)} h {int(value % 3600 // 60):02d} min"
