"""k-means of many small sets of points, side by side."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from embench.types import FloatArray, IntArray


class Clusters(NamedTuple):
    """``centres`` (n_problems, n_components, n_features) [u] and ``labels`` (n_problems, n_points);
    ``inertia`` (n_problems,) [u^2], the sum of squared distances to the nearest centre."""

    centres: FloatArray
    labels: IntArray
    inertia: FloatArray


def k_means(X: FloatArray, uniforms: FloatArray, max_iter: int) -> Clusters:
    """Lloyd's iterations from k-means++ starts, the best of several for each set of points.

    Args:
        X: Points, shape (n_problems, n_points, n_features) [u].
        uniforms: Numbers in [0, 1), (n_init, n_components), that choose the starts: the same for
            all problems, so that what is found of one does not depend on the others.
        max_iter: Largest number of iterations; ends when no centre of any problem moves.

    Source:
        Lloyd (1982); Arthur and Vassilvitskii (2007), k-means++.

    Example:
        >>> X = np.array([[[0.0], [1], [10], [11]]])
        >>> sorted(k_means(X, np.array([[0.0, 0.5]]), 10).centres.ravel().tolist())
        [0.5, 10.5]
    """
    runs = [_run(X, _seeded(X, row), max_iter) for row in uniforms]
    best = np.argmin([run.inertia for run in runs], axis=0)
    problems = np.arange(len(X))
    return Clusters(*(np.stack(parts)[best, problems] for parts in zip(*runs, strict=True)))


def squared_distances(X: FloatArray, centres: FloatArray) -> FloatArray:
    """(n_problems, n_points, n_components) [u^2]."""
    squared = np.zeros((*X.shape[:2], centres.shape[1]))
    for feature in range(X.shape[-1]):  # few, and a sum over a short last axis would be slow
        squared += np.square(X[..., None, feature] - centres[:, None, :, feature])
    return squared


def _seeded(X: FloatArray, uniforms: FloatArray) -> FloatArray:
    """Points as centres, each drawn by its squared distance to those before."""
    problems = np.arange(len(X))
    nearest = np.full(X.shape[:2], np.inf)
    centres = np.empty((len(X), len(uniforms), X.shape[-1]))
    for k, uniform in enumerate(uniforms):
        shares = np.where(np.isinf(nearest), 1.0, nearest)  # the first is drawn from all alike
        below = shares.cumsum(axis=1)
        chosen = (below <= uniform * below[:, -1:]).sum(axis=1).clip(max=X.shape[1] - 1)
        centres[:, k] = X[problems, chosen]
        nearest = np.minimum(nearest, squared_distances(X, centres[:, k : k + 1])[..., 0])
    return centres


def _run(X: FloatArray, centres: FloatArray, max_iter: int) -> Clusters:
    """Centres and points in turn until no centre moves; one that lost all its points stays."""
    components = np.arange(centres.shape[1])
    for _ in range(max_iter):
        nearest = squared_distances(X, centres).argmin(axis=-1)
        members = (nearest[..., None] == components).astype(np.float64)
        counts = members.sum(axis=1)[..., None]
        sums = members.swapaxes(1, 2) @ X
        moved = np.where(counts > 0, sums / np.maximum(counts, 1), centres)
        if np.array_equal(moved, centres):
            break
        centres = moved
    squared = squared_distances(X, centres)
    return Clusters(centres, squared.argmin(axis=-1), squared.min(axis=-1).sum(axis=-1))
