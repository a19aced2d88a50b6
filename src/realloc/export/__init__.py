"""Leaving realloc: plain models, plain adapters."""

from realloc.export.dense import dense
from realloc.export.merged import merged
from realloc.export.peft import peft
from realloc.export.recipe import recipe

__all__ = ["dense", "merged", "peft", "recipe"]
