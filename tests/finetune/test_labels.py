"""Numbers to foretell: any offset and any spread that a float64 holds, standardised before they are float32."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from made_texts import rows, write

from realloc.errors import ConfigError
from realloc.finetune.aim import Aim
from realloc.finetune.config import finetune_config
from realloc.finetune.decided import _targets
from realloc.finetune.run import finetune
from realloc.finetune.scene import Scene, prepared


def numbers(offset: float, spread: float) -> list[str]:
    draw = random.Random(0)
    return [repr(offset + spread * draw.random()) for _ in range(60)]


def scene(tiny: Path, folder: Path, labels: list[str], method: str = "topk") -> Scene:
    texts = [text for text, _ in rows(len(labels), 0)]
    path = write(folder / "n.csv", list(zip(texts, labels, strict=True)))
    return prepared(finetune_config({"model": str(tiny), "data": str(path), "task": "regression", "method": method}))


@pytest.mark.parametrize(("offset", "spread"), [(1e8, 1.0), (-1e12, 100.0), (1e29, 1e27), (0.0, 1e-30), (0.0, 1e-200)])
def test_numbers_of_any_offset_and_spread_are_standardised(
    offset: float, spread: float, tiny: Path, tmp_path: Path
) -> None:
    made = scene(tiny, tmp_path, numbers(offset, spread))
    standard = _targets(made)
    assert standard.dtype == torch.float32 and standard.isfinite().all()
    assert float(standard.mean()) == pytest.approx(0, abs=1e-5)
    assert float(standard.std(correction=0)) == pytest.approx(1, abs=1e-5)
    assert standard.unique().numel() == made.train.labels.unique().numel() > 50
    again = standard.double() * made.aim.scale + made.aim.mean
    assert (again - made.train.labels).abs().max() <= 1e-6 * spread


def test_an_offset_changes_neither_what_is_learned_nor_how_it_is_judged(tiny: Path, tmp_path: Path) -> None:
    found = []
    for offset in (0, 2**40):
        labels = [str(offset + 64 * ("bad", "fine", "good").index(label)) for _, label in rows(120, 0)]
        path = write(tmp_path / f"{offset}.csv", [(text, y) for (text, _), y in zip(rows(120, 0), labels, strict=True)])
        asked = {
            "model": str(tiny),
            "data": str(path),
            "task": "regression",
            "method": "full",
            "epochs": 1,
            "threads": 1,
        }
        found.append(finetune(finetune_config(asked)).held)
    assert found[0] == pytest.approx(found[1], rel=1e-5) and 0 < found[0]["rmse"] < 200


def test_only_numbers_that_are_all_the_same_are_refused_as_such(tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is the same number"):
        scene(tiny, tmp_path, ["100000000.5"] * 60)
    last = ["100000000.5"] * 40 + ["100000000.25"] * 20
    assert scene(tiny, tmp_path, last).aim.scale == pytest.approx(0.25 * (2 / 9) ** 0.5, rel=0.1)


def test_the_loss_of_a_far_number_is_that_of_its_standardised_one() -> None:
    aim = Aim("regression", mean=1e8, scale=0.5)
    labels = torch.tensor([1e8 + 0.25, 1e8 - 1.0], dtype=torch.float64)
    losses, foretold = aim.losses(lambda ids: ids, {"ids": torch.tensor([[0.5], [1.0]])}, labels)  # type: ignore[arg-type]
    assert losses.tolist() == [0.0, 9.0] and foretold is not None and foretold.tolist() == [0.5, 1.0]
