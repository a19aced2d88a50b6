"""What lies under the names of a cache and is not ours is refused, and stays as it was, to the byte."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from zoo import fresh, stack

import realloc
import realloc.cache.index as index
from realloc import Cache, methods
from realloc.cache.claim import Claim
from realloc.cache.keys import Example, examples_of
from realloc.cache.mark import MARK
from realloc.cache.rows import Rows
from realloc.errors import ConfigError

TABLE = b"name,price\n" * 80


def attach(file: Path) -> None:
    model, optimizer = fresh(stack)
    realloc.attach(model, optimizer, methods.topk(1, cache=Cache(file=file, limit="1MB")))
    model(torch.randn(4, 6))
    model.state_dict()


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def example(number: int) -> Example:
    return examples_of(torch.tensor([[number, number]]))[0]


def filled(file: Path, count: int = 3) -> tuple[int, int, int]:
    """A table that was sealed and let go; its seal."""
    rows = Rows(2, 1000, "float32", file)
    for number in range(1, count + 1):
        assert rows.write(example(number), torch.full((2, 2), float(number)))
    sealed = rows.seal()
    rows.close()
    return sealed


# whose it is --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("content", [TABLE, b"r", bytes(1_000_000), MARK[:40], MARK[1:] * 30], ids=len)
@pytest.mark.parametrize("name", ["rows", "rows.index"])
def test_a_foreign_file_is_refused_at_attach_and_stays(name: str, content: bytes, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigError, match=rf"{name}' is no (cache of ours|index).*overwritten.*name another"):
        attach(tmp_path / "rows")
    assert names(tmp_path) == [name] and (tmp_path / name).read_bytes() == content


@pytest.mark.parametrize("name", ["rows", "rows.index"])
def test_one_that_comes_after_attach_is_refused_when_it_is_opened(name: str, tmp_path: Path) -> None:
    model, optimizer = fresh(stack)
    realloc.attach(model, optimizer, methods.topk(1, cache=Cache(file=tmp_path / "rows")))
    (tmp_path / name).write_bytes(TABLE)
    with pytest.raises(ConfigError, match=f"{name}' is no"):
        model(torch.randn(4, 6))
    assert (tmp_path / name).read_bytes() == TABLE
    Claim(tmp_path / "rows").release()  # it was let go


def test_an_index_that_comes_later_is_not_replaced_nor_what_has_a_name_like_a_new_one(tmp_path: Path) -> None:
    rows = Rows(2, 1000, file=tmp_path / "rows")
    rows.write(example(1), torch.ones(2, 2))
    (tmp_path / "rows.index").write_bytes(TABLE)
    (tmp_path / "rows.index.new").write_bytes(TABLE)
    with pytest.raises(ConfigError, match=r"rows\.index' is no index"):
        rows.seal()
    assert (tmp_path / "rows.index").read_bytes() == TABLE
    (tmp_path / "rows.index").unlink()
    assert rows.seal() != (0, 0, 0) and (tmp_path / "rows.index.new").read_bytes() == TABLE
    assert len(names(tmp_path)) == 3


def test_the_index_of_another_cache_is_no_table(tmp_path: Path) -> None:
    filled(tmp_path / "rows")
    before = (tmp_path / "rows.index").read_bytes()
    with pytest.raises(ConfigError, match=r"rows\.index' is no cache of ours"):
        attach(tmp_path / "rows.index")
    assert (tmp_path / "rows.index").read_bytes() == before


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes")
@pytest.mark.parametrize("name", ["rows", "rows.index"])
def test_a_pipe_is_refused_and_nobody_waits_for_it(name: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / name)
    for act in (attach, lambda file: Rows(2, 1000, file=file)):
        with pytest.raises(ConfigError, match=f"{name}' is no"):
            act(tmp_path / "rows")


def test_a_link_to_a_foreign_file_is_refused_and_one_to_nothing_is_followed(tmp_path: Path) -> None:
    (tmp_path / "mine.csv").write_bytes(TABLE)
    (tmp_path / "rows").symlink_to("mine.csv")
    with pytest.raises(ConfigError, match="is no cache of ours"):
        attach(tmp_path / "rows")
    assert (tmp_path / "mine.csv").read_bytes() == TABLE
    (tmp_path / "others").symlink_to("elsewhere")
    attach(tmp_path / "others")
    assert (tmp_path / "elsewhere").read_bytes().startswith(MARK)


# ours ---------------------------------------------------------------------------------------------------------------


def test_empty_files_are_fine_and_a_cache_is_known_again(tmp_path: Path) -> None:
    (tmp_path / "rows").touch()
    (tmp_path / "rows.index").touch()
    for _ in range(2):
        attach(tmp_path / "rows")
    with (tmp_path / "rows").open("rb") as file:
        assert file.read(len(MARK)) == MARK


@pytest.mark.skipif(sys.platform == "win32", reason="no such signal")
def test_a_run_that_was_killed_before_its_first_seal_gets_its_file_back(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys, torch; from pathlib import Path; from realloc.cache.rows import Rows; "
        "from realloc.cache.keys import examples_of; rows = Rows(2, 1000, file=Path(sys.argv[1])); "
        "rows.write(examples_of(torch.ones(1, 2).long())[0], torch.ones(2, 2)); os.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "rows")], check=False)
    assert done.returncode == -signal.SIGKILL and names(tmp_path) == ["rows"]
    attach(tmp_path / "rows")


def test_rows_are_found_again_behind_the_mark_under_another_limit_too(tmp_path: Path) -> None:
    sealed = filled(tmp_path / "rows")
    for limit in (1000, 5000, 100):
        rows = Rows(2, limit, "float32", tmp_path / "rows")
        assert rows.reopen(*sealed)
        assert rows.read([example(3)], 2)[0].tolist() == [[3.0, 3.0]] * 2
        rows.close()


def before_there_was_a_mark(file: Path, limit: int) -> tuple[int, int, int]:
    """As such a table lies on a disk: numbers from the first byte on, as long as the limit, and its index beside it."""
    keys = [example(number).key for number in (1, 2)]
    table = torch.zeros(limit // 8, 2)
    table[:2], table[2:4] = 1.0, 2.0
    file.write_bytes(table.numpy().tobytes())
    index.write(file, keys, [2, 2])
    return 2, 4, index.digest_of(keys, [2, 2], table[:4], 0)


def test_a_table_of_before_there_was_a_mark_is_read_where_its_index_and_its_length_fit(tmp_path: Path) -> None:
    file = tmp_path / "rows"
    sealed = before_there_was_a_mark(file, 800)
    for _ in range(2):
        rows = Rows(2, 800, "float32", file)
        assert rows.reopen(*sealed) and rows.write(example(3), torch.full((2, 2), 3.0))
        assert rows.read([example(2), example(3)], 2)[:, 0, 0].tolist() == [2.0, 3.0]
        rows.close()
    before = file.read_bytes()
    with pytest.raises(ConfigError, match="is no cache of ours"):
        Rows(2, 1600, "float32", file)
    index.path_of(file).unlink()
    with pytest.raises(ConfigError, match="is no cache of ours"):
        Rows(2, 800, "float32", file)
    assert file.read_bytes() == before


def test_a_foreign_file_beside_an_index_that_was_left_is_refused(tmp_path: Path) -> None:
    filled(tmp_path / "rows")
    (tmp_path / "rows").write_bytes(TABLE)
    with pytest.raises(ConfigError, match="is no cache of ours"):
        attach(tmp_path / "rows")
    assert (tmp_path / "rows").read_bytes() == TABLE


@pytest.mark.parametrize("count", [0, 1, 4])
def test_an_index_without_so_many_examples_is_not_read(count: int, tmp_path: Path) -> None:
    sealed = filled(tmp_path / "rows")
    rows = Rows(2, 1000, "float32", tmp_path / "rows")
    assert not rows.reopen(count, sealed[1], sealed[2]) and len(rows) == 0
    assert not rows.reopen(7, 6, sealed[2])  # more examples than tokens
    rows.close()
