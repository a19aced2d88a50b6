"""Which inputs a net is still connected to, by name."""

from __future__ import annotations

from realloc.handle import Handle
from realloc.train.dataset import Dataset
from realloc.train.id_tables import TablePlan


def input_names(data: Dataset, tables: TablePlan | None) -> list[str]:
    """What each input of the first linear layer stands for, in order: columns, pixels, numbers of a looked-up row."""
    if data.image is not None:
        channels, height, width = data.image
        pixels = [f"pixel {row},{column}" for row in range(height) for column in range(width)]
        return pixels if channels == 1 else [f"{pixel} of {c}" for c in range(channels) for pixel in pixels]
    dim = range(tables.costs.dim if tables else 0)
    return [*data.columns.inputs, *(f"{one.name}[{place}]" for one in data.columns.looked for place in dim)]


def held_inputs(handle: Handle, data: Dataset, tables: TablePlan | None) -> list[str]:
    """Names of the inputs whose columns are held now, in the order of the layer."""
    (site,) = handle.sites.values()
    names = input_names(data, tables)
    return [names[place] for place in site.places().tolist()]
