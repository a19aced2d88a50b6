"""Only the rows of an embedding that training touches have gradients and optimizer state."""

from __future__ import annotations

from realloc.methods.row_method import RowMethod


def touched_rows(rows: int = 4096) -> RowMethod:
    """Let each large embedding table train the rows that its ids touch, at most ``rows`` of them at a time.

    An id that comes for the first time gets a row of a small pool, with the value that the table has for it and the
    moments of a fresh optimizer. Where a row without a gradient stays as it is (every elementwise optimizer of torch
    without weight decay), this is dense training exactly, as long as ``rows`` suffices. When the pool is full, the row
    that was touched longest ago goes back to the table and its moments are dropped.

    Args:
        rows: of each table; tables with no more rows than this stay dense.

    Raises:
        ConfigError: ``rows`` is no such number.

    Reference: ours. It stands beside the count sketch of the moments of such rows (1902.00179), which keeps them all,
    approximately; and beside peft's ``trainable_tokens``, which wants the ids listed by hand.

    >>> touched_rows(100).asked
    '100 rows'
    """
    return RowMethod("touched_rows", rows, reference="1902.00179")
