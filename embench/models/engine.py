"""EM for Gaussian mixtures on torch tensors: kernels without estimators around them.

Layout. Samples are ``[..., n_samples, n_features]``; everything per sample and component is
component-major, ``[..., n_components, n_samples]``, because a softmax over a short last dimension
is many times slower than over an earlier one. Leading dimensions are independent problems.

One pass over the samples in cache-sized chunks yields sufficient statistics; parameters follow
from them alone. Second moments are taken about the *current* means: near convergence nothing
cancels, however far from the origin the data lie.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

CHUNK_ELEMENTS = 2**16
"""Elements of one [n_components, chunk, n_features] block: half a MiB in float64, half an L2."""

GPU_CHUNK_ELEMENTS = 2**26
"""The same on a GPU, which wants large blocks and few launches: half a GiB in float64."""

ILL_DEFINED = (
    "Fitting the mixture model failed because some components have ill-defined empirical "
    "covariance (for instance caused by singleton or collapsed samples). Try to decrease the "
    "number of components, increase reg_covar, or scale the input data."
)


class Parameters(NamedTuple):
    """A mixture: weights [..., K], means [..., K, D], and covariances and the Cholesky factors of
    the precisions in the shape of their family (full [..., K, D, D], tied [..., D, D], diag
    [..., K, D], spherical [..., K])."""

    weights: Tensor
    means: Tensor
    covariances: Tensor
    precisions_cholesky: Tensor


class Statistics(NamedTuple):
    """Sums over samples: total log-likelihood [...], responsibilities [..., K], responsibilities
    times (x - mean) [..., K, D], and the family's second moments about the means."""

    total_log_likelihood: Tensor
    counts: Tensor
    shifts: Tensor
    scatter: Tensor

    def __add__(self, other: Statistics) -> Statistics:  # type: ignore[override]
        return Statistics(*(a + b for a, b in zip(self, other, strict=True)))


class Family(ABC):
    """What differs between covariance families. Z is x - mean, [..., K, n_samples, D]."""

    @abstractmethod
    def whiten(self, Z: Tensor, precisions_cholesky: Tensor) -> Tensor:
        """Z in units of standard deviations, shape of Z."""

    @abstractmethod
    def log_det(self, precisions_cholesky: Tensor, n_features: int) -> Tensor:
        """Log-determinant of each factor, [..., K] or [..., 1]."""

    @abstractmethod
    def scatter(self, weighted_Z: Tensor, Z: Tensor) -> Tensor:
        """Sum over samples of the products that the family's covariances are made of."""

    @abstractmethod
    def covariances(
        self, scatter: Tensor, counts: Tensor, shift: Tensor, reg_covar: float
    ) -> Tensor:
        """Covariances about the new means; ``shift`` [..., K, D] is new mean minus old."""

    @abstractmethod
    def precisions_cholesky(self, covariances: Tensor) -> Tensor:
        """Factor P with P P' = inverse covariance.

        Raises:
            ValueError: A covariance is not positive definite.
        """


class Full(Family):
    """One covariance matrix per component."""

    def whiten(self, Z: Tensor, precisions_cholesky: Tensor) -> Tensor:
        return Z @ precisions_cholesky

    def log_det(self, precisions_cholesky: Tensor, n_features: int) -> Tensor:
        return precisions_cholesky.diagonal(dim1=-2, dim2=-1).log().sum(-1)

    def scatter(self, weighted_Z: Tensor, Z: Tensor) -> Tensor:
        return weighted_Z.mT @ Z

    def covariances(
        self, scatter: Tensor, counts: Tensor, shift: Tensor, reg_covar: float
    ) -> Tensor:
        outer = shift.unsqueeze(-1) * shift.unsqueeze(-2)
        return _add_to_diagonal(scatter / counts[..., None, None] - outer, reg_covar)

    def precisions_cholesky(self, covariances: Tensor) -> Tensor:
        scale_tril, failed = torch.linalg.cholesky_ex(covariances)
        if bool((failed > 0).any()):
            raise ValueError(ILL_DEFINED)
        identity = torch.eye(covariances.shape[-1], dtype=scale_tril.dtype).to(scale_tril.device)
        return torch.linalg.solve_triangular(scale_tril, identity, upper=False).mT


