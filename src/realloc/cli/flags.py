"""The flags that ``train`` and ``compare`` share, each written once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

import realloc.train.arms as arms
import realloc.train.data as sources
from realloc.errors import ConfigError, plain
from realloc.train.columns import MANY
from realloc.train.config import EPOCHS, RunConfig, Setting, run_config, seconds, setting, share
from realloc.train.length import LEAST_STEPS, MOVES
from realloc.train.optimizers import OPTIMIZERS
from realloc.train.settings import RECIPES, takes_density

MOST_SEEDS = 1000
_FIELDS = RunConfig.model_fields
_ADAMW = OPTIMIZERS["adamw"].rate
# Numbers come as words and are read by the run's config, so that a wrong one gets the same message everywhere.
Data = Annotated[
    str | None,
    typer.Option("--data", help="fashion-mnist, digits, or FILE.csv", show_default="fashion-mnist if found, or digits"),
]
TaskName = Annotated[
    str | None, typer.Option("--task", help="classification or regression (csv)", show_default="classification")
]
Label = Annotated[
    str | None, typer.Option("--label", help="the csv column to predict", show_default="label, target or y")
]
Ids = Annotated[
    list[str] | None,
    typer.Option(
        "--ids", metavar="COL", help="csv columns to look up in tables, with commas or again",
        show_default=f"text with more than {MANY} values",
    ),
]  # fmt: skip
RowBudget = Annotated[
    str | None,
    typer.Option(
        "--rows", metavar="BUDGET", help="what tables may take: 10% of the full tables' bytes, 200kB, or so many "
        "rows, which ids share. Where no method is named it is double_hashing", show_default="full tables",
    ),
]  # fmt: skip
Model = Annotated[
    str | None, typer.Option("--model", help="mlp:1024,1024 or cnn", show_default=str(_FIELDS["model"].default))
]
Settings = Annotated[list[str] | None, typer.Option("--set", help="key=value, a setting of the method; again for more")]
ArmSettings = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        help="key=value, a setting of each method that has it; arm.key=value of one arm; arm.lr=value, its own "
        "learning rate; again for more",
    ),
]
Density = Annotated[
    str | None,
    typer.Option(
        "--density", metavar="SHARE", help="share of the weights held, above 0, at most 1; or 5%",
        show_default=str(_FIELDS["density"].default),
    ),
]  # fmt: skip
Every = Annotated[
    str | None,
    typer.Option("--every", metavar="STEPS", help="steps from move to move", show_default=f"about {MOVES} moves"),
]
Epochs = Annotated[
    str | None,
    typer.Option(
        "--epochs", metavar="NUMBER", help="times through the data",
        show_default=f"{EPOCHS}, or as many as make {LEAST_STEPS:,} steps",
    ),
]  # fmt: skip
Budget = Annotated[str | None, typer.Option("--budget", metavar="TIME", help="seconds instead of epochs: 30s, 2m")]
Seed = Annotated[
    str | None,
    typer.Option(
        "--seed", metavar="NUMBER", help="of weights, places and order", show_default=str(_FIELDS["seed"].default)
    ),
]
Optimizer = Annotated[
    str | None,
    typer.Option("--optimizer", help=", ".join(OPTIMIZERS), show_default=str(_FIELDS["optimizer"].default)),
]
Rate = Annotated[
    str | None,
    typer.Option(
        "--lr", metavar="RATE", help="learning rate at the start; it decays to 0. Sparse nets want about 4 times more",
        show_default=f"{_ADAMW:g} for adamw",
    ),
]  # fmt: skip
BatchSize = Annotated[
    str | None,
    typer.Option("--batch-size", metavar="ROWS", help="rows per step", show_default=str(_FIELDS["batch_size"].default)),
]
Threads = Annotated[
    str | None, typer.Option("--threads", metavar="NUMBER", help="CPU threads", show_default="torch's own choice")
]
Out = Annotated[Path | None, typer.Option("--out", help="folder for the record and the checkpoints")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="say what would be done, and stop")]
Json = Annotated[bool, typer.Option("--json", help="print one JSON object as the last line of stdout")]


def config_of(values: dict[str, Any], budget: str | None) -> RunConfig:
    """Make a config of the flags that were given."""
    given = {key: value for key, value in values.items() if value is not None}
    given.setdefault("data", sources.usual())
    if "density" in given:
        given["density"] = share(given["density"])
    if "rows" in given:
        given["rows"] = int(word) if (word := given["rows"].strip())[:18].isdecimal() and word.isdecimal() else word
    if budget is not None:
        given["budget_seconds"] = seconds(budget)
    return run_config(given)


def check_budgets(config: RunConfig, density: str | None, rows: str | None) -> None:
    """Refuse a budget that the method does not spend.

    Raises:
        ConfigError: the flag, and what takes it.
    """
    if density is not None and config.method in RECIPES and not takes_density(config.method):
        raise ConfigError(f"{config.method} holds no share of all weights and takes no --density; see: realloc methods")
    if rows is not None and arms.budget_of_rows(config) is None:
        raise ConfigError(
            f"{config.method} has no budget and takes no --rows; take --method rows or double_hashing, or leave "
            "--rows out for full tables"
        )


def settings_of(words: list[str] | None, *, of_arms: bool = False) -> dict[str, Setting]:
    """Read every ``--set``; a later one stands over an earlier one."""
    return dict(setting(word, of_arms=of_arms) for word in words or [])


def seeds_of(text: str) -> tuple[int, ...]:
    """Read ``3`` (so many, from 0) or ``0,1,2`` (these).

    >>> seeds_of("3"), seeds_of("4,7")
    ((0, 1, 2), (4, 7))
    """
    words = [word.strip() for word in text.split(",")]
    if len(words) > 1 and not words[-1]:
        words.pop()
    if not all(word.isascii() and word.isdigit() and len(word) < 11 for word in words):
        raise ConfigError(f"seeds '{plain(text)}' are not whole numbers; write how many (3), or which (0,1,2)")
    numbers = tuple(int(word) for word in words)
    if "," in text:
        return numbers
    if not 0 < numbers[0] <= MOST_SEEDS:
        raise ConfigError(f"seeds {numbers[0]} is how many, from 1 to {MOST_SEEDS:,}; write {numbers[0]}, for one seed")
    return tuple(range(numbers[0]))


def check_paths(*paths: Path | str | None) -> None:
    """Refuse a path that the system cannot even look up; one that is not there yet is no mistake here.

    Raises:
        ConfigError: a name that is too long, no right to look, links that go in a circle.
    """
    for path in paths:
        try:
            _ = None if path is None else Path(path).stat()
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as error:
            raise ConfigError(
                f"path '{plain(str(path))[:40]}' cannot be looked up ({error.strerror}); mend the path, or the rights "
                "on it"
            ) from None


def check_folder(folder: Path) -> None:
    """Refuse what is no folder, for commands that read one."""
    check_paths(folder)
    if not folder.is_dir():
        what = "is no folder; give the one that --out named" if folder.exists() else "does not exist; check the path"
        raise ConfigError(f"run folder '{plain(str(folder))}' {what}")
