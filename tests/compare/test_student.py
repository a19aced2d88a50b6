"""Student's t against scipy."""

import pytest
from scipy import stats

from realloc.compare.student import below, interval, quantile


@pytest.mark.parametrize("degrees", [1, 2, 3, 4, 5, 9, 30, 101])
def test_the_distribution_and_its_quantiles(degrees: int) -> None:
    for t in (0.0, 0.1, 1.0, 2.5, 10.0):
        assert below(t, degrees) == pytest.approx(stats.t.cdf(t, degrees), abs=1e-12)
    for p in (0.6, 0.975, 0.995):
        assert quantile(p, degrees) == pytest.approx(stats.t.ppf(p, degrees), rel=1e-9)


def test_the_interval_is_scipys() -> None:
    values = [0.1, 0.4, -0.2, 0.35, 0.3]
    low, high = stats.t.interval(0.95, 4, sum(values) / 5, stats.sem(values))
    found = interval(values)
    assert (found.low, found.high) == pytest.approx((low, high))
    assert not found.excludes_zero


def test_one_value_has_no_interval_and_equal_values_have_one_of_no_width() -> None:
    assert interval([0.5]) == (0.5, None, None)
    assert not interval([0.5]).excludes_zero
    assert interval([0.5, 0.5, 0.5]).excludes_zero
    assert not interval([0.0, 0.0, 0.0]).excludes_zero
