"""Everything a run depends on is checked, with the thing, the value and the remedy."""

from typing import Any

import pytest

from realloc.errors import ConfigError
from realloc.train.config import run_config, seconds, setting
from realloc.train.settings import RECIPES, options, recipe


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"epoch": 3}, ["'epoch'", "nearest: 'epochs'"]),
        ({"learning_rate": 1}, ["'learning_rate'"]),
        ({"density": 0}, ["density 0", "above 0"]),
        ({"density": 1.5}, ["density 1.5", "at most 1"]),
        ({"density": float("nan")}, ["density nan"]),
        ({"density": "x"}, ["density x"]),
        ({"every": 0}, ["every 0"]),
        ({"every": 2.5}, ["every 2.5"]),
        ({"epochs": 0}, ["epochs 0"]),
        ({"epochs": -1}, ["epochs -1"]),
        ({"budget_seconds": 0}, ["budget_seconds 0"]),
        ({"budget_seconds": float("inf")}, ["budget_seconds inf"]),
        ({"epochs": 2, "budget_seconds": 3}, ["epochs 2", "budget_seconds 3", "one"]),
        ({"seed": -1}, ["seed -1"]),
        ({"lr": 0}, ["lr 0"]),
        ({"lr": float("nan")}, ["lr nan"]),
        ({"batch_size": 0}, ["batch_size 0"]),
        ({"threads": 0}, ["threads 0"]),
        ({"task": "ranking"}, ["task ranking", "classification or regression"]),
        ({"optimizer": "adamm"}, ["'adamm'", "nearest: 'adam"]),
        ({"model": "mlp:a"}, ["'mlp:a'", "mlp:1024,1024"]),
        ({"data": "mnist"}, ["'mnist'", "nearest: 'fashion-mnist'"]),
        ({"data": "digits", "task": "regression"}, ["regression", "--task"]),
        ({"settings": {"drop": [1]}}, ["settings"]),
    ],
)
def test_bad_values_are_refused(values: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(ConfigError) as error:
        run_config({"data": "digits"} | values)
    for word in words:
        assert word in str(error.value), str(error.value)


def test_a_config_survives_its_own_json() -> None:
    config = run_config({"data": "digits", "settings": {"drop": 0.5, "soft": True, "grow": "random"}, "lr": 0.01})
    assert run_config(config.model_dump(mode="json")) == config


@pytest.mark.parametrize("text", ["drop", "=3", "drop=", "1x=3", "drop=nan", "drop=inf", "a b=1"])
def test_a_setting_that_is_no_key_and_value_is_refused(text: str) -> None:
    with pytest.raises(ConfigError):
        setting(text)


@pytest.mark.parametrize("text", ["", "s", "-3s", "0", "nan", "infs", "3x", "1h2m"])
def test_a_budget_that_is_no_length_of_time_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="30s"):
        seconds(text)


def test_every_recipe_is_made_from_its_own_defaults() -> None:
    assert {"static", "rigl", "sparse_evolution"} <= set(RECIPES)
    for name in RECIPES:
        given = {o.name: o.default for o in options(name) if isinstance(o.default, bool | int | float | str)}
        assert recipe(name, 0.2, given) is not None
        assert getattr(recipe(name, 0.2, {}), "density", 0.2) == 0.2


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"drp": 0.2}, ["'drp'", "nearest: 'drop'"]),
        ({"density": 0.2}, ["--density"]),
        ({"drop": "much"}, ["'drop'", "much", "0.3"]),
        ({"drop": True}, ["'drop'"]),
    ],
)
def test_bad_settings_are_refused(settings: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(ConfigError) as error:
        recipe("rigl", 0.2, settings)
    for word in words:
        assert word in str(error.value), str(error.value)
