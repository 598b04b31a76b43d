"""The table of metrics: names, directions, and what each says about an outcome."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import adjusted_mutual_info_score, adjusted_rand_score
from strategies import law, seeds

from embench import gaussian, make_dataset
from embench.metrics import METRICS, Outcome, Tolerance, judge

DATA = make_dataset("blobs", seed=0, n_samples=500, separation=3)
OF_TRAINED = {"training_seconds"}
"""What only models that learned before their fits have."""

OF_GPU = {"gpu_peak_memory", "gpu_reserved_memory", "gpu_device_memory"}
OF_GROUPERS = {"ami_max", "ami_overlaps", "predict_seconds"}
AGREEMENT = {"ami": adjusted_mutual_info_score, "ari": adjusted_rand_score}


def outcome(**changes):
    """An outcome of a fit that found the truth, on the CPU."""
    usual = {
        "dataset": DATA,
        "nll": -gaussian.log_likelihood(DATA.truth, DATA.X_test),
        "labels": gaussian.responsibilities(DATA.truth, DATA.X_test).argmax(axis=1),
        "n_iter": 7,
        "fit_seconds": 0.5,
        "cold_seconds": 0.75,
        "cpu_seconds": 0.25,
        "peak_memory": 4096,
        "gpu_peak_memory": None,
        "gpu_reserved_memory": None,
        "gpu_device_memory": None,
    }
    return Outcome(**{**usual, **changes})


def test_every_metric_goes_by_its_own_name():
    assert all(metric.name == name for name, metric in METRICS.items())


def test_every_metric_says_how_it_is_compared():
    for metric in METRICS.values():
        assert metric.title
        assert metric.kind in ("quality", "cost")
        assert metric.better in ("lower", "higher")
        assert metric.gate.absolute >= metric.tie.absolute >= 0
        assert metric.gate.relative >= metric.tie.relative >= 0
        assert max(metric.tie.absolute, metric.tie.relative) > 0


def test_agreement_is_better_higher_and_everything_else_lower():
    higher = {name for name, metric in METRICS.items() if metric.better == "higher"}

    assert higher == {"ami", "ami_max", "ami_overlaps", "ari"}


def test_a_cost_has_a_resolution_that_keeps_its_ratio_finite():
    for metric in METRICS.values():
        assert (metric.resolution > 0) == (metric.kind == "cost")


def test_costs_are_what_was_measured():
    values = judge(outcome(gpu_peak_memory=2**20))

    assert values["n_iter"] == 7
    assert values["fit_seconds"] == 0.5
    assert values["cpu_seconds"] == 0.25
    assert values["peak_memory"] == 4096
    assert values["gpu_peak_memory"] == 2**20


def test_excess_nll_of_the_truth_is_nothing():
    values = judge(outcome())

    assert values["excess_nll"] == pytest.approx(0.0, abs=1e-12)
    assert values["nll"] == pytest.approx(-gaussian.log_likelihood(DATA.truth, DATA.X_test))


@law
@given(st.floats(-5, 5))
def test_excess_nll_is_the_distance_to_the_truth(distance):
    value = judge(outcome(nll=outcome().nll + distance))["excess_nll"]

    assert value == pytest.approx(distance, abs=1e-12)


@pytest.mark.parametrize("name", AGREEMENT)
def test_agreement_is_scikit_learns(name):
    value = judge(outcome())[name]

    assert value == pytest.approx(AGREEMENT[name](DATA.y_test, outcome().labels), rel=1e-12)
    assert 0.5 < value < 1.0


@pytest.mark.parametrize("name", AGREEMENT)
def test_the_true_labels_agree_perfectly_and_random_ones_not_at_all(name):
    guessed = np.random.default_rng(0).integers(3, size=500)

    assert judge(outcome(labels=DATA.y_test))[name] == pytest.approx(1.0)
    assert judge(outcome(labels=guessed))[name] == pytest.approx(0.0, abs=0.02)
    assert judge(outcome(labels=np.zeros(500, dtype=int)))[name] == pytest.approx(0.0, abs=1e-12)


@law
@given(st.permutations(range(3)))
@pytest.mark.parametrize("name", AGREEMENT)
def test_names_of_groups_do_not_matter(name, order):
    plain = outcome()

    renamed = replace(plain, labels=np.array(order)[plain.labels])

    assert judge(renamed)[name] == pytest.approx(judge(plain)[name], rel=1e-12)


@law
@given(seeds)
@pytest.mark.parametrize("name", AGREEMENT)
def test_samples_of_no_component_are_left_out(name, seed):
    rng = np.random.default_rng(seed)
    out = rng.random(500) < 0.3
    labels = np.where(out, rng.integers(3, size=500), outcome().labels)
    data = replace(DATA, y_test=np.where(out, -1, DATA.y_test))

    value = judge(outcome(dataset=data, labels=labels))[name]

    expected = AGREEMENT[name](DATA.y_test[~out], labels[~out])
    assert value == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    ("changes", "absent"),
    [
        ({}, OF_GPU),
        ({"n_iter": None, "peak_memory": None}, {"n_iter", "peak_memory"} | OF_GPU),
        (dict.fromkeys(OF_GPU, 0), set()),
        ({"dataset": replace(DATA, truth=None)}, {"excess_nll"} | OF_GPU),
        ({"dataset": replace(DATA, y_test=None)}, {"ami", "ari"} | OF_GPU),
        ({"dataset": replace(DATA, y_test=np.full(500, -1))}, {"ami", "ari"} | OF_GPU),
    ],
)
def test_a_metric_that_does_not_exist_is_absent(changes, absent):
    values = judge(outcome(**changes))

    assert set(METRICS) - set(values) == absent | OF_GROUPERS | OF_TRAINED
    assert all(type(value) is float and not math.isnan(value) for value in values.values())


@law
@given(
    st.floats(0, 10), st.floats(0, 1), st.floats(-1e6, 1e6, allow_nan=False, allow_infinity=False)
)
def test_a_tolerance_is_the_larger_of_its_two_bounds(absolute, relative, baseline):
    bound = Tolerance(absolute, relative).of(baseline)

    assert bound in (absolute, relative * abs(baseline))
    assert bound >= absolute
    assert bound >= relative * abs(baseline)


def test_a_tolerance_of_nothing_is_zero():
    assert Tolerance().of(123.0) == 0.0
