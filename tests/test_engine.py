"""The torch kernels against the judge, the specification and textbook sums, in all families."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from strategies import (
    COVARIANCE_TYPES,
    compact,
    covariance_types,
    expand,
    law,
    permuted,
    problems,
    random_mixture,
    random_samples,
    seeds,
)

from embench import gaussian
from embench.models import engine, spec
from embench.models.engine import FAMILIES, Parameters
from embench.types import Mixture

family_problems = covariance_types.flatmap(
    lambda family: st.tuples(st.just(family), problems(family))
)


def parameters(mixture, covariance_type, dtype=torch.float64):
    """A mixture as the engine wants it."""
    covariances = torch.as_tensor(compact(mixture.covariances, covariance_type), dtype=dtype)
    return Parameters(
        torch.as_tensor(mixture.weights, dtype=dtype),
        torch.as_tensor(mixture.means, dtype=dtype),
        covariances,
        FAMILIES[covariance_type].precisions_cholesky(covariances),
    )


def as_mixture(fitted, covariance_type):
    """The engine's mixture as the judge wants it."""
    weights, means, covariances = (tensor.double().numpy() for tensor in fitted[:3])
    return Mixture(weights, means, expand(covariances, covariance_type, *means.shape))


def step(X, mixture, covariance_type, reg_covar=1e-6):
    """One step of the engine: the bound before it, and the mixture after it."""
    bound, fitted = engine.em_step(
        torch.as_tensor(X),
        parameters(mixture, covariance_type),
        FAMILIES[covariance_type],
        reg_covar,
    )
    return float(bound), as_mixture(fitted, covariance_type)


def textbook_step(X, mixture, covariance_type, reg_covar):
    """Bishop, eq. 9.23 to 9.27, sample by sample; the families average the full covariances."""
    resp = gaussian.responsibilities(mixture, X)
    counts = resp.sum(axis=0)
    means = np.array([sum(r * x for r, x in zip(own, X, strict=True)) for own in resp.T])
    means /= counts[:, None]
    full = np.array(
        [
            sum(r * np.outer(x - mean, x - mean) for r, x in zip(own, X, strict=True)) / count
            for own, mean, count in zip(resp.T, means, counts, strict=True)
        ]
    )
    if covariance_type == "tied":
        full = np.stack([np.tensordot(counts / len(X), full, axes=1)] * len(counts))
    shaped = expand(compact(full, covariance_type), covariance_type, *means.shape)
    return Mixture(counts / len(X), means, shaped + reg_covar * np.eye(X.shape[1]))


def assert_same(one, other, rtol=1e-10, atol=1e-10):
    for a, b in zip(vars(one).values(), vars(other).values(), strict=True):
        assert_allclose(a, b, rtol=rtol, atol=atol)


@law
@given(family_problems)
def test_log_joint_is_the_judges(problem):
    covariance_type, (mixture, X) = problem

    joint = engine.log_joint(
        torch.as_tensor(X), parameters(mixture, covariance_type), FAMILIES[covariance_type]
    )

    assert joint.shape == (mixture.n_components, len(X))
    assert_allclose(joint.mT.numpy(), gaussian.log_joint(mixture, X), rtol=1e-10, atol=1e-10)


@law
@given(family_problems)
def test_bound_is_the_judges_mean_log_likelihood_before_the_step(problem):
    covariance_type, (mixture, X) = problem

    bound, _ = step(X, mixture, covariance_type)

    assert bound == pytest.approx(gaussian.log_likelihood(mixture, X), rel=1e-12)


@law
@given(family_problems)
def test_counts_are_the_judges_summed_responsibilities(problem):
    covariance_type, (mixture, X) = problem

    statistics = engine.e_step(
        torch.as_tensor(X), parameters(mixture, covariance_type), FAMILIES[covariance_type]
    )

    expected = gaussian.responsibilities(mixture, X).sum(axis=0)
    assert_allclose(statistics.counts.numpy(), expected, rtol=1e-10)
    assert float(statistics.counts.sum()) == pytest.approx(len(X), rel=1e-13)


