"""How new units of a width start, so that the function stays as it is."""
