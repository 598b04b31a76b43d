"""One step of EM as a differentiable function of many mixtures at once, in torch.

The engine's formulation in a form that gradients go through: with the products of a sample's
features one matrix product gives all log-joints, and one of responsibilities and the same products
all moments. Everything happens in the frame of each dataset, centred and whitened, so that
expanding squares costs no digits, and whatever is learned about mixtures there holds for data of
any scale. Covariances are full.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from embench.models.engine.family import (
    COUNT_FLOOR,
    IllDefinedCovariance,
    warn_of_regularisation,
)


class Mixtures(NamedTuple):
    """A mixture for each of B datasets: ``logits`` [B, K], of which the softmax is the weights;
    ``means`` [B, K, D] [u]; ``scale_tril`` [B, K, D, D] [u], lower triangular Cholesky factors of
    the covariances."""

    logits: Tensor
    means: Tensor
    scale_tril: Tensor

    @property
    def weights(self) -> Tensor:
        """[B, K], sum 1."""
        return self.logits.softmax(-1)

    @property
    def covariances(self) -> Tensor:
        """[B, K, D, D] [u^2]."""
        return self.scale_tril @ self.scale_tril.mT


class Samples(NamedTuple):
    """Datasets in their frames, ready for E-steps.

    ``products`` [B, P, N]: those of pairs of features, the features, and ones, and 0 where a mask
    says that there is no sample; ``counted`` [B, N], how often each counts: 1, or 0 where there is
    none; ``centre`` [B, D] and ``scale`` [B, D, D], lower triangular: x = centre + scale y.
    """

    products: Tensor
    counted: Tensor
    centre: Tensor
    scale: Tensor

    @property
    def n_samples(self) -> Tensor:
        """[B]."""
        return self.counted.sum(-1)

    def joined_by(self, X: Tensor) -> Samples:
        """Other samples [B, N, D] [u], in the same frames."""
        Y = torch.linalg.solve_triangular(self.scale, (X - self.centre[:, None]).mT, upper=False)
        counted = torch.ones_like(Y[:, 0])
        return self._replace(products=products(Y, counted), counted=counted)

    def inward(self, mixtures: Mixtures) -> Mixtures:
        """Mixtures of X as mixtures of Y."""
        centred = (mixtures.means - self.centre[:, None])[..., None]
        means = torch.linalg.solve_triangular(self.scale[:, None], centred, upper=False)[..., 0]
        factors = torch.linalg.solve_triangular(
            self.scale[:, None], mixtures.scale_tril, upper=False
        )
        return Mixtures(mixtures.logits, means, factors)

    def outward(self, mixtures: Mixtures) -> Mixtures:
        """Mixtures of Y as mixtures of X."""
        means = self.centre[:, None] + (self.scale[:, None] @ mixtures.means[..., None])[..., 0]
        return Mixtures(mixtures.logits, means, self.scale[:, None] @ mixtures.scale_tril)


def framed(X: Tensor, mask: Tensor | None = None, reg_covar: float = 1e-6) -> Samples:
    """Centre and whiten each dataset.

    Args:
        X: Shape [B, n_samples, n_features] [u].
        mask: Shape [B, n_samples], False where there is no sample.
        reg_covar: Added to the variances of the data [u^2], so that they can be divided by.

    Raises:
        ValueError: The shapes are not these, a dataset has no samples, or a number is not finite.
        IllDefinedCovariance: That of a dataset is not positive definite.
    """
    check(X, X.dtype, mask=mask)
    counted = X.new_ones(X.shape[:2]) if mask is None else mask.to(X.dtype)
    if not counted.any(-1).all():
        raise ValueError("expected at least one sample in every dataset")
    present = X if mask is None else X.where(mask[..., None], 0.0)
    if not present.isfinite().all():
        raise ValueError("expected finite numbers in X; leave samples out with a mask")
    n_samples = counted.sum(-1)[:, None]
    centre = present.sum(1) / n_samples
    centred = (present - centre[:, None]) * counted[..., None]
    covariance = centred.mT @ centred / n_samples[..., None]
    identity = torch.eye(X.shape[-1], dtype=X.dtype, device=X.device)
    scale = _cholesky(covariance, (reg_covar * identity).expand_as(covariance))
    Y = torch.linalg.solve_triangular(scale, centred.mT, upper=False)
    return Samples(products(Y, counted), counted, centre, scale)


def check(
    X: Tensor, dtype: torch.dtype, start: Mixtures | None = None, mask: Tensor | None = None
) -> None:
    """See that datasets, starts and masks belong together.

    Raises:
        ValueError: X is not [B, n_samples, n_features] in this dtype, or a start or a mask is not
            for such an X.
    """
    if X.ndim != 3:
        raise ValueError(f"expected X of shape [B, n_samples, n_features], got {tuple(X.shape)}")
    if X.dtype != dtype:
        raise ValueError(
            f"expected X of the module's {dtype}, got {X.dtype}: convert X, or the module by .to()"
        )
    if mask is not None and (mask.shape != X.shape[:2] or mask.dtype != torch.bool):
        raise ValueError(
            f"expected a boolean mask of shape {tuple(X.shape[:2])}, got {mask.dtype} of shape "
            f"{tuple(mask.shape)}"
        )
    if start is None:
        return
    (B, _, D), K = X.shape, start.logits.shape[-1]
    for name, part, shape in zip(
        start._fields, start, [(B, K), (B, K, D), (B, K, D, D)], strict=True
    ):
        if part.shape != shape:
            raise ValueError(
                f"expected {name} of shape {shape} in the start, for X of shape "
                f"{tuple(X.shape)}, got {tuple(part.shape)}"
            )


def products(Y: Tensor, present: Tensor) -> Tensor:
    """Those of pairs of features, the features, and ``present``: [B, P, N] of Y [B, D, N]."""
    rows, columns = torch.triu_indices(Y.shape[1], Y.shape[1], device=Y.device)
    return torch.cat([Y[:, rows] * Y[:, columns], Y, present[:, None]], dim=1)


def n_products(n_features: int) -> int:
    """P: how many `products` there are."""
    return (n_features + 1) * (n_features + 2) // 2


def e_step(samples: Samples, mixtures: Mixtures) -> tuple[Tensor, Tensor]:
    """Log-likelihood and responsibilities under mixtures of the frame.

    Returns:
        The total log-likelihood of each dataset, [B], a sum over its samples [nat], and the
        responsibilities [B, K, N], which are 0 where there is no sample.
    """
    joint = log_joint(samples, mixtures)
    log_density = joint.logsumexp(1)
    resp = torch.exp(joint - log_density[:, None]) * samples.counted[:, None]
    return (log_density * samples.counted).sum(-1), resp


def log_joint(samples: Samples, mixtures: Mixtures) -> Tensor:
    """Log of weight times density of X, [B, K, N] [nat], under mixtures of the frame."""
    return _coefficients(samples, mixtures) @ samples.products


def m_step(samples: Samples, resp: Tensor, previous: Mixtures, reg_covar: float = 1e-6) -> Mixtures:
    """The mixtures that maximise the expected log-joint, ``reg_covar`` added to the variances of X.

    A component that has lost all its samples stays where it is. As in `em`, more is added to a
    covariance that is not positive definite all the same, with a warning; 0 stays 0.

    Raises:
        IllDefinedCovariance: A new covariance is not positive definite, and ``reg_covar`` is 0.
    """
    D = samples.centre.shape[-1]
    sums = resp @ samples.products.mT
    floor = COUNT_FLOOR * samples.n_samples.clamp(max=1)[:, None]
    lost = sums[..., -1] <= floor
    counts = sums[..., -1] + floor
    means = sums[..., -1 - D : -1] / counts[..., None]
    rows, columns = torch.triu_indices(D, D, device=resp.device)
    places = torch.zeros(D, D, dtype=torch.long, device=resp.device)
    places[rows, columns] = places[columns, rows] = torch.arange(len(rows), device=resp.device)
    seconds = sums[..., places.ravel()].unflatten(-1, (D, D)) / counts[..., None, None]
    covariances = seconds - means[..., None] * means[..., None, :]
    identity = torch.eye(D, dtype=resp.dtype, device=resp.device)
    whitened = torch.linalg.solve_triangular(samples.scale, identity, upper=False)
    regularisation = reg_covar * whitened @ whitened.mT
    # Of one that is lost nothing is used, and nothing may be singular.
    covariances = identity.where(lost[..., None, None], covariances)
    scale_tril = _cholesky(covariances, regularisation[:, None].expand_as(covariances))
    return Mixtures(
        torch.log(counts),
        means.where(~lost[..., None], previous.means),
        scale_tril.where(~lost[..., None, None], previous.scale_tril),
    )


def em_map(
    samples: Samples, mixtures: Mixtures, reg_covar: float = 1e-6
) -> tuple[Tensor, Mixtures]:
    """One step of EM: the total log-likelihood [B] [nat] before it, and the mixtures after it.

    Source:
        Bishop (2006), Pattern Recognition and Machine Learning, eq. 9.23 to 9.27.

    Example:
        >>> X = torch.tensor([[[1.0], [3.0]]], dtype=torch.float64)
        >>> samples = framed(X, reg_covar=0.0)
        >>> start = Mixtures(X[:, :1, 0], X[:, :1], torch.ones_like(X[:, :1, None]))
        >>> _, fitted = em_map(samples, samples.inward(start), reg_covar=0.0)
        >>> samples.outward(fitted).means.item()
        2.0
    """
    log_likelihood, resp = e_step(samples, mixtures)
    return log_likelihood, m_step(samples, resp, mixtures, reg_covar)


def _coefficients(samples: Samples, mixtures: Mixtures) -> Tensor:
    """Factors [B, K, P] whose product with the products is the log-joint of X."""
    _, means, scale_tril = mixtures
    D = means.shape[-1]
    identity = torch.eye(D, dtype=means.dtype, device=means.device)
    inverse = torch.linalg.solve_triangular(scale_tril, identity, upper=False)
    precisions = inverse.mT @ inverse
    linear = (precisions @ means[..., None])[..., 0]
    rows, columns = torch.triu_indices(D, D, device=means.device)
    twice = torch.where(rows == columns, -0.5, -1.0).to(means.dtype)
    log_det = torch.log(scale_tril.diagonal(0, -2, -1)).sum(-1)
    log_scale = torch.log(samples.scale.diagonal(0, -2, -1)).sum(-1)[:, None]
    constant = mixtures.logits.log_softmax(-1) - log_det - log_scale
    constant = constant - 0.5 * (linear * means).sum(-1) - 0.5 * D * math.log(2 * math.pi)
    quadratic = precisions[..., rows, columns] * twice
    return torch.cat([quadratic, linear, constant[..., None]], dim=-1)


def _cholesky(covariances: Tensor, regularisation: Tensor) -> Tensor:
    """Lower triangular factors of what is regularised, ten times more until each one has any."""
    factor = 1.0
    while True:
        factors, info = torch.linalg.cholesky_ex(covariances + regularisation)
        if not info.any():
            break
        bad = info != 0
        if not (regularisation[bad] > 0).any() or not regularisation.isfinite().all():
            dataset, *component = bad.nonzero()[0].tolist()
            where = "".join(f"component {k} in " for k in component) + f"dataset {dataset}"
            raise IllDefinedCovariance(
                f"the covariance of {where} is not positive definite in {covariances.dtype}: use "
                "reg_covar > 0, float64, or fewer components"
            )
        factor *= 10
        regularisation = torch.where(bad[..., None, None], 10 * regularisation, regularisation)
    if factor > 1:
        warn_of_regularisation("of a component", factor)
    return factors