class Tied(Full):
    """One covariance matrix for all components."""

    def whiten(self, Z: Tensor, precisions_cholesky: Tensor) -> Tensor:
        return Z @ precisions_cholesky.unsqueeze(-3)

    def log_det(self, precisions_cholesky: Tensor, n_features: int) -> Tensor:
        return super().log_det(precisions_cholesky, n_features).unsqueeze(-1)

    def scatter(self, weighted_Z: Tensor, Z: Tensor) -> Tensor:
        return weighted_Z.flatten(-3, -2).mT @ Z.flatten(-3, -2)

    def covariances(
        self, scatter: Tensor, counts: Tensor, shift: Tensor, reg_covar: float
    ) -> Tensor:
        between = (counts.unsqueeze(-1) * shift).mT @ shift
        return _add_to_diagonal((scatter - between) / counts.sum(-1)[..., None, None], reg_covar)


class Diag(Family):
    """One variance per component and feature."""

    def whiten(self, Z: Tensor, precisions_cholesky: Tensor) -> Tensor:
        return Z * precisions_cholesky.unsqueeze(-2)

    def log_det(self, precisions_cholesky: Tensor, n_features: int) -> Tensor:
        return precisions_cholesky.log().sum(-1)

    def scatter(self, weighted_Z: Tensor, Z: Tensor) -> Tensor:
        return (weighted_Z * Z).sum(-2)

    def covariances(
        self, scatter: Tensor, counts: Tensor, shift: Tensor, reg_covar: float
    ) -> Tensor:
        return scatter / counts.unsqueeze(-1) - shift.square() + reg_covar

    def precisions_cholesky(self, covariances: Tensor) -> Tensor:
        if not bool((covariances > 0).all()):
            raise ValueError(ILL_DEFINED)
        return covariances.rsqrt()


class Spherical(Diag):
    """One variance per component."""

    def whiten(self, Z: Tensor, precisions_cholesky: Tensor) -> Tensor:
        return Z * precisions_cholesky[..., None, None]

    def log_det(self, precisions_cholesky: Tensor, n_features: int) -> Tensor:
        return n_features * precisions_cholesky.log()

    def covariances(
        self, scatter: Tensor, counts: Tensor, shift: Tensor, reg_covar: float
    ) -> Tensor:
        return super().covariances(scatter, counts, shift, reg_covar).mean(-1)


FAMILIES: Mapping[str, Family] = {
    "full": Full(),
    "tied": Tied(),
    "diag": Diag(),
    "spherical": Spherical(),
}


def em_step(
    X: Tensor, parameters: Parameters, family: Family, reg_covar: float = 1e-6
) -> tuple[Tensor, Parameters]:
    """One EM iteration.

    Args:
        X: Samples, shape (..., n_samples, n_features) [u].
        parameters: The current mixture, same dtype and device.
        family: One of `FAMILIES`.
        reg_covar: Added to the diagonal of every covariance [u^2].

    Returns:
        Mean log-likelihood per sample of the *current* mixture, shape (...) [nat], and the next
        mixture.

    Raises:
        ValueError: A new covariance is not positive definite.

    Source:
        Bishop (2006), Pattern Recognition and Machine Learning, eq. 9.23 to 9.27.

    Example:
        >>> one = torch.ones(1, 1, dtype=torch.float64)
        >>> start = Parameters(one[0], 0 * one, one[:, :, None], one[:, :, None])
        >>> _, fitted = em_step(torch.cat([one, 3 * one]), start, FAMILIES["full"])
        >>> round(float(fitted.means), 6), round(float(fitted.covariances), 6)
        (2.0, 1.000001)
    """
    statistics = e_step(X, parameters, family)
    log_likelihood = statistics.total_log_likelihood / X.shape[-2]
    return log_likelihood, m_step(statistics, parameters, family, reg_covar)


