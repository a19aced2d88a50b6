"""Activations of a frozen prefix: computed once for each example, read afterwards."""
