"""focus going on: a trial that is left changes nothing, one that is taken shows, and a cut anywhere is resumed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from test_resume import Cut, config, cut_at, facts, weights

import realloc.finetune.focus as focus
import realloc.finetune.trials as trials
import realloc.finetune.watch as watch
from realloc.allocate.prefix import depths_of
from realloc.finetune.result import FinetuneResult
from realloc.finetune.run import finetune, resume
from realloc.record.events import read

SHARE = 0.2


@pytest.fixture(autouse=True)
def _decided(monkeypatch: pytest.MonkeyPatch) -> None:
    """The probes say: freeze one of three layers; no clock decides; trials may be short."""
    noise = torch.rand(50, generator=torch.Generator().manual_seed(0)) / 100
    monkeypatch.setattr(focus, "_probed", lambda *_: depths_of([noise + mean for mean in (1.0, 0.5, 0.7, 0.5)]))
    monkeypatch.setattr(focus, "measure", lambda *_: focus.Costs(100, 1.0, 1.0, 1.0))
    monkeypatch.setattr(trials, "LEAST", 2)


def verdicts(monkeypatch: pytest.MonkeyPatch, *, deeper: bool, shallower: bool) -> None:
    """Let the first trial be taken or left, and the second."""
    gains = iter([(1.0 if deeper else -1.0, 0.1), (1.0 if shallower else -1.0, 0.1)])
    monkeypatch.setattr(trials, "paired", lambda own, other: next(gains))


def run(tiny: Path, table: Path, judging: Path, folder: Path, trial: float = SHARE) -> FinetuneResult:
    asked = config(tiny, table, judging, "focus", settings={"share": 1e-6, "trial": trial}, epochs=3)
    return finetune(asked, folder)


@pytest.mark.parametrize("deeper", [False, True])
@pytest.mark.parametrize("shallower", [False, True])
def test_what_is_taken_shows(
    deeper: bool, shallower: bool, tiny: Path, table: Path, judging: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    verdicts(monkeypatch, deeper=deeper, shallower=shallower)
    found = run(tiny, table, judging, tmp_path / "a")
    assert found.layers is not None and found.settings == {"k": 2}
    first = 0 if deeper else 1
    assert list(found.layers.values()) == [layer >= first + shallower for layer in range(3)]
    lines = [event for event in read(tmp_path / "a" / "events.jsonl").lines if "trial" in event.get("values", {})]
    assert [line["values"]["taken"] for line in lines] == [deeper, shallower]
    assert f"one layer more was {'taken' if deeper else 'tried and left'}" in found.why
    assert f"one layer less was {'taken' if shallower else 'tried and left'}" in found.why


def test_trials_that_are_left_change_nothing(
    tiny: Path, table: Path, judging: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    verdicts(monkeypatch, deeper=False, shallower=False)
    run(tiny, table, judging, tmp_path / "with")
    run(tiny, table, judging, tmp_path / "without", trial=0.0)
    one, other = weights(tmp_path / "with"), weights(tmp_path / "without")
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("cut", range(1, 18, 2))
def test_a_cut_before_in_or_after_a_trial_is_resumed(
    cut: int, tiny: Path, table: Path, judging: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trials, "SURE", -1e9)  # everything that is tried is taken
    straight = run(tiny, table, judging, tmp_path / "straight")
    monkeypatch.setattr(watch, "SAVE_EVERY", 0.0)
    monkeypatch.setattr(watch, "SAVE_SHARE", 0)
    with monkeypatch.context() as patch, pytest.raises(Cut):
        cut_at(cut, patch)
        run(tiny, table, judging, tmp_path / "cut")
    result = resume(tmp_path / "cut")
    assert result.resumed_from == cut and facts(result) == facts(straight)
    one, other = weights(tmp_path / "straight"), weights(tmp_path / "cut")
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_real_trials_judge_pair_by_pair() -> None:
    own, other = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([0.5, 1.0, 2.7])
    gain, error = trials.paired(own, other)
    gains = own.double() - other.double()
    assert gain == pytest.approx(0.6, abs=1e-6) and error == pytest.approx(float(gains.std() / 3**0.5))
    assert trials.paired(own[:1], other[:1])[1] == float("inf")


def test_short_runs_try_nothing(tiny: Path, table: Path, judging: Path, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(trials, "LEAST", 64)
    found = run(tiny, table, judging, tmp_path / "a")
    assert "layer more" not in found.why
