"""Steps and moves: decided once."""

import pytest

from realloc.errors import ConfigError
from realloc.train.config import RunConfig
from realloc.train.length import Length, Pace, auto_every, by_budget, by_epochs


def test_the_automatic_interval_gives_at_least_three_moves_and_not_many_more_than_fifty() -> None:
    for total in range(4, 400):
        schedule = Length(total, auto_every(total), 1).schedule()
        assert schedule is not None
        assert 3 <= schedule.moves <= 75, total


@pytest.mark.parametrize("total", [1_000, 2_110, 23_450, 1_000_000])
def test_longer_runs_get_about_fifty_moves(total: int) -> None:
    schedule = Length(total, auto_every(total), 1).schedule()
    assert schedule is not None and 45 <= schedule.moves <= 55


@pytest.mark.parametrize("every", [1, 7, 70, 750])
def test_the_last_move_is_within_three_quarters_and_never_at_a_drop_of_zero(every: int) -> None:
    schedule = Length(1000, every, 10).schedule()
    assert schedule is not None and schedule.last == 750 // every * every
    assert every == 1 or schedule.phase(schedule.last) < 1.0


def test_a_run_too_short_to_move_has_no_schedule() -> None:
    assert Length(1, auto_every(1), 1).schedule() is None


def test_an_explicit_interval_that_never_fires_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"every 100 never fires in a run of 20 steps.*15"):
        by_epochs(RunConfig(data="digits", epochs=2, every=100), 10)


@pytest.mark.parametrize(("step", "move"), [(0.01, 0.0), (0.01, 0.02), (0.001, 0.5), (0.02, 5.0)])
def test_a_time_budget_is_kept_by_the_expected_time_and_nearly_used_up(step: float, move: float) -> None:
    length = by_budget(RunConfig(data="digits", budget_seconds=20), 100, Pace(step, move))
    schedule = length.schedule()
    moves = schedule.moves if schedule else 0
    expected = length.total * step + moves * move
    assert expected <= 20 + 1e-9
    assert length.total == 1 or expected + step + 2 * move >= 20 or moves >= 45


def test_a_budget_shorter_than_one_step_still_takes_one() -> None:
    assert by_budget(RunConfig(data="digits", budget_seconds=0.001), 100, Pace(0.5)).total == 1
