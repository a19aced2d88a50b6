"""Embedding rows in arms that train the embeddings: only those that the training texts touch get optimizer state."""

from __future__ import annotations

from typing import Any, Final

import torch
from torch import nn

from realloc.attach import attach
from realloc.errors import ConfigError
from realloc.finetune.arms.arm import Order
from realloc.finetune.weights import Loaded
from realloc.methods.touched_rows import touched_rows
from realloc.row_handle import RowHandle

ROWS: Final = "touched_rows"  # the setting: False trains the whole token table


def touched(loaded: Loaded, optimizer: torch.optim.Optimizer, order: Order) -> RowHandle | None:
    """Give the token table a row for each token that comes in the training texts, where that saves memory.

    The run is that of the whole table: AdamW without decay leaves rows alone that no text touches. Once attached there
    are the table, and rows, their gradients and two moments; without, four tables.

    Returns:
        The handle; None where the table trains in full: the setting says so, most of its tokens come, or an output head
        is tied to it.
    """
    table: Any = loaded.base.get_input_embeddings()  # type: ignore[operator]
    rows = distinct(order)
    if not order.settings.get(ROWS, True) or type(table) is not nn.Embedding or 4 * rows >= 3 * table.num_embeddings:
        return None
    name = next(name for name, module in loaded.model.named_modules() if module is table)
    try:
        return attach(loaded.model, optimizer, touched_rows(rows).on(name), seed=order.seed, record=order.sink)
    except ConfigError:  # nothing was changed: a table that no pool can serve trains in full
        return None


def distinct(order: Order) -> int:
    """How many tokens come in the training texts, with that of the padding."""
    return len(set().union(*order.batches.rows)) + 1
