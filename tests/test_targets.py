"""Times to quality: what they do when seconds, likelihoods and targets change, and who has none."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from embench.comparing.compare import Comparison, compare
from embench.comparing.tables import targets_table
from embench.comparing.targets import MIDDLE, TARGETS, first_time, over_seeds, times_to_targets
from embench.metrics import METRICS
from embench.types import Record

from .strategies import law
from .synthetic_records import changed, failed, frame, make_records

steps = st.integers(0, 2**12).map(lambda number: number / 64)
"""Sixty-fourths: their sums and differences have no rounding errors."""


@st.composite
def curves(draw):
    """Seconds that never fall and any NLL."""
    n_points = draw(st.integers(1, 8))
    seconds = sorted(draw(st.lists(steps, min_size=n_points, max_size=n_points)))
    nll = draw(st.lists(steps, min_size=n_points, max_size=n_points))
    return np.array(seconds), np.array(nll)


def one_table(**options) -> list[Record]:
    return make_records(datasets=["iris"], tracks=["default"], **options)


def compared(records: list[Record]) -> Comparison:
    return compare(frame(records), references=[])


def of(comparison: Comparison, model: str, target: float = MIDDLE) -> pd.Series:
    """The row of a model and a target, in a comparison with one table."""
    rows = comparison.targets
    return rows[(rows["model"] == model) & (rows["target"] == target)].squeeze()


@law
@given(curves(), steps, st.integers(-1000, 1000))
def test_a_constant_added_to_all_likelihoods_changes_no_time(curve, level, constant) -> None:
    seconds, nll = curve

    assert first_time(seconds, nll + constant, level + constant) == first_time(seconds, nll, level)


@law
@given(curves(), steps, st.floats(1e-3, 1e3))
def test_another_clock_scales_every_time(curve, level, factor) -> None:
    seconds, nll = curve

    assert first_time(factor * seconds, nll, level) == pytest.approx(
        factor * first_time(seconds, nll, level)
    )


@law
@given(curves(), steps, steps)
def test_a_looser_target_is_never_reached_later(curve, level, more) -> None:
    assert first_time(*curve, level + more) <= first_time(*curve, level)


@law
@given(curves(), steps)
def test_a_time_is_censored_exactly_if_the_curve_never_gets_there(curve, level) -> None:
    seconds, nll = curve

    time = first_time(seconds, nll, level)

    assert np.isinf(time) == (nll.min() > level)
    assert np.isinf(time) or seconds[0] <= time <= seconds[np.argmin(nll)]


@law
@given(st.lists(st.floats(0.01, 10.0), min_size=2, max_size=8, unique=True), st.floats(0.05, 0.95))
def test_on_a_convex_curve_the_time_is_not_too_early(times, height) -> None:
    seconds = np.sort(times)
    nll = np.exp(-seconds)
    level = nll[-1] + height * (nll[0] - nll[-1])

    time = first_time(seconds, nll, level)

    assert time >= -np.log(level) - 1e-9
    assert time <= seconds[np.searchsorted(-nll, -level)]


@pytest.mark.parametrize("seconds", [[], [1.0], [[1.0, 2.0]]])
def test_what_is_no_curve_is_refused_with_its_shape(seconds) -> None:
    with pytest.raises(ValueError, match=r"one shape \(n_points,\)"):
        first_time(seconds, np.zeros((2,) if seconds else (0,)), 0.0)


@pytest.mark.parametrize("shift", [-3.0, 5.0])
def test_the_level_of_a_dataset_changes_no_time(shift) -> None:
    records = one_table()
    shifted = [
        replace(
            changed(r, nll=r.metrics["nll"] + shift),
            curve=tuple((seconds, n_iter, nll + shift) for seconds, n_iter, nll in r.curve),
        )
        for r in records
    ]

    pd.testing.assert_frame_equal(compared(records).targets, compared(shifted).targets)


def test_targets_are_timed_along_the_curve_to_the_best_end_of_the_same_seed() -> None:
    comparison = compared(one_table(models=["em", "spec-em"], n_seeds=1, noise=0.0))

    # The synthetic curve is 1.5 * 0.8^n above its end at iterations 1, 2, 3, 5, 8, 13, and 0 at 20.
    [em] = comparison.records[comparison.records["label"] == "em"].to_dict("records")
    at13 = 1.5 * 0.8**13
    share = (at13 - 0.01) / at13
    assert of(comparison, "em")["seconds"] == pytest.approx(
        em["fit_seconds"] * (13 + share * 7) / 20
    )
    slower = of(comparison, "spec-em")["seconds"] / of(comparison, "em")["seconds"]
    assert slower == pytest.approx(6.0)  # the speeds of the synthetic records are 3 and 0.5


def test_the_middle_target_is_the_tie_of_two_likelihoods() -> None:
    assert METRICS["nll"].tie.absolute == MIDDLE
    assert sorted(TARGETS, reverse=True) == list(TARGETS)


def test_a_model_that_ends_too_high_never_arrives() -> None:
    comparison = compared(one_table())

    row = of(comparison, "em:covariance_type=diag", 0.1)  # ends 0.2 nat above the others

    assert (row["reached"], row["planned"], row["seconds"]) == (0, 5, np.inf)
    table = targets_table(comparison, "default", "iris").set_index("model")
    assert list(table.loc["em:covariance_type=diag"]) == ["never"] * 3


@pytest.mark.parametrize(
    ("lost", "text"), [(0, "µs"), (1, "µs (4 of 5)"), (2, "µs (3 of 5)"), (3, "only 2 of 5")]
)
def test_a_median_needs_more_than_half_of_the_seeds(lost, text) -> None:
    records = [
        failed(r) if r.trial.seed < lost and str(r.trial.model) == "em" else r for r in one_table()
    ]

    comparison = compared(records)

    row = of(comparison, "em")
    assert (row["reached"], row["planned"]) == (5 - lost, 5)
    assert np.isinf(row["seconds"]) == (lost > 2)
    [cell] = targets_table(comparison, "default", "iris").set_index("model").loc["em"].iloc[1:2]
    assert cell.endswith(text)


def test_a_model_that_cannot_be_watched_counts_with_its_end() -> None:
    records = [
        replace(r, curve=()) if str(r.trial.model) == "sklearn-em" else r for r in one_table()
    ]

    comparison = compared(records)

    ends = comparison.records.query("label == 'sklearn-em'")["fit_seconds"]
    for target in TARGETS:
        assert of(comparison, "sklearn-em", target)["seconds"] == ends.median()


def test_seconds_of_a_fit_that_shared_its_cores_are_left_out_and_its_quality_counts() -> None:
    records = [
        replace(changed(r, nll=r.metrics["nll"] - 0.05), grade="quality")
        if str(r.trial.model) == "em" and r.trial.seed < 2
        else r
        for r in one_table()
    ]

    comparison = compared(records)

    assert of(comparison, "em")["planned"] == 3
    others = of(comparison, "sklearn-em")
    assert (others["reached"], others["planned"]) == (3, 5)


def test_frames_from_before_there_were_grades_are_timed() -> None:
    old = frame(one_table()).drop(columns="grade")

    comparison = compare(old, references=[])

    pd.testing.assert_frame_equal(comparison.targets, compared(one_table()).targets)


def test_who_groups_pixels_has_no_time_to_a_likelihood() -> None:
    groupers = [
        changed(r, excess_nll=None, ami_max=0.5, ami_overlaps=0.5, predict_seconds=0.1)
        for r in one_table()
    ]
    groupers[0] = failed(groupers[0])

    comparison = compared(groupers)

    assert comparison.targets.empty
    assert "Time to quality" not in str(comparison)


def test_the_order_of_records_changes_no_time() -> None:
    records = make_records(n_seeds=3)

    there, back = compared(records), compared(records[::-1])

    pd.testing.assert_frame_equal(there.targets, back.targets)


def test_times_of_no_records_are_no_times() -> None:
    assert over_seeds(times_to_targets(pd.DataFrame())).empty


def test_all_ways_to_show_a_comparison_have_the_times() -> None:
    from embench.reporting import text

    comparison = compared(make_records(n_seeds=3))
    cell = targets_table(comparison, "default", "iris").iloc[0, 1]

    for shown in (str(comparison), comparison._repr_html_(), text.markdown(comparison)):
        assert cell in shown
        assert "Time until the held-out NLL" in shown
        assert "best known: em 9 of 9, " in shown
    assert '"target": 0.01' in text.as_json(comparison)
