"""A mixture as one vector of free numbers, and back: what one can extrapolate in."""

from __future__ import annotations

import numpy as np

from embench.models.engine import Family, Parameters, linalg
from embench.types import FloatArray

SMALLEST_WEIGHT = 1e-300
"""Stands for a weight of zero, whose logarithm is no number."""

LARGEST_LOG = 40.0
"""Bound on log standard deviations, in the frame of the samples: squares stay finite in float32."""


def to_vector(parameters: Parameters, family: Family) -> FloatArray:
    """Centred log weights, means, and logarithms of scales, in one vector of free numbers.

    log w_k - mean_j log w_j, mu_k, and of each covariance L L' the lower triangular L with its
    diagonal as logarithms; where there are variances only, half their logarithms. Centred log
    weights sum to zero, so one of the numbers follows from the others.

    Args:
        parameters: A mixture without leading dimensions.
        family: Its covariance family.

    Returns:
        The vector, shape (n_components + n_components * n_features + numbers in the covariances,).

    Raises:
        np.linalg.LinAlgError: A covariance is not positive definite.

    Source:
        Pinheiro and Bates (1996), Unconstrained parametrizations for variance-covariance matrices,
        section 2.2.

    Example:
        >>> from embench.models.engine import FAMILIES
        >>> weights, means = np.array([0.5, 0.5]), np.array([[1.0], [7.0]])
        >>> variances = np.array([1.0, np.e**2])
        >>> mixture = Parameters(weights, means, variances, 1 / np.sqrt(variances))
        >>> to_vector(mixture, FAMILIES["spherical"]).tolist()
        [0.0, 0.0, 1.0, 7.0, 0.0, 1.0]
    """
    log_weights = np.log(np.maximum(parameters.weights, SMALLEST_WEIGHT))
    parts = (
        log_weights - log_weights.mean(),
        parameters.means.ravel(),
        _log_scales(parameters.covariances, family),
    )
    return np.concatenate(parts)


def to_parameters(vector: FloatArray, like: Parameters, family: Family) -> Parameters:
    """The mixture of a vector: the way back from `to_vector`, for any vector of its length.

    Args:
        vector: Free numbers, as `to_vector` orders them; adding one number to all log weights
            changes nothing. Logarithms of standard deviations are cut at +-40.
        like: A mixture with the shapes wanted.
        family: Its covariance family.

    Raises:
        np.linalg.LinAlgError: Standard deviations differ so much that a factor has no inverse in
            floating point, by some fifteen orders of magnitude.
    """
    n_components, n_means = like.weights.size, like.means.size
    log_weights = vector[:n_components]
    weights = np.exp(log_weights - log_weights.max())
    means = vector[n_components : n_components + n_means].reshape(like.means.shape)
    scales = vector[n_components + n_means :]
    if not family.is_rotated:
        stddevs = np.exp(_bounded(scales)).reshape(like.covariances.shape)
        return Parameters(weights / weights.sum(), means, stddevs**2, 1 / stddevs)
    scale_tril = _scale_tril(scales, like.covariances.shape)
    return Parameters(
        weights / weights.sum(),
        means,
        linalg.symmetric(scale_tril @ scale_tril.swapaxes(-1, -2)),
        linalg.triangular_inverses(scale_tril).swapaxes(-1, -2),
    )


def _log_scales(covariances: FloatArray, family: Family) -> FloatArray:
    """The numbers of all covariances, [n]."""
    if not family.is_rotated:
        return (0.5 * np.log(covariances)).ravel()
    scale_tril = np.asarray(np.linalg.cholesky(covariances), dtype=np.float64)
    diagonal = np.einsum("...ii->...i", scale_tril)
    diagonal[...] = np.log(diagonal)
    return scale_tril[(..., *np.tril_indices(covariances.shape[-1]))].ravel()


def _scale_tril(scales: FloatArray, shape: tuple[int, ...]) -> FloatArray:
    """Lower triangular factors of this shape [..., D, D] from their numbers."""
    scale_tril = np.zeros(shape)
    triangle = np.tril_indices(shape[-1])
    scale_tril[(..., *triangle)] = scales.reshape(*shape[:-2], len(triangle[0]))
    diagonal = np.einsum("...ii->...i", scale_tril)
    diagonal[...] = np.exp(_bounded(diagonal))
    return scale_tril


def _bounded(logs: FloatArray) -> FloatArray:
    return np.clip(logs, -LARGEST_LOG, LARGEST_LOG)
