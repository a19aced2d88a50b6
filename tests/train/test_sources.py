"""Fashion-MNIST's files as a stranger may have left them, the digits, and names."""

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from realloc.errors import ConfigError
from realloc.train import data, fashion_mnist


def idx(magic: int, shape: tuple[int, ...], body: bytes) -> bytes:
    return gzip.compress(struct.pack(f">I{len(shape)}I", magic, *shape) + body)


def fill(folder: Path, train: int = 60, test: int = 10) -> None:
    pixels = np.random.default_rng(0)
    for prefix, n in (("train", train), ("t10k", test)):
        images = pixels.integers(0, 256, n * 784, dtype=np.uint8).tobytes()
        (folder / f"{prefix}-images-idx3-ubyte.gz").write_bytes(idx(0x803, (n, 28, 28), images))
        (folder / f"{prefix}-labels-idx1-ubyte.gz").write_bytes(idx(0x801, (n,), bytes(i % 10 for i in range(n))))


@pytest.mark.parametrize("inner", ["", "fashion-mnist"])
def test_realloc_data_names_the_folder_or_its_parent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, inner: str
) -> None:
    (tmp_path / inner).mkdir(exist_ok=True)
    fill(tmp_path / inner)
    monkeypatch.setenv("REALLOC_DATA", str(tmp_path))
    found = data.load("fashion-mnist")
    assert (len(found.train.y), len(found.validation.y), len(found.test.y)) == (54, 6, 10)
    assert found.image == (1, 28, 28) and found.features == 784 and found.outputs == 10
    kept = torch.cat([found.train.x, found.validation.x])
    assert abs(float(kept.mean())) < 1e-4 and abs(float(kept.std()) - 1) < 1e-3


@pytest.mark.parametrize(
    ("name", "content", "word"),
    [
        ("train-images-idx3-ubyte.gz", b"not gzip", "cannot be read"),
        ("train-images-idx3-ubyte.gz", idx(0x803, (60, 28, 28), bytes(60 * 784))[:-40], "cannot be read"),
        ("train-images-idx3-ubyte.gz", idx(0x801, (60,), bytes(60)), "no idx file"),
        ("train-images-idx3-ubyte.gz", idx(0x803, (60, 28, 28), bytes(59 * 784)), "holds"),
        ("train-images-idx3-ubyte.gz", idx(0x803, (60, 28, 28), bytes(61 * 784)), "more"),
        ("train-images-idx3-ubyte.gz", idx(0x803, (60, 32, 32), bytes(60 * 1024)), "no idx file"),
        ("train-images-idx3-ubyte.gz", idx(0x803, (2**32 - 1, 28, 28), b""), "no idx file"),
        ("train-images-idx3-ubyte.gz", gzip.compress(b"\0\0"), "no idx file"),
        ("train-labels-idx1-ubyte.gz", idx(0x801, (59,), bytes(59)), "60 train images but 59 labels"),
        ("t10k-labels-idx1-ubyte.gz", idx(0x801, (10,), bytes([77] * 10)), "label 77"),
    ],
)
def test_damaged_files_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, content: bytes, word: str
) -> None:
    fill(tmp_path)
    (tmp_path / name).write_bytes(content)
    monkeypatch.setenv("REALLOC_DATA", str(tmp_path))
    with pytest.raises(ConfigError, match=word):
        data.load("fashion-mnist")


def test_missing_data_names_the_ways_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REALLOC_DATA", str(tmp_path))
    monkeypatch.setattr(fashion_mnist, "FOLDER", tmp_path / "none")
    with pytest.raises(ConfigError, match=r"dataset-fashion-mnist.*REALLOC_DATA.*digits"):
        data.load("fashion-mnist")
    assert data.usual() == "digits"


def test_digits_hold_each_row_once() -> None:
    found = data.load("digits")
    assert len(found.train.y) + len(found.validation.y) + len(found.test.y) == 1797
    assert found.image == (1, 8, 8) and found.outputs == 10


@pytest.mark.parametrize(
    ("name", "task", "label", "word"),
    [
        ("digit", None, None, "nearest: 'digits'"),
        ("digits", "regression", None, "drop --task"),
        ("digits", None, "price", "csv"),
    ],
)
def test_what_does_not_fit_a_source_is_refused(name: str, task: data.Task | None, label: str | None, word: str) -> None:
    with pytest.raises(ConfigError, match=word):
        data.load(name, task, label)
