"""Columns of ids on the command line's own runs: a budget of bytes, hashing beside it, full tables, exact resumes."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from tables import ratings
from test_run import Cut, cut_at, facts

from realloc.errors import ConfigError
from realloc.record.checkpoint import load_latest
from realloc.train import arms, data, watch
from realloc.train.columns import Looked
from realloc.train.config import RunConfig, run_config
from realloc.train.dataset import Cells
from realloc.train.id_tables import DIM, FullTable, IdTables, doubled_rows, full_tables, shared_rows
from realloc.train.preview import preview
from realloc.train.result import from_json
from realloc.train.run import resume, run_in, train

ROW = DIM * 4 * 3  # bytes, with two moments


def config(data: str, method: str = "rows", **more: Any) -> RunConfig:
    values = {"data": data, "model": "mlp:24", "epochs": 6, "every": 4, "threads": 1, "method": method, "lr": 0.01}
    return run_config(values | more)


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> str:
    return ratings(tmp_path_factory.mktemp("table"))


@pytest.mark.parametrize("rows", ["25%", "9.6kB", 50, None])
def test_the_bytes_are_exact_and_the_dry_run_foretells_them(table: str, rows: int | str | None) -> None:
    asked = config(table, rows=rows)
    done, foretold = train(asked), preview(asked)
    ids = sum(one.ids for one in data.load(table).columns.looked)
    budget = {"25%": ids * ROW // 4, "9.6kB": 9600, 50: 50 * ROW, None: ids * ROW // 10}[rows]
    assert done.currency == "bytes" and done.budget == budget
    assert done.held is not None and done.parked is not None and done.held + done.parked == done.budget
    assert done.moves and done.units_moved
    assert foretold.tables is not None and foretold.tables.split is not None
    assert done.tables is not None and foretold.tables.as_json() == foretold.as_json()["tables"]
    assert done.tables == foretold.tables.as_json() | {
        "held": done.held, "parked": done.parked, "moves": done.moves, "rows_given": done.units_moved,
    }  # fmt: skip
    assert done.tables["budget"] == budget and done.tables["full_bytes"] == ids * ROW
    assert done.params == foretold.params and from_json(done.as_json()) == done


def test_the_same_bytes_hashed_full_tables_and_none(table: str) -> None:
    rows, hashed, full = (train(config(table, name, epochs=25)) for name in ("rows", "hashed", "dense"))
    assert hashed.currency == "bytes" and hashed.budget == rows.budget and hashed.moves is None
    assert hashed.held is not None and hashed.parked is not None and hashed.parked < ROW
    assert hashed.tables is not None and rows.tables is not None and full.tables is not None
    assert hashed.tables["own_rows"] == 0 < rows.tables["own_rows"] and full.tables["budget"] is None
    assert hashed.tables["shared_rows"] > rows.tables["shared_rows"] + rows.tables["own_rows"]  # no sketch to pay
    assert full.currency is None and full.params > rows.params
    assert full.test_accuracy is not None and full.test_accuracy > 0.75  # ids are learnt: half would be by chance


@pytest.mark.parametrize(
    "method",
    ["rows", "hashed", "double_hashing", "dense", "rigl", "columns", "importance", "rates", "small_dense"],
)
def test_every_kind_of_method_stands_behind_tables(table: str, method: str) -> None:
    more = {"settings": {"k": "40%"}} if method == "columns" else {}
    asked = config(table, method, density=0.3, **more)
    done, foretold = train(asked), preview(asked)
    assert done.finished and done.test_loss is not None and math.isfinite(done.test_loss)
    assert foretold.params == done.params
    if method == "columns":
        assert done.inputs is not None and len(done.inputs) == int(0.4 * 36) and done.held == len(done.inputs) * 24
        looked = {f"{name}[{place}]" for name in ("user", "film") for place in range(DIM)}
        assert set(done.inputs) <= looked | {"age", "genre=comedy", "genre=drama", "genre=war"}
    if method == "small_dense":
        assert done.excess is not None and 0 <= done.excess < 36 + 1 + 2


@pytest.mark.parametrize("score", ["frequency", "conflict", "random"])
def test_the_scores_of_rows_are_settings(table: str, score: str) -> None:
    done = train(config(table, settings={"score": score, "migrate": False}))
    assert done.moves and done.tables is not None
    assert (done.tables["sketch_bytes"] > train(config(table)).tables["sketch_bytes"]) == (score == "conflict")  # type: ignore[index]


@pytest.mark.parametrize("method", ["rows", "hashed", "double_hashing", "dense"])
def test_a_run_that_is_cut_twice_ends_bit_equal(
    table: str, method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = config(table, method)
    straight = train(asked, tmp_path / "straight")
    monkeypatch.setattr(watch, "SAVE_EVERY", 0.0)
    for step in (7, 22):
        with monkeypatch.context() as patch, pytest.raises(Cut):
            cut_at(step, patch)
            run_in(tmp_path / "cut", asked)
    result = resume(tmp_path / "cut")
    assert result.resumed_from == 22 and facts(result) == facts(straight)
    one, other = (load_latest(tmp_path / name / "checkpoints") for name in ("straight", "cut"))
    assert one is not None and other is not None and one.tensors.keys() == other.tensors.keys()
    for key, tensor in one.tensors.items():
        assert torch.equal(tensor, other.tensors[key]), key


def test_values_that_training_has_not_share_rows_or_read_zeros() -> None:
    looked = (Looked("user", 60, 0.0), Looked("film", 70, 0.0))
    numbers, ids = torch.zeros(3, 1), torch.tensor([[5, 3], [2**60, 2**62], [2**60, 3]])
    plan = full_tables(looked, 2)
    assert plan is not None and plan.width == 2 * DIM and plan.parameters == (60 + 70 + 2) * DIM
    full = IdTables(plan)
    out = full(Cells(numbers, ids))
    assert out.shape == (3, 1 + plan.width) and not out[1].any() and bool(out[0, 1:].all())
    assert [type(one) for one in full.children()] == [FullTable] * 2 and [*dict(full.named_children())] == [
        "user_ids", "film_ids",
    ]  # fmt: skip
    assert 0.08 < float(full.get_submodule("user_ids").weight[:60].detach().std()) < 0.12
    shared = IdTables(shared_rows(looked, "20%", moments=2))
    assert bool(shared(Cells(numbers, ids))[:, 1:].all())
    assert sum(p.numel() for p in shared.parameters()) == shared_rows(looked, "20%", moments=2).parameters


def test_a_rating_is_predicted_in_its_own_unit(table: str) -> None:
    done = train(config(table, task="regression", label="age", rows="50%", epochs=20))
    assert done.metric == "r2" and done.test_metric is not None and done.test_metric > 0.2


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"rows": "0%"}, ["rows 0%", "such as 10%", "200kB"]),
        ({"rows": "10"}, ["rows 10 ", "a number of rows from 1"]),
        ({"rows": 0}, ["rows 0 "]),
        ({"rows": True}, ["rows true"]),
        ({"rows": "12 parsecs"}, ["rows 12 parsecs"]),
        ({"rows": "10MB"}, ["rows 10MB is more than the full tables of 'user', 'film'", "lower --rows"]),
        ({"rows": 100_000}, ["rows 100000 is more than the full tables"]),
        ({"rows": "300b"}, ["300 bytes, too few for one shared row for each column", "take --rows", "or more"]),
        (
            {"rows": 1, "method": "double_hashing"},
            ["192 bytes, too few for one shared row for each column", "--rows 2 "],
        ),
        (
            {"rows": "383b", "method": "double_hashing"},
            ["383 bytes, too few", "('user', 'film')", "2 (rows, 384 bytes) or more"],
        ),
        ({"rows": "10MB", "method": "double_hashing"}, ["rows 10MB is more than the full tables of 'user', 'film'"]),
        ({"rows": "300b", "method": "hashed"}, ["300 bytes, too few", "take --rows 3 (rows, 576 bytes) or more"]),
        ({"data": "digits"}, ["--method rows needs columns that are looked up, and 'digits' has none", "--ids"]),
        ({"data": "digits", "rows": "10%", "method": "hashed"}, ["--rows 10% needs columns"]),
        ({"settings": {"score": "gradent"}}, ["score is 'gradent'; nearest: 'gradient'"]),
        ({"settings": {"look": 0}}, ["look is 0"]),
        ({"ids": ["usr"]}, ["no column 'usr' for --ids"]),
        ({"optimizer": "adam", "model": "cnn"}, ["needs images"]),
    ],
)
def test_a_budget_that_does_not_fit_is_refused_before_training(
    table: str, more: dict[str, Any], words: list[str], tmp_path: Path
) -> None:
    with pytest.raises(ConfigError) as error:
        train(config(**({"data": table} | more)), tmp_path / "a")
    for word in words:
        assert word in str(error.value), str(error.value)
    assert not (tmp_path / "a").exists()


def test_a_table_of_numbers_says_which_columns_look_like_ids(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("user_id,a,label\n" + "".join(f"{i % 70},{i},{i % 2}\n" for i in range(300)))
    with pytest.raises(
        ConfigError, match=r"'t.csv' has none \(a column of text with more than 50 .*\); write --ids user_id"
    ):
        preview(config(str(path)))


def test_too_few_bytes_for_each_column_to_have_a_row() -> None:
    looked = tuple(Looked(f"c{i}", 60, 0.0) for i in range(5))
    enough = next(n for n in range(5, 60) if _fits(looked, n))
    with pytest.raises(ConfigError, match=rf"take --rows {enough} \(rows, {enough * ROW:,} bytes\) or more"):
        shared_rows(looked, enough - 1, moments=2)
    few = tuple(Looked(f"c{i}", 1, 0.0) for i in range(5))
    with pytest.raises(ConfigError, match="leave --rows out"):
        shared_rows(few, 2, moments=2)


def test_double_hashing_has_a_row_for_each_column_and_two_in_all() -> None:
    one, three = (tuple(Looked(f"c{i}", 60, 0.0) for i in range(count)) for count in (1, 3))
    for looked, least in ((one, 2), (three, 3)):
        assert doubled_rows(looked, least, moments=2).shared == least
        with pytest.raises(ConfigError, match=rf"take --rows {least} \(rows, {least * ROW:,} bytes\) or more"):
            doubled_rows(looked, least - 1, moments=2)


def _fits(looked: tuple[Looked, ...], rows: int) -> bool:
    try:
        plan = shared_rows(looked, rows, moments=2)
    except ConfigError:
        return False
    assert plan.split is not None and plan.split.shared >= len(looked)
    return True


def test_which_arms_spend_rows(table: str) -> None:
    usual = [name for name in arms.names() if arms.budget_of_rows(config(table, name)) is not None]
    assert usual == ["hashed", "double_hashing", "rows"]
    asked = [name for name in arms.names() if arms.budget_of_rows(config(table, name, rows="10%")) is None]
    assert asked == ["dense"]


@pytest.mark.parametrize(
    "method", ["rigl", "columns", "importance", "prune_after", "small_dense", "gmp", "rates", "auto_rgn", "width"]
)
def test_rows_move_beside_another_budget(table: str, method: str, tmp_path: Path, monkeypatch: Any) -> None:
    """Each its own account; a run that is cut goes on with both."""
    net = {"model": "mlp:24,12", "settings": {"mature": 4, "drop": 0.3}} if method == "width" else {}
    asked = config(table, method, density=0.3, rows="20%", every=3, **net)
    done, foretold = train(asked), preview(asked)
    assert done.tables is not None and foretold.tables is not None and foretold.tables.split is not None
    assert done.tables["held"] + done.tables["parked"] == done.tables["budget"] == foretold.tables.split.budget
    assert done.tables["moves"] and done.tables["rows_given"]
    spare = (done.parked or 0) if method == "width" else 0  # what buys no whole unit at the end
    assert done.params == foretold.params - spare
    other = {"importance": "visits", "small_dense": "bytes", "width": "parameters"}
    rate = dict.fromkeys(("rates", "auto_rgn"), "millionths of rate")
    assert done.currency == (other | rate).get(method, "weights")
    if done.currency == "weights":
        assert done.held is not None and done.parked is not None and done.held + done.parked == done.budget
    monkeypatch.setattr(watch, "SAVE_EVERY", 0.0)
    with monkeypatch.context() as patch, pytest.raises(Cut):
        cut_at(20, patch)
        run_in(tmp_path / "cut", asked)
    assert facts(resume(tmp_path / "cut")) == facts(done)
