"""Accelerated EM ends where EM ends, for fewer evaluations of its map, and never falls."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose
from strategies import COVARIANCE_TYPES, expand, family_problems, law, seeds

from embench import gaussian, make_model
from embench.models.engine import FAMILIES, Samples
from embench.models.variants.coordinates import to_parameters, to_vector
from embench.types import Mixture

ACCELERATED = ("squarem-em", "anderson-em", "over-relaxed-em")
COUNTED = (*ACCELERATED, "natural-gradient-em")

RESTING = 1e-7
"""Largest change that EM's map makes at its end, in free coordinates in units of the data."""

few = settings(law, max_examples=12)

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")


def make(name, start, covariance_type="full", **params):
    """A model that begins at ``start`` and runs all its steps."""
    model = make_model(name, covariance_type=covariance_type, **{"tol": 0.0, **params})
    return model.set_params(n_components=start.n_components).start_from(start)


def overlapping(separation, seed=0):
    """Three unit Gaussians, and a start near them: equal weights, covariance of the data."""
    means = np.array([[0.0, 0.0], [separation, 0.0], [0.0, separation]])
    rng = np.random.default_rng(seed)
    X = means[rng.integers(3, size=2000)] + rng.standard_normal((2000, 2))
    covariance = np.cov(X.T, ddof=0)
    return X, Mixture(np.full(3, 1 / 3), means + 0.3, np.stack([covariance] * 3))


def evaluations_to_rest(name, start, X):
    """How often EM's map is evaluated until it changes nothing, and the log-likelihood there."""
    model = make(name, start, reg_covar=0.0, max_iter=10_000)
    samples = Samples.of(X, FAMILIES["full"], 0.0)
    for n_iter in model.iter_fit(X):
        parameters = samples.frame.inward(model._parameters())
        log_likelihood, image = samples.em_step(parameters, 0.0)
        before, after = (
            to_vector(samples.frame.outward(one), samples.family) for one in (parameters, image)
        )
        if np.abs(after - before).max() < RESTING:
            # EM itself evaluates its map here once more, and shows the image.
            n_evaluations = n_iter + 1 if name == "em" else model.n_evaluations_
            return n_evaluations, float(log_likelihood)
    raise AssertionError("never came to rest")


# The coordinates


def inside(mixture, covariance_type, X):
    family = FAMILIES[covariance_type]
    samples = Samples.of(X, family)
    model = make("em", mixture, covariance_type, max_iter=0).fit(X)
    return family, samples.frame.inward(model._parameters())


@few
@given(family_problems)
def test_a_mixture_is_the_same_after_the_way_there_and_back(problem):
    covariance_type, (mixture, X) = problem
    family, parameters = inside(mixture, covariance_type, X)

    back = to_parameters(to_vector(parameters, family), parameters, family)

    for ours, theirs in zip(back, parameters, strict=True):
        assert ours.shape == theirs.shape
        assert_allclose(ours, theirs, rtol=1e-10, atol=1e-12)


@few
@given(family_problems, seeds, st.sampled_from([0.1, 1.0, 3.0]))
def test_every_vector_is_a_valid_mixture(problem, seed, scale):
    covariance_type, (mixture, X) = problem
    family, parameters = inside(mixture, covariance_type, X)
    K, D = mixture.means.shape
    vector = scale * np.random.default_rng(seed).standard_normal(
        K + K * D + family.n_parameters(K, D)
    )

    weights, means, covariances, factors = to_parameters(vector, parameters, family)

    assert weights.sum() == pytest.approx(1.0)
    assert (weights >= 0).all()
    for part in (means, covariances, factors):
        assert np.isfinite(part).all()
    variances = np.diagonal(expand(covariances, covariance_type, K, D), axis1=1, axis2=2)
    assert (variances > 0).all()


