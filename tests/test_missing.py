"""``missing-em`` is EM where all is observed, and uses what was observed where not."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from numpy.testing import assert_allclose, assert_array_equal
from strategies import COVARIANCE_TYPES, family_problems, law, random_mixture

from embench import gaussian, make_model
from embench.types import Mixture, MixtureModel

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")


def model(start=None, name="missing-em", **params):
    """A model that begins at ``start`` and runs all its steps."""
    made = make_model(name, **{"tol": 0.0, "random_state": 0, **params})
    if start is None:
        return made
    return made.set_params(n_components=start.n_components).start_from(start)


def with_holes(X, share=0.3, seed=0):
    """X with a share of its values missing, at least one value left in each sample."""
    rng = np.random.default_rng(seed)
    missing = rng.uniform(size=X.shape) < share
    missing[np.arange(len(X)), rng.integers(X.shape[1], size=len(X))] = False
    return np.where(missing, np.nan, X)


def marginal(mixture, observed):
    """The mixture of some of the features."""
    covariances = mixture.covariances[:, observed][:, :, observed]
    return Mixture(mixture.weights, mixture.means[:, observed], covariances)


def judged(mixture, X):
    """The judge's log-density of what was observed of each sample [nat]."""
    log_densities = np.empty(len(X))
    for observed in np.unique(~np.isnan(X), axis=0):
        rows = (~np.isnan(X) == observed).all(axis=1)
        own = marginal(mixture, observed)
        log_densities[rows] = gaussian.log_likelihoods(own, X[rows][:, observed])
    return log_densities


@law
@given(family_problems)
def test_without_nan_it_is_em_step_by_step(problem):
    covariance_type, (start, X) = problem
    params = {"covariance_type": covariance_type, "max_iter": 5}
    em, missing = model(start, "em", **params), model(start, **params)

    for _ in zip(em.iter_fit(X), missing.iter_fit(X), strict=True):
        for name in ("weights_", "means_", "covariances_"):
            assert_allclose(getattr(missing, name), getattr(em, name), rtol=1e-9, atol=1e-9)
    assert missing.lower_bounds_ == pytest.approx(em.lower_bounds_, abs=1e-10)


@law
@given(family_problems)
def test_likelihood_of_what_was_observed_never_falls(problem):
    covariance_type, (start, complete) = problem
    X = with_holes(complete)
    fitted = model(start, covariance_type=covariance_type, reg_covar=0.0, max_iter=10)

    likelihoods = [judged(fitted.mixture_, X).mean() for _ in fitted.iter_fit(X)]

    assert np.all(np.diff(likelihoods) >= -1e-9)
    assert fitted.lower_bounds_ == pytest.approx(likelihoods[:-1], abs=1e-9)


@law
@given(family_problems)
def test_densities_are_the_judges_of_the_observed_features(problem):
    covariance_type, (start, complete) = problem
    X = with_holes(complete)
    fitted = model(start, covariance_type=covariance_type, max_iter=2).fit(X)
    assert isinstance(fitted, MixtureModel)

    log_densities = fitted.score_samples(X)

    expected = judged(fitted.mixture_, X)
    assert_allclose(log_densities, expected, rtol=1e-9, atol=1e-9)
    assert fitted.score(X) == pytest.approx(expected.mean(), rel=1e-9)


def test_labels_are_the_largest_responsibilities_given_what_was_observed():
    rng = np.random.default_rng(0)
    start = random_mixture(rng, 3, 3)
    X = with_holes(gaussian.sample(start, 200, rng)[0])
    fitted = model(start, max_iter=3).fit(X)

    resp = fitted.predict_proba(X)

    assert_allclose(resp.sum(axis=1), 1, atol=1e-12)
    assert_array_equal(fitted.predict(X), resp.argmax(axis=1))
    x = X[np.isnan(X).any(axis=1)][0]
    seen = ~np.isnan(x)
    expected = gaussian.responsibilities(marginal(fitted.mixture_, seen), x[None, seen])
    assert_allclose(fitted.predict_proba(x[None]), expected, atol=1e-12)


@pytest.mark.parametrize("covariance_type", COVARIANCE_TYPES)
def test_samples_of_which_nothing_was_observed_change_nothing(covariance_type):
    rng = np.random.default_rng(1)
    start = random_mixture(rng, 2, 3, covariance_type)
    X = with_holes(gaussian.sample(start, 100, rng)[0])
    weights = rng.uniform(1, 2, 100)
    expected = model(start, covariance_type=covariance_type, max_iter=4).fit(X, None, weights)

    more, more_weights = np.vstack([X, np.full((7, 3), np.nan)]), np.append(weights, np.ones(7))
    fitted = model(start, covariance_type=covariance_type, max_iter=4).fit(more, None, more_weights)

    assert_array_equal(fitted.means_, expected.means_)
    assert_array_equal(fitted.covariances_, expected.covariances_)
    assert fitted.score_samples(more[-1:]).item() == pytest.approx(0, abs=1e-12)


