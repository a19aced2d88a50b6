"""Control: the same budget, held in place."""

from __future__ import annotations

from realloc.methods.method import Method


def static(density: float) -> Method:
    """Hold a random ERK placement and never move it: what moving must beat.

    Reference: "Static" in RigL (1911.11134, section 4).
    """
    return Method("static", density, reference="1911.11134")
