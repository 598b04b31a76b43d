"""One trial: same start, paired data, the judge's numbers, a curve that ends where the fit does."""

from __future__ import annotations

import json
import os
import time
import warnings
from dataclasses import replace
from statistics import median

import numpy as np
import pytest

import embench
from embench import gaussian
from embench.measuring import trial as trial_module
from embench.measuring.trial import MAX_FITS, run_trial, stages
from embench.models.starts import starting_mixture

BLOBS = ("blobs", {"n_samples": 300, "n_test": 200})


@pytest.mark.parametrize("track", ["same-start", "budget", "default"])
def test_every_track_gives_every_metric_that_exists(small_trial, track):
    record = run_trial(small_trial(dataset=BLOBS, track=track, time_limit=0.2))

    assert record.status == "ok", record.message
    assert set(record.metrics) >= {"nll", "excess_nll", "ami", "ari", "fit_seconds", "n_iter"}
    assert "gpu_peak_memory" not in record.metrics
    assert record.sizes == {
        "n_samples": 300,
        "n_features": 2,
        "n_components": 3,
        "n_test": 200,
    }
    assert all(np.isfinite(value) for value in record.metrics.values())


def test_the_record_comes_as_soon_as_it_is_judged_and_again_with_its_curve(small_trial):
    first, second = stages(small_trial(dataset=BLOBS))

    assert first.curve == ()
    assert len(second.curve) > 1
    assert first.trial_seconds < second.trial_seconds
    assert first.ended <= second.ended
    unchanged = {"curve": (), "trial_seconds": None, "ended": "", "metrics": {}}
    assert replace(first, **unchanged) == replace(second, **unchanged)
    assert {**first.metrics, "n_iter": second.metrics["n_iter"]} == second.metrics


def test_who_cannot_be_watched_has_one_record(small_trial):
    (record,) = stages(small_trial("bad_models:Silent"))

    assert record.curve == ()


def test_each_stage_is_told_with_what_it_may_take(small_trial):
    told = []
    trial = small_trial(dataset=BLOBS, time_limit=100.0)

    list(stages(trial, lambda *stage: told.append(stage), patience=200.0))

    fits = [stage for stage in told if stage[0] == "fitting"]
    assert 1 <= len(fits) <= MAX_FITS
    assert all(seconds == pytest.approx(110.0) for _, seconds in fits)
    assert [stage for stage in told if stage not in fits] == [
        ("making model and data", 200.0),
        ("warming up", pytest.approx(113.0)),
        ("judging", 200.0),
        ("drawing the curve", pytest.approx(310.0)),
    ]


def test_a_long_limit_of_fits_is_one_of_everything_else(small_trial):
    told = {}

    list(stages(small_trial(time_limit=100.0), lambda *stage: told.update([stage]), patience=1.0))

    assert told["judging"] == told["fitting"] == pytest.approx(110.0)


def test_the_median_of_all_fits_counts_and_the_first_call_is_told_apart(small_trial):
    record = run_trial(small_trial(dataset=BLOBS))

    seconds, cpu_seconds = zip(*record.fits, strict=True)
    assert 1 < len(record.fits) <= MAX_FITS
    assert record.metrics["fit_seconds"] == median(seconds)
    assert record.metrics["cpu_seconds"] == median(cpu_seconds)
    assert record.metrics["cold_seconds"] > 0
    assert record.trial_seconds > sum(seconds) + record.metrics["cold_seconds"]


def test_a_fit_that_takes_long_enough_is_not_repeated(small_trial, monkeypatch):
    monkeypatch.setattr(trial_module, "ENOUGH_SECONDS", 1e-9)

    record = run_trial(small_trial())

    assert len(record.fits) == 1


def test_the_first_call_pays_for_what_is_done_but_once(small_trial):
    """Half a second, such as a library takes that compiles when it is first used."""
    params = {"seconds": 0.5, "marker": f"{time.time()}"}

    record = run_trial(small_trial("bad_models:Compiler", params=params))

    assert record.metrics["cold_seconds"] >= 0.5 > 0.25 > record.metrics["fit_seconds"]


