"""Leaving realloc: plain models, plain adapters."""

from realloc.export.dense import dense
from realloc.export.merged import merged
from realloc.export.peft import peft

__all__ = ["dense", "merged", "peft"]
