"""The judge, held against what does not know it: SciPy, exact fractions and numerical integrals."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from numpy.testing import assert_allclose, assert_array_equal
from scipy import stats
from scipy.integrate import quad
from strategies import exact_log_joint, law, permuted, problems, random_mixture

from embench import gaussian
from embench.types import Mixture


def scipy_log_joint(mixture, X):
    return np.column_stack(
        [
            np.log(weight) + stats.multivariate_normal(mean, covariance).logpdf(X)
            for weight, mean, covariance in zip(
                mixture.weights, mixture.means, mixture.covariances, strict=True
            )
        ]
    )


@pytest.fixture
def mixture():
    return random_mixture(np.random.default_rng(0), n_components=3, n_features=2)


@law
@given(problems())
def test_log_joint_is_log_weight_plus_scipys_log_density(problem):
    mixture, X = problem

    joint = gaussian.log_joint(mixture, X)

    assert joint.shape == (len(X), mixture.n_components)
    assert_allclose(joint, scipy_log_joint(mixture, X), rtol=1e-10, atol=1e-10)


@law
@given(problems())
def test_log_likelihood_is_the_mean_log_of_the_summed_densities(problem):
    mixture, X = problem

    mean = gaussian.log_likelihood(mixture, X)

    densities = np.exp(scipy_log_joint(mixture, X)).sum(axis=1)
    assert_allclose(gaussian.log_likelihoods(mixture, X), np.log(densities), rtol=1e-10)
    assert mean == pytest.approx(np.log(densities).mean(), rel=1e-12)


@pytest.mark.parametrize("condition", [1e0, 1e4, 1e8])
def test_log_joint_keeps_its_digits_where_the_covariance_is_ill_conditioned(condition):
    rotation = np.linalg.qr(np.random.default_rng(1).standard_normal((3, 3))).Q
    covariance = rotation @ np.diag([1.0, 0.5, 1.0 / condition]) @ rotation.T
    covariance = (covariance + covariance.T) / 2
    mixture = Mixture(np.array([0.25]), np.array([[0.5, -1.0, 2.0]]), covariance[None])
    X = np.array([[0.5, -1.0, 2.0], [1.0, 1.0, 1.0], [-4.0, 0.0, 3.0]])

    joint = gaussian.log_joint(mixture, X)[:, 0]

    exact = [exact_log_joint(0.25, mixture.means[0], covariance, x) for x in X]
    # A backward stable solve loses a factor of the condition number, here with room for 10 more.
    assert_allclose(joint, exact, rtol=10 * condition * np.finfo(float).eps)


def test_density_integrates_to_one_in_one_dimension():
    mixture = random_mixture(np.random.default_rng(3), n_components=3, n_features=1)

    total, _ = quad(
        lambda x: float(np.exp(gaussian.log_likelihoods(mixture, np.array([[x]])))[0]),
        -20,
        20,
        points=mixture.means[:, 0],
    )

    assert total == pytest.approx(1.0, abs=1e-8)


def test_density_integrates_to_one_in_two_dimensions(mixture):
    # The trapezoid rule is exact to rounding for a smooth density that vanishes at the border.
    axis = np.linspace(-15.0, 15.0, 301)
    grid = np.stack(np.meshgrid(axis, axis), axis=-1).reshape(-1, 2)

    total = np.exp(gaussian.log_likelihoods(mixture, grid)).sum() * (axis[1] - axis[0]) ** 2

    assert total == pytest.approx(1.0, abs=1e-9)


@law
@given(problems())
def test_responsibilities_are_shares_of_the_density(problem):
    mixture, X = problem

    resp = gaussian.responsibilities(mixture, X)

    densities = np.exp(scipy_log_joint(mixture, X))
    assert_allclose(resp.sum(axis=1), 1.0, rtol=1e-14)
    assert_allclose(resp, densities / densities.sum(axis=1, keepdims=True), rtol=1e-9, atol=1e-300)


def test_far_from_every_component_nothing_underflows(mixture):
    X = np.array([[1e3, 0.0], [0.0, -1e6]])

    resp = gaussian.responsibilities(mixture, X)

    assert_allclose(resp.sum(axis=1), 1.0, rtol=1e-14)
    assert np.all(np.isfinite(gaussian.log_likelihoods(mixture, X)))


@law
@given(problems())
def test_scaling_by_c_shifts_the_log_density_by_minus_n_features_log_c(problem):
    mixture, X = problem
    c = 37.0
    scaled = Mixture(mixture.weights, c * mixture.means, c**2 * mixture.covariances)

    joint = gaussian.log_joint(scaled, c * X)

    expected = gaussian.log_joint(mixture, X) - mixture.n_features * np.log(c)
    assert_allclose(joint, expected, rtol=1e-11, atol=1e-11)


@law
@given(problems())
def test_order_of_components_is_only_the_order_of_columns(problem):
    mixture, X = problem
    order = np.roll(np.arange(mixture.n_components), 1)

    joint = gaussian.log_joint(permuted(mixture, order), X)

    assert_array_equal(joint, gaussian.log_joint(mixture, X)[:, order])


@pytest.mark.parametrize("offset", [1e6, 2.0**27])
def test_an_offset_changes_nothing_where_it_is_exact(offset):
    # Multiples of 2^-20 below 2^28 have 48 bits, so that adding the offset rounds nothing.
    rng = np.random.default_rng(5)
    means = np.round(rng.standard_normal((3, 2)) * 2**20) / 2**20
    X = np.round(rng.standard_normal((50, 2)) * 2**20) / 2**20
    covariances = random_mixture(rng, 3, 2).covariances
    here = Mixture(np.full(3, 1 / 3), means, covariances)
    there = Mixture(np.full(3, 1 / 3), means + offset, covariances)

    joint = gaussian.log_joint(there, X + offset)

    assert_array_equal(joint, gaussian.log_joint(here, X))


@pytest.mark.parametrize("rows", [1, 7, 50, 51, 10**6])
def test_block_size_changes_no_likelihood(mixture, monkeypatch, rows):
    X = np.random.default_rng(6).standard_normal((50, 2))
    expected = np.log(np.exp(scipy_log_joint(mixture, X)).sum(axis=1))

    monkeypatch.setattr(gaussian, "ROWS", rows)

    assert_allclose(gaussian.log_likelihoods(mixture, X), expected, rtol=1e-12)
    assert gaussian.log_likelihood(mixture, X) == pytest.approx(expected.mean(), rel=1e-12)


def test_more_samples_than_a_block_are_all_counted(mixture):
    X = np.random.default_rng(7).standard_normal((gaussian.ROWS + 3, 2))

    likelihoods = gaussian.log_likelihoods(mixture, X)

    assert_array_equal(likelihoods[-3:], gaussian.log_likelihoods(mixture, X[-3:]))
    assert len(likelihoods) == len(X)


def test_no_samples_have_no_likelihoods(mixture):
    likelihoods = gaussian.log_likelihoods(mixture, np.empty((0, 2)))

    assert likelihoods.shape == (0,)


def test_float32_samples_are_judged_in_float64(mixture):
    X = np.random.default_rng(8).standard_normal((20, 2)).astype(np.float32)

    joint = gaussian.log_joint(mixture, X)

    assert joint.dtype == np.float64
    assert_array_equal(joint, gaussian.log_joint(mixture, X.astype(np.float64)))


def test_a_weight_of_zero_gives_minus_infinity_and_takes_no_part(mixture):
    X = np.random.default_rng(9).standard_normal((20, 2))
    other = Mixture(mixture.weights[1:] / mixture.weights[1:].sum(), *without_first(mixture))
    weights = np.concatenate([[0.0], other.weights])

    dead = Mixture(weights, mixture.means, mixture.covariances)

    assert np.all(gaussian.log_joint(dead, X)[:, 0] == -np.inf)
    assert_array_equal(gaussian.responsibilities(dead, X)[:, 0], np.zeros(20))
    assert gaussian.log_likelihood(dead, X) == pytest.approx(
        gaussian.log_likelihood(other, X), rel=1e-14
    )


def without_first(mixture):
    return mixture.means[1:], mixture.covariances[1:]


@pytest.mark.parametrize("shape", [(5,), (5, 3), (5, 1), (2, 5, 2), ()])
def test_samples_of_another_shape_are_refused_with_both_shapes(mixture, shape):
    with pytest.raises(ValueError, match=r"\(n_samples, 2\), got shape") as refusal:
        gaussian.log_joint(mixture, np.zeros(shape))

    assert str(shape) in str(refusal.value)


@pytest.mark.parametrize(
    "covariance", [np.zeros((2, 2)), -np.eye(2), np.array([[1.0, 2.0], [2.0, 1.0]])]
)
def test_a_covariance_that_is_not_positive_definite_is_refused(covariance):
    mixture = Mixture(np.ones(1), np.zeros((1, 2)), covariance[None])

    with pytest.raises(np.linalg.LinAlgError):
        gaussian.log_joint(mixture, np.zeros((1, 2)))


def test_samples_have_the_moments_and_frequencies_of_their_components(mixture):
    n_samples = 60_000

    X, labels = gaussian.sample(mixture, n_samples, np.random.default_rng(10))

    assert X.shape == (n_samples, 2)
    counts = np.bincount(labels, minlength=3)
    # Bounds are five standard errors: of a binomial count, a mean, and a second moment.
    errors = np.sqrt(n_samples * mixture.weights * (1 - mixture.weights))
    assert np.all(np.abs(counts - n_samples * mixture.weights) < 5 * errors)
    for k, covariance in enumerate(mixture.covariances):
        own, variances = X[labels == k], np.diag(covariance)
        assert np.all(
            np.abs(own.mean(axis=0) - mixture.means[k]) < 5 * np.sqrt(variances / counts[k])
        )
        second = np.sqrt((np.outer(variances, variances) + covariance**2) / counts[k])
        assert np.all(np.abs(np.cov(own.T) - covariance) < 5 * second)


def test_samples_score_their_own_mixture_at_its_entropy():
    mixture = random_mixture(np.random.default_rng(11), n_components=1, n_features=3)
    entropy = stats.multivariate_normal(mixture.means[0], mixture.covariances[0]).entropy()

    X, _ = gaussian.sample(mixture, 50_000, np.random.default_rng(12))

    # The log-density of a Gaussian has variance n_features / 2: five standard errors.
    assert abs(-gaussian.log_likelihood(mixture, X) - entropy) < 5 * np.sqrt(1.5 / 50_000)


def test_the_same_generator_gives_the_same_samples(mixture):
    first = gaussian.sample(mixture, 30, np.random.default_rng(13))
    second = gaussian.sample(mixture, 30, np.random.default_rng(13))
    other = gaussian.sample(mixture, 30, np.random.default_rng(14))

    assert_array_equal(first[0], second[0])
    assert_array_equal(first[1], second[1])
    assert not np.array_equal(first[0], other[0])


@pytest.mark.parametrize(
    ("weights", "covariance", "words"),
    [
        ([1.0, 1.0], np.eye(2), "weights sum to 2"),
        ([1.5, -0.5], np.eye(2), "a weight is -0.5"),
        ([np.nan, 1.0], np.eye(2), "weights are not finite"),
        ([0.5, 0.5], np.array([[1.0, 0.5], [0.2, 1.0]]), "not symmetric"),
    ],
)
def test_what_is_no_mixture_is_not_judged(weights, covariance, words):
    mixture = Mixture(np.array(weights), np.zeros((2, 2)), np.stack([covariance] * 2))

    with pytest.raises(ValueError, match=words):
        gaussian.check(mixture)
