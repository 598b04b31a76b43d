"""Annealing softens EM and ends as EM; splitting and merging leaves optima where EM stays."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from scipy.special import logsumexp
from strategies import COVARIANCE_TYPES, family_problems, law

from embench import gaussian, make_model
from embench.types import Mixture

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")

few = settings(law, max_examples=12)


def make(name, start, covariance_type="full", **params):
    """A model that begins at ``start``."""
    model = make_model(name, covariance_type=covariance_type, random_state=0, **params)
    return model.set_params(n_components=start.n_components).start_from(start)


def stuck():
    """Four clusters, and a start where EM stays: two components on one, one over two."""
    centres = np.array([[0.0, 0.0], [12.0, 0.0], [0.0, 12.0], [40.0, 40.0]])
    rng = np.random.default_rng(0)
    X = np.repeat(centres, 100, axis=0) + rng.standard_normal((400, 2))
    means = np.array([[6.0, 0.0], [0.0, 12.0], [39.5, 40.0], [40.5, 40.0]])
    return X, Mixture(np.full(4, 0.25), means, np.stack([4.0 * np.eye(2)] * 4))


def right_start(X):
    """A component on each cluster."""
    centres = X.reshape(4, 100, 2).mean(axis=1)
    return Mixture(np.full(4, 0.25), centres, np.stack([np.eye(2)] * 4))


# Annealing


@few
@given(family_problems)
def test_annealing_from_beta_one_is_em(problem):
    covariance_type, (start, X) = problem
    em = make("em", start, covariance_type, max_iter=30)
    model = make("annealed-em", start, covariance_type, beta_min=1.0, max_iter=30)

    for _ in zip(em.iter_fit(X), model.iter_fit(X), strict=True):
        for ours, theirs in zip(model._parameters(), em._parameters(), strict=True):
            assert_array_equal(ours, theirs)

    assert (model.n_iter_, model.converged_) == (em.n_iter_, em.converged_)
    assert model.lower_bounds_ == em.lower_bounds_


@few
@given(family_problems, st.sampled_from([0.2, 0.7]))
def test_what_annealing_raises_at_one_temperature_never_falls(problem, beta):
    covariance_type, (start, X) = problem
    model = make(
        "annealed-em", start, covariance_type, beta_min=beta, rate=1 + 1e-12, max_iter=10,
        reg_covar=0.0,
    )  # fmt: skip

    raised = [free_energy(model.mixture_, X, beta) for _ in model.iter_fit(X)]

    assert len(raised) == 11
    assert np.all(np.diff(raised) >= -1e-9)


def free_energy(mixture, X, beta):
    """1 / (n beta) sum_i log sum_k (w_k N(x_i))^beta, from the judge's densities."""
    K = mixture.n_components
    joint = [
        np.log(mixture.weights[k])
        + gaussian.log_likelihoods(
            Mixture(np.ones(1), mixture.means[[k]], mixture.covariances[[k]]), X
        )
        for k in range(K)
    ]
    return logsumexp(beta * np.array(joint), axis=0).mean() / beta


def test_bounds_are_log_likelihoods_at_every_temperature():
    X, start = stuck()
    model = make("annealed-em", start, beta_min=0.3, max_iter=10)

    judged = [gaussian.log_likelihood(model.mixture_, X) for _ in model.iter_fit(X)]

    assert_allclose(model.lower_bounds_, judged[:-1], rtol=1e-9)


def test_annealing_does_not_end_before_beta_is_one():
    X, start = stuck()
    hot = int(np.ceil(np.log(1 / 0.1) / np.log(1.1)))

    model = make("annealed-em", start, beta_min=0.1, tol=100.0).fit(X)

    assert model.converged_
    assert model.n_iter_ == hot + 1


@pytest.mark.parametrize("covariance_type", COVARIANCE_TYPES)
def test_annealing_ends_at_ems_optimum_where_clusters_are_clear(covariance_type):
    X, _ = stuck()
    start = right_start(X)
    params = {"max_iter": 300, "tol": 1e-10}
    em = make("em", start, covariance_type, **params).fit(X)

    model = make("annealed-em", start, covariance_type, beta_min=0.5, **params).fit(X)

    assert model.converged_
    assert model.score(X) == pytest.approx(em.score(X), abs=1e-8)


