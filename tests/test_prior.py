"""``map-em`` climbs the posterior, which keeps components from collapsing."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose
from scipy.stats import dirichlet, invgamma, invwishart, multivariate_normal
from strategies import (
    ALL_COVARIANCE_TYPES,
    assert_same,
    compact,
    family_problems,
    law,
    model_at,
    path,
    random_mixture,
    random_samples,
)

from embench import gaussian, make_model
from embench.models.engine import ILL_DEFINED
from embench.types import Mixture

# Most fits here stop after a given number of steps on purpose.
pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")

families = pytest.mark.parametrize("covariance_type", ALL_COVARIANCE_TYPES[:-1])


def log_prior(mixture, X, covariance_type, kappa=0.01, concentration=1.0):
    """Of Fraley and Raftery (2007), section 3, from SciPy's densities, in the units of X."""
    K, D = mixture.means.shape
    scatter, nu = np.atleast_2d(np.cov(X.T, ddof=0)) / K ** (2 / D), D + 2
    covariances = compact(mixture.covariances, covariance_type)
    if covariance_type == "full":
        of_covariances = sum(invwishart.logpdf(one, nu, scatter) for one in covariances)
    elif covariance_type == "tied":
        of_covariances = invwishart.logpdf(covariances, nu, scatter)
    else:
        scale = np.diag(scatter) if covariance_type == "diag" else np.diag(scatter).mean()
        of_covariances = invgamma.logpdf(covariances, nu / 2, scale=scale / 2).sum()
    of_means = sum(
        multivariate_normal.logpdf(mean, X.mean(axis=0), covariance / kappa)
        for mean, covariance in zip(mixture.means, mixture.covariances, strict=True)
    )
    of_weights = 0.0 if K == 1 else dirichlet.logpdf(mixture.weights, np.full(K, concentration))
    return of_covariances + of_means + of_weights


def log_posterior(mixture, X, covariance_type, strength=1.0, **prior):
    """Per sample, with a constant."""
    prior_part = strength * log_prior(mixture, X, covariance_type, **prior) / len(X)
    return gaussian.log_likelihood(mixture, X) + prior_part


@law
@given(family_problems, st.sampled_from([0.1, 1.0, 20.0]), st.sampled_from([1.0, 3.0]))
def test_the_posterior_never_falls(problem, strength, concentration):
    covariance_type, (start, X) = problem
    model = model_at(
        "map-em",
        start,
        covariance_type=covariance_type,
        prior_strength=strength,
        weight_concentration_prior=concentration,
        reg_covar=0.0,
        max_iter=10,
    )

    posteriors = [
        log_posterior(mixture, X, covariance_type, strength, concentration=concentration)
        for mixture in path(model, X)
    ]

    assert np.all(np.diff(posteriors) >= -1e-9)
    assert_allclose(np.diff(model.lower_bounds_), np.diff(posteriors[:-1]), atol=1e-9)


@families
@pytest.mark.parametrize("kappa", [0.01, 5.0])
def test_one_component_is_the_mode_of_its_posterior(covariance_type, kappa):
    rng = np.random.default_rng(0)
    start = random_mixture(rng, 1, 2, covariance_type)
    X = random_samples(rng, start, 30)
    params = {"covariance_type": covariance_type, "mean_precision_prior": kappa, "reg_covar": 0.0}

    mode = model_at("map-em", start, **params, max_iter=1).fit(X).mixture_

    highest = log_posterior(mode, X, covariance_type, kappa=kappa)
    others = [
        *(Mixture(mode.weights, mode.means, mode.covariances * by) for by in (0.99, 1.01)),
        *(Mixture(mode.weights, mode.means + by, mode.covariances) for by in (-0.01, 0.01)),
    ]
    for other in others:
        assert log_posterior(other, X, covariance_type, kappa=kappa) < highest


@law
@given(family_problems)
def test_a_vanishing_prior_is_none(problem):
    covariance_type, (start, X) = problem
    params = {"covariance_type": covariance_type, "max_iter": 5}
    expected = path(model_at("em", start, **params), X)

    found = path(model_at("map-em", start, **params, prior_strength=1e-12), X)

    for ours, theirs in zip(found, expected, strict=True):
        assert_same(ours, theirs, rtol=1e-8, atol=1e-8)


