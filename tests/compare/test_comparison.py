"""What a comparison says of its arms, and what it does not say."""

from dataclasses import replace

import pytest

from realloc.compare.table import Comparison, tabulate
from realloc.train.result import RunResult

BLANK = RunResult(
    "x", "digits", "mlp:8", 0, 0.1, "weights", 100, 100, 0, 3, 30, "accuracy", 0.5, 0.5, 1.0, None, 0.5, 2.0, 0.0, 0.0,
    0.0, 1000, 900, 0, 150, None, 60, 7, "adamw", 1e-3, 2, True, None, None,
)  # fmt: skip


def made(values: dict[str, list[float]]) -> Comparison:
    seeds = range(len(next(iter(values.values()))))
    results = {
        (arm, seed): replace(BLANK, method=arm, seed=seed, test_metric=metrics[seed])
        for arm, metrics in values.items()
        for seed in seeds
    }
    return tabulate(list(values), list(seeds), results)


def test_differences_are_paired_with_the_first_arm() -> None:
    found = made({"static": [0.5, 0.6, 0.7], "rigl": [0.52, 0.62, 0.72]})
    first, second = found.rows
    assert first.difference is None and second.difference is not None
    assert second.difference.mean == pytest.approx(0.02)
    assert second.difference.high == pytest.approx(0.02)  # the seeds' spread is in both, so it drops out
    assert first.deviation == pytest.approx(0.1)


def test_a_winner_beats_each_other_arm_of_the_budget() -> None:
    found = made({"dense": [0.9, 0.9, 0.9], "static": [0.5, 0.61, 0.7], "rigl": [0.55, 0.65, 0.75]})
    assert found.winner == "rigl"


def test_a_winner_that_held_more_on_its_way_is_said_to() -> None:
    found = made({"static": [0.5, 0.61, 0.7], "prune_after": [0.55, 0.65, 0.75]})
    assert found.winner == "prune_after" and "held more weights on its way" in found.why


@pytest.mark.parametrize(
    ("values", "why"),
    [
        ({"static": [0.5, 0.6], "rigl": [0.7, 0.8]}, "under 3 seeds"),
        ({"static": [0.5, 0.7, 0.6], "rigl": [0.7, 0.6, 0.65]}, "not told apart"),
        ({"static": [0.5, 0.6, 0.7], "rigl": [0.5, 0.6, 0.7]}, "not told apart"),
        ({"dense": [0.5, 0.6, 0.7], "rigl": [0.7, 0.8, 0.9]}, "fewer than two"),
    ],
)
def test_without_reason_no_winner_is_named(values: dict[str, list[float]], why: str) -> None:
    found = made(values)
    assert found.winner is None and why in found.why


def test_the_json_holds_every_run() -> None:
    content = made({"static": [0.5, 0.6, 0.7], "rigl": [0.5, 0.6, 0.8]}).as_json()
    assert content["first"] == "static" and content["seeds"] == [0, 1, 2]
    assert [run["test_metric"] for run in content["arms"][1]["runs"]] == [0.5, 0.6, 0.8]
    assert set(content["arms"][1]["difference"]) == {"mean", "low", "high"}
