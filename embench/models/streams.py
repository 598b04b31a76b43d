"""Fits to samples that need not fit into memory, read chunk by chunk in every pass.

EM needs of the samples no more than sums over them, so a fit to a stream goes the way of a fit in
memory: the same steps on the same statistics, added up over chunks. What it costs instead of
memory is reading: two passes over the data before the first iteration, and one for each.

**The start** is made of all rows where they are few, else of a random sample of them, see
`START_ROWS`: from there the same ``random_state`` gives another start than in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial, reduce
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from sklearn.utils.random import sample_without_replacement
from sklearn.utils.validation import _check_sample_weight

from embench.models.engine import (
    Arrays,
    BoolArray,
    Family,
    Frame,
    Parameters,
    Posterior,
    Samples,
    Statistics,
    mean_and_covariance,
    softmax,
)
from embench.models.sources import NEEDS_MEMORY, Chunk, Stream, is_stream, opened
from embench.types import FloatArray, IntArray

START_ROWS, START_BYTES = 2**16, 2**24
"""The start is made of at most so many rows, drawn uniformly and without replacement, and of at
most so much memory. Starts by k-means hardly change with more."""


class StreamedSamples(Samples):
    """What `Samples` are in memory, of a stream: all that sums over the samples.

    Args:
        stream: The samples [u].
        frame: In which statistics and parameters are.
        arrays: Where a chunk lives while it is summed up.
        weights: Sample weights (n_samples,), or None for ones.
        radius_squared: Largest squared distance of a sample from the centre, in the frame.
    """

    def __init__(
        self,
        stream: Stream,
        frame: Frame,
        arrays: Arrays,
        weights: FloatArray | None,
        radius_squared: float,
    ) -> None:
        Y = _Unread((stream.n_features + 1, stream.n_samples))
        super().__init__(Y, frame, arrays, weights, radius_squared)
        self.stream = stream

    def e_step(
        self,
        parameters: Parameters,
        posterior: Posterior = softmax,
        *,
        exact: BoolArray | None = None,
    ) -> Statistics:
        """As in memory; the posterior sees one chunk at a time."""
        summary = partial(
            _statistics,
            frame=self.frame,
            device=self.arrays.device,
            radius_squared=self.radius_squared,
            sparse=self.sparse,
            parameters=parameters,
            posterior=posterior,
            exact=exact,
        )
        combine = partial(_both_statistics, self.family)
        statistics, self.sparse = self.stream.reduce(summary, combine, self.weights)
        return statistics


class _Unread:
    """Stands where samples in memory stand: has their shape, and says what to do when read."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.shape = shape

    def __getitem__(self, index: Any) -> Any:
        raise ValueError(NEEDS_MEMORY)


def read(
    X: Any,
    family: Family,
    reg_covar: float,
    random_state: np.random.RandomState,
    *,
    sample_weight: FloatArray | None = None,
    dtype: str = "auto",
    device: str = "cpu",
    start_rows: int = 1,
) -> tuple[StreamedSamples, Any, FloatArray | None]:
    """The two passes before the first iteration.

    The first checks the samples and finds their mean and covariance, the second their largest
    distance from the centre, and takes the rows of which a start is to be made: at least
    ``start_rows`` of them, where there are as many.

    Returns:
        The samples in their frame; some rows of X in their order, at most `START_ROWS` of them,
        as a table where features have names; the weights of these rows.

    Raises:
        ValueError: X cannot be opened, a sample is not finite (the first such row is named), or
            the weights do not fit.

    Source:
        Chan, Golub and LeVeque (1983), Algorithms for computing the sample variance, eq. 2.1, for
        moments of the whole from those of its parts.
    """
    stream = opened(X, dtype)
    if sample_weight is not None:
        rows = np.broadcast_to(np.float64(0), (stream.n_samples, 1))
        sample_weight = _check_sample_weight(
            sample_weight, rows, dtype=np.float64, ensure_non_negative=True
        )
    moments = stream.reduce(
        partial(_moments, diagonal=not family.is_rotated), _both_moments, sample_weight
    )
    if moments.fault:
        raise ValueError(moments.fault)
    frame = Frame.of(family, moments.mean, moments.scatter / moments.weight, reg_covar)
    chosen = _chosen_rows(stream, start_rows, random_state)
    survey = partial(_survey, frame=frame, chosen=chosen)
    radius_squared, taken = stream.reduce(survey, _both_surveys)
    samples = StreamedSamples(
        stream, frame, Arrays.on(device, stream.dtype.name), sample_weight, radius_squared
    )
    weights = None if sample_weight is None else sample_weight[chosen]
    return samples, _named(np.concatenate(taken), stream.columns), weights


def each_sample(method: Callable[[FloatArray], Any], X: Any) -> Any:
    """What a method says of every sample, such as `predict`; of a stream chunk by chunk.

    Of a Dask array it is computed on the workers; what comes back, n_samples long, is gathered.

    Example:
        >>> each_sample(lambda X: X.sum(axis=1), np.ones((3, 2))).tolist()
        [2.0, 2.0, 2.0]
    """
    if not is_stream(X):
        return method(X)
    stream = opened(X)
    return np.concatenate(stream.reduce(partial(_each, method, stream.columns), _joined))


def mean_of(method: Callable[[FloatArray], FloatArray], X: Any) -> float:
    """Mean over the samples of what a method says of each, such as `score_samples`.

    Example:
        >>> mean_of(lambda X: X[:, 0], np.array([[1.0], [2.0]]))
        1.5
    """
    if not is_stream(X):
        return float(method(X).mean())
    stream = opened(X)
    return float(stream.reduce(partial(_total, method, stream.columns), _sum)) / stream.n_samples


