"""From images to lit pixels on their canvas: what every grouper here begins with."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from numbers import Real
from typing import Any, ClassVar, Self

import numpy as np
from sklearn.base import BaseEstimator
from sklearn.utils._param_validation import Interval
from sklearn.utils.validation import check_is_fitted, validate_data

from embench.types import BoolArray, FloatArray, IntArray

THRESHOLD = 0.25
"""Half of what a shape of ``continuous-shapes`` shines at least; of binary images any will do."""


class ImageGrouper(BaseEstimator, ABC):
    """Groups of the pixels of images: the group of each pixel, and its probability.

    A model says in `_group_proba` what the groups are of images one by one; a fit that learns from
    many overrides `fit`. The frames of a sequence are so many images: nothing is carried over.
    """

    image_shape: tuple[int, int] | None
    threshold: float

    _parameter_constraints: ClassVar[dict[str, Any]] = {
        "image_shape": ["array-like", None],
        "threshold": [Interval(Real, None, None, closed="neither")],
    }

    @abstractmethod
    def _group_proba(self, lit: BoolArray) -> FloatArray:
        """(n_images, n_pixels, n_components) of lit pixels (n_images, height, width)."""

    def fit(self, X: FloatArray, y: None = None) -> Self:
        """Look at the shape of the images: every one will be grouped by itself.

        Args:
            X: Images (n_images, n_pixels), or sequences of them (n_sequences, n_steps, n_pixels).
            y: Ignored.

        Raises:
            ValueError: X is of another shape, holds NaN, or does not fit ``image_shape``.
        """
        self._lit(X, reset=True)
        return self

    def group_proba(self, X: FloatArray) -> FloatArray:
        """Probability of each group for each pixel.

        Args:
            X: Images (n_images, n_pixels), or sequences of them.

        Returns:
            Shape (n_images, n_pixels, n_components), or with the steps of sequences; sums are 1.
        """
        check_is_fitted(self, "image_shape_")
        found = self._group_proba(self._lit(X))
        return found.reshape(*np.shape(X), found.shape[-1])

    def predict(self, X: FloatArray) -> IntArray:
        """The most probable group of each pixel, in the shape of X."""
        return self.group_proba(X).argmax(axis=-1)

    def _lit(self, X: FloatArray, reset: bool = False) -> BoolArray:
        """Which pixels shine, (n_images, height, width)."""
        if reset:
            self._validate_params()
        if np.ndim(X) == 3:
            X = np.reshape(X, (-1, np.shape(X)[-1]))
        X = validate_data(self, X, dtype=[np.float64, np.float32], reset=reset)
        if reset:
            self.image_shape_ = self._canvas(X.shape[1])
        return np.greater(X, self.threshold).reshape(-1, *self.image_shape_)

    def _canvas(self, n_pixels: int) -> tuple[int, int]:
        """Height and width, of which the product is ``n_pixels``."""
        side = math.isqrt(n_pixels)
        height, width = self.image_shape or (side, side)
        if height * width != n_pixels:
            asked = "square images" if self.image_shape is None else f"{height} x {width} pixels"
            raise ValueError(
                f"expected {asked}, got X with {n_pixels} pixels in each; say it with "
                "image_shape=(height, width)"
            )
        return height, width


def one_hot(labels: IntArray, n_components: int) -> FloatArray:
    """Probability 1 for the group of each pixel, (..., n_components)."""
    return (labels[..., None] == np.arange(n_components)).astype(np.float64)
