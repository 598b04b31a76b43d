"""The deterministic specification: its worked example to every digit, and its laws."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from strategies import exact_log_joint, law, permuted, problems, random_mixture, seeds

from embench import gaussian, make_model
from embench.models import spec
from embench.types import Mixture

# The worked example, computed once by the specification's public original and once by an
# independent float64 program. Numbers below are printed by them to 12 decimals (10 for the
# gradients), so that a tolerance of one unit of the last decimal allows for rounding alone.
X = np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0], [4.0, 4.0], [5.0, 4.0], [4.0, 5.0]])
START = Mixture(
    weights=np.array([0.4, 0.6]),
    means=np.array([[0.0, 0.0], [4.0, 4.0]]),
    covariances=np.array([[[2.0, 0.5], [0.5, 1.0]], [[1.0, -0.3], [-0.3, 2.0]]]),
)


@pytest.mark.parametrize(
    ("x", "expected"),
    [
        ((1.0, 0.0), (-3.319689977965, -13.457594625341)),
        ((2.0, 2.0), (-5.319689977965, -6.441887819058)),
    ],
)
def test_worked_example_forward(x, expected):
    joint = spec.forward(START, np.array(x))

    assert_allclose(joint, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("x", "expected"),
    [
        ((1.0, 0.0), (0.999960449974, 0.000039550026)),
        ((2.0, 2.0), (0.754396165791, 0.245603834209)),
    ],
)
def test_worked_example_responsibilities(x, expected):
    resp = spec.responsibilities(START, np.array(x))

    assert_allclose(resp, expected, rtol=0, atol=1e-12)


def test_worked_example_total_nll():
    assert spec.total_nll(START, X) == pytest.approx(18.761018380952, rel=0, abs=1e-12)


def test_worked_example_gradients():
    gradients = spec.forward_vjp(START, np.array([2.0, 2.0]), g=np.array([1.0, -2.0]))

    assert_allclose(gradients.weights, [2.5, -3.33333333], rtol=0, atol=1e-8)
    means = [[0.5714285714, 1.7142857143], [4.8167539267, 2.7225130890]]
    assert_allclose(gradients.means, means, rtol=0, atol=1e-10)
    first = [[-0.1224489796, 0.6326530612], [0.6326530612, 0.8979591837]]
    second = [[-4.7531591788, -3.1213508402], [-3.1213508402, -1.3294591705]]
    assert_allclose(gradients.covariances, [first, second], rtol=0, atol=1e-10)
    assert_allclose(gradients.x, [-5.3881824981, -4.4367988033], rtol=0, atol=1e-10)


def test_worked_example_em_step():
    after = spec.em_step(START, X)

    assert_allclose(after.weights, [0.500009673408, 0.499990326592], rtol=0, atol=1e-12)
    assert_allclose(after.means[0], [0.333465636932, 0.333466556891], rtol=0, atol=1e-12)
    covariance = [[0.222773346661, -0.110589531748], [-0.110589531748, 0.222698006364]]
    assert_allclose(after.covariances[0], covariance, rtol=0, atol=1e-12)


def test_worked_example_tells_new_means_from_old_ones():
    resp = gaussian.responsibilities(START, X)[:, 0]
    about_the_old_mean = (resp * X[:, 0] ** 2).sum() / resp.sum() + spec.JITTER

    covariance = spec.em_step(START, X).covariances[0, 0, 0]

    assert about_the_old_mean == pytest.approx(0.333972677, abs=1e-9)
    assert covariance < about_the_old_mean - 0.1


def test_worked_example_nll_after_each_step():
    mixture, nlls = START, []

    for _ in range(10):
        mixture = spec.em_step(mixture, X)
        nlls.append(spec.total_nll(mixture, X))

    assert nlls[0] == pytest.approx(11.298713308, rel=0, abs=1e-9)
    assert_allclose(nlls[1:], 11.298634884, rtol=0, atol=1e-9)


@law
@given(problems())
def test_forward_is_the_judges_log_joint(problem):
    mixture, samples = problem

    joint = spec.forward(mixture, samples)

    assert_allclose(joint, gaussian.log_joint(mixture, samples), rtol=1e-10, atol=1e-10)
    assert_allclose(joint[0], spec.forward(mixture, samples[0]), rtol=1e-13)


def test_forward_agrees_with_exact_fractions():
    exact = [
        [exact_log_joint(*component, x) for component in zip(*vars(START).values(), strict=True)]
        for x in X
    ]

    assert_allclose(spec.forward(START, X), exact, rtol=1e-14)


@law
@given(problems())
def test_total_nll_is_a_sum_over_samples(problem):
    mixture, samples = problem

    total = spec.total_nll(mixture, samples)

    assert total == pytest.approx(-len(samples) * gaussian.log_likelihood(mixture, samples))


@law
@given(problems(max_components=3, max_features=3), seeds)
def test_gradients_are_those_of_central_differences(problem, seed):
    mixture, samples = problem
    x, g = samples[0], np.random.default_rng(seed).standard_normal(mixture.n_components)

    gradients = spec.forward_vjp(mixture, x, g)

    at = (mixture.weights, mixture.means, mixture.covariances, x)

    def weighted_sum(weights, means, covariances, x):
        return g @ spec.forward(Mixture(weights, means, covariances), x)

    for i, gradient in enumerate(gradients):
        differences = central_differences(
            lambda part, i=i: weighted_sum(*at[:i], part, *at[i + 1 :]), at[i]
        )
        # Steps of 1e-5 leave a truncation near 1e-10 and a rounding near 1e-11 times the value.
        assert_allclose(gradient, differences, rtol=1e-6, atol=1e-6)


def central_differences(function, at, step=1e-5):
    gradient = np.empty_like(at)
    for index in np.ndindex(at.shape):
        change = np.zeros_like(at)
        change[index] = step
        gradient[index] = (function(at + change) - function(at - change)) / (2 * step)
    return gradient


@law
@given(problems())
def test_em_step_takes_the_weighted_moments(problem):
    mixture, samples = problem
    resp = gaussian.responsibilities(mixture, samples)

    after = spec.em_step(mixture, samples)

    assert_allclose(after.weights, resp.mean(axis=0), rtol=1e-12)
    for k, weights in enumerate(resp.T):
        covariance = np.atleast_2d(np.cov(samples.T, aweights=weights, ddof=0))
        assert_allclose(after.means[k], np.average(samples, axis=0, weights=weights), rtol=1e-9)
        assert_allclose(
            after.covariances[k],
            covariance + 1e-6 * np.eye(mixture.n_features),
            rtol=1e-9,
            atol=1e-12,
        )


@law
@given(problems())
def test_likelihood_never_falls(problem):
    mixture, samples = problem
    nlls = [spec.total_nll(mixture, samples)]

    for _ in range(10):
        mixture = spec.em_step(mixture, samples)
        nlls.append(spec.total_nll(mixture, samples))

    # The jitter of 1e-6 may cost its own square in units of the smallest variance, about 0.1.
    assert np.all(np.diff(nlls) <= 1e-9 * len(samples))


@law
@given(problems())
def test_em_step_knows_no_order(problem):
    mixture, samples = problem
    order = np.roll(np.arange(mixture.n_components), 1)
    after = permuted(spec.em_step(mixture, samples), order)

    other = spec.em_step(permuted(mixture, order), samples[::-1])

    assert_allclose(other.weights, after.weights, rtol=1e-12)
    assert_allclose(other.means, after.means, rtol=1e-9, atol=1e-12)
    assert_allclose(other.covariances, after.covariances, rtol=1e-9, atol=1e-12)


def test_an_empty_component_keeps_its_parameters_and_weights_sum_to_one():
    far = Mixture(np.array([0.5, 0.5]), np.array([[0.0], [1e3]]), np.array([[[1.0]], [[2.0]]]))
    samples = np.array([[-1.0], [1.0]])
    assert gaussian.responsibilities(far, samples)[:, 1].sum() == 0

    after = spec.em_step(far, samples)

    assert after.means[1, 0] == 1e3
    assert after.covariances[1, 0, 0] == 2.0, "an empty component gets no jitter"
    # Weights before renormalising are 1 (updated) and 0.5 (kept).
    assert_allclose(after.weights, [2 / 3, 1 / 3], rtol=1e-15)
    assert after.covariances[0, 0, 0] == pytest.approx(1.0 + 1e-6, rel=1e-12)


def test_a_component_with_next_to_no_samples_is_not_empty():
    # exp(-37^2 / 2) is about 1e-297: tiny, and yet more than nothing.
    far = Mixture(np.array([0.5, 0.5]), np.array([[0.0], [37.0]]), np.ones((2, 1, 1)))
    samples = np.zeros((2, 1))
    assert 0 < gaussian.responsibilities(far, samples)[:, 1].sum() < 1e-290

    after = spec.em_step(far, samples)

    assert after.means[1, 0] == 0.0
    assert after.covariances[1, 0, 0] == spec.JITTER
    assert 0 < after.weights[1] < 1e-290


# Six weights of 1/6 do not sum to exactly 1: dividing by their sum would change them.
@pytest.mark.parametrize("mixture", [START, spec.symmetric_start(6, 2)], ids=["two", "six"])
def test_no_samples_leave_the_mixture_unchanged(mixture):
    after = spec.em_step(mixture, X[:0])

    for kept, before in zip(vars(after).values(), vars(mixture).values(), strict=True):
        assert_array_equal(kept, before)


def test_em_step_leaves_its_input_alone():
    before = [array.copy() for array in vars(START).values()]

    spec.em_step(START, X)

    for array, copy in zip(vars(START).values(), before, strict=True):
        assert_array_equal(array, copy)


@law
@given(st.integers(2, 5), st.integers(1, 3), seeds)
def test_a_symmetric_start_never_separates(n_components, n_features, seed):
    samples = np.random.default_rng(seed).standard_normal((40, n_features))
    samples[:20] += 10.0

    model = make_model("spec-em", n_components=n_components, max_iter=20).fit(samples)

    assert_allclose(model.weights_, 1 / n_components, rtol=1e-12)
    assert_allclose(model.means_, np.tile(samples.mean(axis=0), (n_components, 1)), rtol=1e-9)
    assert_allclose(model.covariances_, model.covariances_[[0] * n_components], rtol=1e-9)


def refused():
    w, m, S = START.weights, START.means, START.covariances
    asymmetric = S + np.array([[0.0, 0.1], [0.0, 0.0]])
    return {
        "sum": (np.array([0.4, 0.5]), m, S, "sum to 1, got a sum of 0.9"),
        "zero weight": (np.array([0.0, 1.0]), m, S, "positive weights, got 0"),
        "negative weight": (np.array([-0.2, 1.2]), m, S, "positive weights, got -0.2"),
        "nan weight": (np.array([np.nan, 1.0]), m, S, "positive weights, got nan"),
        "zero variance": (np.ones(1), np.zeros((1, 1)), np.zeros((1, 1, 1)), "eigenvalue 0 "),
        "negative": (np.ones(1), np.zeros((1, 2)), -np.eye(2)[None], "eigenvalue -1 "),
        "indefinite": (w, m, np.array([np.eye(2), [[1, 2], [2, 1]]]), "-1 for component 1"),
        "asymmetric": (w, m, asymmetric, "symmetric covariances"),
        "missing weight": (np.ones(1), m, S, r"weights \(2,\)"),
        "missing covariance": (w, m, S[:1], r"covariances \(2, 2, 2\)"),
    }


@pytest.mark.parametrize("case", refused())
def test_what_is_no_mixture_is_refused_with_what_came(case):
    weights, means, covariances, sentence = refused()[case]
    model = make_model("spec-em", n_components=len(means))
    model.start_from(Mixture(weights, means, covariances))

    with pytest.raises(ValueError, match=sentence):
        model.fit(np.random.default_rng(0).standard_normal((9, means.shape[1])))


@pytest.mark.parametrize("n_components", range(1, 30))
def test_equal_weights_are_accepted_though_their_sum_is_not_exactly_one(n_components):
    weights = np.full(n_components, 1 / n_components)
    mixture = Mixture(weights, np.zeros((n_components, 1)), np.ones((n_components, 1, 1)))

    spec.check(mixture)

    if n_components in (6, 7, 9, 10, 11, 13):
        assert sum(weights.tolist()) != 1, "the case that an exact comparison would refuse"


@pytest.mark.parametrize("n_components", range(6, 14))
def test_the_default_start_is_accepted(n_components):
    samples = np.random.default_rng(0).standard_normal((30, 2))

    model = make_model("spec-em", n_components=n_components, max_iter=1).fit(samples)

    assert model.weights_.sum() == pytest.approx(1.0)


@pytest.mark.parametrize("max_iter", [0, 1, 17])
def test_fit_is_a_fixed_number_of_steps(max_iter):
    model = make_model("spec-em", n_components=2, max_iter=max_iter).start_from(START)
    expected = START
    for _ in range(max_iter):
        expected = spec.em_step(expected, X)

    model.fit(X)

    assert model.n_iter_ == max_iter
    assert_array_equal(model.means_, expected.means)
    assert_array_equal(model.covariances_, expected.covariances)
    assert_array_equal(model.weights_, expected.weights)


def test_fit_uses_no_randomness():
    mixture = random_mixture(np.random.default_rng(2), 3, 2)
    samples = np.random.default_rng(3).standard_normal((50, 2))

    one = make_model("spec-em", n_components=3, random_state=1).start_from(mixture).fit(samples)
    two = make_model("spec-em", n_components=3, random_state=2).start_from(mixture).fit(samples)

    assert_array_equal(one.means_, two.means_)
    assert_array_equal(one.covariances_, two.covariances_)


@pytest.mark.parametrize("shape", [(3,), (4, 3), (2, 4, 2)])
def test_samples_of_another_shape_are_refused(shape):
    with pytest.raises(ValueError, match="got shape"):
        spec.forward(START, np.zeros(shape))
