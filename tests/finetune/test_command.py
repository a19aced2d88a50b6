"""`realloc finetune` as a user meets it: what is printed where, exit codes, and one line for what can be mended."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
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
    words[words.index("lora")] = "adalora"
    shown = call(*words, "--set", "rank=4", "--set", "cap=5", "--dry-run")
    assert shown.exit_code == 0 and "rank=4, cap=5" in shown.stdout, shown.output


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
    resumed = call("resume", out)
    told = resumed.stdout
    assert "is finished; this is its result" in resumed.stderr
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
        (["--eval-rows", "5"], "--eval-rows 5 is of evaluation texts, and none are given; add --eval FILE"),
        (["--data", "reviews:rating", "--text", "t"], "--text 't' names a column, and data 'reviews:rating' knows its"),
        (["--data", "reviews:rating", "--label", "t"], "knows its own; leave --label out"),
        (["--data", "a.txt", "--task", "causal-lm", "--text", "t"], "and .txt files have none; leave --text out"),
        (["--task", "causal-lm", "--label", "t"], "--task causal-lm reads no labels; leave --label out"),
        (["--layers", "1"], "layers 1 is not allowed; take a whole number of layers to keep, from 2"),
        (["--epochs", "1e7"], "take a number above 0 and at most 1,000,000"),
    ],
)
def test_bad_input_ends_with_code_2_and_one_message(words: list[str], said: str, tiny: Path, table: Path) -> None:
    given = [] if not words or words[0] == "--model" or words == ["--resume"] else ["--model", str(tiny)]
    if words and "--data" not in words and words not in (["--model", "minilm"], ["--resume"]):
        given += ["--data", str(table)]
    result = call("finetune", *given, *words)
    assert result.exit_code == 2 and result.stdout == ""
    assert said in result.stderr and result.stderr.startswith("error: ") and result.stderr.count("\n") == 1


def test_a_run_whose_loss_is_lost_ends_with_code_1(tiny: Path, table: Path) -> None:
    words = ["finetune", "--model", str(tiny), "--data", str(table), "--method", "lora", "--epochs", "20"]
    done = call(*words, "--lr", "1000")
    assert done.exit_code == 1 and done.stdout == ""
    assert re.search(r"^error: the loss is nan at step [\d,]+; lower the rate with --lr$", done.stderr, re.MULTILINE)


def test_flags_that_are_read_are_not_refused(tiny: Path, decoder: Path, tmp_path: Path) -> None:
    """The bundled reviews have evaluation texts of their own; a column is read where one of two files is a table."""
    few = ["--epochs", "1", "--method", "topk", "--set", "k=1", "--json"]
    done = call("finetune", "--model", str(tiny), "--data", "reviews:department", "--rows", "40", "--eval-rows", "5",
                "--dry-run", *few)  # fmt: skip
    assert done.exit_code == 0 and last(done.stdout)["judged"] == 5, done.output
    train, judge = tmp_path / "a.txt", tmp_path / "b.csv"
    train.write_text("w1 w2 w3 w4 " * 50)
    judge.write_text("words\nw1 w2 w3\n")
    done = call("finetune", "--model", str(decoder), "--task", "causal-lm", "--data", str(train), "--eval", str(judge),
                "--text", "words", *few)  # fmt: skip
    assert done.exit_code == 0 and last(done.stdout)["test_loss"] > 0, done.output


def test_an_evaluation_text_without_a_piece_is_refused_before_training(decoder: Path, tmp_path: Path) -> None:
    train, judge, out = tmp_path / "a.txt", tmp_path / "b.txt", tmp_path / "out"
    train.write_text("w1 w2 w3 w4 " * 50)
    judge.write_text("w1")
    words = ["finetune", "--model", str(decoder), "--task", "causal-lm", "--data", str(train), "--eval", str(judge)]
    done = call(*words, "--method", "topk", "--out", str(out))
    assert done.exit_code == 2 and done.stdout == "" and not out.exists()
    assert f"eval '{judge}' gives 0 piece(s) of 2 to 64 tokens, and at least 1 are needed; give more" in done.stderr


def test_a_dry_run_leaves_a_begun_run_alone(common: list[str], tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert call(*common, "--out", str(out)).exit_code == 0
    (out / "result.json").unlink()  # as if it had been cut

    def files() -> dict[str, int]:
        return {str(path): path.stat().st_mtime_ns for path in sorted(out.rglob("*"))}

    before = files()
    for words in (common, ["finetune"]):
        done = call(*words, "--out", str(out), "--resume", "--dry-run")
        assert done.exit_code == 2 and done.stdout == ""
        assert f"realloc inspect {out}; or leave one of --resume and --dry-run out" in done.stderr
    assert files() == before
    assert call(*common, "--out", str(tmp_path / "new"), "--resume", "--dry-run").exit_code == 0, "there is none yet"
    assert not (tmp_path / "new").exists()


def test_help_lists_every_method() -> None:
    shown = " ".join(re.sub(r"[│╭╮╰╯─]", " ", call("finetune", "--help").stdout).split())
    for name in arms.NAMES:
        assert name in shown
    assert "reviews:department|rating|recommended" in shown and "(focus)" in shown


def test_help_does_not_wait_for_transformers() -> None:
    code = "import sys, realloc.cli.main; print(sorted({'transformers', 'peft', 'pyarrow'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# several seeds -----------------------------------------------------------------------------------------------------


def test_seeds_run_one_after_the_other_and_are_summed_up(common: list[str], judging: Path, tmp_path: Path) -> None:
    out = tmp_path / "runs"
    words = [*common, "--eval", str(judging), "--seeds", "1,4", "--out", str(out)]
    done = call(*words, "--json")
    assert done.exit_code == 0, done.output
    *found, together = (json.loads(line) for line in done.stdout.splitlines())
    assert [one["seed"] for one in found] == [1, 4] and found[0]["held"] != found[1]["held"]
    values = [one["test_accuracy"] for one in found]
    mean, reach = sum(values) / 2, 12.706 * abs(values[0] - values[1]) / 2  # t of one degree of freedom
    assert together == {
        "seeds": [1, 4], "metric": "accuracy", "of": "test", "n": 2, "mean": pytest.approx(mean),
        "low": pytest.approx(mean - reach, abs=1e-4), "high": pytest.approx(mean + reach, abs=1e-4),
    }  # fmt: skip
    assert {p.name for p in out.iterdir()} == {"seeds.json", "seed1", "seed4"}
    assert (out / "seed4" / "model" / "head.safetensors").is_file()
    single = [word for word in common if word not in ("--seeds", "1,4")]
    alone = last(call(*single, "--eval", str(judging), "--seed", "4", "--json").stdout)
    assert alone["held"] == found[1]["held"] and alone["test"] == found[1]["test"]
    told = call("resume", str(out)).stdout
    assert "seed  trains  test accuracy" in told and f"mean {100 * mean:.2f} %" in told and "n = 2" in told
    assert f"{100 * (mean - reach):.2f} % to {100 * (mean + reach):.2f} % (of two seeds" in told
    assert call("inspect", str(out)).stdout.count("finished") == 2
    shown = call(*common, "--seeds", "3", "--dry-run")
    assert "3 runs, seeds 0, 1, 2, one after the other" in shown.stdout
    assert last(call(*common, "--seeds", "2", "--dry-run", "--json").stdout)["seeds"] == [0, 1]
    for given, says, code in (
        (words, "holds runs already; go on with them by --resume", 1),
        (["finetune", "--resume", "--out", str(out), "--lr", "0.5"], "was started with lr None, not 0.5", 2),
        (["finetune", "--resume", "--out", str(out), "--seeds", "1,5"], "with seeds 1, 4, not 1, 5", 2),
        ([*common, "--seeds", "1,1"], "seed 1 is named twice", 2),
        ([*common, "--seeds", "1,x"], "seeds '1,x' are not whole numbers", 2),
        ([*common, "--seeds", "3000000000,1"], "seed 3000000000 is not allowed", 2),
        ([*common, "--seeds", "3", "--seed", "1"], "--seed 1 and --seeds 3 both name seeds", 2),
        ([*common, "--seed", "0,1"], "seed 0,1 is not allowed; take a whole number", 2),
        ([*common, "--seeds", "2", "--out", str(out / "seed1")], "holds a single run; choose another --out", 1),
    ):
        wrong = call(*given)
        assert wrong.exit_code == code and says in wrong.stderr, wrong.output
    finished = (out / "seed1" / "result.json").read_bytes()
    more = call("finetune", "--resume", "--out", str(out), "--seeds", "1,4,6", "--json")
    *again, together = (json.loads(line) for line in more.stdout.splitlines())
    assert again[:2] == found and again[2]["seed"] == 6 and together["n"] == 3
    assert (out / "seed1" / "result.json").read_bytes() == finished and last(call("resume", str(out), "--json").stdout)
    assert last(call("resume", str(out), "--json").stdout)["seeds"] == [1, 4, 6]


@pytest.mark.parametrize("seeds", [[], ["--seeds", "2"]])
def test_a_folder_with_other_files_is_not_written_into(common: list[str], tmp_path: Path, seeds: list[str]) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    wrong = call(*common, *seeds, "--out", str(tmp_path))
    assert wrong.exit_code == 1 and "is not empty (it holds 'thesis.tex')" in wrong.stderr, wrong.output
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


def test_texts_that_were_trained_on_do_not_judge(common: list[str], table: Path, tmp_path: Path) -> None:
    link = tmp_path / "other name.csv"
    link.symlink_to(table)
    for same in (table, link):
        wrong = call(*common, "--eval", str(same))
        assert wrong.exit_code == 2 and "is the file that --data names" in wrong.stderr, wrong.output


def test_seeds_that_were_cut_go_on_where_they_stopped(common: list[str], tmp_path: Path) -> None:
    words = [*common[: common.index("--epochs")], "--epochs", "40", "--threads", "1", "--seeds", "2"]
    out = tmp_path / "runs"
    command = [sys.executable, "-m", "realloc.cli.main", *words, "--out", str(out)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as child:
        deadline = time.monotonic() + 120
        while not list((out / "seed1" / "checkpoints").glob("0*")) and time.monotonic() < deadline:
            assert child.poll() is None, child.communicate()
            time.sleep(0.01)
        child.send_signal(signal.SIGINT)
        stdout, stderr = child.communicate(timeout=60)
    assert child.returncode == 130 and stdout == "" and f"go on with: realloc resume {out}" in stderr
    before = (out / "seed0" / "result.json").stat().st_mtime_ns
    done = call("finetune", "--resume", "--out", str(out), "--json")
    assert done.exit_code == 0, done.output
    *found, together = (json.loads(line) for line in done.stdout.splitlines())
    assert together["seeds"] == [0, 1]
    assert [one["seed"] for one in found] == [0, 1] and found[0]["resumed_from"] is None and found[1]["resumed_from"]
    assert (out / "seed0" / "result.json").stat().st_mtime_ns == before, "what is finished is read"


def test_bad_input_of_several_seeds_leaves_nothing(common: list[str], tmp_path: Path) -> None:
    words = [word if word != "topk" else "badam" for word in common if word not in ("--set", "k=1")]
    wrong = call(*words, "--budget", "9k", "--seeds", "2", "--out", str(tmp_path / "runs"))
    assert wrong.exit_code == 2 and "has no setting for a number of parameters" in wrong.stderr
    assert not (tmp_path / "runs").exists()