def e_step(X: Tensor, parameters: Parameters, family: Family) -> Statistics:
    """Sufficient statistics of X under the mixture, summed chunk by chunk in order."""
    parts = (_chunk_statistics(chunk, parameters, family) for chunk in _chunks(X, parameters))
    total = next(parts)
    for part in parts:
        total = total + part
    return total


def m_step(
    statistics: Statistics, parameters: Parameters, family: Family, reg_covar: float
) -> Parameters:
    """The mixture that maximises the expected log-joint, given statistics about ``parameters``.

    A component that has lost all its samples keeps its mean and gets ``reg_covar`` as covariance.
    """
    # The floor of scikit-learn: keeps an empty component finite, moves no other one.
    counts = statistics.counts + 10 * torch.finfo(statistics.counts.dtype).eps
    shift = statistics.shifts / counts.unsqueeze(-1)
    covariances = family.covariances(statistics.scatter, counts, shift, reg_covar)
    return Parameters(
        weights=counts / counts.sum(-1, keepdim=True),
        means=parameters.means + shift,
        covariances=covariances,
        precisions_cholesky=family.precisions_cholesky(covariances),
    )


def log_joint(X: Tensor, parameters: Parameters, family: Family) -> Tensor:
    """Log of weight times density, shape (..., n_components, n_samples) [nat]."""
    parts = [
        _log_joint(_centred(chunk, parameters), parameters, family)
        for chunk in _chunks(X, parameters)
    ]
    return torch.cat(parts, dim=-1)


def _chunk_statistics(chunk: Tensor, parameters: Parameters, family: Family) -> Statistics:
    Z = _centred(chunk, parameters)
    log_density, resp = _normalise(_log_joint(Z, parameters, family))
    weighted_Z = Z * resp.unsqueeze(-1)
    return Statistics(
        total_log_likelihood=log_density.sum(-1),
        counts=resp.sum(-1),
        shifts=weighted_Z.sum(-2),
        scatter=family.scatter(weighted_Z, Z),
    )


def _log_joint(Z: Tensor, parameters: Parameters, family: Family) -> Tensor:
    """Log-joint [..., K, n] of samples given as Z = x - mean [..., K, n, D]."""
    n_features = Z.shape[-1]
    quadratic = family.whiten(Z, parameters.precisions_cholesky).square().sum(-1)
    constant = (
        parameters.weights.log()
        + family.log_det(parameters.precisions_cholesky, n_features)
        - 0.5 * n_features * math.log(2 * math.pi)
    )
    return constant.unsqueeze(-1) - 0.5 * quadratic


def _normalise(log_joint: Tensor) -> tuple[Tensor, Tensor]:
    """Log-density [..., n] and responsibilities [..., K, n], with a single exponential."""
    largest = log_joint.amax(-2, keepdim=True)
    resp = (log_joint - largest).exp_()
    total = resp.sum(-2, keepdim=True)
    return (total.log() + largest).squeeze(-2), resp.div_(total)


def _centred(chunk: Tensor, parameters: Parameters) -> Tensor:
    """Samples minus means, [..., K, n, D]."""
    return chunk.unsqueeze(-3) - parameters.means.unsqueeze(-2)


def _chunks(X: Tensor, parameters: Parameters) -> Iterator[Tensor]:
    """X in pieces of rows whose blocks over all components and problems fit into the cache."""
    problems = math.prod(torch.broadcast_shapes(X.shape[:-2], parameters.means.shape[:-2]))
    per_row = max(1, problems * parameters.means.shape[-2] * X.shape[-1])
    elements = GPU_CHUNK_ELEMENTS if X.is_cuda else CHUNK_ELEMENTS
    return iter(X.split(max(16, elements // per_row), dim=-2))


def _add_to_diagonal(matrices: Tensor, value: float) -> Tensor:
    """The matrices with a value added, symmetric to the last bit: products of floats are not."""
    symmetric = (matrices + matrices.mT) / 2
    symmetric.diagonal(dim1=-2, dim2=-1).add_(value)
    return symmetric
