"""Intervals of paired measurements: against scipy, and the laws of swapping and scaling."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from embench.comparing.stats import (
    Interval,
    geometric_mean_interval,
    mean_interval,
    paired_difference,
    paired_ratio,
)

positive = st.floats(1e-6, 1e6)
pairs = st.lists(st.tuples(positive, positive), min_size=2, max_size=12)


def close(found: Interval, expected: Interval) -> None:
    parts = [(i.estimate, i.low, i.high) for i in (found, expected)]
    # Logs of neighbouring values cancel to about 1e-14, which a t quantile of 12.7 multiplies.
    np.testing.assert_allclose(*parts, rtol=1e-9, atol=1e-9)


def test_difference_agrees_with_scipys_paired_t_test() -> None:
    rng = np.random.default_rng(0)
    old, new = rng.normal(size=(2, 7))

    found = paired_difference(old, new)

    expected = scipy.stats.ttest_rel(new, old).confidence_interval(0.95)
    close(found, Interval(float(np.mean(new - old)), expected.low, expected.high))


def test_ratio_is_the_difference_of_logs() -> None:
    rng = np.random.default_rng(1)
    old, new = rng.lognormal(size=(2, 6))

    found = paired_ratio(old, new)

    close(found, paired_difference(np.log(old), np.log(new)).map(np.exp))


@given(pairs)
def test_swapping_mirrors_the_difference_and_inverts_the_ratio(values) -> None:
    old, new = np.array(values).T

    there, back = paired_difference(old, new), paired_difference(new, old)
    up, down = paired_ratio(old, new), paired_ratio(new, old)

    size = np.abs(new - old).max() + 1e-9
    np.testing.assert_allclose(
        [back.estimate, back.low, back.high],
        [-there.estimate, -there.high, -there.low],
        rtol=1e-9,
        atol=1e-9 * size,
    )
    np.testing.assert_allclose(
        np.log([down.estimate, max(down.low, 1e-300), min(down.high, 1e300)]),
        -np.log([up.estimate, min(up.high, 1e300), max(up.low, 1e-300)]),
        rtol=1e-9,
        atol=1e-9,
    )


@given(pairs, st.floats(1e-3, 1e3))
def test_another_unit_scales_the_difference_and_leaves_the_ratio(values, factor) -> None:
    old, new = np.array(values).T

    difference, ratio = paired_difference(factor * old, factor * new), paired_ratio(old, new)

    assert difference.estimate == pytest.approx(factor * (new - old).mean(), rel=1e-6, abs=1e-3)
    assert paired_ratio(factor * old, factor * new).estimate == pytest.approx(ratio.estimate)


@given(positive, positive)
def test_one_pair_leaves_everything_open(old, new) -> None:
    difference, ratio = paired_difference([old], [new]), paired_ratio([old], [new])

    assert (difference.low, difference.high) == (-np.inf, np.inf)
    assert (ratio.low, ratio.high) == (0, np.inf)
    assert ratio.estimate == pytest.approx(new / old)


def test_equal_changes_give_an_interval_without_width() -> None:
    difference = paired_difference([1.0, 2.0, 4.0], [1.5, 2.5, 4.5])
    ratio = paired_ratio([1.0, 2.0, 4.0], [2.0, 4.0, 8.0])

    assert difference == Interval(0.5, 0.5, 0.5)
    close(ratio, Interval(2.0, 2.0, 2.0))


def test_the_interval_covers_the_mean_as_often_as_it_says() -> None:
    rng = np.random.default_rng(2)

    found = [mean_interval(rng.normal(size=5)) for _ in range(1000)]

    # 95 % of 1000, give or take three standard deviations of a binomial count (6.9 each).
    assert 929 <= sum(item.low <= 0 <= item.high for item in found) <= 971


def test_an_interval_wider_than_any_float_ends_at_infinity() -> None:
    found = paired_ratio([1e-100, 1.0], [1.0, 1e-100])

    assert (found.low, found.high) == (0, np.inf)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_is_an_error_and_not_dropped(bad) -> None:
    with pytest.raises(ValueError, match="finite"):
        mean_interval([1.0, bad])
    with pytest.raises(ValueError, match="finite"):
        paired_ratio([1.0, 2.0], [1.0, bad])


def test_wrong_shapes_and_signs_are_said() -> None:
    with pytest.raises(ValueError, match="got 1 and 2"):
        paired_difference([1.0, 2.0], [1.0])
    with pytest.raises(ValueError, match="n >= 1"):
        mean_interval([])
    with pytest.raises(ValueError, match="positive values, got -1"):
        paired_ratio([1.0], [-1.0])
    with pytest.raises(ValueError, match="positive values, got 0"):
        geometric_mean_interval([0.0])


def test_intervals_over_splits_of_one_table_cover_what_they_say() -> None:
    """The mean of n splits' correlated values, simulated: a shared part, and one of each split.

    Splits that hold out a quarter share a part with variance n_test / n_train of that of their
    own (Nadeau and Bengio, 2003, section 3): no number of splits averages it away.
    """
    rng = np.random.default_rng(0)
    overlap, n_splits, n_tables = 1 / 3, 20, 4000
    shared = np.sqrt(overlap) * rng.standard_normal((n_tables, 1))
    values = shared + rng.standard_normal((n_tables, n_splits))

    def cover(overlap: float) -> float:
        intervals = [mean_interval(row, overlap=overlap) for row in values]
        return float(np.mean([interval.low <= 0 <= interval.high for interval in intervals]))

    # Three standard errors of a share of 0.95 over 4000 tables are 0.010.
    assert abs(cover(overlap) - 0.95) < 0.015
    assert cover(0.0) < 0.7
