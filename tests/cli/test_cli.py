"""The command line as a user meets it: what is printed where, exit codes, and no traceback for what can be mended."""

import json
import os
import pty
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import realloc.cli.screen as screen
from realloc.cli.main import app

SMALL = ["--data", "digits", "--model", "mlp:16,16", "--density", "0.2", "--epochs", "2", "--threads", "1"]
PROMISED = {
    "method", "density", "budget", "held", "parked", "moves", "units_moved", "metric", "test_metric", "test_accuracy",
    "test_loss", "train_seconds", "peak_bytes", "params", "resumed_from",
}  # fmt: skip


def call(*words: str) -> Any:
    return CliRunner().invoke(app, list(words))


def command(*words: str) -> list[str]:
    return [sys.executable, "-m", "realloc.cli.main", *words]


def last(stdout: str) -> dict[str, Any]:
    found = json.loads(stdout.strip().splitlines()[-1])
    assert isinstance(found, dict)
    return found


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["train", "--data", "digit"], ["'digit'", "nearest: 'digits'"]),
        (["train", "--data", "none.csv"], ["none.csv", "does not exist"]),
        (["train", "--data", "digits", "--task", "regression"], ["regression"]),
        (["train", "--data", "digits", "--task", "rank"], ["rank", "classification or regression"]),
        (["train", "--data", "digits", "--label", "y"], ["'y'", "csv"]),
        (["train", "--data", "digits", "--ids", "user"], ["'user'", "csv"]),
        (["train", "--data", "digits", "--rows", "10%"], ["--rows 10%", "'digits' has none", "--ids"]),
        (["train", "--data", "digits", "--rows", "some"], ["rows some", "10%", "200kB"]),
        (["train", "--data", "digits", "--rows", "10%", "--method", "rigl"], ["--rows 10%", "'digits' has none"]),
        (["train", "--data", "digits", "--rows", "10%", "--method", "dense"], ["dense", "takes no --rows"]),
        (["train", "--data", "digits", "--method", "columns", "--density", "0.1"], ["columns", "--density"]),
        (["train", "--data", "digits", "--method", "columns", "--set", "k=0%"], ["k is '0%'", "'10%'"]),
        (["train", "--data", "digits", "--method", "columns", "--set", "k=65"], ["k is 65", "64 inputs"]),
        (["train", "--data", "digits", "--model", "mpl:8"], ["'mpl:8'", "mlp:1024,1024"]),
        (["train", "--data", "digits", "--model", "mlp:0"], ["'0'"]),
        (["train", "--data", "digits", "--method", "rigel"], ["'rigel'", "nearest: 'rigl'"]),
        (["train", "--data", "digits", "--set", "drop"], ["'drop'", "key=value"]),
        (["train", "--data", "digits", "--set", "dropp=0.2"], ["'dropp'", "nearest: 'drop'"]),
        (["train", "--data", "digits", "--method", "dense", "--set", "drop=0.2"], ["'drop'", "no settings"]),
        (["train", "--data", "digits", "--method", "rigl", "--set", "drop=7"], ["drop is 7.0", "0 <= drop < 1"]),
        (["train", "--data", "digits", "--density", "0"], ["density 0", "0.1"]),
        (["train", "--data", "digits", "--density", "1.01"], ["density 1.01"]),
        (["train", "--data", "digits", "--density", "nan"], ["density nan"]),
        (["train", *SMALL[:4], "--density", "0.0005"], ["density", "fewer"]),
        (["train", "--data", "digits", "--density", "much"], ["density much"]),
        (["train", "--data", "digits", "--every", "0"], ["every 0"]),
        (["train", "--data", "digits", "--every", "5000", "--epochs", "1"], ["every 5000 never fires"]),
        (["train", "--data", "digits", "--epochs", "0"], ["epochs 0"]),
        (["train", "--data", "digits", "--budget", "soon"], ["'soon'", "30s"]),
        (["train", "--data", "digits", "--budget", "3s", "--epochs", "2"], ["epochs 2", "one"]),
        (["train", "--data", "digits", "--seed", "-1"], ["seed -1"]),
        (["train", "--data", "digits", "--optimizer", "adm"], ["'adm'", "nearest"]),
        (["train", "--data", "digits", "--lr", "0"], ["lr 0"]),
        (["train", "--data", "digits", "--batch-size", "0"], ["batch_size 0"]),
        (["train", "--wrong"], ["--wrong"]),
        (["trian"], ["trian"]),
        (["compare", "--data", "digits", "--seeds", "x"], ["'x'", "0,1,2"]),
        (["compare", "--data", "digits", "--seeds", "0"], ["seeds 0"]),
        (["compare", "--data", "digits", "--method", "rigl,rigel"], ["'rigel'"]),
        (["resume", "nowhere"], ["nowhere", "does not exist"]),
        (["inspect", "nowhere"], ["nowhere", "does not exist"]),
    ],
)
def test_bad_input_ends_with_code_2_and_one_message(words: list[str], said: list[str]) -> None:
    result = call(*words)
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    for word in said:
        assert word in result.stderr, result.stderr
    assert "Traceback" not in result.stderr


