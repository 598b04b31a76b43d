"""``figueiredo-jain`` finds the number of components, and keeps the mixture of shortest message."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.testing import assert_allclose
from strategies import COVARIANCE_TYPES, compact, random_mixture

from embench import gaussian, make_dataset, make_model
from embench.types import Mixture

SEEDS = range(3)


def clusters(seed, covariance_type="full", n_samples=450, dtype="float64"):
    """Three clusters far apart, of one family, and samples of them."""
    rng = np.random.default_rng(seed)
    drawn = random_mixture(rng, 3, 2, covariance_type)
    truth = Mixture(np.array([0.3, 0.3, 0.4]), 12.0 * np.eye(3)[:, :2], drawn.covariances)
    X, _ = gaussian.sample(truth, n_samples, rng)
    return truth, X.astype(dtype)


def model(n_components=10, **params):
    return make_model("figueiredo-jain", n_components=n_components, random_state=0, **params)


def message_length(mixture, X, covariance_type="full"):
    """Figueiredo and Jain's L [nat], from the mixture alone."""
    K, D = mixture.means.shape
    own = D + {"full": D * (D + 1) // 2, "tied": 0, "diag": D, "spherical": 1}[covariance_type]
    log_likelihood = len(X) * gaussian.log_likelihood(mixture, X)
    of_weights = own / 2 * np.log(mixture.weights).sum()
    return of_weights + K * (own + 1) / 2 * np.log(len(X)) - log_likelihood


@pytest.mark.parametrize("covariance_type", COVARIANCE_TYPES)
@pytest.mark.parametrize("seed", SEEDS)
def test_three_clusters_are_found_from_ten_components(seed, covariance_type):
    truth, X = clusters(seed, covariance_type)

    fitted = model(covariance_type=covariance_type).fit(X)

    assert fitted.n_components_ == 3
    assert fitted.n_components == 10
    found = fitted.mixture_.means
    distances = np.linalg.norm(found[:, None] - truth.means, axis=-1)
    assert sorted(distances.argmin(axis=1)) == [0, 1, 2]
    # Means of 135 samples with variances of about 1.
    assert distances.min(axis=1).max() < 0.6


@pytest.mark.parametrize("covariance_type", COVARIANCE_TYPES)
def test_fitted_attributes_have_the_components_that_were_found(covariance_type):
    _, X = clusters(0, covariance_type)

    fitted = model(covariance_type=covariance_type).fit(X)

    assert fitted.weights_.shape == (3,)
    assert fitted.weights_.sum() == pytest.approx(1.0, abs=1e-12)
    assert fitted.means_.shape == (3, 2)
    assert compact(fitted.mixture_.covariances, covariance_type).shape == fitted.covariances_.shape
    assert fitted.predict_proba(X).shape == (len(X), 3)
    assert set(fitted.predict(X)) == {0, 1, 2}


@pytest.mark.parametrize("covariance_type", COVARIANCE_TYPES)
def test_message_never_grows_from_one_kept_mixture_to_the_next(covariance_type):
    _, X = clusters(1, covariance_type)
    tracked = model(covariance_type=covariance_type)
    bounds, lengths = [], []

    for _ in tracked.iter_fit(X):
        bounds.append(tracked.lower_bound_)
        lengths.append(message_length(tracked.mixture_, X, covariance_type))

    first_kept = np.flatnonzero(np.abs(np.diff(bounds)) < tracked.tol)[0] + 1
    assert first_kept < len(lengths) - 5
    assert np.all(np.diff(lengths[first_kept:]) <= tracked.tol * len(X))


@pytest.mark.parametrize("covariance_type", COVARIANCE_TYPES)
def test_lower_bound_is_minus_the_message_length_per_sample(covariance_type):
    _, X = clusters(2, covariance_type)

    fitted = model(covariance_type=covariance_type, tol=1e-9, max_iter=3000).fit(X)

    length = message_length(fitted.mixture_, X, covariance_type)
    assert fitted.lower_bound_ == pytest.approx(-length / len(X), abs=1e-7)


def test_message_is_shorter_than_those_of_fixed_numbers_of_components():
    data = make_dataset("blobs", seed=0, n_samples=500, n_features=2, n_components=3, separation=6)
    X = data.X_train
    others = [
        make_model("em", n_components=K, random_state=0, tol=1e-6, max_iter=500).fit(X)
        for K in (1, 2, 4, 5)
    ]

    fitted = model().fit(X)

    length = message_length(fitted.mixture_, X)
    assert length < min(message_length(other.mixture_, X) for other in others)


def test_one_component_is_ems():
    _, X = clusters(3)
    expected = make_model("em").fit(X).mixture_

    fitted = model(n_components=1).fit(X).mixture_

    assert_allclose(fitted.means, expected.means, atol=1e-10)
    assert_allclose(fitted.covariances, expected.covariances, rtol=1e-10, atol=1e-10)


def test_samples_counted_twice_are_samples_given_twice():
    truth, X = clusters(1)
    start = Mixture(np.full(3, 1 / 3), truth.means + 0.3, truth.covariances)
    twice = model(3).start_from(start).fit(np.repeat(X, 2, axis=0))

    weighted = model(3).start_from(start).fit(X, sample_weight=np.full(len(X), 2.0))

    assert_allclose(weighted.means_, twice.means_, rtol=1e-8)
    assert weighted.lower_bound_ == pytest.approx(twice.lower_bound_, rel=1e-9)


def test_float32_finds_the_same_number():
    _, X = clusters(0, dtype="float32")

    fitted = model().fit(X)

    assert fitted.means_.dtype == np.float32
    assert fitted.n_components_ == 3


def test_restarts_keep_the_shortest_message():
    data = make_dataset("blobs", seed=2, n_samples=300, n_features=2, n_components=4)
    shared = np.random.RandomState(1)
    params = {"init_params": "random_from_data", "n_components": 6}
    alone = [
        make_model("figueiredo-jain", **params, random_state=shared).fit(data.X_train)
        for _ in range(3)
    ]

    best = make_model(
        "figueiredo-jain", **params, n_init=3, random_state=np.random.RandomState(1)
    ).fit(data.X_train)

    assert best.lower_bound_ == max(one.lower_bound_ for one in alone)


def test_information_criteria_count_the_components_that_were_found():
    _, X = clusters(0)

    fitted = model().fit(X)

    deviance = -2 * len(X) * gaussian.log_likelihood(fitted.mixture_, X)
    assert fitted.aic(X) == pytest.approx(deviance + 2 * (2 + 3 * 2 + 3 * 3), rel=1e-10)


def test_a_search_that_was_cut_is_no_convergence():
    _, X = clusters(0)

    with pytest.warns(UserWarning, match="did not converge"):
        fitted = model(max_iter=20).fit(X)

    assert not fitted.converged_
