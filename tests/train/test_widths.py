"""Methods over widths on the command line's own runs: budgets, dry runs, settings, cuts, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from test_run import Cut, cut_at, facts

from realloc.errors import ConfigError
from realloc.record.checkpoint import load_latest
from realloc.train import watch
from realloc.train.arms import method_of, names, resolve
from realloc.train.config import RunConfig, run_config
from realloc.train.data import load
from realloc.train.preview import preview
from realloc.train.result import from_json
from realloc.train.run import resume, run_in, train
from realloc.train.settings import options

MOVING = ("width", "morphnet", "gradmax", "random_widths")
RECYCLING = ("redo", "continual_backprop")
SETTINGS: dict[str, dict[str, Any]] = {
    "narrow": {"share": 0.5}, "redo": {"threshold": 0.6}, "continual_backprop": {"share": 0.1, "mature": 0},
    "uniform_widths": {},
}  # fmt: skip
START = {"fc1": 24, "fc2": 6}
COST = 64 * 24 + 24 + 24 * 6 + 6 + 6 * 10  # the head's bias follows no width


def config(method: str, **more: Any) -> RunConfig:
    values = {"data": "digits", "model": "mlp:24,6", "epochs": 8, "every": 5, "threads": 1, "lr": 0.01}
    values |= {"method": method, "settings": SETTINGS.get(method, {"mature": 0, "drop": 0.3})}
    return run_config(values | more)


def cost(widths: dict[str, int]) -> int:
    a, b = widths["fc1"], widths["fc2"]
    return 64 * a + a + a * b + b + b * 10


@pytest.mark.parametrize("method", [*MOVING, *RECYCLING, "narrow", "uniform_widths"])
def test_what_is_held_is_what_the_widths_cost_and_the_dry_run_tells_the_start(method: str) -> None:
    done, foretold = train(config(method)), preview(config(method))
    assert done.currency == "parameters" and done.budget == COST and done.widths is not None
    assert done.held == cost(done.widths) and done.held + (done.parked or 0) == COST
    assert done.params == done.held + 10
    assert foretold.plan is not None and foretold.plan.budget == COST == foretold.params - 10
    assert {line.name: line.shape for line in foretold.plan.sites}["fc2.weight"] == (6, 24)
    assert (done.moves == 0) == (method == "uniform_widths")
    assert (done.widths != START) == (method in (*MOVING, "narrow"))
    if method == "narrow":
        assert done.held <= COST // 2 < done.held + 64 + 24 + 1  # one more unit of the dearer layer would not fit
    assert done.test_accuracy is not None and done.test_accuracy > 0.3
    assert from_json(done.as_json()) == done and done.as_json()["widths"] == done.widths


def test_flops_of_a_convolution_are_a_budget() -> None:
    pytest.importorskip("torch_pruning")
    asked = config("width", model="cnn:4", epochs=3, settings={"mature": 0, "currency": "FLOPs", "drop": 0.3})
    done, foretold = train(asked), preview(asked)
    a, b, c = (done.widths or {}).values()
    flops = 2 * (64 * 9 * a + 16 * 9 * a * b + 4 * b * c + c * 10)  # digits are 8 x 8, pooled twice
    assert done.currency == "FLOPs" and done.held == flops and done.moves
    assert done.budget == 2 * (64 * 9 * 4 + 16 * 9 * 4 * 8 + 4 * 8 * 16 + 16 * 10)
    assert foretold.plan is not None and "FLOPs a forward" in str(foretold.plan)
    assert done.params == 9 * a + a + 9 * a * b + b + 4 * b * c + c + 10 * c + 10


@pytest.mark.parametrize("method", ["width", "gradmax", "narrow", "redo"])
def test_a_run_that_is_cut_inside_an_epoch_ends_bit_equal(
    method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = config(method, epochs=3)
    straight = train(asked, tmp_path / "straight")
    monkeypatch.setattr(watch, "SAVE_EVERY", 0.0)
    with monkeypatch.context() as patch, pytest.raises(Cut):
        cut_at(13, patch)  # three steps after a move, while effects are summed for the next
        run_in(tmp_path / "cut", asked)
    result = resume(tmp_path / "cut")
    assert result.resumed_from == 13 and facts(result) == facts(straight) and result.moves
    one, other = (load_latest(tmp_path / name / "checkpoints") for name in ("straight", "cut"))
    assert one is not None and other is not None and one.tensors.keys() == other.tensors.keys()
    assert all(torch.equal(tensor, other.tensors[key]) for key, tensor in one.tensors.items())


def test_a_table_of_ids_stands_before_the_layers(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    rows = "".join(f"u{i * 37 % 101},{i * 0.73 % 3:.3f},{int(i * 37 % 101 > 50)}\n" for i in range(600))
    path.write_text("user,b,label\n" + rows)
    done = train(config("width", data=str(path), epochs=30))
    assert done.tables is not None and [*done.tables["columns"]] == ["user"]
    assert done.widths is not None and [*done.widths] == ["fc1", "fc2"] and done.moves
    assert done.test_accuracy is not None and done.test_accuracy > 0.8


def test_what_words_cannot_say_is_no_setting_and_a_budget_below_a_unit_is_refused() -> None:
    assert {*MOVING, *RECYCLING, "narrow", "uniform_widths"} <= set(names())
    assert [o.name for o in options("narrow")] == ["share", "window", "currency"]
    with pytest.raises(ConfigError, match=r"setting 'score' is unknown: 'narrow' takes share, window, currency"):
        method_of(config("narrow", settings={"score": "effect"}))
    with pytest.raises(ConfigError, match=r"currency is 'flops'; use 'parameters' or 'FLOPs'"):
        method_of(config("width", settings={"currency": "flops"}))
    refused = (
        r"narrow may spend 18 parameters at the end, and one unit in each of 2 groups \(fc1, fc2\) costs 77; "
        r"raise its share to (0\.\d+)$"
    )
    with pytest.raises(ConfigError, match=refused) as found:
        resolve(config("narrow", settings={"share": 0.01}), load("digits"))
    share = float(str(found.value).rpartition(" ")[2])
    assert resolve(config("narrow", settings={"share": share}), load("digits")).plan is not None  # the remedy does