@law
@given(family_problems, st.sampled_from([0.0, 1e-6, 0.3]))
def test_a_step_is_the_textbooks(problem, reg_covar):
    covariance_type, (mixture, X) = problem

    _, fitted = step(X, mixture, covariance_type, reg_covar)

    assert_same(fitted, textbook_step(X, mixture, covariance_type, reg_covar))


@law
@given(problems())
def test_a_full_step_is_the_specifications(problem):
    mixture, X = problem

    _, fitted = step(X, mixture, "full", reg_covar=spec.JITTER)

    assert_same(fitted, spec.em_step(mixture, X), rtol=1e-12, atol=1e-12)


@law
@given(family_problems)
def test_likelihood_never_falls(problem):
    covariance_type, (mixture, X) = problem
    likelihoods = [gaussian.log_likelihood(mixture, X)]

    for _ in range(10):
        _, mixture = step(X, mixture, covariance_type, reg_covar=0.0)
        likelihoods.append(gaussian.log_likelihood(mixture, X))

    assert np.all(np.diff(likelihoods) >= -1e-9)


@law
@given(family_problems)
def test_a_step_knows_no_order(problem):
    covariance_type, (mixture, X) = problem
    order = np.roll(np.arange(mixture.n_components), 1)
    bound, expected = step(X, mixture, covariance_type)

    other_bound, fitted = step(X[::-1].copy(), permuted(mixture, order), covariance_type)

    assert other_bound == pytest.approx(bound, rel=1e-12)
    assert_same(fitted, permuted(expected, order), rtol=1e-10, atol=1e-12)


@law
@given(family_problems)
def test_scaling_by_c_scales_the_step_and_shifts_the_bound(problem):
    covariance_type, (mixture, X) = problem
    c = 25.0
    bound, expected = step(X, mixture, covariance_type, reg_covar=0.01)

    scaled = Mixture(mixture.weights, c * mixture.means, c**2 * mixture.covariances)
    other_bound, fitted = step(c * X, scaled, covariance_type, reg_covar=c**2 * 0.01)

    assert other_bound == pytest.approx(bound - X.shape[1] * np.log(c), rel=1e-12, abs=1e-12)
    back = Mixture(fitted.weights, fitted.means / c, fitted.covariances / c**2)
    assert_same(back, expected)


