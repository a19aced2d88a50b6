"""What the README and docs/using.md show runs as it stands."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
USING = (ROOT / "docs" / "using.md").read_text(encoding="utf-8")


def blocks(text: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", text, flags=re.S)


def test_the_first_example_runs(capsys):
    (code,) = blocks(README)
    exec(compile(code, "README.md", "exec"), {})
    said = capsys.readouterr().out
    assert re.search(r"rigl: budget 40,141 = 40,141 held \+ 0 parked; 4 moves", said), said


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # peft's own
def test_the_page_on_using_runs_block_by_block(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)  # it writes a checkpoint
    torch.manual_seed(0)
    names: dict[str, Any] = {}
    found = blocks(USING)
    assert len(found) >= 7
    for number, code in enumerate(found, 1):
        exec(compile(code, f"docs/using.md, block {number}", "exec"), names)
    said = capsys.readouterr().out
    assert "self_attn.in_proj_weight masked" in said and "linear1.weight packed" in said


@pytest.mark.parametrize("optimizer", ["LBFGS", "Adafactor", "Muon"])
def test_the_optimizers_that_are_said_to_need_masked_storage_work_there(optimizer):
    import realloc
    from realloc import methods
    from realloc.errors import ConfigError

    for storage, works in (("auto", False), ("masked", True)):
        model = torch.nn.Sequential(torch.nn.Linear(8, 8, bias=False), torch.nn.Linear(8, 2, bias=False))
        made = getattr(torch.optim, optimizer)(list(model.parameters()), lr=0.1)
        method = methods.rigl(density=0.5).on("*", storage=storage)
        if not works:
            with pytest.raises(ConfigError, match=optimizer):
                realloc.attach(model, made, method, schedule=realloc.every(2, total=8))
            continue
        handle = realloc.attach(model, made, method, schedule=realloc.every(2, total=8))

        def closure(model=model, made=made):
            made.zero_grad()
            loss = (model(torch.randn(8, 8)) - 1).square().mean()
            loss.backward()
            return loss

        for _ in range(8):
            made.step(closure)
        assert handle.moves and handle.held == handle.budget


def test_what_is_said_of_tables_without_rows_is_so():
    from realloc.train import arms
    from realloc.train.config import RunConfig

    said = re.search(r"Without `--rows` tables are full, but for `--method (.*?)`: theirs take 10 %", USING)
    named = set(re.findall(r"\w+", said[1].replace("and", "")))
    usual = {name: arms.budget_of_rows(RunConfig(data="digits", method=name)) for name in arms.names()}
    assert named == {name for name, rows in usual.items() if rows is not None} and {usual[n] for n in named} == {"10%"}


def test_what_is_said_that_scores_receive_is_all_that_they_do():
    from dataclasses import fields

    from realloc.methods.rate_method import RatePast
    from realloc.observe.visited import Past
    from realloc.scores.neurons import Neurons
    from realloc.scores.row_score import RowsKnown, RowStep
    from realloc.scores.seen import Seen

    for kind in (Past, RatePast, RowStep, RowsKnown, Neurons, Seen):
        (row,) = [line for line in USING.splitlines() if re.search(rf"^\| .*\| `{kind.__name__}`, ", line)]
        assert {f"`{field.name}`" for field in fields(kind)} <= set(re.findall(r"`[^`]*`", row)), kind


def test_the_commands_of_the_readme_are_understood():
    from typer.testing import CliRunner

    from realloc.cli.main import app

    commands = [
        line.removeprefix("realloc ").replace("fashion-mnist", "digits")
        for text in (README, USING)
        for block in re.findall(r"```sh\n(.*?)```", text, flags=re.S)
        for line in block.splitlines()
        if re.match(r"realloc (train|compare) ", line)
    ]
    assert len(commands) == 6
    for line in commands:
        shown = CliRunner().invoke(app, [*line.split(), "--dry-run"])
        assert shown.exit_code == 0 and "learning rate 0.004" in shown.stdout, shown.output


def test_the_fine_tuning_commands_of_the_readme_are_understood(tmp_path):
    from typer.testing import CliRunner

    from realloc.cli.main import app

    first, second = re.findall(r"^realloc (finetune .*)$", README, flags=re.M)
    small = re.sub(r"--(eval-)?rows \d+", r"--\1rows 20", first)
    shown = CliRunner().invoke(app, [*small.split(), "--batch-size", "4", "--dry-run"])
    assert shown.exit_code == 0, shown.output
    assert "18 to train on, 2 held out, 20 to judge by" in shown.stdout and "encoder.layer.5: trains" in shown.stdout
    from_csv = CliRunner().invoke(app, [*second.split(), "--dry-run"])
    assert from_csv.exit_code == 2 and "data 'train.csv' is no file" in from_csv.stderr, from_csv.output
