"""Between the engine's parameters and the free numbers that gradients are taken in."""

from __future__ import annotations

from functools import cache

import numpy as np
import torch

from embench.models.engine import Family, Parameters
from embench.models.engine.linalg import triangular_inverses
from embench.models.gradient.likelihood import Coordinates
from embench.types import IntArray


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
        coefficients = triangles[:, *upper_triangle(n_features)]
    else:
        diagonals = factors.reshape(len(factors), -1)
        coefficients = np.empty((len(factors), 0))
    log_weights = np.log(np.maximum(parameters.weights, np.finfo(float).tiny))
    parts = (log_weights, parameters.means, -np.log(diagonals), coefficients)
    # One after another in memory: torch's L-BFGS strings them together.
    return Coordinates(*(torch.tensor(np.ascontiguousarray(part))[..., None] for part in parts))


def to_parameters(coordinates: Coordinates, family: Family) -> Parameters:
    """The engine's parameters of free numbers, in the shape of the family."""
    return completed(factored(coordinates, family), family)


def completed(parameters: Parameters, family: Family) -> Parameters:
    """With the covariances that belong to the factors."""
    factors = parameters.precisions_cholesky
    if not family.is_rotated:
        return parameters._replace(covariances=np.asarray(1 / np.square(factors)))
    scale = triangular_inverses(factors.swapaxes(-1, -2))
    return parameters._replace(covariances=scale @ scale.swapaxes(-1, -2))


def factored(coordinates: Coordinates, family: Family) -> Parameters:
    """`to_parameters` without the covariances: the factors stand in their place, and have their
    shape, which is all that an E-step wants of them."""
    # In NumPy, once per step: the same through torch takes three times as long.
    logits, means, log_stddevs, coefficients = (
        part.detach().numpy()[..., 0] for part in coordinates
    )
    weights = np.exp(logits - logits.max())
    factors = np.exp(-log_stddevs)
    K, D = means.shape
    if family.is_rotated:
        triangles = np.broadcast_to(np.eye(D), (len(factors), D, D)).copy()
        triangles[:, *upper_triangle(D)] = coefficients
        factors = triangles * factors[:, None]
    shape = [K] * (not family.is_shared) + [D] * family.own_dimensions
    factors = factors.reshape(shape)
    return Parameters(weights / weights.sum(), means.copy(), factors, factors)


@cache
def upper_triangle(n_features: int) -> tuple[IntArray, IntArray]:
    """Rows and columns of the coefficients among T."""
    rows, columns = np.triu_indices(n_features, 1)
    return rows, columns