@pytest.mark.parametrize("covariance_type", COVARIANCE_TYPES)
def test_a_batch_of_problems_is_a_loop_over_them(covariance_type):
    rng = np.random.default_rng(0)
    family = FAMILIES[covariance_type]
    starts = [random_mixture(rng, 3, 2, covariance_type) for _ in range(6)]
    X = torch.as_tensor(np.stack([random_samples(rng, start, 70) for start in starts]))
    own = [parameters(start, covariance_type) for start in starts]
    batch = Parameters(*(torch.stack(part).unflatten(0, (2, 3)) for part in zip(*own, strict=True)))

    bounds, fitted = engine.em_step(X.unflatten(0, (2, 3)), batch, family)
    joint = engine.log_joint(X.unflatten(0, (2, 3)), batch, family)

    assert bounds.shape == (2, 3)
    for i, (samples, start) in enumerate(zip(X, own, strict=True)):
        bound, expected = engine.em_step(samples, start, family)
        assert_allclose(bounds.flatten()[i], bound, rtol=1e-13)
        assert_allclose(
            joint.flatten(0, 1)[i], engine.log_joint(samples, start, family), rtol=1e-12, atol=1e-12
        )
        for batched, alone in zip(fitted, expected, strict=True):
            assert_allclose(batched.flatten(0, 1)[i], alone, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("covariance_type", COVARIANCE_TYPES)
def test_many_starts_share_one_dataset(covariance_type):
    rng = np.random.default_rng(1)
    family = FAMILIES[covariance_type]
    starts = [random_mixture(rng, 3, 2, covariance_type) for _ in range(4)]
    X = torch.as_tensor(random_samples(rng, starts[0], 70))
    own = [parameters(start, covariance_type) for start in starts]
    batch = Parameters(*(torch.stack(part) for part in zip(*own, strict=True)))

    bounds, fitted = engine.em_step(X, batch, family)

    for i, start in enumerate(own):
        bound, expected = engine.em_step(X, start, family)
        assert_allclose(bounds[i], bound, rtol=1e-13)
        for batched, alone in zip(fitted, expected, strict=True):
            assert_allclose(batched[i], alone, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("chunk_elements", [1, 500, 2**30])
@pytest.mark.parametrize("covariance_type", COVARIANCE_TYPES)
def test_chunk_size_changes_no_result(covariance_type, chunk_elements, monkeypatch):
    rng = np.random.default_rng(2)
    mixture = random_mixture(rng, 3, 4, covariance_type)
    X = random_samples(rng, mixture, 333)
    expected = textbook_step(X, mixture, covariance_type, 1e-6)

    monkeypatch.setattr(engine, "CHUNK_ELEMENTS", chunk_elements)
    bound, fitted = step(X, mixture, covariance_type)
    joint = engine.log_joint(
        torch.as_tensor(X), parameters(mixture, covariance_type), FAMILIES[covariance_type]
    )

    assert bound == pytest.approx(gaussian.log_likelihood(mixture, X), rel=1e-12)
    assert_same(fitted, expected, rtol=1e-12, atol=1e-12)
    assert_allclose(joint.mT.numpy(), gaussian.log_joint(mixture, X), rtol=1e-12, atol=1e-12)


def test_more_samples_than_a_chunk_are_cut_into_chunks():
    X = torch.zeros(engine.CHUNK_ELEMENTS, 2)
    fitted = parameters(random_mixture(np.random.default_rng(3), 4, 2), "full", torch.float32)

    chunks = list(engine._chunks(X, fitted))

    assert sum(map(len, chunks)) == len(X)
    assert max(4 * chunk.numel() for chunk in chunks) <= engine.CHUNK_ELEMENTS


@pytest.mark.parametrize("covariance_type", COVARIANCE_TYPES)
def test_an_offset_moves_the_means_and_nothing_else(covariance_type):
    # Multiples of 2^-20 below 2^28 have 48 bits, so that adding the offset rounds nothing.
    rng = np.random.default_rng(4)
    offset = 2.0**27
    mixture = random_mixture(rng, 3, 2, covariance_type)
    mixture = Mixture(mixture.weights, np.round(mixture.means * 2**20) / 2**20, mixture.covariances)
    X = np.round(random_samples(rng, mixture, 200) * 2**20) / 2**20
    there = Mixture(mixture.weights, mixture.means + offset, mixture.covariances)
    bound, expected = step(X, mixture, covariance_type)

    other_bound, fitted = step(X + offset, there, covariance_type)

    assert other_bound == bound
    assert_array_equal(fitted.weights, expected.weights)
    assert_array_equal(fitted.covariances, expected.covariances)
    assert_allclose(fitted.means - offset, expected.means, rtol=0, atol=np.spacing(offset))


@pytest.mark.parametrize("covariance_type", COVARIANCE_TYPES)
def test_float32_stays_close_to_float64(covariance_type):
    rng = np.random.default_rng(5)
    mixture = random_mixture(rng, 3, 4, covariance_type)
    X = random_samples(rng, mixture, 500)
    bound, expected = step(X, mixture, covariance_type)

    single_bound, fitted = engine.em_step(
        torch.as_tensor(X, dtype=torch.float32),
        parameters(mixture, covariance_type, torch.float32),
        FAMILIES[covariance_type],
    )

    assert all(tensor.dtype == torch.float32 for tensor in (single_bound, *fitted))
    assert float(single_bound) == pytest.approx(bound, rel=1e-5)
    assert_same(as_mixture(fitted, covariance_type), expected, rtol=1e-4, atol=1e-4)


@law
@given(covariance_types, seeds)
def test_precisions_cholesky_are_factors_of_the_inverse_covariances(covariance_type, seed):
    mixture = random_mixture(np.random.default_rng(seed), 3, 3, covariance_type)

    factor = parameters(mixture, covariance_type).precisions_cholesky.numpy()

    if covariance_type in ("diag", "spherical"):
        assert_allclose(factor**2 * compact(mixture.covariances, covariance_type), 1.0, rtol=1e-12)
    else:
        precisions = np.linalg.inv(compact(mixture.covariances, covariance_type))
        assert_allclose(factor @ factor.swapaxes(-1, -2), precisions, rtol=1e-9, atol=1e-10)
        assert_array_equal(np.tril(factor, -1), 0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("covariance_type", ["full", "tied"])
def test_covariances_are_symmetric_to_the_last_bit(covariance_type, dtype):
    rng = np.random.default_rng(10)
    mixture = random_mixture(rng, 3, 5, covariance_type)
    X = torch.as_tensor(random_samples(rng, mixture, 300), dtype=dtype)

    _, fitted = engine.em_step(
        X, parameters(mixture, covariance_type, dtype), FAMILIES[covariance_type]
    )

    assert torch.equal(fitted.covariances, fitted.covariances.mT)


@pytest.mark.parametrize("covariance_type", COVARIANCE_TYPES)
def test_a_step_leaves_its_inputs_alone(covariance_type):
    rng = np.random.default_rng(6)
    mixture = random_mixture(rng, 3, 2, covariance_type)
    inputs = [
        torch.as_tensor(random_samples(rng, mixture, 50)),
        *parameters(mixture, covariance_type),
    ]
    copies = [tensor.clone() for tensor in inputs]

    engine.em_step(inputs[0], Parameters(*inputs[1:]), FAMILIES[covariance_type])

    for tensor, copy in zip(inputs, copies, strict=True):
        assert torch.equal(tensor, copy)


@pytest.mark.parametrize("covariance_type", COVARIANCE_TYPES)
def test_far_from_every_component_nothing_underflows(covariance_type):
    mixture = random_mixture(np.random.default_rng(11), 3, 2, covariance_type)
    X = 1e4 * np.random.default_rng(12).standard_normal((20, 2))
    assert np.exp(gaussian.log_joint(mixture, X)).max() == 0

    bound, fitted = step(X, mixture, covariance_type)

    assert bound == pytest.approx(gaussian.log_likelihood(mixture, X), rel=1e-12)
    assert fitted.weights.sum() == pytest.approx(1.0, abs=1e-14)
    assert np.all(np.isfinite(fitted.covariances))


@pytest.mark.parametrize("covariance_type", ["full", "diag", "spherical"])
def test_a_component_without_samples_keeps_its_mean_and_gets_the_least_covariance(covariance_type):
    mixture = random_mixture(np.random.default_rng(7), 2, 2, covariance_type)
    mixture = Mixture(mixture.weights, np.array([[0.0, 0.0], [1e4, 0.0]]), mixture.covariances)
    X = np.random.default_rng(8).standard_normal((40, 2))
    assert gaussian.responsibilities(mixture, X)[:, 1].sum() == 0

    _, fitted = step(X, mixture, covariance_type, reg_covar=1e-3)

    assert_array_equal(fitted.means[1], [1e4, 0.0])
    assert_allclose(fitted.covariances[1], 1e-3 * np.eye(2), rtol=1e-15)
    assert 0 < fitted.weights[1] < 1e-15
    assert np.isfinite(gaussian.log_likelihood(fitted, X))


@pytest.mark.parametrize("covariance_type", COVARIANCE_TYPES)
def test_a_singular_covariance_is_an_error_with_advice(covariance_type):
    mixture = random_mixture(np.random.default_rng(9), 1, 2, covariance_type)
    X = np.ones((10, 2))

    with pytest.raises(ValueError, match="increase reg_covar"):
        step(
            X, Mixture(mixture.weights, np.ones((1, 2)), mixture.covariances), covariance_type, 0.0
        )