@families
def test_whole_sample_weights_are_repeated_samples(covariance_type):
    rng = np.random.default_rng(0)
    start = random_mixture(rng, 3, 2, covariance_type)
    X = random_samples(rng, start, 120)
    times = rng.integers(1, 4, size=120)
    params = {"covariance_type": covariance_type, "max_iter": 4}
    expected = model_at("map-em", start, **params).fit(np.repeat(X, times, axis=0))

    model = model_at("map-em", start, **params).fit(X, sample_weight=times)

    assert_same(model.mixture_, expected.mixture_)
    assert_allclose(model.lower_bounds_, expected.lower_bounds_, rtol=1e-10)


@pytest.mark.parametrize("covariance_type", ["full", "diag", "spherical"])
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_a_component_on_a_single_sample_does_not_collapse(covariance_type, dtype):
    rng = np.random.default_rng(0)
    X = np.vstack([rng.standard_normal((50, 2)), [[30.0, 30.0]]])
    start = Mixture(np.array([0.9, 0.1]), X[[0, -1]], np.stack([np.eye(2)] * 2))
    params = {"covariance_type": covariance_type, "reg_covar": 0.0, "dtype": dtype}
    with pytest.raises(ValueError, match=ILL_DEFINED[:40]):
        model_at("em", start, **params, max_iter=20).fit(X)

    mixture = model_at("map-em", start, **params, max_iter=20).fit(X).mixture_

    assert_allclose(mixture.means[1], [30.0, 30.0], rtol=0.01)
    assert np.linalg.eigvalsh(mixture.covariances[1]).min() > 1e-3


@families
def test_a_component_without_samples_is_the_prior(covariance_type):
    rng = np.random.default_rng(0)
    start = random_mixture(rng, 3, 2, covariance_type)
    X = random_samples(rng, start, 200)
    start.means[1] = 1e5
    params = {"covariance_type": covariance_type, "reg_covar": 0.0, "max_iter": 1}

    mixture = model_at("map-em", start, **params, weight_concentration_prior=2.0).fit(X).mixture_

    # One of 200 samples and three that the prior adds, one for each component.
    assert mixture.weights[1] == pytest.approx(1 / 203)
    assert_allclose(mixture.means[1], X.mean(axis=0), atol=1e-9)


SINGULAR = {
    "duplicates": np.repeat([[0.0, 0.0], [1.0, 3.0], [5.0, 2.0]], 10, axis=0),
    "fewer samples than features": np.random.default_rng(13).standard_normal((10, 30)),
    "a feature that does not vary": np.c_[
        np.random.default_rng(14).standard_normal(60), np.ones(60)
    ],
    "any": np.random.default_rng(15).standard_normal((300, 3)),
}


@pytest.mark.parametrize("init_params", ["kmeans", "k-means++", "random_from_data"])
@pytest.mark.parametrize("name", SINGULAR)
@families
def test_no_covariance_collapses_without_regularisation(covariance_type, name, init_params):
    params = {"covariance_type": covariance_type, "init_params": init_params, "n_components": 3}

    model = make_model("map-em", **params, reg_covar=0.0, random_state=0).fit(SINGULAR[name])

    assert np.isfinite(gaussian.log_likelihood(model.mixture_, SINGULAR[name]))


@law
@given(family_problems, st.sampled_from([1e-3, 7.0, 1e4]))
def test_scaling_the_data_scales_the_mixture(problem, c):
    covariance_type, (start, X) = problem
    params = {"covariance_type": covariance_type, "reg_covar": 0.0, "max_iter": 5}
    expected = model_at("map-em", start, **params).fit(X).mixture_

    scaled_start = Mixture(start.weights, c * start.means, c**2 * start.covariances)
    found = model_at("map-em", scaled_start, **params).fit(c * X).mixture_

    assert_same(
        Mixture(found.weights, found.means / c, found.covariances / c**2), expected, rtol=1e-8
    )


@pytest.mark.parametrize(
    "params",
    [
        {"prior_strength": 0.0},
        {"mean_precision_prior": 0.0},
        {"weight_concentration_prior": 0.5},
    ],
)
def test_a_prior_that_is_none_is_refused(params):
    model = make_model("map-em", **params)

    with pytest.raises(ValueError, match=f"'{next(iter(params))}' parameter"):
        model.fit(np.eye(4))
