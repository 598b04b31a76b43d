"""``bernoulli-mixture``: a mixture of whole images, which never asks about objects."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from numbers import Integral, Real
from typing import Any, ClassVar, Self

import numpy as np
from scipy.special import logsumexp
from sklearn.utils import check_random_state
from sklearn.utils._param_validation import Interval
from sklearn.utils.validation import check_is_fitted

from embench.models.grouping.base import THRESHOLD, ImageGrouper
from embench.types import BoolArray, FloatArray


class BernoulliMixture(ImageGrouper):
    """A mixture of images, by EM: each component has a probability for every pixel to be lit.

    p(x) = sum_k w_k prod_i p_ki^x_i (1 - p_ki)^(1 - x_i)

    An image belongs to one component as a whole, so it cannot tell the objects in it apart. As
    groups of pixels stands what a pixel says by itself: group k with a probability proportional to
    w_k p_ki where it is lit and w_k (1 - p_ki) where not. That parts the canvas, the same way in
    all images: what can be had without looking at how the pixels of an image go together.

    Args:
        n_components: Number of components, and of groups.
        prior: Images of which half have a pixel lit that every component counts beside its own; it
            keeps the probabilities off 0 and 1.
        tol: Ends when the mean log-likelihood rises by less [nat per image].
        max_iter: Largest number of iterations.
        image_shape: Height and width; None for square images.
        threshold: A pixel above it is lit.
        random_state: Seed of the images that components begin with.

    Attributes: ``weights_`` (n_components,), ``means_`` (n_components, n_pixels), ``n_iter_`` and
    ``converged_``.

    Source:
        Bishop (2006), Pattern Recognition and Machine Learning, section 9.3.3; the prior is a Beta
        on every p_ki, exercise 9.18.

    Example:
        >>> X = np.repeat([[1.0, 1, 0, 0], [0, 0, 1, 1]], 50, axis=0)
        >>> model = BernoulliMixture(2, random_state=0).fit(X)
        >>> round(-model.score(X), 1)
        0.7
    """

    _parameter_constraints: ClassVar[dict[str, Any]] = {
        **ImageGrouper._parameter_constraints,
        "n_components": [Interval(Integral, 1, None, closed="left")],
        "prior": [Interval(Real, 0, None, closed="neither")],
        "tol": [Interval(Real, 0, None, closed="left")],
        "max_iter": [Interval(Integral, 1, None, closed="left")],
        "random_state": ["random_state"],
    }

    def __init__(
        self,
        n_components: int = 3,
        *,
        prior: float = 1.0,
        tol: float = 1e-3,
        max_iter: int = 100,
        image_shape: tuple[int, int] | None = None,
        threshold: float = THRESHOLD,
        random_state: int | np.random.RandomState | None = None,
    ) -> None:
        self.n_components = n_components
        self.prior = prior
        self.tol = tol
        self.max_iter = max_iter
        self.image_shape = image_shape
        self.threshold = threshold
        self.random_state = random_state

    def fit(self, X: FloatArray, y: None = None) -> Self:
        """Fit to images (n_images, n_pixels), or sequences, every frame of which is an image.

        Raises:
            ValueError: As of all groupers, and if there are fewer images than components.
        """
        deque(self.iter_fit(X), maxlen=0)
        return self

    def iter_fit(self, X: FloatArray) -> Iterator[int]:
        """Fit step by step: yields 0 at the start, then the iterations of EM done."""
        lit = _flat(self._lit(X, reset=True))
        n_images = len(lit)
        if n_images < self.n_components:
            raise ValueError(
                f"expected at least as many images as components, got {n_images} images and "
                f"n_components={self.n_components}"
            )
        rng = check_random_state(self.random_state)
        chosen = rng.choice(n_images, self.n_components, replace=False)
        self._maximise(np.full(self.n_components, 1.0), lit[chosen])
        self.n_iter_, self.converged_ = 0, False
        yield 0
        before = -np.inf
        while self.n_iter_ < self.max_iter and not self.converged_:
            log_joint = self._log_joint(lit)
            log_density = logsumexp(log_joint, axis=1, keepdims=True)
            resp = np.exp(log_joint - log_density)
            self._maximise(resp.sum(axis=0), resp.T @ lit)
            log_likelihood = log_density.mean()
            self.converged_ = bool(log_likelihood - before < self.tol)
            self.n_iter_, before = self.n_iter_ + 1, log_likelihood
            yield self.n_iter_

    def score_samples(self, X: FloatArray) -> FloatArray:
        """Log-probability of each image, (n_images,), of each frame of sequences in turn [nat]."""
        check_is_fitted(self)
        return logsumexp(self._log_joint(_flat(self._lit(X))), axis=1)

    def score(self, X: FloatArray, y: None = None) -> float:
        """Mean log-probability per image [nat]."""
        return float(self.score_samples(X).mean())

    def _group_proba(self, lit: BoolArray) -> FloatArray:
        lit_here = _flat(lit)[..., None]
        proba = self.weights_ * np.where(lit_here, self.means_.T, 1 - self.means_.T)
        return proba / proba.sum(axis=-1, keepdims=True)

    def _maximise(self, counts: FloatArray, sums: FloatArray) -> None:
        """Parameters from the counts [K] of images and their sums [K, n_pixels]."""
        self.weights_ = counts / counts.sum()
        self.means_ = (sums + self.prior / 2) / (counts[:, None] + self.prior)

    def _log_joint(self, lit: FloatArray) -> FloatArray:
        """Log of weight times probability, (n_images, n_components) [nat]."""
        with np.errstate(divide="ignore"):
            log_weights = np.log(self.weights_)
        dark = np.log1p(-self.means_)
        return lit @ (np.log(self.means_) - dark).T + dark.sum(axis=1) + log_weights


def _flat(lit: BoolArray) -> FloatArray:
    """Images as rows (n_images, n_pixels) of 0 and 1."""
    return lit.reshape(len(lit), -1).astype(np.float64)