@few
@given(family_problems, seeds)
def test_a_vector_is_the_same_after_the_way_there_and_back(problem, seed):
    covariance_type, (mixture, X) = problem
    family, parameters = inside(mixture, covariance_type, X)
    K, D = mixture.means.shape
    vector = np.random.default_rng(seed).standard_normal(K + K * D + family.n_parameters(K, D))
    vector[:K] -= vector[:K].mean()

    back = to_vector(to_parameters(vector, parameters, family), family)

    assert_allclose(back, vector, rtol=1e-8, atol=1e-8)


@few
@given(
    family_problems, seeds, st.sampled_from([300.0, 1e200, np.inf]), st.sampled_from(ACCELERATED)
)
def test_mixtures_far_out_are_not_aimed_at(problem, seed, scale, name):
    covariance_type, (mixture, X) = problem
    model = make(name, mixture, covariance_type, max_iter=0).fit(X)
    samples = Samples.of(X, FAMILIES[covariance_type])
    here = model._evaluated(samples, samples.frame.inward(model._parameters()))
    direction = np.random.default_rng(seed).standard_normal(len(here.x))

    there = model._aimed(samples, here.x + scale * direction, here)

    assert there is None


# The optimum, and the way there


@pytest.mark.parametrize("covariance_type", COVARIANCE_TYPES)
@pytest.mark.parametrize("name", COUNTED)
def test_the_optimum_is_that_of_em(name, covariance_type):
    X, start = overlapping(3.0)
    covariance = {"full": start.covariances[0], "tied": start.covariances[0]}.get(
        covariance_type, 2.0 * np.eye(2)
    )
    start = Mixture(start.weights, start.means, np.stack([covariance] * 3))
    params = {"covariance_type": covariance_type, "reg_covar": 0.0, "max_iter": 250}
    expected = make("em", start, **params).fit(X)

    more = {"step": 0.8, "max_iter": 300} if name == "natural-gradient-em" else {"max_iter": 110}
    model = make(name, start, **{**params, **more}).fit(X)

    assert model.score(X) == pytest.approx(expected.score(X), abs=1e-9)
    assert_allclose(model.means_, expected.means_, atol=1e-4)


@few
@given(family_problems, st.sampled_from(COUNTED))
def test_the_judge_never_sees_the_likelihood_fall(problem, name):
    covariance_type, (start, X) = problem
    model = make(name, start, covariance_type, reg_covar=0.0, max_iter=12)

    likelihoods = [gaussian.log_likelihood(model.mixture_, X) for _ in model.iter_fit(X)]

    assert len(likelihoods) == 13
    assert np.all(np.diff(likelihoods) >= -1e-9)


@pytest.mark.parametrize("name", ACCELERATED)
def test_a_step_that_goes_too_far_is_not_taken(name):
    X, start = overlapping(1.0)
    model = make(name, start, reg_covar=0.0, max_iter=150)

    likelihoods = [gaussian.log_likelihood(model.mixture_, X) for _ in model.iter_fit(X)]

    cost = 2 if name == "squarem-em" else 1
    assert model.n_evaluations_ > cost * 150 + 1, "no step has failed"
    assert np.all(np.diff(likelihoods) >= -1e-9)


@pytest.mark.parametrize(
    ("name", "separation", "share"),
    [
        ("squarem-em", 4.0, 0.5),
        ("anderson-em", 4.0, 0.5),
        ("over-relaxed-em", 4.0, 0.5),
        ("squarem-em", 1.5, 0.2),
        ("anderson-em", 1.5, 0.1),
        ("over-relaxed-em", 1.5, 0.4),
    ],
)
def test_coming_to_rest_costs_a_share_of_what_em_needs(name, separation, share):
    X, start = overlapping(separation)
    expected, optimum = rest_of_em(separation)

    needed, log_likelihood = evaluations_to_rest(name, start, X)

    assert needed <= share * expected
    assert log_likelihood == pytest.approx(optimum, abs=1e-6)


@cache
def rest_of_em(separation):
    X, start = overlapping(separation)
    return evaluations_to_rest("em", start, X)


