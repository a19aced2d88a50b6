"""Leaving realloc: plain models."""

from realloc.export.dense import dense

__all__ = ["dense"]
