"""``realloc compare``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import realloc.cli.flags as flags
import realloc.cli.outcome as outcome
import realloc.cli.views as views
from realloc.cli.screen import Screen
from realloc.compare.contest import Contest, contest
from realloc.compare.contest import compare as run_contest
from realloc.train.config import RunConfig
from realloc.train.preview import preview
from realloc.train.progress import Tell
from realloc.train.stop import Interrupted

ARMS = "small_dense,static,random_moves,rigl"


def compare(
    data: flags.Data = None,
    task: flags.TaskName = None,
    label: flags.Label = None,
    ids: flags.Ids = None,
    model: flags.Model = None,
    method: Annotated[
        list[str] | None, typer.Option("--method", help="arms, with commas or again", show_default=ARMS)
    ] = None,
    settings: flags.ArmSettings = None,
    density: flags.Density = None,
    rows: flags.RowBudget = None,
    every: flags.Every = None,
    epochs: flags.Epochs = None,
    budget: flags.Budget = None,
    seeds: Annotated[str, typer.Option("--seeds", "--seed", help="how many (3), or which (0,1,2)")] = "3",
    optimizer: flags.Optimizer = None,
    lr: flags.Rate = None,
    batch_size: flags.BatchSize = None,
    threads: flags.Threads = None,
    out: flags.Out = None,
    dry_run: flags.DryRun = False,
    json: flags.Json = False,
) -> None:
    """Compare arms at one equal budget over paired seeds. With --out, a second call runs only what is missing."""
    with outcome.told():
        flags.check_paths(data, out)
        values = {
            "data": data, "task": task, "label": label, "ids": ids, "model": model, "density": density, "rows": rows,
            "every": every, "epochs": epochs, "optimizer": optimizer, "lr": lr, "batch_size": batch_size,
            "threads": threads,
        }  # fmt: skip
        base = flags.config_of(values, budget)
        named = [word.strip() for part in method or [ARMS] for word in part.split(",") if word.strip()]
        found = contest(base, named, flags.seeds_of(seeds), flags.settings_of(settings, of_arms=True))
        if dry_run:
            _preview(found, json)
        else:
            present(found, out, json)


def present(found: Contest, out: Path | None, json: bool) -> None:
    """Run a contest and print its table."""
    with Screen() as screen:

        def announce(config: RunConfig, number: int, total: int) -> Tell:
            title = f"{config.method}, seed {config.seed} ({number} of {total})"
            outcome.talk(title)
            return screen.show(title)

        try:
            outcome_table = run_contest(found, out, announce)
        except Interrupted:
            if out is None:
                outcome.talk("nothing is kept without --out FOLDER; with it, the same command goes on where it stopped")
            raise
    outcome.data_json(outcome_table.as_json()) if json else outcome.data(views.comparison(outcome_table))


def why(config: RunConfig) -> str:
    """Why the data is not the usual one, if it is not."""
    return "" if config.data == "fashion-mnist" else " (Fashion-MNIST was not found; see REALLOC_DATA)"


def _preview(found: Contest, json: bool) -> None:
    previews = [preview(entry) for entry in found.entries]
    if json:
        outcome.data_json({"dry_run": True, "seeds": list(found.seeds), "arms": [p.as_json() for p in previews]})
    else:
        outcome.data(views.previews(previews, found.seeds))
