"""``pixel-kmeans`` and ``pixel-gmm``: pixels of one object are near each other, and that is all."""

from __future__ import annotations

import warnings
from abc import abstractmethod
from collections.abc import Callable, Iterator
from numbers import Integral, Real
from typing import Any, ClassVar, Literal

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils import check_random_state
from sklearn.utils._param_validation import Interval, StrOptions

from embench.models.em import GaussianMixture
from embench.models.grouping.base import THRESHOLD, ImageGrouper, one_hot
from embench.models.grouping.kmeans import Clusters, k_means, squared_distances
from embench.types import BoolArray, FloatArray, IntArray, Mixture

PIXEL = 1 / 12
"""Variance [pixel^2] along each axis of a square of side 1: what a single pixel has."""

_Count = Interval(Integral, 1, None, closed="left")


class CoordinateGrouper(ImageGrouper):
    """Groups of where the lit pixels of an image are, found for each image by itself.

    Coordinates are taken from the first lit row and column: an image that is moved is grouped
    alike. An image with fewer lit pixels than groups is all in group 0.
    """

    n_components: int
    n_init: int
    max_iter: int
    random_state: int | np.random.RandomState | None

    _parameter_constraints: ClassVar[dict[str, Any]] = {
        **ImageGrouper._parameter_constraints,
        "n_components": [_Count],
        "n_init": [_Count],
        "max_iter": [_Count],
        "random_state": ["random_state"],
    }

    @abstractmethod
    def _proba_of(self, X: FloatArray, found: Clusters, canvas: FloatArray) -> FloatArray:
        """(n_images, n_pixels, K) on the canvas (n_images, n_pixels, 2), of clustered points X."""

    def _group_proba(self, lit: BoolArray) -> FloatArray:
        starts = (self.n_init, self.n_components)
        uniforms = check_random_state(self.random_state).uniform(size=starts)
        pixels = np.argwhere(np.ones(lit.shape[1:]))
        proba = np.zeros((len(lit), len(pixels), self.n_components))
        proba[..., 0] = 1
        for images in _of_one_count(lit, self.n_components):
            X = np.argwhere(lit[images])[:, 1:].reshape(len(images), -1, 2)
            corner = X.min(axis=1, keepdims=True)
            points, canvas = ((part - corner).astype(np.float64) for part in (X, pixels))
            found = k_means(points, uniforms, self.max_iter)
            proba[images] = self._proba_of(points, found, canvas)
        return proba


class PixelKMeans(CoordinateGrouper):
    """k-means on the coordinates of the lit pixels of each image: what nearness alone can tell.

    Every pixel, lit or not, belongs to the nearest centre. Nothing is learned from other images,
    and the number of groups must be known.

    Args:
        n_components: Number of groups.
        n_init: Starts for each image; the one that ends with the smallest inertia is kept.
        max_iter: Largest number of iterations.
        image_shape: Height and width; None for square images.
        threshold: A pixel above it is lit.
        random_state: Seed of the starts, the same for all images.

    Example:
        >>> image = np.array([[1.0, 1, 0, 0, 0, 1]])
        >>> groups = PixelKMeans(2, image_shape=(1, 6), random_state=0).fit(image).predict(image)[0]
        >>> bool(groups[0] == groups[1] != groups[5])
        True
    """

    def __init__(
        self,
        n_components: int = 3,
        *,
        n_init: int = 10,
        max_iter: int = 100,
        image_shape: tuple[int, int] | None = None,
        threshold: float = THRESHOLD,
        random_state: int | np.random.RandomState | None = None,
    ) -> None:
        self.n_components = n_components
        self.n_init = n_init
        self.max_iter = max_iter
        self.image_shape = image_shape
        self.threshold = threshold
        self.random_state = random_state

    def _proba_of(self, X: FloatArray, found: Clusters, canvas: FloatArray) -> FloatArray:
        nearest = squared_distances(canvas, found.centres).argmin(axis=-1)
        return one_hot(nearest, self.n_components)


