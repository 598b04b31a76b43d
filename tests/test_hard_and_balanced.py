"""``hard-em`` climbs the classification likelihood; ``sinkhorn-em`` keeps the sizes it is given."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from numpy.testing import assert_allclose
from strategies import (
    COVARIANCE_TYPES,
    assert_same,
    family_problems,
    law,
    model_at,
    path,
    permuted,
    random_mixture,
    random_samples,
)

from embench import gaussian, make_dataset, make_model
from embench.types import Mixture

# Most fits here stop after a given number of steps on purpose.
pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")

both = pytest.mark.parametrize("name", ["hard-em", "sinkhorn-em"])
families = pytest.mark.parametrize("covariance_type", COVARIANCE_TYPES)


def classification_log_likelihood(mixture, X):
    return gaussian.log_joint(mixture, X).max(axis=1).mean()


# Both


@both
@families
def test_whole_sample_weights_are_repeated_samples(name, covariance_type):
    rng = np.random.default_rng(0)
    start = random_mixture(rng, 3, 2, covariance_type)
    X = random_samples(rng, start, 120)
    times = rng.integers(1, 4, size=120)
    params = {"covariance_type": covariance_type, "max_iter": 4}
    expected = model_at(name, start, **params).fit(np.repeat(X, times, axis=0))

    model = model_at(name, start, **params).fit(X, sample_weight=times)

    # Transport plans are exact to a millionth.
    assert_same(model.mixture_, expected.mixture_, rtol=1e-4, atol=1e-5)


@both
@families
def test_float32_ends_close_to_float64(name, covariance_type):
    data = make_dataset("blobs", seed=1, n_samples=300, n_components=3, separation=6)
    params = {"n_components": 3, "covariance_type": covariance_type, "random_state": 0}
    double = make_model(name, **params).fit(data.X_train)

    single = make_model(name, **params, dtype="float32").fit(data.X_train)

    assert single.means_.dtype == np.float32
    assert single.score(data.X_test) == pytest.approx(double.score(data.X_test), abs=1e-3)


@both
@law
@given(problem=family_problems)
def test_order_of_samples_and_components_changes_nothing(name, problem):
    covariance_type, (start, X) = problem
    order = np.roll(np.arange(start.n_components), 1)
    params = {"covariance_type": covariance_type, "max_iter": 3}
    expected = model_at(name, start, **params).fit(X).mixture_

    other = model_at(name, permuted(start, order), **params).fit(X[::-1]).mixture_

    assert_same(other, permuted(expected, order), rtol=1e-4, atol=1e-5)


# Hard assignments


@law
@given(family_problems)
def test_the_classification_likelihood_never_falls(problem):
    covariance_type, (start, X) = problem
    model = model_at("hard-em", start, covariance_type=covariance_type, reg_covar=1e-9, max_iter=15)

    found = [classification_log_likelihood(mixture, X) for mixture in path(model, X)]

    assert np.all(np.diff(found) >= -1e-9)
    assert_allclose(model.lower_bounds_, found[:-1], rtol=1e-9)


@law
@given(family_problems)
def test_every_sample_counts_for_one_component(problem):
    covariance_type, (start, X) = problem

    for mixture in path(model_at("hard-em", start, covariance_type=covariance_type), X)[1:6]:
        counts = len(X) * mixture.weights
        assert_allclose(counts, counts.round(), atol=1e-9)


@families
def test_hard_steps_come_to_rest(covariance_type):
    data = make_dataset("blobs", seed=3, n_samples=500, n_components=4, separation=3)
    params = {"n_components": 4, "covariance_type": covariance_type, "random_state": 0}
    model = make_model("hard-em", **params, tol=0.0, max_iter=100)

    mixtures = path(model, data.X_train)

    assert_same(mixtures[-1], mixtures[-2], rtol=1e-12, atol=1e-12)
    labels = gaussian.log_joint(mixtures[-1], data.X_train).argmax(axis=1)
    assert_allclose(np.bincount(labels) / len(labels), mixtures[-1].weights, atol=1e-12)


@families
def test_hard_steps_are_em_steps_where_components_are_far_apart(covariance_type):
    data = make_dataset("blobs", seed=1, n_samples=300, n_components=3, separation=100)
    spread = Mixture(data.truth.weights, data.truth.means, np.stack([9 * np.eye(2)] * 3))
    params = {"covariance_type": covariance_type, "max_iter": 3}
    expected = path(model_at("em", spread, **params), data.X_train)

    mixtures = path(model_at("hard-em", spread, **params), data.X_train)

    for ours, theirs in zip(mixtures, expected, strict=True):
        assert_same(ours, theirs)


def test_components_that_tie_share_their_samples():
    X = np.random.default_rng(0).standard_normal((50, 2))
    start = Mixture(np.array([0.5, 0.5]), np.zeros((2, 2)), np.stack([np.eye(2)] * 2))

    mixture = model_at("hard-em", start, reg_covar=0.0, max_iter=1).fit(X).mixture_

    assert_allclose(mixture.weights, 0.5)
    assert_allclose(mixture.means, [X.mean(axis=0)] * 2, atol=1e-12)


# Transport


@law
@given(family_problems)
def test_each_component_holds_its_share_of_the_samples(problem):
    covariance_type, (start, X) = problem
    params = {"reg_covar": 0.0, "transport_tol": 1e-10, "max_iter": 4}

    mixtures = path(model_at("sinkhorn-em", start, covariance_type=covariance_type, **params), X)

    # Column sums n_samples * w_k: only then do moments weighted by w_k add up to those of X.
    for mixture in mixtures[1:]:
        mean = mixture.weights @ mixture.means
        seconds = np.trace(mixture.covariances, axis1=1, axis2=2) + (mixture.means**2).sum(axis=1)
        assert_allclose(mean, X.mean(axis=0), atol=1e-7)
        assert mixture.weights @ seconds == pytest.approx((X**2).sum(axis=1).mean(), rel=1e-7)


@law
@given(family_problems)
def test_weights_stay_those_of_the_start(problem):
    covariance_type, (start, X) = problem

    mixtures = path(model_at("sinkhorn-em", start, covariance_type=covariance_type, max_iter=4), X)

    for mixture in mixtures:
        assert_allclose(mixture.weights, start.weights, rtol=1e-12)


@law
@given(family_problems)
def test_the_transport_objective_never_falls_nor_passes_the_likelihood(problem):
    covariance_type, (start, X) = problem
    model = model_at("sinkhorn-em", start, covariance_type=covariance_type, reg_covar=0.0)

    mixtures = path(model.set_params(max_iter=12), X)

    bounds = np.array(model.lower_bounds_)
    likelihoods = [gaussian.log_likelihood(mixture, X) for mixture in mixtures[:-1]]
    assert np.all(np.diff(bounds) >= -1e-9)
    assert np.all(bounds <= np.array(likelihoods) + 1e-9)


@families
def test_without_a_choice_transport_is_em(covariance_type):
    rng = np.random.default_rng(0)
    start = random_mixture(rng, 1, 3, covariance_type)
    X = random_samples(rng, start, 50)
    params = {"covariance_type": covariance_type, "max_iter": 2}
    expected = model_at("em", start, **params).fit(X).mixture_

    mixture = model_at("sinkhorn-em", start, **params).fit(X).mixture_

    assert_same(mixture, expected)


@families
def test_a_component_far_from_all_samples_is_given_its_share(covariance_type):
    rng = np.random.default_rng(0)
    start = random_mixture(rng, 3, 2, covariance_type)
    X = random_samples(rng, start, 300)
    start.means[1] = 1e4

    mixture = (
        model_at("sinkhorn-em", start, covariance_type=covariance_type, max_iter=1).fit(X).mixture_
    )

    assert np.all(np.abs(mixture.means) < np.abs(X).max())
    assert_allclose(mixture.weights @ mixture.means, X.mean(axis=0), atol=1e-4)


def test_a_component_of_weight_zero_gets_nothing():
    rng = np.random.default_rng(0)
    start = random_mixture(rng, 3, 2)
    X = random_samples(rng, start, 300)
    start.weights[:] = 0.5, 0.0, 0.5

    mixture = model_at("sinkhorn-em", start, max_iter=3).fit(X).mixture_

    assert_allclose(mixture.weights, [0.5, 0.0, 0.5])
    assert_allclose(mixture.weights @ mixture.means, X.mean(axis=0), atol=1e-4)


def test_a_tolerance_that_is_no_share_is_refused():
    model = make_model("sinkhorn-em", transport_tol=0.0)

    with pytest.raises(ValueError, match="'transport_tol' parameter"):
        model.fit(np.eye(4))
