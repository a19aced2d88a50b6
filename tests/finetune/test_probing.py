"""How many texts focus looks at: until the depths are told apart, or as many as a budget of seconds pays for."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from made_texts import rows, write
from torch import Tensor

import realloc.finetune.focus as focus
from realloc.cache.known import Known
from realloc.finetune.config import finetune_config
from realloc.finetune.decided import decide
from realloc.finetune.scene import Scene, prepared

COSTS = focus.Costs(tokens=100, step=0.3, forward=0.1, low=0.1)


@pytest.fixture
def looked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many texts each look had, which tells nothing. A text takes 10 ms of its own clock, 2 more in each fit."""
    now, looks = [0.0], list[int]()

    def pooled(model: Any, batches: Iterable[dict[str, Tensor]], **_: Any) -> Tensor:
        looks.append(sum(len(batch["input_ids"]) for batch in batches))
        now[0] += 0.01 * looks[-1]
        return torch.zeros(looks[-1], 4, 3)

    def level(features: Tensor, targets: Tensor) -> Any:
        now[0] += 0.002 * len(features)
        return SimpleNamespace(examples=len(features), separated=False, frozen=0)

    monkeypatch.setattr(focus, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    monkeypatch.setattr(focus, "pooled_depths", pooled)
    monkeypatch.setattr(focus, "compare_depths", level)
    monkeypatch.setattr(focus, "measure", lambda *_: COSTS)
    return looks


@pytest.fixture
def scene(tiny: Path, tmp_path: Path) -> Scene:
    """1,440 texts to train on."""
    path = write(tmp_path / "many.csv", rows(1600, 0))
    return prepared(finetune_config({"model": str(tiny), "data": str(path), "method": "focus", "budget": "50s"}))


@pytest.mark.parametrize(
    ("until", "expected"), [(math.inf, [512, 512, 416]), (25.0, [512, 512, 416]), (9.0, [512, 152]), (1.0, [])]
)
def test_it_looks_at_no_more_than_there_is_time_for(
    until: float, expected: list[int], scene: Scene, looked: list[int]
) -> None:
    found = focus._probed(scene.loaded, scene.train, scene.train.labels.long(), COSTS, Known(10**6), until)
    assert looked == expected and (found is None) == (not looked)
    assert found is None or found.examples == sum(looked)


@given(until=st.floats(0, 25))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=25, deadline=None)
def test_whatever_the_time_it_is_held(until: float, scene: Scene, looked: list[int]) -> None:
    looked.clear()
    began = focus.time.perf_counter()
    focus._probed(scene.loaded, scene.train, scene.train.labels.long(), COSTS, Known(10**6), began + until)
    assert focus.time.perf_counter() - began <= until + 1e-9 and sum(looked) <= len(scene.train.rows)
    assert all(look >= focus.FEW for look in looked)


@pytest.mark.parametrize(("seconds", "why"), [("50s", "texts, as many as the seconds pay for"), ("1s", "do not pay")])
def test_a_budget_of_seconds_bounds_the_look(seconds: str, why: str, scene: Scene, looked: list[int]) -> None:
    config = finetune_config({**scene.config.model_dump(exclude_none=True), "budget": seconds})
    decided = decide(dataclasses.replace(scene, config=config))
    assert decided.method == "lora" and why in decided.why and "every layer trains" in decided.why
    assert sum(looked) * 0.01 <= 0.2 * float(seconds[:-1]) + 1e-9
