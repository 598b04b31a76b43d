"""Between the engine's parameters and the free numbers that gradients are taken in."""

from __future__ import annotations

import numpy as np
import torch

from embench.models.engine import Family, Parameters
from embench.models.engine.linalg import triangular_inverses
from embench.models.gradient.likelihood import Components, Coordinates


def to_coordinates(parameters: Parameters, family: Family) -> Coordinates:
    """Free numbers of one mixture, in float64; `to_parameters` is the way back.

    Args:
        parameters: A mixture without leading dimensions.
        family: Its covariance family.

    Example:
        >>> from embench.models.engine import FAMILIES
        >>> deviation = np.array([np.e])
        >>> one = Parameters(np.ones(1), np.zeros((1, 2)), deviation**2, 1 / deviation)
        >>> to_coordinates(one, FAMILIES["spherical"]).log_stddevs.tolist()
        [[[1.0]]]
    """
    n_features = parameters.means.shape[1]
    factors = parameters.precisions_cholesky
    factors = np.asarray(factors)[None] if family.is_shared else factors
    if family.is_rotated:
        diagonals = np.diagonal(factors, axis1=1, axis2=2)
        triangles = factors / diagonals[:, None, :]
        coefficients = triangles[:, *np.triu_indices(n_features, 1)]
    else:
        diagonals = factors.reshape(len(factors), -1)
        coefficients = np.empty((len(factors), 0))
    log_weights = np.log(np.maximum(parameters.weights, np.finfo(float).tiny))
    parts = (log_weights, parameters.means, -np.log(diagonals), coefficients)
    # One after another in memory: torch's L-BFGS strings them together.
    return Coordinates(*(torch.tensor(np.ascontiguousarray(part))[..., None] for part in parts))


def to_parameters(coordinates: Coordinates, family: Family) -> Parameters:
    """The engine's parameters of free numbers, in the shape of the family."""
    # In NumPy, once per step: the same through torch takes three times as long.
    logits, means, log_stddevs, coefficients = (
        part.detach().numpy()[..., 0] for part in coordinates
    )
    weights = np.exp(logits - logits.max())
    stddevs = np.exp(log_stddevs)
    K, D = means.shape
    shape = [K] * (not family.is_shared) + [D] * family.own_dimensions
    if not family.is_rotated:
        stddevs = stddevs.reshape(shape)
        return Parameters(weights / weights.sum(), means.copy(), stddevs**2, 1 / stddevs)
    factors = np.broadcast_to(np.eye(D), (len(stddevs), D, D)).copy()
    factors[:, *np.triu_indices(D, 1)] = coefficients
    factors = (factors / stddevs[:, None]).reshape(shape)
    scale = triangular_inverses(factors.swapaxes(-1, -2))
    covariances = scale @ scale.swapaxes(-1, -2)
    return Parameters(weights / weights.sum(), means.copy(), covariances, factors)


def of_components(mixture: Components, family: Family) -> Parameters:
    """The engine's parameters but for the covariances, in whose place the factors stand once more:
    they have their shape, which is all that an E-step wants of them."""
    log_weights, means, factors = (
        part.detach().cpu().numpy().astype(np.float64)[..., 0] for part in mixture
    )
    K, D = means.shape
    shape = [K] * (not family.is_shared) + [D] * family.own_dimensions
    factors = factors.reshape(shape)
    return Parameters(np.exp(log_weights), means, factors, factors)
