"""Data drawn from a known mixture, so that every result has a truth to be held against."""

from __future__ import annotations

from typing import Annotated, Literal

import numpy as np
from pydantic import Field, FiniteFloat, PositiveInt, validate_call

from embench import gaussian
from embench.datasets.splitting import Seed, data_rng
from embench.types import Dataset, FloatArray, IntArray, Mixture

AtLeastOne = Annotated[FiniteFloat, Field(ge=1)]

OUTLIER_BOX = 2.0
"""Outliers are uniform in the bounding box of the samples, this many times as wide."""


@validate_call
def blobs(
    seed: Seed,
    *,
    n_samples: PositiveInt = 1000,
    n_features: PositiveInt = 2,
    n_components: PositiveInt = 3,
    separation: Annotated[FiniteFloat, Field(ge=0)] = 4.0,
    covariance_type: Literal["full", "tied", "diag", "spherical"] = "full",
    conditioning: AtLeastOne = 4.0,
    imbalance: AtLeastOne = 1.0,
    outliers: Annotated[float, Field(ge=0, lt=1)] = 0.0,
    offset: FiniteFloat = 0.0,
    n_test: PositiveInt | None = None,
) -> Dataset:
    """Gaussian clusters with known truth and adjustable difficulty.

    A component's variance is 1 [u^2] on average over the features ("spherical": over the
    components), so separations and offsets are in standard deviations.

    Args:
        seed: Any integer >= 0; means, covariances and samples all depend on it.
        n_samples: Samples to fit on.
        n_features, n_components: Sizes of the mixture.
        separation: Distance of a mean to its nearest neighbour, averaged over the components: 4
            leaves the components nearly apart, 1 overlaps them badly, 0 stacks them.
        covariance_type: Family of the true covariances.
        conditioning: Ratio of the largest to the smallest eigenvalue of every covariance, >= 1;
            for "spherical", of the largest to the smallest variance.
        imbalance: Ratio of the largest to the smallest weight, >= 1.
        outliers: Share, in [0, 1), of the samples to fit on that is replaced by uniform noise,
            labelled -1. The held-out samples stay clean: did the model find the mixture all the
            same?
        offset: Added to every coordinate [u]: a test of numerical care.
        n_test: Samples to be judged on; None for as many as ``n_samples``.

    Returns:
        A `Dataset` with labels and truth.

    Raises:
        ValueError: A parameter is outside its range.

    Example:
        >>> data = blobs(0, n_features=2, n_components=3)
        >>> data.X_train.shape, data.truth.means.shape
        ((1000, 2), (3, 2))
    """
    rng = data_rng(seed)
    weights = rng.permutation(np.geomspace(imbalance, 1.0, n_components))
    truth = Mixture(
        weights=weights / weights.sum(),
        means=offset + separation * _means(rng, n_components, n_features),
        covariances=_covariances(rng, n_components, n_features, covariance_type, conditioning),
    )
    X_train, y_train = _add_outliers(rng, *gaussian.sample(truth, n_samples, rng), outliers)
    X_test, y_test = gaussian.sample(truth, n_test or n_samples, rng)
    return Dataset(X_train, X_test, n_components, y_train, y_test, truth)


@validate_call
def scattered(
    seed: Seed,
    *,
    n_samples: PositiveInt = 1000,
    n_features: PositiveInt = 2,
    n_components: PositiveInt = 5,
    radius: Annotated[FiniteFloat, Field(gt=0)] = 8.0,
    covariance_type: Literal["full", "tied", "diag", "spherical"] = "full",
    conditioning: AtLeastOne = 4.0,
) -> Dataset:
    """Gaussians scattered evenly over a box, as demonstrations of gradient descent have them.

    Some components may lie on top of each other: nobody sees to it that they do not.

    Args:
        seed: Any integer >= 0.
        n_samples: Samples to fit on, and as many to be judged on.
        n_features, n_components: Sizes of the mixture; the weights are equal.
        radius: Means are uniform in [-radius, radius] [u].
        covariance_type, conditioning: Of the covariances, as in `blobs`.

    Example:
        >>> bool(abs(scattered(42).truth.means).max() <= 8)
        True
    """
    rng = data_rng(seed)
    truth = Mixture(
        weights=np.full(n_components, 1 / n_components),
        means=rng.uniform(-radius, radius, size=(n_components, n_features)),
        covariances=_covariances(rng, n_components, n_features, covariance_type, conditioning),
    )
    X_train, y_train = gaussian.sample(truth, n_samples, rng)
    X_test, y_test = gaussian.sample(truth, n_samples, rng)
    return Dataset(X_train, X_test, n_components, y_train, y_test, truth)


