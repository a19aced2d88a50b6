"""Places in a model that hold units."""
