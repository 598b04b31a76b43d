"""The engine against the judge, the specification and textbook sums, in all families."""

from __future__ import annotations

from itertools import pairwise
from typing import get_args

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from strategies import (
    ALL_COVARIANCE_TYPES,
    assert_same,
    compact,
    covariance_types,
    expand,
    family_problems,
    law,
    permuted,
    problems,
    random_mixture,
    random_samples,
    seeds,
)

from embench import gaussian, types
from embench.models import engine, spec, steps
from embench.models.engine import (
    FAMILIES,
    Arrays,
    IllDefinedCovariance,
    Parameters,
    RegularisationWarning,
    Samples,
    chunks,
    softmax,
)
from embench.models.engine import arrays as arrays_module
from embench.models.engine import samples as samples_module
from embench.types import Mixture

every_family = pytest.mark.parametrize("covariance_type", ALL_COVARIANCE_TYPES)

PATHS = ("expanded", "exact", "torch")
"""Products of features in NumPy, samples minus means, and products of features in torch."""


@pytest.fixture(params=PATHS)
def path(request, monkeypatch):
    """Each test that asks for it runs on every way through the engine."""
    if request.param == "exact":
        monkeypatch.setattr(samples_module, "CANCELLATION", {"float64": -1.0, "float32": -1.0})
    elif request.param == "torch":
        monkeypatch.setattr(
            Arrays, "on", classmethod(lambda cls, device, dtype: cls(torch, dtype, "cpu"))
        )
    return request.param


def parameters(mixture, covariance_type):
    """A mixture as the engine wants it."""
    covariances = compact(mixture.covariances, covariance_type)
    factors = FAMILIES[covariance_type].precisions_cholesky(covariances)
    return Parameters(mixture.weights, mixture.means, covariances, factors)


def as_mixture(fitted, covariance_type):
    """The engine's mixture as the judge wants it."""
    weights, means, covariances, _ = fitted
    return Mixture(weights, means, expand(covariances, covariance_type, *means.shape))


def step(X, mixture, covariance_type, reg_covar=1e-6):
    """One step of the engine: the bound before it, and the mixture after it."""
    bound, fitted = engine.em_step(
        X, parameters(mixture, covariance_type), FAMILIES[covariance_type], reg_covar
    )
    return float(bound), as_mixture(fitted, covariance_type)


def e_step(X, mixture, covariance_type, posterior=softmax):
    samples = Samples.of(X, FAMILIES[covariance_type])
    return samples.e_step(samples.frame.inward(parameters(mixture, covariance_type)), posterior)


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
    if "tied" in covariance_type:
        full = np.stack([np.tensordot(counts / len(X), full, axes=1)] * len(counts))
    shaped = expand(compact(full, covariance_type), covariance_type, *means.shape)
    if covariance_type != "constant":
        shaped = shaped + reg_covar * np.eye(X.shape[1])
    return Mixture(counts / len(X), means, shaped)


def test_families_have_the_same_names_everywhere():
    assert tuple(FAMILIES) == types.COVARIANCE_TYPES == get_args(steps.CovarianceType)
    assert set(types.COVARIANCE_ALIASES.values()) < set(FAMILIES)


@law
@given(family_problems)
def test_log_joint_is_the_judges(problem):
    covariance_type, (mixture, X) = problem

    joint = engine.log_joint(X, parameters(mixture, covariance_type), FAMILIES[covariance_type])

    assert joint.shape == (mixture.n_components, len(X))
    assert_allclose(joint.T, gaussian.log_joint(mixture, X), rtol=1e-10, atol=1e-10)


@law
@given(family_problems)
def test_log_joint_is_the_same_in_the_frame(problem):
    covariance_type, (mixture, X) = problem
    samples = Samples.of(X, FAMILIES[covariance_type])

    joint = samples.log_joint(samples.frame.inward(parameters(mixture, covariance_type)))

    assert_allclose(joint.T, gaussian.log_joint(mixture, X), rtol=1e-9, atol=1e-9)


@law
@given(family_problems)
def test_into_the_frame_and_out_again_changes_nothing(problem):
    covariance_type, (mixture, X) = problem
    frame = Samples.of(X, FAMILIES[covariance_type]).frame
    expected = parameters(mixture, covariance_type)

    back = frame.outward(frame.inward(expected))

    for ours, theirs in zip(back, expected, strict=True):
        assert_allclose(ours, theirs, rtol=1e-9, atol=1e-10)


