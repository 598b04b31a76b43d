"""``connected-components`` and ``random-groups``: what a grouping is to be held against."""

from __future__ import annotations

from numbers import Integral
from typing import Any, ClassVar

import numpy as np
from sklearn.utils import check_random_state
from sklearn.utils._param_validation import Interval

from embench.models.grouping.base import THRESHOLD, ImageGrouper, one_hot
from embench.types import BoolArray, FloatArray

TOUCHING = np.array([np.zeros((3, 3)), np.ones((3, 3)), np.zeros((3, 3))])
"""A pixel's neighbours are the eight around it, and none in other images."""


class ConnectedComponents(ImageGrouper):
    """Lit pixels that touch, if only at a corner, are one group: right until objects overlap.

    Finds the number of groups by itself, in each image. Pixels that are not lit are in group 0.

    Args:
        image_shape: Height and width; None for square images.
        threshold: A pixel above it is lit.

    Example:
        >>> image = np.array([[1.0, 1, 0, 1, 1]])
        >>> ConnectedComponents(image_shape=(1, 5)).fit(image).predict(image).tolist()
        [[0, 0, 0, 1, 1]]
    """

    def __init__(
        self, *, image_shape: tuple[int, int] | None = None, threshold: float = THRESHOLD
    ) -> None:
        self.image_shape = image_shape
        self.threshold = threshold

    def _group_proba(self, lit: BoolArray) -> FloatArray:
        from scipy.ndimage import label

        numbers, n_found = label(lit, TOUCHING)
        flat = numbers.reshape(len(lit), -1)
        first = np.where(flat > 0, flat, n_found + 1).min(axis=1, keepdims=True)
        # The numbers go on from one image to the next.
        groups = np.where(flat > 0, flat - first, 0)
        return one_hot(groups, groups.max(initial=0) + 1)


class RandomGroups(ImageGrouper):
    """A group drawn for every pixel, whatever the image shows: AMI 0 but for chance.

    Args:
        n_components: Number of groups.
        image_shape, threshold: As of the others, of no effect.
        random_state: Seed of the groups.

    Example:
        >>> image = np.ones((1, 4))
        >>> RandomGroups(2, random_state=0).fit(image).predict(image).shape
        (1, 4)
    """

    _parameter_constraints: ClassVar[dict[str, Any]] = {
        **ImageGrouper._parameter_constraints,
        "n_components": [Interval(Integral, 1, None, closed="left")],
        "random_state": ["random_state"],
    }

    def __init__(
        self,
        n_components: int = 3,
        *,
        image_shape: tuple[int, int] | None = None,
        threshold: float = THRESHOLD,
        random_state: int | np.random.RandomState | None = None,
    ) -> None:
        self.n_components = n_components
        self.image_shape = image_shape
        self.threshold = threshold
        self.random_state = random_state

    def _group_proba(self, lit: BoolArray) -> FloatArray:
        rng = check_random_state(self.random_state)
        drawn = rng.randint(self.n_components, size=(len(lit), lit[0].size))
        return one_hot(drawn, self.n_components)
