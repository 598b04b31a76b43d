"""Digits: expanding squares is guarded, and the guard is held against sums in long double."""

from __future__ import annotations

import numpy as np
import pytest

from embench.models.engine import FAMILIES, Parameters, Samples, softmax
from embench.models.engine import samples as samples_module

FULL = FAMILIES["full"]
DEVIATIONS = [3.0, 1e2, 1e3, 1e4, 1e5]
CONDITIONS = [1.0, 1e4, 1e8]
everywhere = pytest.mark.parametrize("offset", [0.0, 1e4])
every_distance = pytest.mark.parametrize("deviations", DEVIATIONS)
every_condition = pytest.mark.parametrize("condition", CONDITIONS)
every_dtype = pytest.mark.parametrize("dtype", ["float64", "float32"])


def case(deviations, condition, offset, dtype):
    """Three rotated components so many deviations apart, and samples of them."""
    rng = np.random.default_rng(0)
    n_components, n_features, n_samples = 3, 4, 300
    widths = np.geomspace(condition**-0.25, condition**0.25, n_features)
    rotations = [np.linalg.qr(rng.standard_normal((4, 4)))[0] for _ in range(n_components)]
    scales = np.array([rotation * widths for rotation in rotations])
    covariances = scales @ scales.swapaxes(1, 2)
    covariances = (covariances + covariances.swapaxes(1, 2)) / 2
    means = offset + deviations * widths.max() / 2 * rng.standard_normal((n_components, n_features))
    labels = rng.integers(n_components, size=n_samples)
    noise = rng.standard_normal((n_samples, n_features))
    X = means[labels] + np.einsum("nij,nj->ni", scales[labels], noise)
    weights = np.full(n_components, 1 / n_components)
    factors = FULL.precisions_cholesky(covariances)
    return X.astype(dtype).astype(float), Parameters(weights, means, covariances, factors)


def long_double_log_densities(X, parameters):
    """Log-density of each sample by a textbook Cholesky factorisation in 80 bits."""
    weights, means, covariances = (np.asarray(part, np.longdouble) for part in parameters[:3])
    joint = []
    for weight, mean, covariance in zip(weights, means, covariances, strict=True):
        size = len(mean)
        L = np.zeros((size, size), np.longdouble)
        for j in range(size):
            L[j, j] = np.sqrt(covariance[j, j] - (L[j, :j] ** 2).sum())
            for i in range(j + 1, size):
                L[i, j] = (covariance[i, j] - (L[i, :j] * L[j, :j]).sum()) / L[j, j]
        Z = (X.astype(np.longdouble) - mean).T
        for i in range(size):
            Z[i] = (Z[i] - L[i, :i] @ Z[:i]) / L[i, i]
        constant = np.log(weight) - np.log(np.diag(L)).sum()
        constant -= size * np.log(2 * np.arccos(np.longdouble(-1))) / 2
        joint.append(constant - (Z**2).sum(0) / 2)
    largest = np.max(joint, axis=0)
    return largest + np.log(np.exp(joint - largest).sum(0))


def worst_error(X, parameters, dtype, limit=None):
    """Largest error of a sample's log-density [nat], and the guard's bound on it."""
    samples = Samples.of(X, FULL, 0.0, dtype=dtype)
    start = samples.frame.inward(parameters)
    found = []

    def watching(log_joint, xp):
        log_density, resp = softmax(log_joint, xp)
        found.append(np.array(log_density, dtype=float))
        return log_density, resp

    with pytest.MonkeyPatch.context() as patch:
        if limit is not None:
            patch.setattr(samples_module, "CANCELLATION", {dtype: limit})
        samples.e_step(start, watching)
    error = np.abs(np.concatenate(found) - long_double_log_densities(X, parameters)).max()
    return float(error), float(samples.cancellation(start).max())


@everywhere
@every_condition
@every_distance
@every_dtype
def test_the_guard_bounds_what_expanding_squares_costs(dtype, deviations, condition, offset):
    X, parameters = case(deviations, condition, offset, dtype)
    inherent, _ = worst_error(X, parameters, dtype, limit=-1.0)

    error, bound = worst_error(X, parameters, dtype, limit=np.inf)

    assert error <= bound + inherent


@everywhere
@every_condition
@every_distance
@every_dtype
def test_wherever_data_lie_the_error_is_that_of_samples_minus_means(
    dtype, deviations, condition, offset
):
    X, parameters = case(deviations, condition, offset, dtype)
    inherent, _ = worst_error(X, parameters, dtype, limit=-1.0)

    error, _ = worst_error(X, parameters, dtype)

    assert error <= inherent + samples_module.CANCELLATION[dtype]


def test_expanding_everything_would_be_noticed_here():
    X, parameters = case(1e4, 1e4, 0.0, "float64")

    unguarded, _ = worst_error(X, parameters, "float64", limit=np.inf)
    guarded, _ = worst_error(X, parameters, "float64")

    assert unguarded > 1000 * guarded


@everywhere
@pytest.mark.parametrize("condition", [1.0, 1e4])
@every_distance
def test_a_step_is_as_exact_when_a_component_becomes_tight_within_it(deviations, condition, offset):
    X, truth = case(deviations, condition, offset, "float64")
    wide = Parameters(truth.weights, truth.means, truth.covariances * 1e4, truth[3] / 1e2)
    wide = wide if deviations > 1e2 else truth
    samples, exact = (Samples.of(X, FULL, 0.0) for _ in range(2))
    start = samples.frame.inward(wide)
    everyone = np.ones(3, dtype=bool)

    _, fitted = samples.em_step(start, 0.0)

    expected = exact.m_step(exact.e_step(start, exact=everyone), start, 0.0)
    widths = np.sqrt(expected.covariances.diagonal(0, -2, -1))
    scale = widths[:, :, None] * widths[:, None, :]
    assert np.abs((fitted.covariances - expected.covariances) / scale).max() < 1e-7
    assert np.abs((fitted.means - expected.means) / widths).max() < 1e-7
