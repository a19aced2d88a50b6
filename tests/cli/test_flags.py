"""Flags as a new user writes them: what is understood, what is refused and how, what a dry run and the help say."""

import os
import re
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from test_cli import SMALL, call, command, last
from typer.testing import CliRunner

from realloc.cli.main import app
from realloc.cli.screen import CACHE, words
from realloc.kernels import compiled
from realloc.train.progress import Progress

DIGITS = ["--data", "digits"]
COMPARE = ["compare", *SMALL, "--dry-run", "--json"]


def test_an_arm_has_its_own_rate_on_the_command_line() -> None:
    result = call(*COMPARE, "--method", "static,rigl,dense", "--lr", "0.002", "--set", "rigl.lr=0.004")
    assert result.exit_code == 0, result.stderr
    rates = {arm["method"]: arm["lr"] for arm in last(result.stdout)["arms"]}
    assert rates == {"static": 0.002, "rigl": 0.004, "dense": 0.002}
    assert call(*COMPARE, "--method", "rigl", "--set", "rigl.drop=0.2").exit_code == 0


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("train --set lr=0.004", "it has a flag of its own; write --lr 0.004"),
        ("train --set rigl.lr=0.004", "write --lr 0.004"),
        ("train --set rigl.drop=0.4", "write --set drop=0.4"),
        ("train --method dense --set batch_size=64", "write --batch-size 64"),
        ("train --set a.b.c=1", "'a.b.c=1' is not key=value"),
        ("compare --set a.b.c=1", "arm.key=value"),
        ("compare --set lr=true", "lr true is not allowed; take a number"),
        ("compare --set rigl.lr=true", "lr true is not allowed; take a number"),
        ("compare --set rigll.lr=0.1", "'rigll', which is not among the arms (small_dense"),
        ("compare --set density=0.2", "write --density 0.2"),
        ("train --density 5x", "density 5x is not allowed; take a number above 0 and at most 1, such as 0.1 or 10%"),
        ("train --density 500%", "density 5.0"),
        ("train --seed x", "seed x is not allowed; take a whole number"),
        ("demo --seed x", "seed x is not allowed; take a whole number"),
        ("train --lr fast", "lr fast is not allowed; take a number"),
        ("train --every 2.5", "every 2.5 is not allowed; take a whole number"),
        ("train --epochs many", "epochs many"),
        ("train --batch-size 1.5", "batch_size 1.5"),
        ("compare --threads two", "threads two"),
        ("train --method SET", "nearest: 'sparse_evolution'"),
        ("train --method set", "nearest: 'sparse_evolution'"),
        ("train --method RigL", "nearest: 'rigl'"),
        ("compare --method SNFS", "nearest: 'snfs'"),
        ("train --method CHTs", "nearest: 'chts'"),
        ("train --method RIGGL", "nearest: 'rigl'"),
        ("train --method small-dense", "nearest: 'small_dense'"),
    ],
)
def test_a_wrong_flag_gets_one_line_with_value_and_remedy(line: str, said: str) -> None:
    name, *more = line.split()
    result = call(name, *(DIGITS if name != "demo" else []), *more)
    assert result.exit_code == 2 and result.stdout == ""
    assert said in result.stderr and result.stderr.startswith("error: ") and result.stderr.count("\n") == 1


def test_numbers_are_read_from_words() -> None:
    for density in ("20%", "0.2", " 20 %".replace(" %", "%")):
        found = last(call("train", *DIGITS, "--model", "mlp:16,16", "--density", density, "--dry-run", "--json").stdout)
        assert found["held"] == 256


def test_help_says_the_defaults_and_a_single_run_is_not_offered_arms() -> None:
    shown = {}
    for name in ("train", "compare"):
        result = CliRunner().invoke(app, [name, "--help"], env={"COLUMNS": "200", "TERM": "dumb"})
        shown[name] = " ".join(re.sub(r"[│╭╮╰╯─]", " ", result.stdout).split())
        for default in ("0.001 for adamw", "0.1", "as many as make 1,000 steps", "128", "(adamw)", "mlp:1024,1024"):
            assert default in shown[name], default
        assert "fashion-mnist if found" in shown[name]
    assert "(rigl)" in shown["train"] and "small_dense,static,random_moves,rigl" in shown["compare"]
    assert all("--ids" in words and "--rows" in words and "full tables" in words for words in shown.values())
    assert "arm.lr" in shown["compare"] and "arm." not in shown["train"]


def test_a_dry_run_names_rate_seeds_and_runs_and_says_who_never_moves() -> None:
    one = call("train", *SMALL, "--method", "static", "--seed", "3", "--dry-run").stdout
    assert "adamw, learning rate 0.001" in one and "22 steps; no moves" in one and "1 run, seed 3" in one
    arms = ["--method", "dense,small_dense,prune_after,static,rigl", "--seeds", "2", "--set", "rigl.lr=0.004"]
    many = call("compare", *SMALL, *arms, "--dry-run").stdout
    assert many.count("1,294 train") == 1
    assert many.count("no moves") == 4 and many.count("moves every") == 1 and "one cut to the budget" in many
    assert many.count("learning rate 0.001") == 4 and many.count("learning rate 0.004") == 1
    assert "10 runs: 5 arms, seeds 0, 1" in many


