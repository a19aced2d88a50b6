"""Everything a fine-tuning run depends on, checked before anything slow."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self, final

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from realloc.cache.settings import USUAL, Cache
from realloc.errors import ConfigError, plain
from realloc.finetune.budget import Budget
from realloc.finetune.bundled import PREFIX
from realloc.train.config import Setting, checked

TEXT: Final = ".txt"  # a file that is one text
Task = Literal["text-classification", "regression", "causal-lm"]


@final
class FinetuneConfig(BaseModel):
    """One run. Frozen; unknown keys and values out of range are refused.

    ``lr`` None: the method's usual rate. ``epochs`` None: 3, or what a budget of seconds allows. ``label`` None: no
    labels (causal-lm). ``tokens``: longest text, in tokens; longer ones are cut. None: 128, or what the model reads.
    ``layers``: of the model to keep, from the input, the rest is dropped. None: all, or what focus finds.
    ``cache``: bytes that the activations of frozen layers may take, as in `realloc.Cache`. None: 1 GB.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, hide_input_in_errors=True)

    model: str
    data: str
    eval: str | None = None
    text: str | None = None
    label: str | None = None
    task: Task = "text-classification"
    method: str = "focus"
    settings: Mapping[str, Setting] = Field(default_factory=dict)
    budget: str | None = None
    epochs: Annotated[float, Field(gt=0, le=1e6)] | None = None
    batch_size: Annotated[int, Field(ge=1, le=100_000)] = 32
    lr: Annotated[float, Field(gt=0, le=1000)] | None = None
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    tokens: Annotated[int, Field(ge=2, le=100_000)] | None = None
    rows: Annotated[int, Field(ge=1)] | None = None
    eval_rows: Annotated[int, Field(ge=1)] | None = None
    layers: Annotated[int, Field(ge=2)] | None = None
    threads: Annotated[int, Field(ge=1, le=1024)] | None = None
    cache: str | None = None

    @field_validator(
        "epochs", "batch_size", "lr", "seed", "tokens", "rows", "eval_rows", "layers", "threads", mode="before"
    )
    @classmethod
    def _no_truth_value(cls, value: object) -> object:
        if isinstance(value, bool):  # pydantic would take true for 1
            raise ValueError("a number is wanted")
        return value

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.spend.seconds is not None and self.epochs is not None:
            raise ConfigError(
                f"epochs {self.epochs:g} and the budget {self.budget} both set the run's length; give one"
            )
        _ = self.room  # refuses what is no number of bytes
        self._check_texts()
        return self

    def _check_texts(self) -> None:
        """Refuse what says something of texts that the run will not read."""
        bundled = self.data.startswith(PREFIX)
        if self.eval_rows is not None and self.eval is None and not bundled:
            raise ConfigError(
                f"--eval-rows {self.eval_rows} is of evaluation texts, and none are given; add --eval FILE, or leave "
                "--eval-rows out"
            )
        files = [Path(name) for name in (self.data, self.eval) if name is not None]
        plain_text = self.task == "causal-lm" and all(file.suffix.lower() == TEXT for file in files)
        for flag, column in (("text", self.text), ("label", self.label)):
            if column is None:
                continue
            said = f"--{flag} '{plain(column)}' names a column, and"
            if bundled:
                raise ConfigError(f"{said} data '{plain(self.data)}' knows its own; leave --{flag} out")
            if self.task == "causal-lm" and flag == "label":
                raise ConfigError(f"{said} --task causal-lm reads no labels; leave --label out, or take another --task")
            if plain_text:
                raise ConfigError(f"{said} {TEXT} files have none; leave --{flag} out")

    @property
    def room(self) -> Cache:
        """A cache of the frozen layers' activations with the limit that was given."""
        return USUAL if self.cache is None else Cache(self.cache)

    @property
    def spend(self) -> Budget:
        """The budget, read."""
        return Budget.read(self.budget)


RANGES: Mapping[str, str] = {
    "task": "take text-classification, regression or causal-lm",
    "epochs": "take a number above 0 and at most 1,000,000, such as 3",
    "batch_size": "take a whole number from 1 to 100,000",
    "lr": "take a number above 0 and at most 1000, such as 0.001",
    "seed": "take a whole number from 0 to 2147483647, or several by --seeds 0,1,2",
    "tokens": "take a whole number from 2 to 100,000",
    "rows": "take a whole number of training texts, from 1",
    "eval_rows": "take a whole number of evaluation texts, from 1",
    "layers": "take a whole number of layers to keep, from 2: methods choose among layers",
    "threads": "take a whole number from 1 to 1024",
}


def finetune_config(values: Mapping[str, Any]) -> FinetuneConfig:
    """Check a mapping and make the run's config of it.

    Raises ConfigError naming the first wrong key, its value and the remedy.

    >>> finetune_config({"model": "minilm", "data": "a.csv", "epoch": 3})
    Traceback (most recent call last):
    ...
    realloc.errors.ConfigError: config key 'epoch' is unknown; nearest: 'epochs'
    """
    return checked(FinetuneConfig, values, RANGES)