@law
@given(family_problems)
def test_samples_in_the_frame_are_centred_and_as_round_as_the_family_allows(problem):
    covariance_type, (_, X) = problem

    samples = Samples.of(X, FAMILIES[covariance_type], reg_covar=0.0)

    Y, ones = samples.Y[:-1], samples.Y[-1]
    assert_array_equal(ones, 1.0)
    assert_allclose(Y.mean(axis=1), 0, atol=1e-10)
    moments = Y @ Y.T / len(X)
    identity = np.eye(len(Y))
    if covariance_type == "diag":
        moments = moments * identity
    elif "spherical" in covariance_type:
        moments = np.trace(moments) / len(Y) * identity
    assert_allclose(moments, identity, atol=1e-8)


@law
@given(family_problems)
def test_bound_is_the_judges_mean_log_likelihood_before_the_step(problem):
    covariance_type, (mixture, X) = problem

    bound, _ = step(X, mixture, covariance_type)

    assert bound == pytest.approx(gaussian.log_likelihood(mixture, X), rel=1e-11)


@law
@given(family_problems)
def test_counts_are_the_judges_summed_responsibilities(problem):
    covariance_type, (mixture, X) = problem

    statistics = e_step(X, mixture, covariance_type)

    expected = gaussian.responsibilities(mixture, X).sum(axis=0)
    assert_allclose(statistics.counts, expected, rtol=1e-9)
    assert float(statistics.counts.sum()) == pytest.approx(len(X), rel=1e-13)


@pytest.mark.parametrize("reg_covar", [0.0, 1e-6, 0.3])
@every_family
def test_a_step_is_the_textbooks(covariance_type, reg_covar, path):
    rng = np.random.default_rng(20)
    mixture = random_mixture(rng, 3, 4, covariance_type)
    X = random_samples(rng, mixture, 150)

    bound, fitted = step(X, mixture, covariance_type, reg_covar)

    assert bound == pytest.approx(gaussian.log_likelihood(mixture, X), rel=1e-11)
    assert_same(fitted, textbook_step(X, mixture, covariance_type, reg_covar))


@law
@given(family_problems, st.sampled_from([0.0, 1e-6, 0.3]))
def test_a_step_is_the_textbooks_whatever_the_problem(problem, reg_covar):
    covariance_type, (mixture, X) = problem

    _, fitted = step(X, mixture, covariance_type, reg_covar)

    assert_same(fitted, textbook_step(X, mixture, covariance_type, reg_covar))


@every_family
def test_a_posterior_of_ones_own_sees_complete_log_joints(covariance_type, path):
    rng = np.random.default_rng(21)
    mixture = random_mixture(rng, 3, 2, covariance_type)
    X = random_samples(rng, mixture, 100)
    seen = []

    def watching(log_joint, xp):
        seen.append(np.array(log_joint.tolist()))
        return softmax(log_joint, xp)

    watched = e_step(X, mixture, covariance_type, watching)

    assert_allclose(np.hstack(seen).T, gaussian.log_joint(mixture, X), rtol=1e-9, atol=1e-9)
    plain = e_step(X, mixture, covariance_type)
    assert_allclose(watched.total_log_likelihood, plain.total_log_likelihood, rtol=1e-12)
    assert_allclose(watched.firsts, plain.firsts, rtol=1e-9, atol=1e-9)


@law
@given(problems())
def test_a_full_step_is_the_specifications(problem):
    mixture, X = problem

    _, fitted = step(X, mixture, "full", reg_covar=spec.JITTER)

    assert_same(fitted, spec.em_step(mixture, X), rtol=1e-10, atol=1e-10)


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
    assert_same(fitted, permuted(expected, order))


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