def counted(X: Any) -> tuple[Any, int]:
    """Anything that `fit` reads, opened if it is to be, and the number of its samples.

    Example:
        >>> counted(np.ones((3, 2)))[1]
        3
    """
    X = opened(X) if is_stream(X) else X
    return X, X.n_samples if isinstance(X, Stream) else len(X)


def _statistics(
    chunks: Iterator[Chunk],
    frame: Frame,
    device: str,
    radius_squared: float,
    sparse: bool,
    parameters: Parameters,
    posterior: Posterior,
    exact: BoolArray | None,
) -> tuple[Statistics, bool]:
    """Sufficient statistics of chunks, and whether most responsibilities were negligible."""
    arrays: Arrays | None = None  # scratch memory for all chunks, but not shared with other threads

    def of_chunk(chunk: Chunk) -> tuple[Statistics, bool]:
        nonlocal arrays
        arrays = arrays or Arrays.on(device, chunk.X.dtype.name)
        samples = Samples.within(frame, arrays, chunk.X, chunk.weights, radius_squared)
        samples.sparse = sparse
        return samples.e_step(parameters, posterior, exact=exact), samples.sparse

    return reduce(partial(_both_statistics, frame.family), map(of_chunk, chunks))


def _both_statistics(
    family: Family, one: tuple[Statistics, bool], other: tuple[Statistics, bool]
) -> tuple[Statistics, bool]:
    return family.combine(one[0], other[0]), one[1] and other[1]


class _Moments(NamedTuple):
    """Sum of weights, mean [D] and weighted scatter about it, [D, D] or its diagonal [D], of some
    samples, or what is wrong with them."""

    weight: float
    mean: FloatArray
    scatter: FloatArray
    fault: str = ""


def _moments(chunks: Iterator[Chunk], diagonal: bool) -> _Moments:
    return reduce(_both_moments, (_moments_of(chunk, diagonal) for chunk in chunks))


def _moments_of(chunk: Chunk, diagonal: bool) -> _Moments:
    n_features = chunk.X.shape[1]
    weight = float(len(chunk.X) if chunk.weights is None else chunk.weights.sum())
    fault = _fault(chunk)
    if fault or weight == 0:
        nothing = np.zeros(n_features if diagonal else (n_features, n_features))
        return _Moments(0.0, np.zeros(n_features), nothing, fault)
    mean, covariance = mean_and_covariance(chunk.X, chunk.weights, diagonal=diagonal)
    return _Moments(weight, mean, weight * covariance)


def _both_moments(one: _Moments, other: _Moments) -> _Moments:
    """Of neighbours; the fault is the earlier one."""
    weight = one.weight + other.weight
    share = other.weight / weight if weight else 0.0
    between = other.mean - one.mean
    products = np.square(between) if one.scatter.ndim == 1 else np.outer(between, between)
    scatter = one.scatter + other.scatter + one.weight * share * products
    return _Moments(weight, one.mean + share * between, scatter, one.fault or other.fault)


def _fault(chunk: Chunk) -> str:
    """What to say of the first number that is none, if there is one."""
    finite = np.isfinite(chunk.X)
    if finite.all():
        return ""
    row, column = np.argwhere(~finite)[0]
    kind = "NaN" if np.isnan(chunk.X[row, column]) else "infinity"
    return (
        f"Input X contains {kind}: in row {chunk.begin + row}, column {column}, both counted "
        "from 0; expected finite numbers"
    )


def _chosen_rows(stream: Stream, at_least: int, random_state: np.random.RandomState) -> IntArray:
    """Numbers of the rows for the start, ascending."""
    most = min(START_ROWS, START_BYTES // (stream.n_features * stream.dtype.itemsize))
    most = max(most, at_least)
    if stream.n_samples <= most:
        return np.arange(stream.n_samples)
    return np.sort(sample_without_replacement(stream.n_samples, most, random_state=random_state))


def _survey(
    chunks: Iterator[Chunk], frame: Frame, chosen: IntArray
) -> tuple[float, list[FloatArray]]:
    """Largest squared distance from the centre, and the chosen rows."""
    radius_squared, taken = 0.0, []
    for begin, X, _ in chunks:
        placed = Samples.within(frame, Arrays.on("cpu", X.dtype.name), X)
        radius_squared = max(radius_squared, placed.radius_squared)
        first, last = np.searchsorted(chosen, [begin, begin + len(X)])
        taken.append(X[chosen[first:last] - begin])
    return radius_squared, taken


def _both_surveys(
    one: tuple[float, list[FloatArray]], other: tuple[float, list[FloatArray]]
) -> tuple[float, list[FloatArray]]:
    return max(one[0], other[0]), one[1] + other[1]


def _named(X: FloatArray, columns: list[str] | None) -> Any:
    """Samples as a table, where their features have names."""
    return X if columns is None else pd.DataFrame(X, columns=columns)


def _each(
    method: Callable[[FloatArray], Any], columns: list[str] | None, chunks: Iterator[Chunk]
) -> list[Any]:
    return [method(_named(chunk.X, columns)) for chunk in chunks]


def _joined(one: list[Any], other: list[Any]) -> list[Any]:
    return one + other


def _total(
    method: Callable[[FloatArray], FloatArray],
    columns: list[str] | None,
    chunks: Iterator[Chunk],
) -> float:
    return sum(float(method(_named(chunk.X, columns)).sum(dtype=np.float64)) for chunk in chunks)


def _sum(one: float, other: float) -> float:
    return one + other
