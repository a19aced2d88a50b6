"""The 8x8 digits that come inside scikit-learn: 1,797 rows, 10 classes; small enough for tests and a first look."""

from __future__ import annotations

import torch

from realloc.errors import ConfigError
from realloc.train.dataset import TEST, Dataset, Rows, hold_out, parted


def load() -> Dataset:
    """Load the digits, with a fixed fifth of the rows for test.

    Raises ConfigError when scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ConfigError("data 'digits' needs scikit-learn; pip install scikit-learn") from error
    pixels, labels = load_digits(return_X_y=True)
    x, y = torch.tensor(pixels, dtype=torch.float32), torch.tensor(labels, dtype=torch.int64)
    kept, back = parted(len(y), TEST, "digits test")
    mean, scale = x[kept].mean(), x[kept].std()
    x = (x - mean) / scale
    train, validation = hold_out(x[kept], y[kept], "digits")
    classes = tuple(str(i) for i in range(10))
    return Dataset("digits", "classification", train, validation, Rows(x[back], y[back]), classes, (1, 8, 8))