@every_family
def test_a_batch_of_problems_is_a_loop_over_them(covariance_type, path):
    rng = np.random.default_rng(0)
    family = FAMILIES[covariance_type]
    starts = [random_mixture(rng, 3, 2, covariance_type) for _ in range(6)]
    X = np.stack([random_samples(rng, start, 70) for start in starts])
    own = [parameters(start, covariance_type) for start in starts]
    batch = Parameters(*(np.stack(part) for part in zip(*own, strict=True)))

    bounds, fitted = engine.em_step(X, batch, family)

    assert bounds.shape == (6,)
    for i, (samples, start) in enumerate(zip(X, own, strict=True)):
        bound, expected = engine.em_step(samples, start, family)
        assert_allclose(bounds[i], bound, rtol=1e-12)
        for batched, alone in zip(fitted, expected, strict=True):
            assert_allclose(batched[i], alone, rtol=1e-10, atol=1e-10)


@every_family
def test_many_starts_share_one_dataset(covariance_type, path):
    rng = np.random.default_rng(1)
    family = FAMILIES[covariance_type]
    starts = [random_mixture(rng, 3, 2, covariance_type) for _ in range(4)]
    X = random_samples(rng, starts[0], 70)
    own = [parameters(start, covariance_type) for start in starts]
    batch = Parameters(*(np.stack(part) for part in zip(*own, strict=True)))

    bounds, fitted = engine.em_step(X, batch, family)

    for i, start in enumerate(own):
        bound, expected = engine.em_step(X, start, family)
        assert_allclose(bounds[i], bound, rtol=1e-12)
        for batched, alone in zip(fitted, expected, strict=True):
            assert_allclose(batched[i], alone, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("n_components", [1, 2, 5])
@pytest.mark.parametrize("covariance_type", ["full", "tied"])
def test_few_components_of_many_features_give_the_same_by_products_and_by_samples_minus_mean(
    covariance_type, n_components, monkeypatch
):
    rng = np.random.default_rng(14)
    mixture = random_mixture(rng, n_components, 20, covariance_type)
    X = random_samples(rng, mixture, 500)
    bounds, moments_about_means = [], []

    def complete(log_joint, xp):
        return softmax(log_joint, xp)

    for threshold in (0, 1000):
        monkeypatch.setattr(samples_module, "PRODUCTS_PER_COMPONENT", threshold)
        samples = Samples.of(X, FAMILIES[covariance_type])
        start = samples.frame.inward(parameters(mixture, covariance_type))
        statistics = samples.e_step(start, complete)
        moments_about_means.append(bool(statistics.about.any()))
        bounds.append((statistics.log_likelihood, *samples.m_step(statistics, start)))

    assert moments_about_means == [True, False], "two ways"
    assert bounds[0][0] == pytest.approx(gaussian.log_likelihood(mixture, X), rel=1e-12)
    for one, other in zip(*bounds, strict=True):
        assert_allclose(one, other, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("chunk_bytes", [1, 5000, 2**30])
@every_family
def test_chunk_size_changes_no_result(covariance_type, chunk_bytes, path, monkeypatch):
    rng = np.random.default_rng(2)
    mixture = random_mixture(rng, 3, 4, covariance_type)
    X = random_samples(rng, mixture, 333)
    bound, expected = step(X, mixture, covariance_type)

    monkeypatch.setattr(arrays_module, "CHUNK_BYTES", chunk_bytes)
    monkeypatch.setattr(samples_module, "KEPT_BYTES", 0)
    other_bound, fitted = step(X, mixture, covariance_type)

    assert other_bound == pytest.approx(bound, rel=1e-13)
    assert_same(fitted, expected, rtol=1e-12, atol=1e-12)


def test_more_samples_than_a_chunk_are_cut_into_chunks():
    pieces = list(chunks.split(1000, 300))

    assert [piece.stop - piece.start for piece in pieces] == [250] * 4
    assert pieces[0].start == 0
    assert all(a.stop == b.start for a, b in pairwise(pieces))


@every_family
def test_an_offset_moves_the_means_and_nothing_else(covariance_type, path):
    # Multiples of 2^-20 below 2^28 have 48 bits, so that adding the offset rounds nothing; what is
    # left are the rounding errors of a frame whose centre has them.
    rng = np.random.default_rng(4)
    offset = 2.0**27
    mixture = random_mixture(rng, 3, 2, covariance_type)
    mixture = Mixture(mixture.weights, np.round(mixture.means * 2**20) / 2**20, mixture.covariances)
    X = np.round(random_samples(rng, mixture, 200) * 2**20) / 2**20
    there = Mixture(mixture.weights, mixture.means + offset, mixture.covariances)
    bound, expected = step(X, mixture, covariance_type)

    other_bound, fitted = step(X + offset, there, covariance_type)

    assert other_bound == pytest.approx(bound, abs=1e-7)
    assert_allclose(fitted.weights, expected.weights, rtol=1e-7)
    assert_allclose(fitted.covariances, expected.covariances, rtol=1e-7, atol=1e-7)
    assert_allclose(fitted.means - offset, expected.means, rtol=0, atol=4 * np.spacing(offset))


@every_family
def test_float32_stays_close_to_float64(covariance_type, path):
    rng = np.random.default_rng(5)
    family = FAMILIES[covariance_type]
    mixture = random_mixture(rng, 3, 4, covariance_type)
    X = random_samples(rng, mixture, 500)
    bound, expected = step(X, mixture, covariance_type)

    samples = Samples.of(X, family, dtype="float32")
    start = samples.frame.inward(parameters(mixture, covariance_type))
    single_bound, fitted = samples.em_step(start)

    assert "float32" in str(samples.Y.dtype)
    assert float(single_bound) == pytest.approx(bound, rel=1e-5)
    single = as_mixture(samples.frame.outward(fitted), covariance_type)
    assert_same(single, expected, rtol=1e-4, atol=1e-4)


@law
@given(covariance_types, seeds)
def test_precisions_cholesky_are_factors_of_the_inverse_covariances(covariance_type, seed):
    mixture = random_mixture(np.random.default_rng(seed), 3, 3, covariance_type)

    factor = parameters(mixture, covariance_type).precisions_cholesky

    if covariance_type not in ("full", "tied"):
        assert_allclose(factor**2 * compact(mixture.covariances, covariance_type), 1.0, rtol=1e-12)
    else:
        precisions = np.linalg.inv(compact(mixture.covariances, covariance_type))
        assert_allclose(factor @ factor.swapaxes(-1, -2), precisions, rtol=1e-9, atol=1e-10)
        assert_array_equal(np.tril(factor, -1), 0)


@pytest.mark.parametrize("size", [1, 3, 15, 16, 40])
def test_factors_of_every_size_are_upper_triangular_inverses(size):
    rng = np.random.default_rng(22)
    A = rng.standard_normal((2, 3, size, size + 3))
    matrices = A @ A.swapaxes(-1, -2) + np.eye(size)

    factor = engine.linalg.inverse_factors(matrices)

    assert_array_equal(np.tril(factor, -1), 0)
    expected = np.broadcast_to(np.eye(size), matrices.shape)
    assert_allclose(factor @ factor.swapaxes(-1, -2) @ matrices, expected, atol=1e-9)


@every_family
def test_a_step_leaves_its_inputs_alone(covariance_type, path):
    rng = np.random.default_rng(6)
    mixture = random_mixture(rng, 3, 2, covariance_type)
    inputs = [random_samples(rng, mixture, 50), *parameters(mixture, covariance_type)]
    copies = [array.copy() for array in inputs]

    engine.em_step(inputs[0], Parameters(*inputs[1:]), FAMILIES[covariance_type])

    for array, copy in zip(inputs, copies, strict=True):
        assert_array_equal(array, copy)


@every_family
def test_far_from_every_component_nothing_underflows(covariance_type, path):
    mixture = random_mixture(np.random.default_rng(11), 3, 2, covariance_type)
    X = 1e4 * np.random.default_rng(12).standard_normal((20, 2))
    assert np.exp(gaussian.log_joint(mixture, X)).max() == 0

    bound, fitted = step(X, mixture, covariance_type)

    assert bound == pytest.approx(gaussian.log_likelihood(mixture, X), rel=1e-11)
    assert fitted.weights.sum() == pytest.approx(1.0, abs=1e-14)
    assert np.all(np.isfinite(fitted.covariances))


@pytest.mark.parametrize("covariance_type", ["full", "diag", "spherical"])
def test_a_component_without_samples_keeps_its_mean_and_gets_the_least_covariance(
    covariance_type, path
):
    mixture = random_mixture(np.random.default_rng(7), 2, 2, covariance_type)
    mixture = Mixture(mixture.weights, np.array([[0.0, 0.0], [1e4, 0.0]]), mixture.covariances)
    X = np.random.default_rng(8).standard_normal((40, 2))
    assert gaussian.responsibilities(mixture, X)[:, 1].sum() == 0

    _, fitted = step(X, mixture, covariance_type, reg_covar=1e-3)

    assert_allclose(fitted.means[1], [1e4, 0.0], rtol=1e-14, atol=1e-11)
    assert_allclose(fitted.covariances[1], 1e-3 * np.eye(2), rtol=1e-12, atol=1e-16)
    assert 0 < fitted.weights[1] < 1e-15
    assert np.isfinite(gaussian.log_likelihood(fitted, X))


@pytest.mark.parametrize("covariance_type", ALL_COVARIANCE_TYPES[:-1])
def test_a_singular_covariance_without_regularisation_is_an_error_with_advice(covariance_type):
    mixture = random_mixture(np.random.default_rng(9), 1, 2, covariance_type)
    X = np.ones((10, 2))
    start = Mixture(mixture.weights, np.ones((1, 2)), mixture.covariances)

    with pytest.raises(IllDefinedCovariance, match="increase reg_covar"):
        step(X, start, covariance_type, 0.0)


def test_a_covariance_that_regularisation_does_not_mend_gets_more_of_it_and_a_warning():
    family = FAMILIES["full"]
    indefinite = np.stack([np.eye(2), np.array([[1.0, 1.05], [1.05, 1.0]])])

    with pytest.warns(RegularisationWarning, match=r"component 1 .* added 1000 times reg_covar"):
        mended = family._mended(indefinite, 1e-4 * np.eye(2))

    assert_array_equal(mended[0], np.eye(2))
    assert np.linalg.eigvalsh(mended[1]).min() > 0


@every_family
def test_statistics_of_two_halves_add_up_to_those_of_the_whole(covariance_type, path):
    rng = np.random.default_rng(23)
    family = FAMILIES[covariance_type]
    mixture = random_mixture(rng, 3, 3, covariance_type)
    whole = Samples.of(random_samples(rng, mixture, 90), family)
    start = whole.frame.inward(parameters(mixture, covariance_type))

    halves = [whole.take(part).e_step(start) for part in (np.arange(40), np.arange(40, 90))]

    added, expected = family.combine(*halves), whole.e_step(start)
    for ours, theirs in zip(added, expected, strict=True):
        assert_allclose(ours, theirs, rtol=1e-10, atol=1e-10)


@every_family
def test_statistics_about_different_points_add_up_all_the_same(covariance_type):
    rng = np.random.default_rng(24)
    family = FAMILIES[covariance_type]
    mixture = random_mixture(rng, 3, 3, covariance_type)
    samples = Samples.of(random_samples(rng, mixture, 90), family)
    start = samples.frame.inward(parameters(mixture, covariance_type))
    about_centre = samples.e_step(start)
    everyone = np.ones(3, dtype=bool)
    about_means = samples.e_step(start, exact=everyone)
    assert np.any(about_means.about != about_centre.about)

    twice = family.combine(about_means, about_centre)

    for ours, theirs in zip(twice, about_means.scaled(2.0), strict=True):
        assert_allclose(ours, theirs, rtol=1e-9, atol=1e-9)


def test_leaving_negligible_responsibilities_out_changes_no_digit():
    rng = np.random.default_rng(25)
    n_features, n_components = samples_module.SPARSE_FROM, 10
    means = 6.0 * rng.standard_normal((n_components, n_features))
    X = means[rng.integers(n_components, size=900)] + rng.standard_normal((900, n_features))
    covariances = np.repeat(2.0 * np.eye(n_features)[None], n_components, axis=0)
    mixture = Mixture(np.full(n_components, 1 / n_components), means, covariances)
    samples = Samples.of(X, FAMILIES["full"])
    start = samples.frame.inward(parameters(mixture, "full"))
    dense = samples.e_step(start)
    assert samples.sparse
    assert not dense.about.any()

    pruned = samples.e_step(start)

    assert pruned.about.any(), "moments about the means: samples were picked"
    _, by_all = dense, samples.m_step(dense, start)
    by_few = samples.m_step(pruned, start)
    for ours, theirs in zip(by_few, by_all, strict=True):
        assert_allclose(ours, theirs, rtol=1e-11, atol=1e-12)
