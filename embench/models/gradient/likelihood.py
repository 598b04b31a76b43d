"""The log-likelihood of Gaussian mixtures in torch: differentiable, one path for all families.

A mixture is described by free numbers: any real ones make a mixture. The precision of a component
is P P' with P = T diag(1 / stddevs), T upper triangular with ones on its diagonal: feature j is
regressed on the features before it, with the coefficients -T_ij and residuals of standard deviation
stddevs_j. So the log-joint takes a product and no solution of equations, and the coefficients are
as large in a tight component as in a wide one. Families differ in the shapes of the numbers alone.

Samples are last, as in the engine: a softmax over a short last dimension is slow.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor


class Coordinates(NamedTuple):
    """Free numbers of a mixture, or of one mixture for each of n samples (else n is 1).

    Shapes: ``logits`` [K, n], of which the softmax is the weights; ``means`` [K, D, n] [u];
    ``log_stddevs`` [C, S, n], of each feature given those before it; ``coefficients`` [C, P, n],
    the upper triangle of T row by row. C is K, or 1 where the components share a covariance. S is
    D, or 1 where the features share a variance; P is D (D - 1) / 2, or 0 without correlations.

    Source:
        Pourahmadi (1999), Joint mean-covariance models with applications to longitudinal data:
        unconstrained parameterisation, section 2.
    """

    logits: Tensor
    means: Tensor
    log_stddevs: Tensor
    coefficients: Tensor


class Components(NamedTuple):
    """What a log-joint is made of: ``log_weights`` [K, n], ``means`` [K, D, n] [u], and the
    Cholesky factors P of the precisions [u^-1], upper triangular matrices [C, D, D, n] or, without
    correlations, their diagonals [C, S, n]; sizes as in `Coordinates`."""

    log_weights: Tensor
    means: Tensor
    factors: Tensor


def components(coordinates: Coordinates) -> Components:
    """The mixture of free numbers.

    Example:
        >>> one = torch.zeros(1, 1), torch.zeros(1, 2, 1), torch.zeros(1, 2, 1)
        >>> mixture = components(Coordinates(*one, torch.full((1, 1, 1), 3.0)))
        >>> mixture.factors[0, ..., 0].tolist()
        [[1.0, 3.0], [0.0, 1.0]]
    """
    logits, means, log_stddevs, coefficients = coordinates
    factors = torch.exp(-log_stddevs)
    if coefficients.shape[1]:
        n_features = means.shape[1]
        rows, columns = torch.triu_indices(n_features, n_features, 1, device=means.device)
        identity = torch.eye(n_features, dtype=means.dtype, device=means.device)
        triangles = identity[..., None].repeat(len(log_stddevs), 1, 1, log_stddevs.shape[-1])
        triangles[:, rows, columns] = coefficients
        factors = triangles * factors[:, None]
    return Components(logits.log_softmax(0), means, factors)


def log_joint(Y: Tensor, mixture: Components) -> Tensor:
    """Log of weight times density of each sample and component.

    log w_k + log det P_k - 1/2 |P_k' (y - mu_k)|^2 - n_features / 2 log 2 pi.

    Args:
        Y: Samples, shape [n_features + 1, n_samples] [u], the last row ones.
        mixture: One for all samples, or one for each of them.

    Returns:
        Shape [n_components, n_samples] [nat]; scaling all inputs by c shifts the result by
        -n_features * log(c).

    Source:
        Bishop (2006), Pattern Recognition and Machine Learning, eq. 2.43 and 9.7.

    Example:
        >>> one = Coordinates(torch.zeros(1, 1), *(torch.zeros(1, s, 1) for s in (2, 2, 1)))
        >>> origin = torch.tensor([[0.0], [0.0], [1.0]])
        >>> joint = log_joint(origin, components(one))
        >>> round(joint.item() + math.log(2 * math.pi), 6)
        0.0
    """
    log_weights, means, factors = mixture
    white = _whitened(Y, means, factors)
    diagonals = factors if factors.ndim == 3 else factors.diagonal(0, 1, 2).movedim(-1, 1)
    log_det = diagonals.log().sum(1) * (means.shape[1] // diagonals.shape[1])
    constant = log_weights + log_det - 0.5 * means.shape[1] * math.log(2 * math.pi)
    # Half the memory traffic of a square and its sum.
    return constant - 0.5 * torch.linalg.vecdot(white, white, dim=1)


def _whitened(Y: Tensor, means: Tensor, factors: Tensor) -> Tensor:
    """P' (y - mu) [K, D, n], in standard deviations."""
    K, D, _ = means.shape
    if factors.ndim == 3:
        return factors * (Y[:-1] - means)
    if factors.shape[-1] > 1:
        return torch.einsum("kijn,kin->kjn", factors, Y[:-1] - means)
    # One product, whose last column subtracts the means: a third of the time of differences first.
    transposed = factors[..., 0].transpose(1, 2).expand(K, D, D)
    affine = torch.cat([transposed, -transposed @ means], dim=2)
    return (affine.reshape(K * D, D + 1) @ Y).view(K, D, -1)
