"""A start that belongs to every family of covariances."""

from __future__ import annotations

import numpy as np
from sklearn.cluster import kmeans_plusplus

from embench.types import FloatArray, Mixture


def starting_mixture(
    X: FloatArray,
    n_components: int,
    seed: np.random.SeedSequence,
    sample_weight: FloatArray | None = None,
) -> Mixture:
    """Equal weights, k-means++ points as means, the mean variance of X as every covariance.

    Spherical covariances of one size belong to every family, so that models of all families can
    begin at exactly this mixture.

    Args:
        X: Samples, shape (n_samples, n_features) [u].
        n_components: At most n_samples.
        seed: Decides which samples become means.
        sample_weight: How often each sample counts, (n_samples,); ones by default.

    Source:
        Arthur and Vassilvitskii (2007), k-means++: the advantages of careful seeding.

    Example:
        >>> X = np.array([[0.0], [1.0], [10.0]])
        >>> starting_mixture(X, 2, np.random.SeedSequence(0)).covariances.shape
        (2, 1, 1)
    """
    random_state = np.random.RandomState(seed.generate_state(1)[0])
    means, _ = kmeans_plusplus(
        X, n_components, sample_weight=sample_weight, random_state=random_state
    )
    centred = X - np.average(X, axis=0, weights=sample_weight)
    variances = np.average(centred**2, axis=0, weights=sample_weight)
    variance = variances.mean() or 1.0  # constant data: any size will do
    return Mixture(
        weights=np.full(n_components, 1.0 / n_components),
        means=means,
        covariances=np.repeat(variance * np.eye(X.shape[1])[None], n_components, axis=0),
    )
