"""What is refused names its cause and a remedy that works: the flag that was given, a number that can be followed."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from realloc.cli.main import app
from realloc.errors import ConfigError
from realloc.finetune.budget import Budget
from realloc.finetune.config import finetune_config
from realloc.finetune.preview import preview


def call(*words: str) -> Any:
    return CliRunner().invoke(app, list(words), env={"COLUMNS": "250", "TERM": "dumb"})


@pytest.fixture
def common(tiny: Path, table: Path) -> list[str]:
    return ["finetune", "--model", str(tiny), "--data", str(table), "--method", "topk", "--set", "k=1"]


@pytest.mark.parametrize("unit", ["", "k", "M", "G", "s", "m", "min", "h", "%"])
@pytest.mark.parametrize("digits", [41, 400, 5000])
def test_a_budget_out_of_range_is_no_budget(unit: str, digits: int) -> None:
    with pytest.raises(ConfigError, match=r"^budget '9{40}' is no budget; write .* at most \w+s or \w+G$") as error:
        Budget.read("9" * digits + unit)
    assert len(str(error.value)) < 250


def test_the_most_that_is_a_budget_can_be_written_as_it_is_told() -> None:
    with pytest.raises(ConfigError) as error:
        Budget.read("no")
    told = re.search(r"at most (\w+) or (\w+)$", str(error.value))
    assert told is not None
    assert Budget.read(told[1]) == Budget(seconds=1e9) and Budget.read(told[2]) == Budget(parameters=10**15)
    for more in ("1000000001s", "1000001G", "277778h"):
        with pytest.raises(ConfigError, match="is no budget"):
            Budget.read(more)


@pytest.mark.parametrize("budget", ["1000000000s", "1000000G"])
def test_the_largest_budgets_are_foretold(budget: str, common: list[str]) -> None:
    done = call(*common[:-2], "--budget", budget, "--dry-run")
    assert done.exit_code == 0 and f"budget: {budget}; " in done.stdout, done.output


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--tokens", "2"], "--tokens 2 leaves no room for a text: this model puts 2 tokens of its own around each"),
        (["--tokens", "2"], "; take --tokens 3 or more"),
        (["--layers", "4"], "--layers 4 is more than the 3 layers of "),
        (["--layers", "4"], "leave --layers out to keep them all, or lower it"),
        (["--cache", "much"], "cache limit is 'much'; it is a number of bytes above 0, or words such as '500MB'"),
        (["--budget", "0.00001%"], "the budget leaves 0 parameters beside the head"),
        (["--budget", "1" + "0" * 400 + "k"], "is no budget; write seconds (60s, 2m)"),
    ],
)  # fmt: skip
def test_a_refusal_names_the_flag_that_was_given(words: list[str], said: str, common: list[str]) -> None:
    done = call(*common, *words, "--dry-run")
    assert done.exit_code == 2 and done.stdout == "" and done.stderr.count("\n") == 1
    assert said in done.stderr, done.stderr


def test_a_cache_is_refused_where_the_method_has_none(tiny: Path, table: Path) -> None:
    with pytest.raises(ConfigError, match=r"'lora' keeps none; leave --cache out, or take one of focus, .*topk"):
        preview(finetune_config({"model": str(tiny), "data": str(table), "method": "lora", "cache": "1GB"}))


def test_the_fewest_tokens_that_are_told_are_enough(common: list[str]) -> None:
    assert call(*common, "--tokens", "3", "--dry-run").exit_code == 0
    assert call(*common, "--layers", "3", "--dry-run").exit_code == 0


@pytest.mark.parametrize("name", ["topk", "lora", "peft_lora", "spiel", "focus"])
def test_a_head_that_takes_more_than_the_budget_leaves_nothing(name: str, tiny: Path, table: Path) -> None:
    with pytest.raises(ConfigError, match="leaves 0 parameters beside the head"):
        preview(finetune_config({"model": str(tiny), "data": str(table), "method": name, "budget": "2"}))


def test_seconds_that_pay_for_no_step_are_told_in_numbers_that_say_something(common: list[str]) -> None:
    done = call(*common, "--budget", "0.000001s", "--dry-run")
    assert done.exit_code == 2
    found = re.search(
        r"took (\S+) s, .* will take (\S+) s; give --budget more than (\S+) s$", done.stderr, re.MULTILINE
    )
    assert found is not None, done.stderr
    spent, judging, more = map(float, found.groups())
    assert spent > 0 and judging > 0 and more == pytest.approx(spent + judging, rel=0.02)


# a record that was damaged ---------------------------------------------------------------------------------------


@pytest.fixture
def cut(common: list[str], tmp_path: Path) -> Path:
    """A run folder as a run that was cut leaves it, but without a checkpoint."""
    out = tmp_path / "run"
    assert call(*common, "--epochs", "1", "--out", str(out)).exit_code == 0
    (out / "result.json").unlink()
    return out


@pytest.mark.parametrize("content", [b"", b"{}", b"[]", b"\xff\xfe", b"[" * 50_000, b" " * (1 << 17)])
def test_a_decision_that_was_damaged_is_refused_with_a_remedy(content: bytes, cut: Path) -> None:
    whole = (cut / "decided.json").read_bytes()
    (cut / "decided.json").write_bytes(content)
    done = call("resume", str(cut))
    assert done.exit_code == 1 and done.stderr.count("\n") == 1
    assert done.stderr.endswith("; put the written one back, or start a new run in another folder\n"), done.stderr
    (cut / "decided.json").write_bytes(whole)
    assert call("resume", str(cut)).exit_code == 0


def test_a_file_where_checkpoints_lie_is_named_before_a_step_is_taken(cut: Path) -> None:
    shutil.rmtree(cut / "checkpoints", ignore_errors=True)
    (cut / "checkpoints").write_text("x")
    log = (cut / "events.jsonl").read_bytes()
    done = call("resume", str(cut))
    assert done.exit_code == 1 and "are whole" not in done.stderr
    assert "checkpoints' is no folder, so no checkpoint lies in it; move it away, and put the folder" in done.stderr
    assert (cut / "events.jsonl").read_bytes() == log
    (cut / "checkpoints").rename(cut.parent / "moved")
    assert call("resume", str(cut)).exit_code == 0


@pytest.mark.parametrize("content", ["", "{}"])
def test_seeds_that_were_damaged_are_refused_with_a_remedy_that_works(
    content: str, common: list[str], tmp_path: Path
) -> None:
    out = tmp_path / "runs"
    words = [*common, "--epochs", "1", "--threads", "1", "--seeds", "2", "--out", str(out)]
    assert call(*words).exit_code == 0
    before = (out / "seed0" / "result.json").stat().st_mtime_ns
    (out / "seeds.json").write_text(content)
    for again in (["resume", str(out)], [*words, "--resume"]):
        done = call(*again)
        assert done.exit_code == 1 and done.stderr.endswith(
            "; delete it and give the command that began the runs once more: finished ones are kept\n"
        ), done.stderr
    (out / "seeds.json").unlink()
    done = call(*words, "--json")
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.exit_code == 0 and [one["seed"] for one in found if "seed" in one] == [0, 1]
    assert (out / "seed0" / "result.json").stat().st_mtime_ns == before
