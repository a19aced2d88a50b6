"""Texts and what they are to be judged as: read, checked, and the held-out slice cut from the training texts."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, final

import torch

from realloc.errors import ConfigError, nearest, plain
from realloc.finetune.bundled import PREFIX, REVIEW, reviews
from realloc.finetune.config import TEXT, FinetuneConfig
from realloc.finetune.table import column_of, columns_of, header_of
from realloc.rng import stream

HELD: Final = 0.1  # of the training texts, for decisions
LEAST: Final = 10  # training texts
REVIEWS_JUDGED: Final = 4000  # of the bundled reviews
TEXT_NAMES: Final = ("text", "sentence", "review")
WHOLE: Final = re.compile(r"[+-]?\d{1,18}", re.ASCII)  # labels that are put in order as numbers
LABEL_NAMES: Final = ("label", "target", "y", "class")


@final
@dataclass(frozen=True)
class Row:
    """One text and its label: the number of a class, or a number. ``place`` says where it stands, for messages."""

    text: str
    label: float
    place: str


@final
@dataclass(frozen=True)
class Texts:
    """What a run reads: texts to train on (a slice of them is held out later), and those that judge at the end."""

    train: tuple[Row, ...]
    test: tuple[Row, ...]
    classes: tuple[str, ...]  # none where numbers or tokens are foretold


Cell = tuple[str, str, str]  # place, text, label


def read(config: FinetuneConfig) -> Texts:
    """Read the texts of a run.

    Raises:
        ConfigError: a file, column or cell that does not serve, named with its row; one class only; a label in the
            evaluation file that the training file never has.
    """
    if config.data.startswith(PREFIX):
        if config.eval is not None:
            raise ConfigError(f"data '{plain(config.data)}' brings its own evaluation texts; leave --eval out")
        cells, judged = _reviews(config)
    else:
        cells = _cells(config.data, config)
        judged = _judged(config)
    if config.task != "causal-lm" and min(len(cells), config.rows or LEAST) < LEAST:
        least = f"at least {LEAST} are needed"
        raise ConfigError(f"data '{plain(config.data)}' gives {min(len(cells), config.rows or LEAST)} texts; {least}")
    classes = _classes(config.data, cells) if config.task == "text-classification" else ()
    order = torch.randperm(len(cells), generator=stream(config.seed, "texts")).tolist()
    if config.rows is not None and config.rows < len(cells):
        cells = [cells[i] for i in sorted(order[: config.rows])]
    if classes and len({label for _, _, label in cells}) < 2:
        raise ConfigError(f"the {len(cells)} texts that --rows takes hold one class only; take more")
    return Texts(_rows(cells, config, classes), _rows(judged[: config.eval_rows], config, classes), classes)


def held_out(labels: Sequence[float], seed: int, *, by_class: bool) -> tuple[list[int], list[int]]:
    """Split rows into (kept, held out), each sorted: a tenth is held out, of each class as nearly as it goes.

    No class loses its last training row.

    >>> kept, held = held_out([0.0] * 30 + [1.0] * 10, seed=0, by_class=True)
    >>> len(held), sum(i < 30 for i in held)
    (4, 3)
    """
    order = torch.randperm(len(labels), generator=stream(seed, "held out")).tolist()
    groups: dict[float, list[int]] = {}
    for i in order:
        groups.setdefault(labels[i] if by_class else 0.0, []).append(i)
    held: list[int] = []
    passed = 0
    for _, rows in sorted(groups.items()):
        passed += len(rows)
        wanted = round(HELD * passed) - len(held)
        held += rows[: max(0, min(wanted, len(rows) - 1))]
    if not held:  # a few rows only: the largest group gives one
        held = max(groups.values(), key=len)[:1]
    taken = set(held)
    return [i for i in range(len(labels)) if i not in taken], sorted(held)


# labels ---------------------------------------------------------------------------------------------------------


def _rows(cells: Sequence[Cell], config: FinetuneConfig, classes: Sequence[str]) -> tuple[Row, ...]:
    number = {name: float(i) for i, name in enumerate(classes)}
    rows = []
    for place, text, label in cells:
        if config.task == "causal-lm":
            rows.append(Row(text, 0.0, place))
        elif config.task == "regression":
            rows.append(Row(text, _number(place, label), place))
        elif label in number:
            rows.append(Row(text, number[label], place))
        else:
            raise ConfigError(
                f"{place}: the label '{plain(label)[:40]}' occurs in no training text{nearest(label, classes, 1)}; "
                "mend it, drop the row, or add texts of that class to the training file"
            )
    return tuple(rows)


def _number(place: str, label: str) -> float:
    try:
        value = float(label)
    except ValueError:
        value = math.nan
    if not math.isfinite(value) or abs(value) > 1e30:
        raise ConfigError(
            f"{place}: the label '{plain(label)[:40]}' is no number, which --task regression needs; mend it, or take "
            "--task text-classification"
        )
    return value


def _classes(where: str, cells: Sequence[Cell]) -> tuple[str, ...]:
    counts = Counter(label for _, _, label in cells)
    if len(counts) < 2:
        (only,) = counts
        raise ConfigError(
            f"every label of '{plain(where)}' is '{plain(only)[:40]}'; a classifier needs at least two classes"
        )
    if len(counts) > max(50, len(cells) // 2):
        raise ConfigError(
            f"'{plain(where)}' has {len(counts):,} different labels in {len(cells):,} texts; take --task regression, "
            "or name another column by --label"
        )
    whole = all(WHOLE.fullmatch(label) for label in counts)
    return tuple(sorted(counts, key=lambda label: (int(label) if whole else 0, label)))


# files ----------------------------------------------------------------------------------------------------------


def _cells(data: str, config: FinetuneConfig) -> list[Cell]:
    path = Path(data)
    if path.suffix.lower() == TEXT:
        if config.task == "causal-lm":
            return [(plain(path.name), _whole(path), "")]
        raise ConfigError(
            f"data '{plain(path.name)}' is plain text without labels; add --task causal-lm, or give a table"
        )
    header = header_of(path)
    names = [column_of(path, header, config.text, TEXT_NAMES, "text")]
    if config.task != "causal-lm":
        names.append(column_of(path, header, config.label, LABEL_NAMES, "label"))
        if names[0] == names[1]:
            raise ConfigError(f"{plain(path.name)}: --text and --label both name '{plain(names[0])}'; name two columns")
    cells: list[Cell] = []
    rows = columns_of(path, names)
    for number, (text, *rest) in rows:
        place = f"{plain(path.name)}, row {number}"
        if not text:
            raise ConfigError(f"{place}, column '{plain(names[0])}': the text is empty; fill it in or drop the row")
        if rest and _missing(rest[0]):
            more = sum(_missing(label) for _, (_, label) in rows) - 1
            also = f", and in {more:,} more row{'s' * (more != 1)}" if more else ""
            raise ConfigError(
                f"{place}, column '{plain(names[1])}': the label is missing ('{rest[0]}'){also}; fill it in or drop "
                "the row"
            )
        cells.append((place, text, rest[0] if rest else ""))
    return cells


def _judged(config: FinetuneConfig) -> list[Cell]:
    if config.eval is None:
        return []
    if Path(config.eval).exists() and Path(config.eval).samefile(config.data):
        raise ConfigError(
            f"eval '{plain(config.eval)}' is the file that --data names, and a model knows the texts it trained on; "
            "give other texts, or leave --eval out: a tenth of the training texts is held out and judged anyway"
        )
    return _cells(config.eval, config)


def _missing(label: str) -> bool:
    return not label or label.lower() == "nan"


def _whole(path: Path) -> str:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise ConfigError(f"data '{plain(str(path))}' does not exist; check the path") from error
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"{plain(path.name)} cannot be read as text ({plain(str(error))[:200]}); save it as UTF-8"
        ) from error
    if not text.strip():
        raise ConfigError(f"{plain(path.name)} is empty; give it text")
    return text


def _reviews(config: FinetuneConfig) -> tuple[list[Cell], list[Cell]]:
    """The clothing reviews that have text and label: the first 4,000 of a fixed shuffle judge, the others train."""
    path, column = reviews(config.data)
    rows = columns_of(path, [REVIEW, column])
    cells = [(f"reviews, row {number}", text, label) for number, (text, label) in rows if text and label]
    order = torch.randperm(len(cells), generator=stream(0, "reviews")).tolist()
    return [cells[i] for i in order[REVIEWS_JUDGED:]], [cells[i] for i in order[:REVIEWS_JUDGED]]