def test_one_component_without_correlation_has_the_observed_moments():
    X = with_holes(np.random.default_rng(2).normal(5, 3, size=(300, 4)))

    fitted = model(covariance_type="diag", reg_covar=0.0, max_iter=400).fit(X)

    assert_allclose(fitted.means_[0], np.nanmean(X, axis=0), atol=1e-9)
    assert_allclose(fitted.covariances_[0], np.nanvar(X, axis=0), rtol=1e-8)


def test_values_missing_at_random_do_not_bias_the_means():
    rng = np.random.default_rng(3)
    X = rng.standard_normal((5000, 1)) @ np.ones((1, 2)) + 0.3 * rng.standard_normal((5000, 2))
    X[X[:, 0] > 0, 1] = np.nan  # depends on what was observed

    fitted = model(max_iter=200).fit(X)

    assert np.nanmean(X[:, 1]) < -0.7
    # The standard error of the mean, where half of a feature is missing, is about 0.02.
    assert abs(fitted.means_[0, 1]) < 0.1


@pytest.mark.parametrize("covariance_type", COVARIANCE_TYPES)
def test_a_sample_weight_says_how_often_a_sample_counts(covariance_type):
    rng = np.random.default_rng(4)
    start = random_mixture(rng, 2, 2, covariance_type)
    X = with_holes(gaussian.sample(start, 80, rng)[0])
    counts = rng.integers(1, 4, 80)
    params = {"covariance_type": covariance_type, "max_iter": 4}
    repeated = model(start, **params).fit(np.repeat(X, counts, axis=0))

    weighted = model(start, **params).fit(X, sample_weight=counts)

    assert_allclose(weighted.means_, repeated.means_, rtol=1e-9, atol=1e-12)
    assert_allclose(weighted.covariances_, repeated.covariances_, rtol=1e-9, atol=1e-12)


def test_far_origins_and_unequal_units_change_nothing_but_units():
    rng = np.random.default_rng(5)
    start = random_mixture(rng, 2, 2)
    X = with_holes(gaussian.sample(start, 150, rng)[0])
    near = model(start, reg_covar=0.0, max_iter=5).fit(X)
    units, offset = np.array([1e-2, 1e2]), np.array([1e2, -1e6])
    covariances = start.covariances * np.outer(units, units)
    moved = Mixture(start.weights, start.means * units + offset, covariances)

    far = model(moved, reg_covar=0.0, max_iter=5).fit(X * units + offset)

    assert_allclose((far.means_ - offset) / units, near.means_, atol=1e-6)
    assert_allclose(far.covariances_ / np.outer(units, units), near.covariances_, rtol=1e-6)


@pytest.mark.parametrize("covariance_type", ["full", "diag"])
def test_a_start_that_is_far_too_wide_costs_no_digits(covariance_type):
    rng = np.random.default_rng(9)
    X = rng.standard_normal((300, 3)) * [1e-6, 1.0, 1e6]
    wide = np.stack([X.var() * np.eye(3)] * 2)
    start = Mixture(np.full(2, 0.5), X[[0, 1]], wide)
    params = {"covariance_type": covariance_type, "reg_covar": 0.0, "max_iter": 1}

    em, missing = (model(start, name, **params).fit(X) for name in ("em", "missing-em"))

    assert missing.score(X) == pytest.approx(em.score(X), rel=1e-9)


def test_starts_of_its_own_and_float32_fit_data_with_holes():
    rng = np.random.default_rng(6)
    truth = Mixture(np.full(2, 0.5), np.array([[0.0, 0, 0], [9, 9, 9]]), np.stack([np.eye(3)] * 2))
    X = with_holes(gaussian.sample(truth, 300, rng)[0]).astype(np.float32)

    fitted = model(n_components=2, n_init=2, max_iter=30).fit(X)

    assert fitted.means_.dtype == np.float32
    assert_allclose(np.sort(fitted.means_[:, 0]), [0, 9], atol=0.5)


def test_a_feature_that_was_never_observed_is_refused_by_its_number():
    X = np.ones((6, 3))
    X[:, 1] = np.nan

    with pytest.raises(ValueError, match="feature 1 is NaN in all 6 samples"):
        model().fit(X)


def test_infinity_is_no_missing_value():
    X = np.ones((6, 2))
    X[2, 1] = np.inf

    with pytest.raises(ValueError, match="infinity"):
        model().fit(X)
