"""`realloc finetune` as a user meets it: what is printed where, exit codes, and one line for what can be mended."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import realloc.finetune.arms.table as arms
from realloc.cli.main import app


def call(*words: str) -> Any:
    return CliRunner().invoke(app, list(words), env={"COLUMNS": "250", "TERM": "dumb"})


def last(stdout: str) -> dict[str, Any]:
    found = json.loads(stdout.strip().splitlines()[-1])
    assert isinstance(found, dict)
    return found


@pytest.fixture
def common(tiny: Path, table: Path) -> list[str]:
    return ["finetune", "--model", str(tiny), "--data", str(table), "--method", "topk", "--set", "k=1", "--epochs", "1"]


def test_one_object_on_stdout_and_nothing_else(common: list[str], judging: Path) -> None:
    done = call(*common, "--eval", str(judging), "--eval-rows", "30", "--json")
    assert done.exit_code == 0, done.output
    assert len(done.stdout.splitlines()) == 1
    found = last(done.stdout)
    assert found["used"] == "topk" and found["test_metric"] == found["test_accuracy"] == found["test"]["accuracy"]
    assert found["metric"] == "accuracy" and found["test_loss"] > 0 and found["train_seconds"] > 0
    assert found["optimizer_bytes"] > 0 and found["trainable"] > 0 and found["folder"] is None
    assert set(found["versions"]) == {"realloc", "torch", "transformers", "peft"}
    assert "topk on " in done.stderr


def test_a_real_process_keeps_stdout_clean_of_what_libraries_say(common: list[str]) -> None:
    words = [sys.executable, "-m", "realloc.cli.main", *common, "--json"]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert len(done.stdout.splitlines()) == 1 and last(done.stdout)["method"] == "topk"
    assert "Loading weights" not in done.stderr and "Warning" not in done.stderr


def test_a_dry_run_says_what_would_be_done_and_writes_nothing(common: list[str], tmp_path: Path) -> None:
    shown = call(*common, "--budget", "9k", "--dry-run", "--out", str(tmp_path / "a"))
    assert shown.exit_code == 0 and not (tmp_path / "a").exists()
    for words in (
        "encoder.layer.2: trains", "encoder.layer.1: frozen", "216 to train on, 24 held out, 0 to judge by",
        "budget: 9k; 7 steps; trains 7,603 of 28,531", "optimizer state (counted)", "(measured over a few steps)",
        "time: about",
    ):  # fmt: skip
        assert words in shown.stdout, shown.stdout
    numbers = last(call(*common, "--dry-run", "--json").stdout)
    assert numbers["dry_run"] and numbers["layers"] == {
        f"encoder.layer.{i}": "trains" if i == 2 else "frozen" for i in range(3)
    }
    parts = [numbers[f"{name}_bytes"] for name in ("gradient", "optimizer", "activation")]
    assert numbers["optimizer_bytes"] == 2 * numbers["gradient_bytes"] == 8 * numbers["trainable"]
    assert numbers["peak_bytes"] <= sum(parts)


def test_a_dry_run_of_ranks_shows_every_layer_that_holds_some(common: list[str]) -> None:
    words = [word for word in common if word not in ("--set", "k=1")]
    words[words.index("topk")] = "lora"
    numbers = last(call(*words, "--dry-run", "--json").stdout)
    assert set(numbers["layers"].values()) == {"trains"} and numbers["trainable"] < numbers["parameters"]


def test_a_folder_holds_the_run_and_every_command_reads_it(common: list[str], tmp_path: Path) -> None:
    out = str(tmp_path / "a")
    first = call(*common, "--out", out, "--json")
    assert first.exit_code == 0, first.output
    assert {path.name for path in (tmp_path / "a").iterdir()} - {"run.lock"} == {
        "config.json", "events.jsonl", "checkpoints", "decided.json", "model", "result.json"
    }  # fmt: skip
    for words in (["resume", out], ["finetune", "--resume", "--out", out], [*common, "--resume", "--out", out]):
        again = call(*words, "--json")
        assert again.exit_code == 0 and last(again.stdout) == last(first.stdout), again.output
    story = last(call("inspect", out, "--json").stdout)
    assert story["finished"] and story["config"]["method"] == "topk" and story["checkpoint"] == 7
    assert "finished" in call("inspect", out).stdout
    told = call("resume", out).stdout
    assert "test accuracy" in told and "held out" in told and str(Path(out) / "model") in told
    other = call("finetune", "--lr", "0.5", "--resume", "--out", out)
    assert other.exit_code == 2 and "was started with lr None, not 0.5; leave the flag out" in other.stderr
    taken = call(*common, "--out", out)
    assert taken.exit_code == 1 and "holds a run already" in taken.stderr


def test_resume_starts_a_run_where_there_is_none(common: list[str], tmp_path: Path) -> None:
    done = call(*common, "--resume", "--out", str(tmp_path / "new"), "--json")
    assert done.exit_code == 0 and last(done.stdout)["resumed_from"] is None
    assert call("train", "--data", "digits", "--epochs", "1", "--model", "mlp:8", "--density", "0.5",
                "--out", str(tmp_path / "t")).exit_code == 0  # fmt: skip
    wrong = call("finetune", "--resume", "--out", str(tmp_path / "t"))
    assert wrong.exit_code == 1 and "holds no finetune run" in wrong.stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "--model is missing; for a first try: --model minilm --data reviews:department"),
        (["--model", "minilm"], "--data is missing"),
        (["--resume"], "--resume needs the run's folder; write --out FOLDER"),
        (["--method", "lorra"], "method 'lorra' is unknown; fine-tuning has adalora"),
        (["--set", "n=2"], "setting 'n' is unknown: 'focus' takes share"),
        (["--budget", "5 apples"], "budget '5 apples' is no budget; write seconds (60s, 2m)"),
        (["--budget", "60s", "--epochs", "2"], "epochs 2 and the budget 60s both set the run's length"),
        (["--epochs", "none"], "epochs none is not allowed; take a number above 0"),
        (["--batch-size", "0"], "batch_size 0 is not allowed"),
        (["--task", "ranking"], "task ranking is not allowed; take text-classification, regression or causal-lm"),
        (["--data", "reviews:raging"], "reviews: takes department, rating, recommended; nearest: 'rating'"),
        (["--data", "reviews:rating", "--eval", "e.csv"], "brings its own evaluation texts; leave --eval out"),
        (["--data", "gone.csv"], "data 'gone.csv' is no file"),
        (["--eval", "gone.csv"], "data 'gone.csv' is no file"),
        (["--rows", "4"], "gives 4 texts; at least 10"),
        (["--model", "mini\x1blm"], "hf download minilm"),
    ],
)
def test_bad_input_ends_with_code_2_and_one_message(words: list[str], said: str, tiny: Path, table: Path) -> None:
    given = [] if not words or words[0] == "--model" or words == ["--resume"] else ["--model", str(tiny)]
    if words and "--data" not in words and words not in (["--model", "minilm"], ["--resume"]):
        given += ["--data", str(table)]
    result = call("finetune", *given, *words)
    assert result.exit_code == 2 and result.stdout == ""
    assert said in result.stderr and result.stderr.startswith("error: ") and result.stderr.count("\n") == 1


def test_help_lists_every_method() -> None:
    shown = " ".join(re.sub(r"[│╭╮╰╯─]", " ", call("finetune", "--help").stdout).split())
    for name in arms.NAMES:
        assert name in shown
    assert "reviews:department|rating|recommended" in shown and "(focus)" in shown


def test_help_does_not_wait_for_transformers() -> None:
    code = "import sys, realloc.cli.main; print(sorted({'transformers', 'peft', 'pyarrow'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