def test_a_folder_that_is_no_run_ends_with_code_1(tmp_path: Path) -> None:
    for word in ("resume", "inspect"):
        result = call(word, str(tmp_path))
        assert result.exit_code == 1 and "not a run folder" in result.stderr
    (tmp_path / "mine.txt").write_text("x")
    result = call("train", *SMALL, "--out", str(tmp_path))
    assert result.exit_code == 1 and "mine.txt" in result.stderr and (tmp_path / "mine.txt").exists()


def test_train_prints_one_object_and_resume_and_inspect_read_it_again(tmp_path: Path) -> None:
    out = str(tmp_path / "a")
    result = call("train", *SMALL, "--method", "rigl", "--set", "drop=0.4", "--out", out, "--json")
    assert result.exit_code == 0, result.output
    assert len(result.stdout.strip().splitlines()) == 1
    found = last(result.stdout)
    assert set(found) >= PROMISED
    assert found["budget"] == found["held"] + found["parked"] == 256
    assert found["moves"] >= 3 and found["resumed_from"] is None
    again = call("resume", out, "--json")
    assert again.exit_code == 0 and last(again.stdout) == found
    story = last(call("inspect", out, "--json").stdout)
    assert story["finished"] and story["config"]["settings"] == {"drop": 0.4}
    assert story["moves"] == found["moves"]
    assert sum(site["acquired"] for site in story["sites"].values()) == found["units_moved"]
    assert "fc1.weight" in call("inspect", out).stdout
    assert "256 held + 0 parked" in call("resume", out).stdout


def test_a_dry_run_says_what_would_be_done_and_writes_nothing(tmp_path: Path) -> None:
    out = tmp_path / "a"
    result = call("train", *SMALL, "--dry-run", "--json", "--out", str(out))
    found = last(result.stdout)
    assert found["dry_run"] and found["held"] == 256 and found["length"]["total"] == 22
    assert not out.exists()
    shown = call("compare", *SMALL, "--method", "dense,small_dense,rigl,prune_after", "--dry-run").stdout
    assert "fc1.weight" in shown and "mlp:" in shown


def test_methods_and_info_list_what_there_is() -> None:
    listed = {row["name"]: row for row in last(call("methods", "--json").stdout)["methods"]}
    assert "within the bytes of rows, 10 % without --rows" in listed["hashed"]["about"]
    assert {"static", "sparse_evolution", "rigl", "dense", "small_dense", "prune_after"} <= set(listed)
    assert listed["rigl"]["reference"] == "1911.11134" and listed["rigl"]["settings"] == {"drop": 0.3}
    assert "rigl" in call("methods").stdout
    assert last(call("info", "--json").stdout)["torch"].startswith("2.")
    assert "numba" in call("info").stdout


