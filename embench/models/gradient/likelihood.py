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
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


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
        factors = _unit_triangles(coefficients, means.shape[1]) * factors[:, None]
    return Components(logits.log_softmax(0), means, factors)


def _unit_triangles(coefficients: Tensor, n_features: int) -> Tensor:
    """Upper triangular matrices [C, D, D, n] with ones on the diagonal."""
    C, _, n = coefficients.shape
    rows, columns = np.triu_indices(n_features, 1)
    places = torch.as_tensor(rows * n_features + columns, device=coefficients.device)
    identity = torch.eye(n_features, dtype=coefficients.dtype, device=coefficients.device)
    flat = identity.reshape(1, -1, 1).expand(C, -1, n)
    return flat.index_copy(1, places, coefficients).view(C, n_features, n_features, n)


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
    return log_joint_of(Y, whitening(mixture))


class Whitening(NamedTuple):
    """A mixture as a pass over samples wants it: the log-joint is ``constant`` [K, n] [nat] minus
    half the squared length of ``linear`` times y - ``means``.

    ``linear`` is P' [C, D, D, n] or its diagonals [C, S, n]. Where all samples share a mixture with
    correlations it is [K * D, D + 1] and takes samples with their ones: the last column subtracts
    the means. One product instead of two and a difference takes a third of the time.
    """

    constant: Tensor
    linear: Tensor
    means: Tensor


def whitening(mixture: Components) -> Whitening:
    """What a log-joint needs of a mixture."""
    log_weights, means, factors = mixture
    K, D, n = means.shape
    constant = log_weights + log_det(mixture) - 0.5 * D * math.log(2 * math.pi)
    if factors.ndim == 3:
        return Whitening(constant, factors, means)
    transposed = factors.transpose(1, 2)
    if max(n, factors.shape[-1]) > 1:
        return Whitening(constant, transposed, means)
    transposed = transposed[..., 0].expand(K, D, D)
    affine = torch.cat([transposed, -transposed @ means], dim=2)
    return Whitening(constant, affine.reshape(K * D, D + 1), means)


def log_joint_of(Y: Tensor, form: Whitening) -> Tensor:
    """`log_joint` of a mixture that has been made ready for it."""
    if form.linear.ndim == 2:
        return form.constant - _HalfSquares.apply(form.linear, Y, form.means.shape[1])
    white = whitened(Y, form)
    return form.constant - 0.5 * torch.linalg.vecdot(white, white, dim=1)


class _HalfSquares(torch.autograd.Function):
    """1/2 |z|^2 of z = linear Y, a row for every ``n_features`` rows of z.

    Its gradient is z times the upstream one. Torch would go over z three times to find that out,
    and multiply by Y from the side that takes BLAS twice as long: a third of a step.
    """

    @staticmethod
    def forward(ctx: Any, linear: Tensor, Y: Tensor, n_features: int) -> Tensor:
        white = (linear @ Y).view(-1, n_features, Y.shape[1])
        ctx.save_for_backward(white, Y)
        return torch.linalg.vecdot(white, white, dim=1).mul_(0.5)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *upstream: Tensor) -> Any:
        [(white, Y), gradient] = ctx.saved_tensors, upstream[0]
        of_white = white * gradient[:, None]
        return (Y @ of_white.flatten(0, 1).T).T, None, None


def log_det(mixture: Components) -> Tensor:
    """Log-determinant of each factor, [C, n]: minus half of that of the covariance."""
    factors, n_features = mixture.factors, mixture.means.shape[1]
    diagonals = factors if factors.ndim == 3 else factors.diagonal(0, 1, 2).movedim(-1, 1)
    return diagonals.log().sum(1) * (n_features // diagonals.shape[1])


def whitened(Y: Tensor, form: Whitening) -> Tensor:
    """P' (y - mu) [K, D, n], in standard deviations; Y as in `log_joint`."""
    _, linear, means = form
    if linear.ndim == 2:
        return (linear @ Y).view(*means.shape[:2], -1)
    differences = Y[:-1] - means
    if linear.ndim == 3:
        return linear * differences
    return torch.einsum("kjin,kin->kjn", linear, differences)
