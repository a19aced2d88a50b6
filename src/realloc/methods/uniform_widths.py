"""The control: widths stay as they are."""

from __future__ import annotations

from realloc.methods.width_method import WidthMethod


def uniform_widths() -> WidthMethod:
    """Nothing moves: the same layers over the same pools."""
    return WidthMethod("uniform_widths")
