"""Fashion-MNIST from its four idx files, as Debian's package ``dataset-fashion-mnist`` ships them.

Source: Xiao, Rasul and Vollgraf, arXiv 1708.07747. The files come from outside: every size is checked before use.
"""

from __future__ import annotations

import gzip
import os
import zlib
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from realloc.errors import ConfigError
from realloc.train.dataset import Dataset, Rows, hold_out

FOLDER = Path("/usr/share/datasets/fashion-mnist")
CLASSES = ("T-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot")
SIDE = 28
MOST_ROWS = 1_000_000
IMAGES, LABELS = 0x803, 0x801


def find() -> Path | None:
    """Find the folder: ``$REALLOC_DATA``, its sub-folder ``fashion-mnist``, or Debian's place."""
    named = os.environ.get("REALLOC_DATA")
    places = [Path(named), Path(named) / "fashion-mnist", FOLDER] if named else [FOLDER]
    return next((p for p in places if (p / "train-images-idx3-ubyte.gz").is_file()), None)


def load() -> Dataset:
    """Load and standardise the 60,000 training and 10,000 test images.

    Raises ConfigError when the files are not found or are not what their headers say.
    """
    folder = find()
    if folder is None:
        raise ConfigError(
            "data 'fashion-mnist' was not found; install Debian's package dataset-fashion-mnist, "
            "set REALLOC_DATA to the folder of its four .gz files, or take --data digits"
        )
    train = _part(folder, "train")
    test = _part(folder, "t10k")
    mean, scale = float(train.x.mean()), float(train.x.std())
    for part in (train, test):
        part.x.sub_(mean).div_(scale or 1.0)
    kept, validation = hold_out(train.x, train.y, "fashion-mnist")
    return Dataset("fashion-mnist", "classification", kept, validation, test, CLASSES, (1, SIDE, SIDE))


def _part(folder: Path, prefix: str) -> Rows:
    images = read_idx(folder / f"{prefix}-images-idx3-ubyte.gz", IMAGES, (SIDE, SIDE))
    labels = read_idx(folder / f"{prefix}-labels-idx1-ubyte.gz", LABELS, ())
    if len(images) != len(labels):
        raise ConfigError(f"{folder}: {len(images)} {prefix} images but {len(labels)} labels; fetch the files again")
    if len(labels) and int(labels.max()) >= len(CLASSES):
        raise ConfigError(f"{folder}: {prefix} label {int(labels.max())} is not 0 to 9; fetch the files again")
    return Rows(_scaled(images), torch.from_numpy(labels.astype(np.int64)))


def _scaled(images: NDArray[np.uint8]) -> Tensor:
    return torch.from_numpy(images.reshape(len(images), -1).astype(np.float32)).div_(255)


def read_idx(path: Path, magic: int, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """Read one gzipped idx file of unsigned bytes ``[n, *shape]``.

    Never reads more than the header promises, and promises over a million rows are refused.
    Raises ConfigError naming the file and what is wrong with it.
    """
    try:
        with gzip.open(path, "rb") as file:
            header = file.read(8 + 4 * len(shape))
            found = np.frombuffer(header, ">u4") if len(header) == 8 + 4 * len(shape) else np.zeros(2, ">u4")
            rows, sides = int(found[1]), tuple(int(v) for v in found[2:])
            if int(found[0]) != magic or sides != shape or not 0 < rows <= MOST_ROWS:
                raise ConfigError(f"{path}: no idx file as named (header {header[:16].hex()}); fetch it again")
            size = rows * int(np.prod(shape, dtype=np.int64))
            body = file.read(size + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise ConfigError(f"{path}: cannot be read ({error}); fetch it again, or set REALLOC_DATA") from error
    if len(body) != size:
        found_size = "more" if len(body) > size else f"{len(body):,}"
        raise ConfigError(f"{path}: holds {found_size} bytes of data where its header says {size:,}; fetch it again")
    return np.frombuffer(body, np.uint8).reshape(rows, *shape)