@validate_call
def three_gaussians(seed: Seed, *, n_samples: PositiveInt = 1200) -> Dataset:
    """Three Gaussians in the plane, from the demonstration of an unrolled EM layer.

    The training data are drawn as the demonstration draws them, from ``default_rng(seed)``: seed 7
    with 1200 samples is its very sample, whose smallest total NLL is 4682.152574 nat.

    Args:
        seed: Any integer >= 0.
        n_samples: Samples to fit on, and as many to be judged on.

    Example:
        >>> np.bincount(three_gaussians(7).y_train).tolist()
        [484, 410, 306]
    """
    truth = Mixture(
        weights=np.array([0.4, 0.35, 0.25]),
        means=np.array([[0.0, 0.0], [5.0, 0.0], [0.0, 5.0]]),
        covariances=np.array(
            [[[1.0, 0.3], [0.3, 1.5]], [[1.2, -0.2], [-0.2, 0.8]], [[0.5, 0.0], [0.0, 1.8]]]
        ),
    )
    rng = np.random.default_rng(seed)
    y_train = rng.choice(3, size=n_samples, p=truth.weights)
    X_train = np.empty((n_samples, 2))
    for k, (mean, covariance) in enumerate(zip(truth.means, truth.covariances, strict=True)):
        members = y_train == k
        X_train[members] = rng.multivariate_normal(mean, covariance, members.sum())
    X_test, y_test = gaussian.sample(truth, n_samples, data_rng(seed))
    return Dataset(X_train, X_test, 3, y_train, y_test, truth)


def _means(rng: np.random.Generator, n_components: int, n_features: int) -> FloatArray:
    """Points (n_components, n_features) whose mean distance to the nearest other one is 1."""
    means = rng.uniform(-1.0, 1.0, (n_components, n_features))
    if n_components == 1:
        return means
    distances = np.linalg.norm(means[:, None] - means, axis=-1)
    np.fill_diagonal(distances, np.inf)
    return means / distances.min(axis=0).mean()


def _covariances(
    rng: np.random.Generator,
    n_components: int,
    n_features: int,
    covariance_type: str,
    conditioning: float,
) -> FloatArray:
    """Covariances (n_components, n_features, n_features) of one family, mean variance 1."""
    if covariance_type == "spherical":
        variances = rng.permutation(_spread(n_components, conditioning))
        return variances[:, None, None] * np.eye(n_features)
    own = 1 if covariance_type == "tied" else n_components
    variances = np.stack([rng.permutation(_spread(n_features, conditioning)) for _ in range(own)])
    axes = np.repeat(np.eye(n_features)[None], own, axis=0)
    if covariance_type != "diag":
        axes = np.linalg.qr(rng.standard_normal((own, n_features, n_features))).Q
    covariances = (axes * variances[:, None, :]) @ axes.swapaxes(1, 2)
    symmetric = (covariances + covariances.swapaxes(1, 2)) / 2
    return np.broadcast_to(symmetric, (n_components, n_features, n_features)).copy()


def _spread(size: int, ratio: float) -> FloatArray:
    """``size`` variances with mean 1 whose largest is ``ratio`` times the smallest."""
    values = np.geomspace(1.0, ratio, size)
    return values / values.mean()


def _add_outliers(
    rng: np.random.Generator, X: FloatArray, labels: IntArray, share: float
) -> tuple[FloatArray, IntArray]:
    """Replace a share of the samples by uniform noise, labelled -1."""
    out = rng.random(len(X)) < share
    low, high = X.min(axis=0), X.max(axis=0)
    half_width = OUTLIER_BOX * (high - low) / 2
    noise = (low + high) / 2 + half_width * rng.uniform(-1.0, 1.0, X.shape)
    return np.where(out[:, None], noise, X), np.where(out, -1, labels)
