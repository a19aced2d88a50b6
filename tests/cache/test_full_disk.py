"""A disk without room ends the growth of a table, not the process."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
import torch
from zoo import fresh, stack

import realloc
import realloc.cache.mapped as mapped
from realloc import Cache, methods
from realloc.cache.keys import Example, examples_of
from realloc.cache.mark import MARK
from realloc.cache.rows import Rows
from realloc.errors import ReallocWarning

pytestmark = pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="nothing can be reserved")
ROW = 2 * 4  # bytes of a token


class Disk:
    """Has a place for so many bytes of a file."""

    def __init__(self, room: int, number: int = errno.ENOSPC) -> None:
        self.room, self.number = room, number
        self.asked: list[tuple[int, int]] = []

    def __call__(self, file: int, first: int, count: int) -> None:
        assert os.fstat(file).st_size >= first + count > first
        self.asked.append((first - len(MARK), count))
        if first + count > self.room + len(MARK):
            raise OSError(self.number, os.strerror(self.number))


def give(monkeypatch: pytest.MonkeyPatch, disk: Disk, block: int = 0) -> Disk:
    monkeypatch.setattr(os, "posix_fallocate", disk)
    monkeypatch.setattr(mapped, "BLOCK", block)
    return disk


def example(number: int, length: int = 2) -> Example:
    return examples_of(torch.full((1, length), number))[0]


def write(rows: Rows, number: int, length: int = 2) -> bool:
    return rows.write(example(number, length), torch.full((length, 2), float(number)))


def test_blocks_are_reserved_as_rows_come_and_never_the_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = give(monkeypatch, Disk(10**12), block=4 * ROW)
    rows = Rows(2, 10 * ROW, "float32", tmp_path / "rows")
    assert disk.asked == []
    assert all(write(rows, number) for number in range(1, 6)) and not write(rows, 6)
    assert disk.asked == [(0, 6 * ROW), (6 * ROW, 4 * ROW)]
    rows.close()


def test_of_a_large_limit_little_is_taken(tmp_path: Path) -> None:
    rows = Rows(2, 1 << 33, "float32", tmp_path / "rows")
    write(rows, 1)
    found = (tmp_path / "rows").stat()
    assert found.st_size > 1 << 33 and mapped.BLOCK <= found.st_blocks * 512 < 2 * mapped.BLOCK
    rows.close()


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_what_is_there_stays_and_the_disk_is_not_asked_again(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = give(monkeypatch, Disk(5 * ROW, number), block=ROW)
    rows = Rows(2, 100 * ROW, "float32", tmp_path / "rows")
    assert write(rows, 1) and write(rows, 2) and not rows.refusal
    assert not write(rows, 3) and rows.refusal == os.strerror(number)
    asked = len(disk.asked)
    disk.room = 10**12
    assert not write(rows, 4) and len(disk.asked) == asked
    assert write(rows, 5, 1)  # one more token was reserved
    assert (len(rows), rows.tokens, rows.room, rows.refused) == (3, 5, 5, 2)
    assert rows.read([example(1), example(2)], 2)[:, :, 0].tolist() == [[1.0, 1.0], [2.0, 2.0]]
    sealed = rows.seal()
    rows.clear()
    assert write(rows, 4) and write(rows, 2) and not write(rows, 3)  # what was reserved is used anew
    rows.close()
    assert sealed[:2] == (3, 5)


def test_a_table_that_was_taken_up_stays_whole_when_the_disk_is_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = Rows(2, 100 * ROW, "float32", tmp_path / "rows")
    assert write(first, 1) and write(first, 2)
    sealed = first.seal()
    first.close()
    give(monkeypatch, Disk(0))
    rows = Rows(2, 100 * ROW, "float32", tmp_path / "rows")
    assert rows.reopen(*sealed) and not write(rows, 3) and rows.seal() == sealed
    rows.close()
    assert (tmp_path / "rows").stat().st_size == len(MARK) + 100 * ROW
    again = Rows(2, 100 * ROW, "float32", tmp_path / "rows")
    assert again.reopen(*sealed) and again.read([example(2)], 2)[0, 0, 0] == 2.0
    again.close()


@pytest.mark.parametrize("number", [errno.EOPNOTSUPP, errno.EINVAL, None])
def test_where_nothing_can_be_reserved_it_goes_on_without(
    number: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if number is None:
        monkeypatch.delattr(os, "posix_fallocate")
    else:
        disk = give(monkeypatch, Disk(0, number))
    rows = Rows(2, 100 * ROW, "float32", tmp_path / "rows")
    assert write(rows, 1) and write(rows, 2) and not rows.refusal
    assert number is None or len(disk.asked) == 1
    rows.close()


def test_training_goes_on_and_it_is_said_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(8, 6, generator=torch.Generator().manual_seed(0))
    found = []
    for room in (10**12, 4 * 16 * 4):  # four of eight examples, 16 numbers each
        give(monkeypatch, Disk(room))
        model, optimizer = fresh(stack)
        cache = Cache(file=tmp_path / f"rows{len(found)}", limit="1MB", dtype="float32")
        handle = realloc.attach(model, optimizer, methods.topk(1, cache=cache))
        losses = []
        if found:
            with pytest.warns(ReallocWarning, match=r"RA107.*no more room.*No space left.*another disk") as said:
                losses = [float(model(x).square().mean().detach()) for _ in range(4)]
            assert len(said) == 1 and handle.hits == pytest.approx(12 / 32)
        else:
            losses = [float(model(x).square().mean().detach()) for _ in range(4)]
            assert handle.hits == pytest.approx(24 / 32)
        found.append(losses)
    assert found[1] == pytest.approx(found[0], abs=1e-6)