@pytest.mark.parametrize("name", COUNTED)
def test_evaluations_of_all_restarts_are_counted_anew_by_each_fit(name):
    X, start = overlapping(4.0)
    model = make(name, start, max_iter=3)
    once = model.fit(X).n_evaluations_

    again = model.fit(X).n_evaluations_
    thrice = model.set_params(n_init=3).fit(X).n_evaluations_

    assert once >= 3
    assert (again, thrice) == (once, 3 * once)


@pytest.mark.parametrize("name", COUNTED)
def test_each_sample_counts_as_often_as_its_weight(name):
    X, start = overlapping(4.0)
    weights = np.random.default_rng(0).integers(0, 3, len(X))
    expected = make(name, start, max_iter=5).fit(np.repeat(X, weights, axis=0))

    model = make(name, start, max_iter=5).fit(X, sample_weight=weights)

    assert_allclose(model.means_, expected.means_, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("name", COUNTED)
def test_float32_ends_close_to_float64(name):
    X, start = overlapping(3.0)
    double = make(name, start, max_iter=60).fit(X)

    single = make(name, start, max_iter=60, dtype="float32").fit(X)

    assert gaussian.log_likelihood(single.mixture_, X) == pytest.approx(
        gaussian.log_likelihood(double.mixture_, X), abs=1e-4
    )


# The step size


@few
@given(family_problems)
def test_a_natural_gradient_step_of_one_is_an_em_step(problem):
    covariance_type, (start, X) = problem
    params = {"covariance_type": covariance_type, "max_iter": 5}
    stream = make("em", start, **params)
    model = make("natural-gradient-em", start, step=1.0, **params)

    for _ in zip(stream.iter_fit(X), model.iter_fit(X), strict=True):
        for ours, theirs in zip(model._parameters(), stream._parameters(), strict=True):
            assert_allclose(ours, theirs, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("covariance_type", COVARIANCE_TYPES)
def test_a_natural_gradient_step_stays_where_regularised_em_stays(covariance_type):
    X, _ = overlapping(4.0)
    params = {"covariance_type": covariance_type, "reg_covar": 0.5, "tol": 0.0}
    em = make_model("em", n_components=3, random_state=0, max_iter=1000, **params).fit(X)

    model = make("natural-gradient-em", em.mixture_, step=0.3, max_iter=5, **params).fit(X)

    for ours, theirs in zip(model._parameters(), em._parameters(), strict=True):
        assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)


@few
@given(family_problems, st.sampled_from([0.1, 0.7]))
def test_expectation_parameters_go_a_share_of_the_way(problem, step):
    covariance_type, (start, X) = problem
    params = {"covariance_type": covariance_type, "max_iter": 1, "reg_covar": 0.0}
    whole = make("em", start, **params).fit(X)

    model = make("natural-gradient-em", start, step=step, **params).fit(X)

    weights = (1 - step) * start.weights + step * whole.weights_
    firsts = (1 - step) * start.weights[:, None] * start.means
    firsts = firsts + step * whole.weights_[:, None] * whole.means_
    assert_allclose(model.weights_, weights, rtol=1e-9, atol=1e-12)
    assert_allclose(model.means_, firsts / weights[:, None], rtol=1e-8, atol=1e-9)
    assert_allclose(
        second_moment(model.mixture_),
        (1 - step) * second_moment(start) + step * second_moment(whole.mixture_),
        rtol=1e-8, atol=1e-8,
    )  # fmt: skip


def second_moment(mixture):
    """Mean of what every family keeps of x x': its trace."""
    traces = np.trace(mixture.covariances, axis1=1, axis2=2) + (mixture.means**2).sum(1)
    return mixture.weights @ traces


@pytest.mark.parametrize(
    ("name", "params"),
    [
        ("natural-gradient-em", {"step": 0.0}),
        ("natural-gradient-em", {"step": 1.5}),
        ("over-relaxed-em", {"growth": 1.0}),
        ("anderson-em", {"memory": 0}),
    ],
)
def test_a_step_that_makes_no_sense_is_refused(name, params):
    X, start = overlapping(4.0)

    with pytest.raises(ValueError, match=f"'{next(iter(params))}' parameter"):
        make(name, start, **params).fit(X)
