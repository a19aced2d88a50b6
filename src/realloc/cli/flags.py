"""The flags that ``train`` and ``compare`` share, each written once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

import realloc.train.data as sources
from realloc.train.config import RunConfig, Setting, run_config, seconds, setting

Data = Annotated[str | None, typer.Option("--data", help="fashion-mnist, digits, or FILE.csv")]
TaskName = Annotated[str | None, typer.Option("--task", help="classification or regression (csv)")]
Label = Annotated[str | None, typer.Option("--label", help="the csv column to predict")]
Model = Annotated[str | None, typer.Option("--model", help="mlp:1024,1024 or cnn")]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", help="key=value, a method's setting; arm.lr=value, its rate; again for more"),
]
Density = Annotated[float | None, typer.Option("--density", help="share of the weights held, above 0, at most 1")]
Every = Annotated[int | None, typer.Option("--every", help="steps from move to move; about 50 moves if left out")]
Epochs = Annotated[int | None, typer.Option("--epochs", help="times through the data")]
Budget = Annotated[str | None, typer.Option("--budget", help="seconds instead of epochs: 30s, 2m")]
Optimizer = Annotated[str | None, typer.Option("--optimizer", help="adamw, adam, sgd, rmsprop, ...")]
Rate = Annotated[float | None, typer.Option("--lr", help="learning rate at the start; it decays to 0")]
BatchSize = Annotated[int | None, typer.Option("--batch-size", help="rows per step")]
Threads = Annotated[int | None, typer.Option("--threads", help="CPU threads")]
Out = Annotated[Path | None, typer.Option("--out", help="folder for the record and the checkpoints")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="say what would be done, and stop")]
Json = Annotated[bool, typer.Option("--json", help="print one JSON object as the last line of stdout")]


def config_of(values: dict[str, Any], budget: str | None) -> RunConfig:
    """Make a config of the flags that were given."""
    given = {key: value for key, value in values.items() if value is not None}
    given.setdefault("data", sources.usual())
    if budget is not None:
        given["budget_seconds"] = seconds(budget)
    return run_config(given)


def settings_of(words: list[str] | None) -> dict[str, Setting]:
    """Read every ``--set``; a later one stands over an earlier one."""
    return dict(setting(word) for word in words or [])
