"""Control: some inputs, chosen blindly."""

from __future__ import annotations

from realloc.methods.column_method import ColumnMethod
from realloc.methods.method import Method


def random_columns(k: int | str = "10%") -> ColumnMethod:
    """Hold k inputs drawn at random, uniformly, from the start to the end: what choosing well must beat.

    Args:
        k: inputs held, 1 to the number of inputs, or a part of them such as "10%".

    Raises:
        ConfigError: a k out of range; with the model known, one above its inputs.

    >>> random_columns(50).at("fc1.weight", 784).moves
    False
    """
    return ColumnMethod("random_columns", k, rule=lambda k, inputs: Method("random_columns", k / inputs), moves=False)
