"""Everything a run depends on, checked before anything slow."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, Self, TypeVar, final

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

import realloc.train.data as sources
import realloc.train.models as models
from realloc.errors import ConfigError, nearest, plain
from realloc.nn.budget import part_in
from realloc.sizes import bytes_in
from realloc.train.dataset import Task
from realloc.train.optimizers import OPTIMIZERS

Setting = bool | int | float | str
Config = TypeVar("Config", bound=BaseModel)

DENSITY = 0.1
EPOCHS = 5
SETTLE = 0.75  # moves stop after this fraction of the run (RigL, 1911.11134, section 3)


@final
class RunConfig(BaseModel):
    """One run. Frozen; unknown keys and values out of range are refused.

    ``every`` None: about 50 moves over the run. ``epochs`` None: 5 or 1,000 steps, whichever is more, or what
    ``budget_seconds`` allows. ``rows`` None: full tables for columns that are looked up, or 10 % where the method
    spends rows. ``lr`` None: the optimizer's usual rate. ``threads`` None: torch's own choice, written down in the run
    folder.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, hide_input_in_errors=True)

    data: str = "fashion-mnist"
    task: Task | None = None
    label: str | None = None
    ids: tuple[str, ...] | None = None
    rows: int | str | None = None
    model: str = "mlp:1024,1024"
    method: str = "rigl"
    settings: Mapping[str, Setting] = Field(default_factory=dict)
    density: Annotated[float, Field(gt=0, le=1)] = DENSITY
    every: Annotated[int, Field(ge=1)] | None = None
    epochs: Annotated[int, Field(ge=1, le=1_000_000)] | None = None
    budget_seconds: Annotated[float, Field(gt=0, le=1e7)] | None = None
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    optimizer: str = "adamw"
    lr: Annotated[float, Field(gt=0, le=1000)] | None = None
    batch_size: Annotated[int, Field(ge=1, le=1_000_000)] = 128
    threads: Annotated[int, Field(ge=1, le=1024)] | None = None

    @field_validator(
        "density", "every", "epochs", "budget_seconds", "seed", "lr", "batch_size", "threads", mode="before"
    )
    @classmethod
    def _no_truth_value(cls, value: object) -> object:
        # pydantic would take true for 1
        if isinstance(value, bool):
            raise ValueError("a number is wanted")
        return value

    @field_validator("rows", mode="before")
    @classmethod
    def _readable_rows(cls, rows: object) -> object:
        words = isinstance(rows, str) and bool(part_in(rows) or bytes_in(rows))
        number = isinstance(rows, int) and not isinstance(rows, bool) and rows >= 1
        if not (rows is None or words or number):
            raise ValueError("a budget of rows is wanted")
        return rows

    @field_validator("model")
    @classmethod
    def _readable_model(cls, spec: str) -> str:
        models.parse(spec)
        return spec

    @field_validator("optimizer")
    @classmethod
    def _known_optimizer(cls, name: str) -> str:
        if name not in OPTIMIZERS:
            known = ", ".join(OPTIMIZERS)
            raise ConfigError(
                f"optimizer '{plain(name)}' is unknown; take one of {known}{nearest(name, OPTIMIZERS, 1)}"
            )
        return name

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        sources.check(self.data, self.task, self.label, self.ids or ())
        if self.epochs is not None and self.budget_seconds is not None:
            raise ConfigError(
                f"epochs {self.epochs} and budget_seconds {self.budget_seconds:g} both set the run's length; give one"
            )
        return self

    @property
    def rate(self) -> float:
        """The learning rate that will be used."""
        return self.lr if self.lr is not None else OPTIMIZERS[self.optimizer].rate


def run_config(values: Mapping[str, Any]) -> RunConfig:
    """Check a mapping and make the run's config of it.

    Raises ConfigError naming the first wrong key, its value and the remedy.

    >>> run_config({"epoch": 3})
    Traceback (most recent call last):
    ...
    realloc.errors.ConfigError: config key 'epoch' is unknown; nearest: 'epochs'
    """
    return checked(RunConfig, values, RANGES)


RANGES: Mapping[str, str] = {
    "task": "take classification or regression",
    "density": "take a number above 0 and at most 1, such as 0.1 or 10%",
    "rows": "take a part of the full tables' bytes such as 10%, bytes such as 200kB, or a number of rows from 1",
    "every": "take a whole number of steps from 1, or leave it out for about 50 moves",
    "epochs": "take a whole number from 1 to 1,000,000",
    "budget_seconds": "take seconds above 0, such as 30s",
    "seed": "take a whole number from 0 to 2147483647",
    "lr": "take a number above 0 and at most 1000, such as 0.001",
    "batch_size": "take a whole number from 1 to 1,000,000",
    "threads": "take a whole number from 1 to 1024",
    "settings": "take plain numbers, words, true or false",
}


