"""The mixture that one writes in ten minutes with `torch.distributions`: what `gd` is held against.

A model by the name ``torch_distributions:DistributionsMixture``. Full covariances by their Cholesky
factors, logits, Adam with cosine annealing: the same descent as `gd`, of all samples at once.
"""

from __future__ import annotations

from typing import Self

import numpy as np
import torch
from sklearn.base import BaseEstimator
from torch.distributions import Categorical, MixtureSameFamily, MultivariateNormal

from embench.types import FloatArray, IntArray, Mixture


class DistributionsMixture(BaseEstimator):
    """Gradient descent on `MixtureSameFamily(MultivariateNormal)`."""

    def __init__(
        self,
        n_components: int = 1,
        *,
        covariance_type: str = "full",
        max_iter: int = 500,
        lr: float = 0.05,
        weights_init: FloatArray | None = None,
        means_init: FloatArray | None = None,
        covariances_init: FloatArray | None = None,
        dtype: str = "float64",
    ) -> None:
        self.n_components = n_components
        self.covariance_type = covariance_type
        self.max_iter = max_iter
        self.lr = lr
        self.weights_init = weights_init
        self.means_init = means_init
        self.covariances_init = covariances_init
        self.dtype = dtype

    def start_from(self, start: Mixture) -> Self:
        return self.set_params(
            weights_init=start.weights, means_init=start.means, covariances_init=start.covariances
        )

    def fit(self, X: FloatArray, y: None = None) -> Self:
        if self.covariance_type != "full":
            raise ValueError(f"expected covariance_type='full', got {self.covariance_type!r}")
        dtype = getattr(torch, self.dtype)
        data = torch.as_tensor(X, dtype=dtype)
        scale_tril = torch.linalg.cholesky(torch.tensor(self.covariances_init, dtype=dtype))
        parts = [
            torch.tensor(self.weights_init, dtype=dtype).log(),
            torch.tensor(self.means_init, dtype=dtype),
            scale_tril.tril(-1) + torch.diag_embed(scale_tril.diagonal(0, 1, 2).log()),
        ]
        for part in parts:
            part.requires_grad_()
        optimizer = torch.optim.Adam(parts, lr=self.lr, fused=True)  # as in `gd`
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.max_iter)
        for _ in range(self.max_iter):
            optimizer.zero_grad()
            loss = -_mixture(*parts).log_prob(data).mean()
            loss.backward()
            optimizer.step()
            scheduler.step()
        self.n_iter_ = self.max_iter
        self._fitted = [part.detach() for part in parts]
        return self

    @property
    def mixture_(self) -> Mixture:
        fitted = _mixture(*(part.double() for part in self._fitted))
        components = fitted.component_distribution
        parts = (fitted.mixture_distribution.probs, components.mean, components.covariance_matrix)
        return Mixture(*(np.asarray(part) for part in parts))

    def predict(self, X: FloatArray) -> IntArray:
        fitted = _mixture(*self._fitted)
        data = torch.as_tensor(X, dtype=self._fitted[0].dtype)[:, None]
        joint = fitted.component_distribution.log_prob(data) + fitted.mixture_distribution.logits
        return np.asarray(joint.argmax(1))

    def score(self, X: FloatArray, y: None = None) -> float:
        data = torch.as_tensor(X, dtype=self._fitted[0].dtype)
        return float(_mixture(*self._fitted).log_prob(data).mean())


def _mixture(logits: torch.Tensor, means: torch.Tensor, factors: torch.Tensor) -> MixtureSameFamily:
    scale_tril = factors.tril(-1) + torch.diag_embed(factors.diagonal(0, 1, 2).exp())
    components = MultivariateNormal(means, scale_tril=scale_tril, validate_args=False)
    return MixtureSameFamily(Categorical(logits=logits), components, validate_args=False)
