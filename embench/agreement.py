"""Agreement of two groupings of the pixels of many images at once: the judge's mathematics of it.

A library's functions look at one image at a time and check it for longer than they count.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from embench.types import FloatArray, IntArray

IMAGES = 64
"""Images that expectations are taken of together, which bounds their memory."""


NO_ROOM = 1e-12
"""What rounding leaves of a difference between chance and perfection that is none."""


def contingencies(truth: IntArray, labels: IntArray) -> IntArray:
    """How many pixels of each image are in each true group and under each label.

    Args:
        truth: True groups, shape (n_images, n_pixels); pixels below 0 do not count.
        labels: Found groups, likewise, all >= 0.

    Returns:
        Shape (n_images, n_groups, n_labels), without the images that have fewer than two true
        groups: in those there is nothing to be told apart.

    Example:
        >>> truth, labels = [[0, 0, 1, -1], [0, 0, 0, 0]], [[0, 1, 1, 1], [1, 1, 1, 1]]
        >>> contingencies(np.array(truth), np.array(labels))
        array([[[1, 1],
                [0, 1]]])
    """
    size = len(truth), int(truth.max(initial=0)) + 1, int(labels.max(initial=0)) + 1
    image, pixel = np.nonzero(truth >= 0)
    at = np.ravel_multi_index((image, truth[image, pixel], labels[image, pixel]), size)
    tables = np.bincount(at, minlength=np.prod(size)).reshape(size)
    return tables[(tables.sum(axis=2) > 0).sum(axis=1) > 1]


def adjusted_mutual_information(
    tables: IntArray, norm: Literal["arithmetic", "max"] = "arithmetic"
) -> FloatArray:
    """Mutual information beyond that of chance, as a share of what it could be.

    AMI = (I - E I) / (norm(H, H') - E I), where E is over all groupings with groups of these sizes.

    Args:
        tables: Of `contingencies`: of two true groups or more.
        norm: "arithmetic" for the mean of both entropies, "max" for the larger one.

    Returns:
        Shape (n_images,): 1 for the same grouping, 0 in the mean for one made by chance.

    Source:
        Vinh, Epps and Bailey (2010), Information theoretic measures for clusterings comparison,
        JMLR 11, eq. 24a and table 2.

    Example:
        >>> adjusted_mutual_information(np.array([[[3, 0], [0, 3]], [[3, 0], [3, 0]]]))
        array([1., 0.])
    """
    n_pixels = tables.sum(axis=(1, 2))
    sizes = tables.sum(axis=2), tables.sum(axis=1)
    joint, one, other = (_entropy(n, n_pixels) for n in (_cells(tables), *sizes))
    most = (one + other) / 2 if norm == "arithmetic" else np.maximum(one, other)
    by_chance = np.empty(len(tables))
    for i in range(0, len(tables), IMAGES):
        some = slice(i, i + IMAGES)
        by_chance[some] = _expected_information(sizes[0][some], sizes[1][some], n_pixels[some])
    return _share(one + other - joint - by_chance, most - by_chance)


def adjusted_rand(tables: IntArray) -> FloatArray:
    """Pairs of pixels that both groupings hold together or part, beyond chance, (n_images,).

    Args:
        tables: Of `contingencies`: of two true groups or more.

    Source:
        Hubert and Arabie (1985), Comparing partitions, eq. 5.

    Example:
        >>> adjusted_rand(np.array([[[3, 0], [0, 3]]]))
        array([1.])
    """
    both, one, other, all_pairs = (
        (n * (n - 1) / 2).sum(axis=1)
        for n in (
            _cells(tables),
            tables.sum(axis=2),
            tables.sum(axis=1),
            tables.sum(axis=(1, 2))[:, None],
        )
    )
    by_chance = one * other / all_pairs
    return _share(both - by_chance, (one + other) / 2 - by_chance)


def _cells(tables: IntArray) -> IntArray:
    """All counts of an image in a row."""
    return tables.reshape(len(tables), tables.shape[1] * tables.shape[2])


def _share(gain: FloatArray, most: FloatArray) -> FloatArray:
    """What was gained over chance of what can be; 1 where chance itself is perfect, which is where
    both groupings have a group for every pixel."""
    return np.divide(gain, most, out=np.ones(len(gain)), where=most > NO_ROOM)


def _entropy(counts: IntArray, n_pixels: IntArray) -> FloatArray:
    """Of shares counts / n_pixels, (n_images,) [nat]."""
    shares = counts / n_pixels[:, None]
    return -(shares * np.log(np.where(counts > 0, shares, 1.0))).sum(axis=1)


def _expected_information(one: IntArray, other: IntArray, n_pixels: IntArray) -> FloatArray:
    """Mean mutual information of groups of these sizes, (n_images,) [nat].

    Two groups of a and b pixels have n in common with a hypergeometric probability.
    """
    a, b, total = one[:, :, None, None], other[:, None, :, None], n_pixels[:, None, None, None]
    n = np.arange(1, max(1, min(one.max(), other.max())) + 1)
    exists = (n <= a) & (n <= b) & (n >= a + b - total)
    log_factorial = np.log(np.maximum(np.arange(total.max() + 1), 1)).cumsum()
    rest = [np.where(exists, part, 0) for part in (a - n, b - n, total - a - b + n)]
    log_probability = (
        sum(log_factorial[part] for part in (a, b, total - a, total - b))
        - log_factorial[total]
        - log_factorial[n]
        - sum(log_factorial[part] for part in rest)
    )
    information = n / total * np.log(n * total / np.maximum(a * b, 1))
    terms = np.where(exists, information * np.exp(np.where(exists, log_probability, 0.0)), 0.0)
    return terms.sum(axis=(1, 2, 3))