def test_a_used_folder_is_not_named_as_the_record_of_a_run_that_never_began(tmp_path: Path) -> None:
    out = str(tmp_path / "a")
    first = call("train", *SMALL, "--out", out)
    assert first.exit_code == 0 and f"recorded in {out}" in first.stderr
    again = call("train", *SMALL, "--out", out)
    assert again.exit_code == 1 and "holds a run already" in again.stderr and "recorded" not in again.stderr
    wrong = call("train", *SMALL, "--every", "500", "--out", str(tmp_path / "b"))
    assert wrong.exit_code == 2 and "recorded" not in wrong.stderr


def test_what_was_released_for_good_is_said() -> None:
    shown = call("train", *SMALL, "--method", "gmp").stdout
    assert re.search(r"moves +\d+, 1,024 weights released for good", shown), shown
    assert "units moved" not in shown
    assert re.search(r"moves +\d+, \d+ units moved\n", call("train", *SMALL, "--method", "rigl").stdout)


def test_a_progress_line_has_no_empty_end(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    import realloc.cli.screen as screen

    monkeypatch.setattr(screen, "PLAIN_EVERY", -1.0)
    with screen.Screen() as shown:
        tell = shown.show("dense")
        tell(Progress("training", 5, 10, 1.0))
        tell(Progress("training", 6, 10, 1.0, metric=0.5))
        tell(Progress("training", 1, 100, 2.0, left=3.0))  # a budget of seconds ends it sooner
    first, second, third = capsys.readouterr().err.splitlines()
    assert words(Progress("training")) == "" and first.endswith("to go")
    assert second.endswith("to go; validation 0.5000") and "3.0 s to go" in third


def table(folder: Path, header: str) -> list[str]:
    path = folder / "t.csv"
    path.write_text(f"{header}\n" + "".join(f"{i},{i % 3},{'ab'[i % 2]}\n" for i in range(40)), encoding="utf-8")
    return ["train", "--data", str(path), "--model", "mlp:8"]


def test_a_wrong_label_lists_the_columns_and_a_missing_header_is_hinted_at(tmp_path: Path) -> None:
    result = call(*table(tmp_path, "size,wei\x1b[2Jght,kind"), "--label", "colour")
    assert result.exit_code == 2 and "(columns: size, wei[2Jght, kind)" in result.stderr
    assert "\x1b" not in result.stderr and "first line" not in result.stderr
    result = call(*table(tmp_path, "1,2,3"), "--label", "kind")
    assert result.exit_code == 2 and "its first line holds numbers: add a header line" in result.stderr
    many = tmp_path / "many.csv"
    many.write_text("\n".join([",".join(f"c{i}" for i in range(30)), *[",".join(["1"] * 30)] * 9]), encoding="utf-8")
    said = call("train", "--data", str(many), "--label", "kind").stderr
    assert "c11, ... 30 in all" in said and "c12" not in said


def test_a_regression_on_a_text_label_is_refused_by_the_label(tmp_path: Path) -> None:
    result = call(*table(tmp_path, "a,b,label"), "--task", "regression", "--label", "label")
    assert result.exit_code == 2 and "the label column 'label' holds text ('a')" in result.stderr
    assert "--task classification" in result.stderr


def until(process: subprocess.Popen[str], word: str) -> str:
    """What it said on stderr up to a word."""
    assert process.stderr is not None
    said = ""
    while word not in said:
        line = process.stderr.readline()
        assert line, said
        said += line
    return said


def begin(*parts: str, cache: str | None) -> subprocess.Popen[str]:
    env = {name: value for name, value in os.environ.items() if name != CACHE} | ({CACHE: cache} if cache else {})
    return subprocess.Popen(command(*parts), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env)


def test_compiling_is_announced_and_an_interrupt_in_it_claims_no_checkpoint(tmp_path: Path) -> None:
    assert compiled.CACHE == CACHE
    out = str(tmp_path / "a")
    with begin("train", *SMALL, "--method", "rigl", "--out", out, cache=None) as process:
        said = until(process, "compiling kernels")
        assert CACHE in said  # the remedy
        process.send_signal(signal.SIGINT)
        _, more = process.communicate(timeout=120)
    assert process.returncode == 130
    assert f"interrupted in set-up; go on with: realloc resume {out}" in more and "checkpoint" not in more
    assert call("resume", out, "--json").exit_code == 0


def test_kernels_from_a_cache_are_not_announced(tmp_path: Path) -> None:
    parts = ("train", *SMALL, "--method", "rigl", "--json")
    said = []
    for _ in range(2):
        with begin(*parts, cache=str(tmp_path)) as process:
            said.append(process.communicate(timeout=120)[1])
    assert "compiling kernels (once)" in said[0] and "compiling" not in said[1]


@pytest.mark.parametrize("kept", [True, False])
def test_an_interrupted_comparison_says_how_to_go_on(kept: bool, tmp_path: Path) -> None:
    out = tmp_path / "c"
    parts = ["compare", *SMALL[:6], "--threads", "1", "--epochs", "20000", "--method", "dense", "--seeds", "1"]
    with begin(*parts, *(["--out", str(out)] if kept else []), cache=os.environ[CACHE]) as process:
        until(process, "(1 of 1)")
        if kept:
            for _ in range(1200):
                if list(out.glob("*/checkpoints/0*")):
                    break
                time.sleep(0.05)
        else:
            time.sleep(3)
        process.send_signal(signal.SIGINT)
        stdout, more = process.communicate(timeout=60)
    assert process.returncode == 130 and stdout == "" and "Traceback" not in more
    assert "interrupted in dense, seed 0 (1 of 1)" in more
    assert (f"go on with: realloc resume {out}" in more) is kept
    assert ("nothing is kept without --out" in more) is not kept
