"""Rows in pieces that stay in the cache."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import numpy as np

from embench.types import FloatArray


def mean_and_covariance(
    X: FloatArray, weights: FloatArray | None = None, *, diagonal: bool = False
) -> tuple[FloatArray, FloatArray]:
    """Of X [..., N, D], in float64 whatever X is; with ``diagonal`` variances [..., D]."""
    total = X.shape[-2] if weights is None else weights.sum()
    mean = sum(_weighted(X[..., rows, :], weights, rows).sum(-2) for rows in row_chunks(X)) / total
    covariance = np.zeros(mean.shape if diagonal else (*mean.shape, X.shape[-1]))
    for rows in row_chunks(X):
        Z = X[..., rows, :] - mean[..., None, :]
        weighted = _weighted(Z, weights, rows)
        if diagonal:
            covariance += np.einsum("...nd,...nd->...d", weighted, Z)
        else:
            covariance += weighted.swapaxes(-1, -2) @ Z
    return mean, covariance / total


def row_chunks(X: Any) -> Iterator[slice]:
    """Rows of X [..., N, D] in pieces of half an L2 in float64."""
    numbers = math.prod(X.shape) // max(1, X.shape[-2])
    return split(X.shape[-2], 2**16 // max(1, numbers))


def split(end: int, at_most: int, *, begin: int = 0, at_least: int = 16) -> Iterator[slice]:
    """Slices of nearly the same length, so that no chunk is a rest of a few rows."""
    n_chunks = -(-(end - begin) // max(at_least, at_most))
    edges = [begin + (end - begin) * i // n_chunks for i in range(n_chunks + 1)]
    return (slice(*both) for both in pairwise(edges))


def _weighted(chunk: FloatArray, weights: FloatArray | None, rows: slice) -> FloatArray:
    chunk = np.asarray(chunk, dtype=np.float64)
    return chunk if weights is None else chunk * weights[rows, None]
