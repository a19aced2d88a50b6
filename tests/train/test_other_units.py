"""Methods over examples, learning rates and inputs on the command line's own runs."""

from __future__ import annotations

import re
from typing import Any

import pytest

from realloc.errors import ConfigError
from realloc.train.arms import method_of, names
from realloc.train.config import RunConfig, run_config
from realloc.train.preview import preview
from realloc.train.run import train
from realloc.train.settings import takes_density


def config(method: str, **more: Any) -> RunConfig:
    values = {
        "data": "digits",
        "model": "mlp:32,24",
        "epochs": 8,
        "every": 10,
        "threads": 1,
        "method": method,
        "lr": 0.01,
    }
    return run_config(values | more)


@pytest.mark.parametrize("method", ["rs2", "infobatch", "importance", "examples"])
def test_a_run_spends_its_visits_to_the_last_one(method: str) -> None:
    asked = config(method, settings={"share": 0.6})
    done, foretold = train(asked), preview(asked)
    dense = train(config("dense"))
    assert done.currency == "visits" and done.held == done.budget and done.parked == 0 and done.moves is None
    assert done.params == dense.params and done.density is None
    assert foretold.length is not None and foretold.length.total == done.steps < dense.steps
    assert 0.55 * dense.steps < done.steps < 0.7 * dense.steps  # an epoch's last batch may be smaller
    assert done.test_accuracy is not None and done.test_accuracy > 0.5


def test_seconds_become_epochs() -> None:
    done = train(config("rs2", epochs=None, budget_seconds=1.0, settings={"share": 0.5}))
    assert done.held is not None and done.budget is not None and 0 < done.held <= done.budget
    assert done.held == done.budget or not done.finished


@pytest.mark.parametrize("method", ["llrd", "auto_rgn", "gradnorm", "tempbalance", "loss_change", "rates"])
def test_a_run_moves_its_rates(method: str) -> None:
    done = train(config(method))
    assert done.currency == "millionths of rate" and done.held is not None and done.budget is not None
    assert 0 <= done.budget - done.held < 100 and done.params == train(config("dense")).params
    assert (done.moves == 0) == (method in ("llrd", "rates"))


@pytest.mark.parametrize("method", ["columns", "entryprune", "neurofs", "quickselection", "random_columns"])
@pytest.mark.parametrize("k", [9, "25%"])
def test_a_run_ends_with_exactly_so_many_inputs(method: str, k: int | str) -> None:
    asked, count = config(method, settings={"k": k}), 9 if k == 9 else 16
    done, foretold = train(asked), preview(asked)
    assert done.currency == "weights" and done.held == count * 32 and done.density == count / 64
    assert done.held + (done.parked or 0) == done.budget and done.params == foretold.params
    assert done.inputs is not None and len(set(done.inputs)) == count
    assert all(re.fullmatch(r"pixel [0-7],[0-7]", name) for name in done.inputs)
    assert bool(done.moves) == (method != "random_columns")
    assert done.test_accuracy is not None and done.test_accuracy > 0.3
    assert foretold.plan is not None and foretold.plan.sites[0].name == "fc1.weight"


def test_inputs_are_named_as_the_file_names_them(tmp_path: Any) -> None:
    path = tmp_path / "t.csv"
    rows = "".join(f"{i * 0.37 % 5:.3f},{i * 0.73 % 3:.3f},c{i % 3},{int(i % 3 == 1)}\n" for i in range(400))
    path.write_text("a,b,kind,label\n" + rows)
    done = train(config("columns", data=str(path), epochs=60, settings={"k": 1, "candidates": 0.5}))
    assert done.inputs == ["kind=c1"] and done.test_accuracy == 1.0


def test_regression_has_its_losses_apart(tmp_path: Any) -> None:
    path = tmp_path / "line.csv"
    rows = [(i * 0.37 % 5, i * 0.73 % 3) for i in range(300)]
    path.write_text("a,b,y\n" + "".join(f"{a},{b},{a - b}\n" for a, b in rows))
    done = train(config("importance", data=str(path), task="regression", label="y"))
    assert done.held == done.budget and done.test_metric is not None and done.test_metric > 0.5


def test_what_words_cannot_make_is_no_arm() -> None:
    kinds = {"rows", "columns", "examples", "rates"}
    assert kinds | {"rs2", "infobatch", "importance", "llrd", "entryprune"} <= set(names())
    assert not {"rho", "permuted_rates", "lora", "touched_rows"} & set(names())
    assert takes_density("rigl") and not takes_density("rs2") and not takes_density("columns")
    with pytest.raises(ConfigError, match=r"'k' of 'columns' is 0.5; give a whole number or a part, such as 10%"):
        method_of(config("columns", settings={"k": 0.5}))
    with pytest.raises(ConfigError, match=r"k is 100, but fc1.weight has 64 inputs"):
        preview(config("columns", settings={"k": 100}))
    with pytest.raises(ConfigError, match=r"a convolution has the same weights"):
        preview(config("columns", model="cnn:4"))
    with pytest.raises(ConfigError, match=r"setting 'shard' is unknown.*nearest: 'share'"):
        method_of(config("rs2", settings={"shard": 0.5}))
    with pytest.raises(ConfigError, match=r"share is 1.5"):
        method_of(config("rs2", settings={"share": 1.5}))
