"""A run from config to result: with a record it can be cut anywhere and ends bit-equal."""

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from realloc.errors import ConfigError, RecordError
from realloc.record.checkpoint import load_latest
from realloc.record.events import read
from realloc.train import session as session_module
from realloc.train import watch
from realloc.train.config import RunConfig, run_config
from realloc.train.order import Batches
from realloc.train.result import RunResult, from_json
from realloc.train.run import resume, run_in, train
from realloc.train.watch import RunError

TIMES = (
    "train_seconds",
    "evaluate_seconds",
    "save_seconds",
    "setup_seconds",
    "peak_bytes",
    "train_peak_bytes",
    "mapped_bytes",
)


def config(method: str = "rigl", **more: Any) -> RunConfig:
    values = {"data": "digits", "model": "mlp:32,24", "density": 0.2, "epochs": 3, "every": 4, "threads": 1}
    return run_config(values | {"method": method} | more)


def facts(result: RunResult) -> dict[str, Any]:
    left_out = (*TIMES, "folder", "resumed_from")
    return {k: v for k, v in dataclasses.asdict(result).items() if k not in left_out}


class Cut(Exception):
    """The machine went down."""


def cut_at(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every process dies before this step, once its rehearsal is over."""
    whole = session_module.fit

    def fit(trainee: Any, batches: Batches, loss_of: Any, steps: range, after: Any) -> None:
        whole(trainee, batches, loss_of, range(steps.start, min(steps.stop, step)), after)
        if steps.stop > step:
            raise Cut

    monkeypatch.setattr(session_module, "fit", fit)


@pytest.mark.parametrize(
    "method",
    [
        "dense",
        "small_dense",
        "prune_after",
        "static",
        "rigl",
        "granet",
        "snfs",
        "infobatch",
        "importance",
        "auto_rgn",
        "columns",
        "neurofs",
        "examples",
        "rates",
    ],
)
def test_a_run_that_is_cut_twice_ends_bit_equal(method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = config(method, settings={"share": 0.8}) if method in ("importance", "examples") else config(method)
    straight = train(asked, tmp_path / "straight")
    monkeypatch.setattr(watch, "SAVE_EVERY", 0.0)  # a checkpoint after each step: also inside an epoch
    for step in (6, 22):
        with monkeypatch.context() as patch, pytest.raises(Cut):
            cut_at(step, patch)
            run_in(tmp_path / "cut", asked)
    result = resume(tmp_path / "cut")
    assert result.resumed_from == 22
    assert facts(result) == facts(straight)
    one, other = (load_latest(tmp_path / name / "checkpoints") for name in ("straight", "cut"))
    assert one is not None and other is not None and one.step == other.step == straight.steps
    assert one.tensors.keys() == other.tensors.keys()
    for key, tensor in one.tensors.items():
        assert torch.allclose(tensor, other.tensors[key], rtol=0, atol=0, equal_nan=True), key
    logs = [[_bare(line) for line in read(tmp_path / name / "events.jsonl").lines] for name in ("straight", "cut")]
    assert logs[0] == logs[1]


def _bare(line: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in line.items() if key not in ("seconds", "crc")}


def test_a_checkpoint_right_at_the_cut_of_prune_after_is_gone_on_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    straight = train(config("prune_after"))
    monkeypatch.setattr(watch, "SAVE_EVERY", 0.0)
    with monkeypatch.context() as patch, pytest.raises(Cut):
        cut_at(16, patch)
        train(config("prune_after"), tmp_path / "cut")
    assert facts(resume(tmp_path / "cut")) == facts(straight)


def test_without_a_checkpoint_a_resume_starts_anew_from_the_config(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    straight = train(config(), None)
    with monkeypatch.context() as patch, pytest.raises(Cut):
        cut_at(5, patch)
        train(config(), tmp_path / "a")
    assert load_latest(tmp_path / "a" / "checkpoints") is None
    result = resume(tmp_path / "a")
    assert result.resumed_from is None
    assert facts(result) == facts(straight)


def test_a_finished_run_hands_back_its_result(tmp_path: Path) -> None:
    result = train(config(), tmp_path / "a")
    assert resume(tmp_path / "a") == result
    assert from_json(result.as_json()) == result
    with pytest.raises(RecordError, match="resume"):
        train(config(), tmp_path / "a")


def test_the_numbers_of_a_run_fit_together() -> None:
    rigl, small, dense, pruned = (train(config(m, lr=0.02)) for m in ("rigl", "small_dense", "dense", "prune_after"))
    weights = 64 * 32 + 32 * 24
    others = 32 + 24 + 24 * 10 + 10
    assert rigl.budget == rigl.held == pruned.held == round(0.2 * weights) and rigl.parked == 0
    assert dense.params == weights + others
    assert rigl.params == pruned.params == round(0.2 * weights) + others
    assert small.excess is not None and small.params - small.excess == rigl.params
    assert rigl.moves == int(0.75 * 33) // 4 and rigl.units_moved is not None and rigl.units_moved > 0
    assert dense.budget is None and dense.density is None and dense.moves is None
    assert rigl.test_accuracy == rigl.test_metric and rigl.test_metric is not None and rigl.test_metric > 0.5
    assert rigl.steps == 33 and rigl.finished and rigl.resumed_from is None
    assert rigl.train_seconds > 0 and rigl.peak_bytes is not None


def test_a_convolutional_net_is_trained_behind_masks_and_counted_by_what_it_holds() -> None:
    result = train(config(model="cnn:4", lr=0.01))
    small = train(config("small_dense", model="cnn:4", lr=0.01))
    weights = 9 * 4 + 9 * 4 * 8 + 8 * 4 * 16
    assert result.held == round(0.2 * weights) and result.moves
    assert result.params == round(0.2 * weights) + 4 + 8 + 16 + 16 * 10 + 10
    assert small.excess == small.params - result.params >= 0 and small.model.startswith("cnn:")


def test_bad_input_gives_the_folder_up_again(tmp_path: Path) -> None:
    table = tmp_path / "t.csv"
    table.write_text("a,label\n" + "7,1\nred,0\n5,1\n" * 20)
    out = tmp_path / "run"
    with pytest.raises(ConfigError, match="'red'"):
        train(config(data=str(table)), out)
    assert not out.exists()
    with pytest.raises(ConfigError, match="never fires"):
        train(config(every=100), out)
    assert not out.exists()


def test_a_loss_that_is_not_finite_ends_the_run_with_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="lower --lr"):
        train(config("dense", lr=1000, optimizer="sgd"))


def test_a_regression_is_judged_in_the_unit_of_its_label(tmp_path: Path) -> None:
    table = tmp_path / "t.csv"
    table.write_text("a,b,y\n" + "".join(f"{i % 17},{i % 5},{100 * (i % 17) - 30 * (i % 5)}\n" for i in range(400)))
    result = train(config("rigl", data=str(table), task="regression", epochs=120, every=None, lr=0.01))
    assert result.metric == "r2" and result.test_accuracy is None
    assert result.test_metric is not None and result.test_metric > 0.9
    assert result.test_rmse is not None and result.test_rmse < 160


def test_a_time_budget_fixes_the_steps_once_and_a_resume_keeps_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    budgeted = config("rigl", epochs=None, every=None, budget_seconds=0.6)
    with monkeypatch.context() as patch, pytest.raises(Cut):
        cut_at(30, patch)
        train(budgeted, tmp_path / "a")
    decided = (tmp_path / "a" / "length.json").read_text()
    result = resume(tmp_path / "a")
    assert (tmp_path / "a" / "length.json").read_text() == decided
    total = int(re.search(r'"total": (\d+)', decided).group(1))
    assert result.resumed_from
    # a machine that became slower may stop at the budget; it never goes on past the steps decided once
    assert result.steps == total if result.finished else result.steps < total
    assert result.moves is not None and result.moves >= 1