def checked(kind: type[Config], values: Mapping[str, Any], ranges: Mapping[str, str]) -> Config:
    """Make a config of a mapping; ``ranges`` says by key what to take instead of a value out of range.

    Raises:
        ConfigError: the first wrong key, its value and the remedy.
    """
    known = kind.model_fields
    for key in values:
        if key not in known:
            raise ConfigError(f"config key '{plain(str(key))}' is unknown{nearest(str(key), known, 1)}")
    try:
        return kind.model_validate(dict(values))
    except ValidationError as error:
        raise ConfigError(_explain(error, values, ranges)) from error


def _explain(error: ValidationError, values: Mapping[str, Any], ranges: Mapping[str, str]) -> str:
    first = error.errors()[0]
    cause = first.get("ctx", {}).get("error")
    if isinstance(cause, ConfigError):
        return str(cause)
    key = str(first["loc"][0]) if first["loc"] else "config"
    given = values.get(key)
    value = plain(str(given).lower() if isinstance(given, bool) else str(given))[:80]
    return f"{key} {value} is not allowed; {ranges.get(key, first['msg'])}"


def _flag(key: str) -> str:
    """The flag of a config key, with the space after it; nothing for another key."""
    return f"--{key.removesuffix('_seconds').replace('_', '-')} " if key in RunConfig.model_fields else ""


def refuse_flag(key: str, value: Setting) -> None:
    """Refuse a setting that is a flag of the run: the method would never see it."""
    if _flag(key):
        word = plain(str(value).lower() if isinstance(value, bool) else str(value))
        raise ConfigError(f"setting '{key}' is {word}: it has a flag of its own; write {_flag(key)}{word}")


def setting(text: str, *, of_arms: bool = False) -> tuple[str, Setting]:
    """Read one ``key=value`` of the command line; ``of_arms``: of a comparison, where a key may be ``arm.key``.

    >>> setting("drop=0.3"), setting("block=4"), setting("soft=true"), setting("rigl.lr=0.004", of_arms=True)
    (('drop', 0.3), ('block', 4), ('soft', True), ('rigl.lr', 0.004))
    """
    key, equals, value = text.partition("=")
    key, value = key.strip(), value.strip()
    arm, dot, name = key.rpartition(".")
    readable = name.isidentifier() and (arm.isidentifier() or not dot)
    if not equals or not readable or not value:
        form = "key=value or arm.key=value; write for example --set rigl.drop=0.3" if of_arms else (
            "key=value; write for example --set drop=0.3"
        )  # fmt: skip
        raise ConfigError(f"setting '{plain(text)}' is not {form}")
    if dot and not of_arms:
        raise ConfigError(
            f"setting '{key}' names an arm, and one run has only its own method; "
            f"write {_flag(name) or f'--set {name}='}{plain(value)}"
        )
    if value.lower() in ("true", "false"):
        return key, value.lower() == "true"
    for kind in (int, float):
        try:
            number = kind(value)
        except ValueError:
            continue
        if not math.isfinite(number):
            raise ConfigError(f"setting '{key}' is {value}; take a finite number")
        return key, number
    return key, value


def share(text: str) -> float | str:
    """Read a share: ``0.05`` or ``5%``. What is neither is handed on, for the config to refuse it by name.

    >>> share("5%"), share("0.05"), share("much")
    (0.05, 0.05, 'much')
    """
    word = text.strip()
    try:
        return float(word[:-1]) / 100 if word.endswith("%") else float(word)
    except ValueError:
        return word


def seconds(text: str) -> float:
    """Read a length of time: ``30s``, ``2m``, ``1h``, or plain seconds.

    >>> seconds("30s"), seconds("2m"), seconds("1.5")
    (30.0, 120.0, 1.5)
    """
    word = text.strip().lower()
    scale: dict[str, float] = {"s": 1.0, "m": 60.0, "h": 3600.0}
    unit = scale.get(word[-1:], 0.0)
    try:
        value = float(word[:-1]) * unit if unit else float(word)
    except ValueError:
        value = math.nan
    if not math.isfinite(value) or value <= 0:
        raise ConfigError(f"budget '{plain(text)}' is not a length of time; write for example --budget 30s")
    return value
