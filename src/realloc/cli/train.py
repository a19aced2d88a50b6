"""``realloc train`` and ``realloc resume``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import realloc.cli.finetune as finetune
import realloc.cli.flags as flags
import realloc.cli.outcome as outcome
import realloc.cli.several as several
import realloc.cli.views as views
import realloc.compare.contest as contest
import realloc.train.arms as arms
from realloc.cli.compare import present
from realloc.cli.screen import Screen
from realloc.finetune.run import is_finetune
from realloc.finetune.seeds import is_series
from realloc.finetune.seeds import read as read_series
from realloc.train.config import RunConfig
from realloc.train.preview import preview
from realloc.train.progress import COMPILING, LOADING, Progress, Tell
from realloc.train.result import RunResult
from realloc.train.run import resume as resume_run
from realloc.train.run import train as train_run

ROWS = "double_hashing"  # where a budget of rows is named and no method is: the best at equal bytes
Folder = Annotated[Path, typer.Argument(help="the folder that --out named", show_default=False)]


def train(
    data: flags.Data = None,
    task: flags.TaskName = None,
    label: flags.Label = None,
    ids: flags.Ids = None,
    model: flags.Model = None,
    method: Annotated[
        str | None,
        typer.Option(
            "--method",
            help="see: realloc methods",
            show_default=str(RunConfig.model_fields["method"].default),
        ),
    ] = None,
    settings: flags.Settings = None,
    density: flags.Density = None,
    rows: flags.RowBudget = None,
    every: flags.Every = None,
    epochs: flags.Epochs = None,
    budget: flags.Budget = None,
    seed: flags.Seed = None,
    optimizer: flags.Optimizer = None,
    lr: flags.Rate = None,
    batch_size: flags.BatchSize = None,
    threads: flags.Threads = None,
    out: flags.Out = None,
    dry_run: flags.DryRun = False,
    json: flags.Json = False,
) -> None:
    """Train one model on a budget that moves (weights, inputs, rows, visits, rates), and judge it on test data."""
    with outcome.told():
        flags.check_paths(data, out)
        method = method or (ROWS if rows is not None else None)
        values = {
            "data": data, "task": task, "label": label, "ids": ids, "model": model, "method": method,
            "density": density, "rows": rows, "every": every, "epochs": epochs, "seed": seed, "optimizer": optimizer,
            "lr": lr, "batch_size": batch_size, "threads": threads, "settings": flags.settings_of(settings),
        }  # fmt: skip
        config = flags.config_of(values, budget)
        arms.method_of(config)
        flags.check_budgets(config, density, rows)
        if dry_run:
            found = preview(config)
            words = {"seed": config.seed} | found.as_json()
            outcome.data_json(words) if json else outcome.data(views.preview(found, config.seed))
            return
        outcome.talk(f"{config.method} on {config.data}")
        with Screen() as screen:
            result = train_run(config, out, _recorded(screen.show(config.method), out))
        _present(result, json)


def resume(folder: Folder, json: flags.Json = False) -> None:
    """Go on with a run, a comparison or a fine-tuning from its last checkpoint; of a finished one, print the result."""
    with outcome.told():
        flags.check_folder(folder)
        if (folder / contest.CONTEST).exists():
            present(contest.read(folder), folder, json)
            return
        if is_series(folder):
            several.present(read_series(folder), folder, json, resumed=True)
            return
        if is_finetune(folder):
            finetune.go_on(folder, json)
            return
        with Screen() as screen:
            result = resume_run(folder, screen.show(folder.name))
        _present(result, json)


def _recorded(tell: Tell, out: Path | None) -> Tell:
    """Name the record once it is sure that there will be one: after loading, before training."""
    said = out is None

    def told(progress: Progress) -> None:
        nonlocal said
        if not said and progress.stage not in (LOADING, COMPILING):
            said = True
            outcome.talk(f"recorded in {out}")
        tell(progress)

    return told


def _present(result: RunResult, json: bool) -> None:
    outcome.data_json(result.as_json()) if json else outcome.data(views.run(result))
