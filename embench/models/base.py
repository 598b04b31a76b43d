"""What every mixture estimator of embench offers beyond its fit, written once."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod

import numpy as np
from scipy.special import logsumexp
from sklearn.base import BaseEstimator, DensityMixin
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data

from embench.types import FloatArray, IntArray, Mixture


class DivergenceWarning(RuntimeWarning):
    """A step led to what is no density, and a fit ended with what it had before."""


def resolved_device(device: str) -> str:
    """ "cpu" or "cuda" from what a model's parameter says; torch is only asked where a GPU is.

    Raises:
        ValueError: "cuda", and torch finds none.
    """
    if device == "cpu":
        return "cpu"
    import torch

    if torch.cuda.is_available():
        return "cuda"
    if device == "auto":
        return "cpu"
    raise ValueError("device='cuda': torch finds no CUDA device; use 'cpu' or 'auto'")


def complete_signature(cls: type) -> None:
    """Make a constructor's signature whole, where it names only what a subclass adds.

    Those of its parent stand in the place of ``**common``, where scikit-learn finds them.
    """
    own = inspect.signature(cls.__init__).parameters.values()  # type: ignore[misc]
    named = {one.name: one for one in own if one.kind != one.VAR_KEYWORD}
    if "__init__" not in vars(cls) or len(named) == len(own):
        return
    parent = cls.__mro__[1]
    inherited = inspect.signature(parent.__init__).parameters  # type: ignore[misc]
    whole = inspect.Signature([*({**named, **inherited, **named}).values()])
    cls.__init__.__signature__ = whole  # type: ignore[misc]


class MixtureEstimator(DensityMixin, BaseEstimator, ABC):
    """Density, labels, samples and information criteria from a log-joint and a mixture."""

    @property
    @abstractmethod
    def mixture_(self) -> Mixture:
        """The fitted mixture in float64."""

    @abstractmethod
    def _log_joint(self, X: FloatArray) -> FloatArray:
        """Log of weight times density, (n_samples, n_components) [nat]."""

    @abstractmethod
    def _n_parameters(self) -> int:
        """Number of free parameters."""

    def score_samples(self, X: FloatArray) -> FloatArray:
        """Log-density of each sample, (n_samples,) [nat]."""
        return logsumexp(self._checked_log_joint(X), axis=1)

    def score(self, X: FloatArray, y: None = None) -> float:
        """Mean log-likelihood per sample [nat]."""
        return float(self.score_samples(X).mean())

    def predict(self, X: FloatArray) -> IntArray:
        """Most probable component of each sample, (n_samples,)."""
        return self._checked_log_joint(X).argmax(axis=1)

    def predict_proba(self, X: FloatArray) -> FloatArray:
        """Responsibilities, (n_samples, n_components); rows sum to 1."""
        joint = self._checked_log_joint(X)
        return np.exp(joint - logsumexp(joint, axis=1, keepdims=True))

    def sample(self, n_samples: int = 1) -> tuple[FloatArray, IntArray]:
        """Draw X (n_samples, n_features) [u] and the components it comes from, in their order."""
        check_is_fitted(self)
        if n_samples < 1:
            raise ValueError(f"expected n_samples >= 1, got {n_samples}")
        mixture, rng = self.mixture_, check_random_state(self.random_state)
        counts = rng.multinomial(n_samples, mixture.weights)
        X = [
            rng.multivariate_normal(mean, covariance, count)
            for mean, covariance, count in zip(
                mixture.means, mixture.covariances, counts, strict=True
            )
        ]
        return np.concatenate(X), np.repeat(np.arange(mixture.n_components), counts)

    def bic(self, X: FloatArray) -> float:
        """Bayesian information criterion on X, lower is better (Schwarz, 1978)."""
        return -2 * self.score(X) * len(X) + self._n_parameters() * np.log(len(X))

    def aic(self, X: FloatArray) -> float:
        """Akaike information criterion on X, lower is better (Akaike, 1974)."""
        return -2 * self.score(X) * len(X) + 2 * self._n_parameters()

    def _checked_log_joint(self, X: FloatArray) -> FloatArray:
        check_is_fitted(self)
        return self._log_joint(validate_data(self, X, dtype=np.float64, reset=False))
