"""How a command ends: 2 for what was asked, 1 for a run that failed or a folder that is no place for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from realloc.cli.main import app
from realloc.compare import apart

RUN = ["--data", "digits", "--model", "mlp:8", "--density", "0.5", "--epochs", "1", "--threads", "1"]
LONG = "n" * 300


def call(*words: str) -> Any:
    return CliRunner().invoke(app, list(words))


@pytest.fixture(scope="module")
def taken(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = str(tmp_path_factory.mktemp("runs") / "a")
    assert call("train", *RUN, "--out", folder).exit_code == 0
    return folder


@pytest.mark.parametrize("command", ["demo", "finetune", "train", "compare", "inspect", "resume", "methods", "info"])
def test_a_flag_that_no_command_has_is_2(command: str) -> None:
    assert call(command, "--nothing").exit_code == 2


@pytest.mark.parametrize(
    "words",
    [
        ["demo", "--seed", "x"],
        ["finetune", "--seeds", "x"],
        ["train", "--epochs", "0"],
        ["compare", "--seeds", "x"],
        ["inspect", "nowhere"],
        ["resume", "nowhere"],
    ],
)
def test_a_value_that_cannot_be_is_2(words: list[str]) -> None:
    done = call(*words)
    assert done.exit_code == 2 and done.stderr.startswith("error: ") and done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    "words",
    [
        ["demo", "weights", "--out", LONG],
        ["finetune", "--model", LONG, "--data", "reviews:department"],
        ["finetune", "--model", "minilm", "--data", LONG],
        ["finetune", "--model", "minilm", "--data", "reviews:department", "--eval", LONG],
        ["finetune", "--model", "minilm", "--data", "reviews:department", "--out", LONG, "--resume"],
        ["finetune", "--model", "minilm", "--data", "reviews:department", "--out", LONG, "--seeds", "2"],
        ["train", *RUN, "--out", LONG],
        ["compare", *RUN, "--seeds", "1", "--out", LONG],
        ["inspect", LONG],
        ["resume", LONG],
    ],
)
def test_a_path_that_cannot_be_looked_up_is_2_and_no_traceback(words: list[str]) -> None:
    done = call(*words)
    assert done.exit_code == 2, done.exception
    assert f"path '{LONG[:40]}' cannot be looked up (" in done.stderr and done.stderr.count("\n") == 1


@pytest.mark.parametrize("command", ["inspect", "resume"])
def test_a_file_in_place_of_a_run_folder_is_2(command: str, tmp_path: Path) -> None:
    file = tmp_path / "a.csv"
    file.touch()
    done = call(command, str(file))
    assert done.exit_code == 2 and f"run folder '{file}' is no folder; give the one that --out named" in done.stderr


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["train", *RUN], "holds a run already"),
        (["compare", *RUN, "--seeds", "1", "--method", "static"], "holds a single run; choose another --out"),
    ],
)
def test_a_folder_that_is_taken_is_1(words: list[str], says: str, taken: str) -> None:
    """Whichever command finds it so: what was asked is right, and would run elsewhere."""
    done = call(*words, "--out", taken)
    assert done.exit_code == 1 and says in done.stderr and done.stdout == ""


@pytest.mark.parametrize("command", ["inspect", "resume"])
def test_a_record_that_was_changed_is_1(command: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    done = call(command, str(tmp_path))
    assert done.exit_code == 1 and "carries no sha256 of its own" in done.stderr


def test_a_run_whose_loss_is_lost_is_1(tmp_path: Path) -> None:
    table = tmp_path / "t.csv"
    table.write_text("a,y\n" + "".join(f"{i},{i % 7}\n" for i in range(200)))
    words = ["--data", str(table), "--task", "regression", "--label", "y", "--optimizer", "sgd", "--lr", "1000"]
    shape = ["--model", "mlp:64,64", "--density", "0.5", "--epochs", "5", "--threads", "1"]
    for command in (["train"], ["compare", "--seeds", "1", "--method", "static"]):
        done = call(*command, *words, *shape)
        assert done.exit_code == 1 and "the loss became nan" in done.stderr, done.output


def test_a_run_whose_process_died_is_1(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(apart, "CHILD", "realloc.no_such_module")
    done = call("compare", *RUN, "--seeds", "1", "--method", "static")
    assert done.exit_code == 1 and "ended with code 1 and no result" in done.stderr, done.output