def test_what_a_model_changes_for_everybody_is_set_back(small_trial, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = os.getcwd(), np.geterr(), list(warnings.filters)

    record = run_trial(small_trial("hostile:Hostile", params={"deed": "move_about"}))

    assert record.status == "ok", record.message
    assert (os.getcwd(), np.geterr(), list(warnings.filters)) == before


def test_an_error_is_told_in_a_line_that_any_terminal_can_show(small_trial):
    record = run_trial(small_trial("hostile:Hostile", params={"deed": "shout"}))

    assert record.message.startswith("ValueError: no way aaa")
    assert record.message.endswith(" ...")
    assert record.message.isprintable()
    assert len(record.message) < 400


def test_the_nll_is_the_judges(small_trial):
    trial = small_trial(dataset=BLOBS, track="default", params={"random_state": 5})

    record = run_trial(trial)

    data = embench.make_dataset(trial.dataset.name, seed=trial.seed, **trial.dataset.params)
    model = embench.make_model("em", n_components=3, random_state=5).fit(data.X_train)
    assert record.metrics["nll"] == -gaussian.log_likelihood(model.mixture_, data.X_test)


@pytest.mark.parametrize("covariance_type", ["full", "tied", "diag", "spherical"])
def test_on_same_start_all_models_begin_at_one_mixture(small_trial, covariance_type):
    params = {"covariance_type": covariance_type}
    trials = [
        small_trial("em", params=params, dataset=BLOBS, track="same-start"),
        small_trial("sklearn-em", params=params, dataset=BLOBS, track="same-start"),
        small_trial("spec-em", dataset=BLOBS, track="same-start"),
    ]

    curves = [run_trial(trial).curve for trial in trials]

    assert [curve[0][1] for curve in curves] == [0, 0, 0]
    np.testing.assert_allclose([curve[0][2] for curve in curves], curves[0][0][2], rtol=1e-12)
    np.testing.assert_allclose(curves[0][1][2], curves[1][1][2], rtol=1e-9)


def test_a_model_that_ignores_the_start_is_found_out(small_trial):
    record = run_trial(small_trial("bad_models:FalseStarter", dataset=BLOBS, track="same-start"))

    assert record.status == "error"
    assert "does not begin at the given start" in record.message


@pytest.mark.parametrize(
    ("model", "params"),
    [
        ("em", {}),
        ("em", {"n_init": 3}),
        ("em", {"tol": 0, "max_iter": 10**6}),
        ("sklearn-em", {}),
        ("sklearn-em", {"n_init": 3}),
        ("sklearn-em", {"tol": 0, "max_iter": 10**6}),
        ("spec-em", {}),
        ("sklearn-vb", {}),
    ],
)
@pytest.mark.parametrize("track", ["default", "budget"])
def test_the_curve_ends_where_the_timed_fit_ends(small_trial, model, params, track):
    if track == "default" and "tol" in params:
        params = {**params, "max_iter": 30}

    record = run_trial(
        small_trial(model, params=params, dataset=BLOBS, track=track, time_limit=0.3)
    )

    seconds, n_iter, nll = record.curve[-1]
    assert nll == pytest.approx(record.metrics["nll"], rel=1e-12)
    assert n_iter == record.metrics["n_iter"]
    assert seconds > 0
    assert [point[0] for point in record.curve] == sorted(point[0] for point in record.curve)


def test_the_budget_cuts_a_fit_that_would_go_on(small_trial):
    trial = small_trial(
        params={"tol": 0, "max_iter": 10**6}, dataset=BLOBS, track="budget", time_limit=0.3
    )
    began = time.perf_counter()

    record = run_trial(trial)

    assert record.status == "ok"
    assert 0.2 < record.metrics["fit_seconds"] < 0.45
    assert record.metrics["n_iter"] < 10**6
    assert time.perf_counter() - began < 30


def test_restarts_from_one_start_are_not_billed(small_trial):
    once, often = (
        run_trial(small_trial(params={"n_init": n, "tol": 0, "max_iter": 5}, track="same-start"))
        for n in (1, 5)
    )

    assert often.metrics["n_iter"] == once.metrics["n_iter"] == 5


@pytest.mark.parametrize("kind", ["dataset", "model"])
def test_what_has_changed_since_the_plan_is_not_measured(small_trial, kind):
    trial = small_trial()
    changed = replace(getattr(trial, kind), version="of yesterday")

    record = run_trial(replace(trial, **{kind: changed}))

    assert record.status == "error"
    assert f"{kind} {changed} has changed since the run was planned" in record.message


def test_a_fault_while_it_is_watched_leaves_the_timed_pass_good(small_trial):
    record = run_trial(small_trial("bad_models:BadlyWatched"))

    assert record.status == "ok"
    assert record.curve == ()
    assert "no curve" in record.message
    assert record.metrics["nll"] == run_trial(small_trial()).metrics["nll"]


def test_counts_may_be_numpys(small_trial):
    record = run_trial(small_trial("bad_models:NumpyCounter"))

    assert json.dumps(record.to_json())


def test_more_threads_than_given_are_told(small_trial):
    record = run_trial(small_trial("bad_models:Threader"))

    assert record.status == "ok"
    assert "ran in 2 threads instead of 1" in record.message


@pytest.mark.parametrize(("model", "told"), [("em", False), ("student-t-em", True)])
def test_a_model_that_is_taken_at_its_word_is_told(small_trial, model, told):
    record = run_trial(small_trial(model))

    assert record.status == "ok"
    assert ("by its own score" in record.message) == told


def test_what_a_fit_warns_of_by_name_is_told_once(small_trial):
    params = {"min_stddev": 10.0, "max_iter": 3, "tol": 0}

    record = run_trial(small_trial("gd", params=params, dataset=BLOBS, track="default"))

    assert record.status == "ok", record.message
    assert record.message.count("min_stddev = 10") == 1


def test_a_descent_that_diverged_is_told(small_trial):
    params = {"optimizer": "sgd", "component_lr": 1e200, "standardize": False}

    record = run_trial(small_trial("gd", params=params, dataset=BLOBS, track="default"))

    assert record.status == "ok"
    assert "try smaller learning rates" in record.message


def test_float32_data_reach_the_model_as_float32(small_trial):
    double = run_trial(small_trial(dataset=BLOBS))
    single = run_trial(small_trial(dataset=BLOBS, dtype="float32"))

    assert single.metrics["nll"] != double.metrics["nll"]
    assert single.metrics["nll"] == pytest.approx(double.metrics["nll"], abs=1e-4)


def test_labels_are_absent_metrics_where_there_are_none(small_trial, tmp_path):
    np.save(tmp_path / "x.npy", np.random.default_rng(0).standard_normal((60, 2)))

    record = run_trial(
        small_trial(dataset=(str(tmp_path / "x.npy"), {}), params={"n_components": 2})
    )

    assert record.status == "ok"
    assert not {"ami", "ari", "excess_nll"} & set(record.metrics)


@pytest.mark.parametrize(
    "table",
    {
        "duplicate rows": np.repeat([[0.0, 1.0], [2.0, 3.0]], 40, axis=0),
        "a constant column": np.column_stack([np.arange(80.0), np.full(80, 7.0)]),
        "fewer samples than features": np.random.default_rng(0).standard_normal((10, 30)),
        "a single point": np.ones((40, 3)),
        "huge values": 1e150 * np.random.default_rng(0).standard_normal((40, 2)),
    }.items(),
    ids=lambda item: item[0],
)
@pytest.mark.parametrize(
    ("model", "track"),
    [
        ("em", "same-start"),
        ("em", "default"),
        ("sklearn-em", "same-start"),
        ("sklearn-em", "default"),
        ("spec-em", "same-start"),
        ("sklearn-vb", "default"),
    ],
)
def test_hard_data_are_fitted_or_fail_with_a_sentence(small_trial, tmp_path, model, track, table):
    np.save(tmp_path / "x.npy", table[1])
    data = (str(tmp_path / "x.npy"), {"standardize": False})

    record = run_trial(small_trial(model, dataset=data, params={"n_components": 3}, track=track))

    assert record.status in {"ok", "diverged", "error"}
    assert record.status == "ok" or record.message
    assert all(np.isfinite(value) for value in record.metrics.values())


def test_memory_is_that_of_the_fit_alone(small_trial):
    large = ("blobs", {"n_samples": 40_000, "n_features": 8, "n_test": 10})

    resp = run_trial(small_trial("sklearn-em", dataset=large, params={"n_components": 20}))

    # scikit-learn holds log-responsibilities and their exponentials: 2 x 40,000 x 20 x 8 bytes.
    assert 2 * 40_000 * 20 * 8 < resp.metrics["peak_memory"] < 20 * 40_000 * 20 * 8


def test_the_start_is_the_mixture_it_says(small_trial):
    X = np.random.default_rng(0).standard_normal((50, 3)) * [1.0, 2.0, 3.0]

    start = starting_mixture(X, 4, np.random.SeedSequence(1))

    assert np.allclose(start.weights, 0.25)
    assert all(any(np.array_equal(mean, x) for x in X) for mean in start.means)
    assert np.allclose(start.covariances, X.var(axis=0).mean() * np.eye(3))
