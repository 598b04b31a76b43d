"""What a run is going to take: by the same if it was measured, else scaled, else unknown."""

from __future__ import annotations

import pytest

from embench.measuring.forecast import forecasts
from embench.types import Record, Spec, Trial

SIZES = {"n_samples": 1000, "n_features": 4, "n_components": 4}


def trial(model="em", seed=0, version="1", params=None, **sizes):
    asked = {**SIZES, **sizes}
    return Trial(
        dataset=Spec("blobs", asked, "1"),
        model=Spec(model, params or {}, version),
        track="default",
        seed=seed,
        time_limit=20.0,
    )


def record(trial, seconds=1.0, memory=1e6, **fields):
    """As of a trial whose fit took so long; a fit above half a second is done once."""
    return Record(
        trial=trial,
        status="ok",
        metrics={"fit_seconds": seconds, "peak_memory": memory},
        fits=((seconds, seconds),),
        trial_seconds=2 * seconds + 0.1,
        sizes={key: trial.dataset.params[key] for key in SIZES},
        **fields,
    )


def test_what_was_measured_is_expected_again_at_other_seeds_and_versions():
    known = [record(trial(seed=seed, version="old"), seconds=seed + 1) for seed in range(3)]

    [found] = forecasts([trial(seed=7)], known)

    assert (found.basis, found.seconds, found.memory) == ("measured", 4.1, 1e6)


def test_nothing_is_known_of_another_model_track_or_number_of_threads():
    [found] = forecasts([trial("sklearn-em")], [record(trial())])

    assert (found.basis, found.seconds, found.memory) == ("unknown", None, None)


@pytest.mark.parametrize(
    ("sizes", "params", "factor"),
    [
        ({"n_samples": 2000}, {}, 2),
        ({"n_components": 8}, {}, 2),
        ({"n_features": 8}, {}, 4),
        ({"n_features": 8}, {"covariance_type": "diag"}, 2),
        ({"n_samples": 2000, "n_components": 8}, {}, 4),
    ],
)
def test_other_sizes_are_scaled_by_the_work_of_an_iteration(sizes, params, factor):
    known = record(trial(params=params))

    [found] = forecasts([trial(params=params, **sizes)], [known])

    # The timed fit and the curve are so many times longer, and the rest of the trial is as it was.
    assert found.basis == "scaled"
    assert found.seconds == pytest.approx(2 * factor + 0.1)
    assert known.trial.id in found.remark


def test_memory_is_scaled_by_data_responsibilities_and_covariances():
    [found] = forecasts([trial(n_samples=3000)], [record(trial())])

    n, d, k = SIZES.values()
    assert found.memory == pytest.approx(
        1e6 * (3 * n * (d + k) + k * d * d) / (n * (d + k) + k * d * d)
    )


def test_it_is_scaled_by_the_nearest():
    near, far = record(trial(n_samples=4000), seconds=4.4), record(trial(n_samples=100))

    [found] = forecasts([trial(n_samples=8000)], [far, near])

    assert near.trial.id in found.remark
    assert found.seconds == pytest.approx(2 * 8.8 + 0.1)


def test_a_fit_that_would_outlast_its_limit_is_taken_to_be_cut_off():
    [found] = forecasts([trial(n_samples=10**6)], [record(trial())])

    assert found.seconds == pytest.approx(2 * 20.0 + 0.1)
    assert "cut off" in found.remark


def test_what_is_larger_than_a_failure_takes_nothing_and_says_why():
    failed = Record(trial=trial(), status="timeout", trial_seconds=22.0)

    [found] = forecasts([trial(n_samples=2000)], [failed])

    assert (found.basis, found.seconds) == ("pruned", 0.0)
    assert failed.trial.id in found.remark


def test_what_failed_before_is_said():
    failed = Record(trial=trial(seed=1), status="timeout", trial_seconds=22.0)

    [found] = forecasts([trial()], [failed])

    assert (found.basis, found.seconds) == ("measured", 22.0)
    assert "timeout" in found.remark