# Splitting and merging


@pytest.mark.parametrize("covariance_type", COVARIANCE_TYPES)
def test_splitting_and_merging_leaves_an_optimum_where_em_stays(covariance_type):
    X, start = stuck()
    best = make("em", right_start(X), covariance_type).fit(X).score(X)
    em = make("em", start, covariance_type, max_iter=500, tol=1e-6).fit(X)
    assert em.score(X) < best - 0.1, "EM is not stuck"

    model = make("split-merge-em", start, covariance_type).fit(X)

    assert model.score(X) == pytest.approx(best, abs=1e-3)


@few
@given(family_problems)
def test_splitting_and_merging_never_ends_below_em(problem):
    covariance_type, (start, X) = problem
    params = {"tol": 1e-5, "max_iter": 40}
    em = make("em", start, covariance_type, **params).fit(X)

    model = make("split-merge-em", start, covariance_type, n_candidates=2, **params).fit(X)

    assert gaussian.log_likelihood(model.mixture_, X) >= (
        gaussian.log_likelihood(em.mixture_, X) - 1e-9
    )


@few
@given(family_problems)
def test_the_judge_never_sees_the_likelihood_fall(problem):
    covariance_type, (start, X) = problem
    model = make(
        "split-merge-em", start, covariance_type, n_candidates=2, max_iter=15, reg_covar=0.0
    )

    likelihoods = [gaussian.log_likelihood(model.mixture_, X) for _ in model.iter_fit(X)]

    assert np.all(np.diff(likelihoods) >= -1e-9)


def test_candidates_that_fail_leave_the_mixture_as_it_was():
    X, _ = stuck()
    start = right_start(X)
    em = make("em", start).fit(X)
    model = make("split-merge-em", start)

    yields = list(model.iter_fit(X))

    assert len(yields) > em.n_iter_ + 1, "no candidate was tried"
    for ours, theirs in zip(model._parameters(), em._parameters(), strict=True):
        assert_array_equal(ours, theirs)
    assert (model.n_iter_, model.lower_bounds_) == (em.n_iter_, em.lower_bounds_)


def test_no_iterations_leave_the_start():
    X, start = stuck()

    model = make("split-merge-em", start, max_iter=0).fit(X)

    assert model.score(X) == pytest.approx(gaussian.log_likelihood(start, X), rel=1e-12)


@pytest.mark.parametrize(("n_components", "n_candidates"), [(1, 5), (2, 5), (4, 0)])
def test_without_candidates_it_is_em(n_components, n_candidates):
    X, _ = stuck()
    params = {"n_components": n_components, "random_state": 0}
    em = make_model("em", **params).fit(X)

    model = make_model("split-merge-em", n_candidates=n_candidates, **params).fit(X)

    assert model.lower_bounds_ == em.lower_bounds_
    assert_array_equal(model.means_, em.means_)


def test_samples_count_as_often_as_their_weights_in_splits_and_merges():
    X, start = stuck()
    weights = np.ones(400)
    weights[::7] = 3
    expected, model = (make("split-merge-em", start, tol=1e-6) for _ in range(2))
    all_of_it = list(expected.iter_fit(np.repeat(X, weights.astype(int), axis=0)))

    weighted = list(model.iter_fit(X, sample_weight=weights))

    assert weighted == all_of_it, "every way takes as many iterations"
    assert_allclose(model.means_, expected.means_, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", ["annealed-em", "split-merge-em"])
def test_float32_ends_close_to_float64(name):
    X, start = stuck()
    double = make(name, start).fit(X)

    single = make(name, start, dtype="float32").fit(X)

    assert single.score(X) == pytest.approx(double.score(X), abs=1e-3)


@pytest.mark.parametrize(
    ("name", "params"),
    [
        ("annealed-em", {"beta_min": 0.0}),
        ("annealed-em", {"rate": 1.0}),
        ("split-merge-em", {"n_candidates": -1}),
    ],
)
def test_a_parameter_that_makes_no_sense_is_refused(name, params):
    X, start = stuck()

    with pytest.raises(ValueError, match=f"'{next(iter(params))}' parameter"):
        make(name, start, **params).fit(X)