def start(out: Path, epochs: int = 150) -> subprocess.Popen[str]:
    words = ["train", *SMALL[:6], "--epochs", str(epochs), "--threads", "1", "--method", "rigl", "--out", str(out)]
    process = subprocess.Popen(command(*words), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    for _ in range(1200):
        if list((out / "checkpoints").glob("0*")) or process.poll() is not None:
            return process
        time.sleep(0.05)
    process.kill()
    raise AssertionError("no checkpoint within a minute")


def test_a_killed_run_goes_on_from_its_checkpoint(tmp_path: Path) -> None:
    with start(tmp_path / "a") as process:
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    result = call("resume", str(tmp_path / "a"), "--json")
    assert result.exit_code == 0, result.stderr
    found = last(result.stdout)
    assert found["resumed_from"] > 0 and found["steps"] == 1650


def test_ctrl_c_writes_a_checkpoint_and_ends_with_130(tmp_path: Path) -> None:
    with start(tmp_path / "a") as process:
        process.send_signal(signal.SIGINT)
        stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert stdout == "" and "realloc resume" in stderr and "Traceback" not in stderr
    story = last(call("inspect", str(tmp_path / "a"), "--json").stdout)
    assert not story["finished"] and f"step {story['checkpoint']:,}" in stderr


def test_compare_prints_a_table_and_is_gone_on_with_by_resume(tmp_path: Path) -> None:
    out = str(tmp_path / "c")
    words = ["compare", *SMALL, "--method", "small_dense,rigl", "--method", "dense", "--seeds", "1", "--out", out]
    result = call(*words, "--json")
    assert result.exit_code == 0, result.stderr
    found = last(result.stdout)
    assert [arm["arm"] for arm in found["arms"]] == ["small_dense", "rigl", "dense"] and found["winner"] is None
    (tmp_path / "c" / "rigl-seed0" / "result.json").unlink()
    again = call("resume", out, "--json")
    assert again.exit_code == 0 and [a["mean"] for a in last(again.stdout)["arms"]] == [
        a["mean"] for a in found["arms"]
    ]
    shown = call("resume", out).stdout
    assert "small_dense" in shown and "* dense" in shown and "no winner is named under 3 seeds" in shown
    assert "finished" in call("inspect", out).stdout


@pytest.mark.parametrize(
    ("words", "terminal", "drawn"),
    [
        ({"TERM": "xterm"}, True, True),
        ({"TERM": "xterm"}, False, False),
        ({"TERM": "xterm", "NO_COLOR": "1"}, True, False),
        ({"TERM": "dumb"}, True, False),
        ({}, True, False),
    ],
)
def test_only_a_terminal_without_no_color_is_drawn_on(
    words: dict[str, str], terminal: bool, drawn: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("TERM", "NO_COLOR"):
        monkeypatch.delenv(name, raising=False)
    for name, value in words.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
    assert screen.live() is drawn


def test_in_a_terminal_progress_is_drawn_on_stderr_and_stdout_stays_clean() -> None:
    ours, theirs = pty.openpty()
    colors = {name: value for name, value in os.environ.items() if name != "NO_COLOR"} | {"TERM": "xterm"}
    done = subprocess.run(
        command("train", *SMALL, "--method", "dense", "--json"), timeout=120, check=True,
        stdout=subprocess.PIPE, stderr=theirs, env=colors, text=True,
    )  # fmt: skip
    os.close(theirs)
    seen = b""
    try:
        while part := os.read(ours, 4096):
            seen += part
    except OSError:  # the terminal is gone once all is read
        pass
    os.close(ours)
    assert b"\x1b[" in seen and b"/22" in seen
    assert "\x1b" not in done.stdout and last(done.stdout)["method"] == "dense"


def test_examples_and_rates_train_from_the_command_line() -> None:
    words = ["train", "--data", "digits", "--model", "mlp:16", "--epochs", "2", "--lr", "0.01"]
    done = call(*words, "--method", "rs2", "--set", "share=0.5")
    assert done.exit_code == 0 and "1,294 visits = 1,294 held + 0 parked" in done.stdout
    told = call(*words, "--method", "llrd")
    assert told.exit_code == 0 and "2,000,000 millionths of rate = 2,000,000 held + 0 parked" in told.stdout
    refused = call(*words, "--method", "rs2", "--density", "0.5")
    assert refused.exit_code == 2 and "takes no --density" in refused.stderr
    listed = call("methods").stdout
    assert "infobatch [2303.04947]" in listed and "tempbalance [2312.00359]" in listed