class PixelGMM(CoordinateGrouper):
    """A Gaussian mixture of the coordinates of the lit pixels of each image, from k-means.

    The mixtures of all images with as many lit pixels are fitted side by side. Its likelihood is
    one of coordinates, of the very image that is grouped, and not one of images: it has no score.

    Args:
        n_components: Number of groups.
        covariance_type: "spherical", "full", "diag", "tied" or "tied_spherical".
        n_init: Starts of the k-means that each mixture begins with.
        tol: Ends when the mean log-likelihood of a lit pixel rises by less [nat].
        reg_covar: Added to the diagonal of every covariance [pixel^2]; by default the variance
            that a single pixel has.
        max_iter: Largest number of iterations.
        image_shape, threshold, random_state: As of `PixelKMeans`.

    Example:
        >>> image = np.array([[1.0, 1, 0, 0, 0, 1, 1]])
        >>> model = PixelGMM(2, image_shape=(1, 7), random_state=0).fit(image)
        >>> model.group_proba(image).max(axis=-1).round(2).tolist()
        [[1.0, 1.0, 1.0, 0.5, 1.0, 1.0, 1.0]]
    """

    version: ClassVar[str | Callable[..., str]] = GaussianMixture.version

    _parameter_constraints: ClassVar[dict[str, Any]] = {
        **CoordinateGrouper._parameter_constraints,
        "covariance_type": [
            StrOptions({"spherical", "full", "diag", "tied", "tied_spherical"}),
        ],
        "tol": [Interval(Real, 0, None, closed="left")],
        "reg_covar": [Interval(Real, 0, None, closed="left")],
    }

    def __init__(
        self,
        n_components: int = 3,
        *,
        covariance_type: Literal[
            "spherical", "full", "diag", "tied", "tied_spherical"
        ] = "spherical",
        n_init: int = 10,
        tol: float = 1e-3,
        reg_covar: float = PIXEL,
        max_iter: int = 100,
        image_shape: tuple[int, int] | None = None,
        threshold: float = THRESHOLD,
        random_state: int | np.random.RandomState | None = None,
    ) -> None:
        self.n_components = n_components
        self.covariance_type = covariance_type
        self.n_init = n_init
        self.tol = tol
        self.reg_covar = reg_covar
        self.max_iter = max_iter
        self.image_shape = image_shape
        self.threshold = threshold
        self.random_state = random_state

    def _proba_of(self, X: FloatArray, found: Clusters, canvas: FloatArray) -> FloatArray:
        em = GaussianMixture(
            self.n_components,
            covariance_type=self.covariance_type,
            tol=self.tol,
            reg_covar=self.reg_covar,
            max_iter=self.max_iter,
        )
        with warnings.catch_warnings():
            # That one image of a thousand would have taken more iterations is no news.
            warnings.simplefilter("ignore", ConvergenceWarning)
            fitted = em.fit_many(X, self._starts(X, found))
        each = zip(fitted, canvas, strict=True)
        return np.stack([mixture.predict_proba(pixels) for mixture, pixels in each])

    def _starts(self, X: FloatArray, found: Clusters) -> list[Mixture]:
        """Shares and centres of the clusters, and the mean variance in them for all."""
        _, n_points, n_features = X.shape
        shares = one_hot(found.labels, self.n_components).mean(axis=1)
        variances = found.inertia / (n_points * n_features) + self.reg_covar
        unit = np.repeat(np.eye(n_features)[None], self.n_components, axis=0)
        return [
            Mixture(weights, centres, variance * unit)
            for weights, centres, variance in zip(shares, found.centres, variances, strict=True)
        ]


def _of_one_count(lit: BoolArray, at_least: int) -> Iterator[IntArray]:
    """Indices of the images that have as many lit pixels as each other."""
    counts = lit.sum(axis=(1, 2))
    for count in np.unique(counts[counts >= at_least]):
        yield np.flatnonzero(counts == count)
