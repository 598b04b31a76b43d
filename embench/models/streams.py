"""Samples that need not fit into memory: files and Dask arrays, read chunk by chunk in every pass.

EM needs of the samples no more than sums over them, so a fit to a stream goes the way of a fit in
memory: the same steps on the same statistics, added up over chunks. What it costs instead of
memory is reading: two passes over the data before the first iteration, and one for each.

| data | class | chunks |
|---|---|---|
| memory-mapped array, or the path of a ``.npy`` | `ArrayStream` | rows of the file |
| path of a ``.parquet`` | `ParquetStream` | batches of its row groups |
| Dask array | `DaskStream` | its blocks, summed up where they are |

**The start** is made of all rows where they are few, else of a random sample of them, see
`START_ROWS`: from there the same ``random_state`` gives another start than in memory.
"""

from __future__ import annotations

import mmap
import os
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from functools import partial, reduce
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from sklearn.utils.random import sample_without_replacement
from sklearn.utils.validation import _check_sample_weight

from embench.models.engine import (
    Arrays,
    Family,
    Frame,
    Parameters,
    Posterior,
    Samples,
    Statistics,
    softmax,
)
from embench.models.engine.family import BoolArray
from embench.models.engine.samples import mean_and_covariance, split
from embench.types import FloatArray, IntArray

CHUNK_BYTES = 2**22
"""Raw samples of one chunk: enough that the kernels and not the calls take the time."""

START_ROWS, START_BYTES = 2**16, 2**24
"""The start is made of at most so many rows, drawn uniformly and without replacement, and of at
most so much memory. Starts by k-means hardly change with more."""

FAN_IN = 8
"""How many partial sums a Dask worker adds up at once."""


class Chunk(NamedTuple):
    """Consecutive samples: the number of the first one, X (n, n_features) [u], their weights (n,)
    or None."""

    begin: int
    X: FloatArray
    weights: FloatArray | None


class Stream(ABC):
    """Samples that can be read from beginning to end, again and again.

    Args:
        shape: n_samples and n_features.
        dtype: What the samples are; anything but float32 is read as float64.
        asked: "float64" or "float32" to read them as that, or "auto".

    Raises:
        ValueError: The data are not numbers in two dimensions, or none at all.
    """

    def __init__(self, shape: tuple[int, ...], dtype: np.dtype[Any], asked: str) -> None:
        if len(shape) != 2:
            raise ValueError(
                f"expected X of shape (n_samples, n_features), got shape {shape}: Expected 2D "
                "array; one feature is X.reshape(-1, 1)"
            )
        if 0 in shape:
            raise ValueError(f"expected samples in rows, got an empty table of shape {shape}")
        if dtype.kind not in "fiub":
            raise ValueError(f"expected real numbers, got an array of dtype {dtype}")
        self.n_samples, self.n_features = shape
        natural = "float32" if dtype == np.float32 else "float64"
        self.dtype = np.dtype(natural if asked == "auto" else asked)

    @property
    def chunk_rows(self) -> int:
        """Rows of one chunk."""
        return max(1, CHUNK_BYTES // (self.n_features * self.dtype.itemsize))

    @abstractmethod
    def chunks(self) -> Iterator[FloatArray]:
        """All samples in order, (n, n_features) at a time; each is read before the next."""

    def reduce(
        self,
        summary: Callable[[Iterator[Chunk]], Any],
        combine: Callable[[Any, Any], Any],
        weights: FloatArray | None = None,
    ) -> Any:
        """The summary of all samples.

        Args:
            summary: Of consecutive chunks, of which there is at least one.
            combine: Summary of two neighbours, of their summaries; asked only where the samples
                are summed up in several places.
            weights: Of the samples, (n_samples,).
        """
        return summary(_numbered(self.chunks(), weights))


class ArrayStream(Stream):
    """A memory-mapped array, in C or Fortran order, or a view of one.

    Pages that were read are given back after each chunk: they would count as this process's
    memory. The mapping must be shared for that, as all but those of mode "c" are: giving back a
    private page would lose what was written to it.
    """

    def __init__(self, X: np.memmap[Any, Any], asked: str = "auto") -> None:
        super().__init__(X.shape, X.dtype, asked)
        self.array = np.asarray(X)
        self.mapping: mmap.mmap | None = None if X.mode == "c" else X._mmap  # type: ignore[attr-defined]

    def chunks(self) -> Iterator[FloatArray]:
        for rows in split(self.n_samples, self.chunk_rows, at_least=1):
            yield np.asarray(self.array[rows], dtype=self.dtype)
            if self.mapping is not None:
                self.mapping.madvise(mmap.MADV_DONTNEED)


class ParquetStream(Stream):
    """The columns of a Parquet file, all of them numbers; the index that pandas adds is left out.

    Missing values are NaN.
    """

    def __init__(self, path: Path, asked: str = "auto") -> None:
        with _parquet_file(path) as file:
            fields = [f for f in file.schema_arrow if not f.name.startswith("__index_level_")]
            n_samples = file.metadata.num_rows
        dtypes = [_dtype_of(field, path) for field in fields]
        float32 = all(dtype == np.float32 for dtype in dtypes)
        dtype = np.dtype("float32" if float32 else "float64")
        super().__init__((n_samples, len(fields)), dtype, asked)
        self.path, self.columns = path, [field.name for field in fields]

    def chunks(self) -> Iterator[FloatArray]:
        with _parquet_file(self.path) as file:
            for batch in file.iter_batches(self.chunk_rows, columns=self.columns):
                X = np.empty((self.n_features, batch.num_rows), dtype=self.dtype)
                for row, column in zip(X, batch.columns, strict=True):
                    row[:] = column.to_numpy(zero_copy_only=False)
                yield X.T


class DaskStream(Stream):
    """A Dask array. Its blocks are summed up on the workers and the sums in a tree, by whatever
    scheduler Dask is set to; what travels are statistics and parameters, never samples.

    Blocks are computed anew in every pass: persist an array that is dear to make.
    """

    def __init__(self, X: Any, asked: str = "auto") -> None:
        if np.isnan(X.shape).any():
            X = X.copy().compute_chunk_sizes()
        super().__init__(X.shape, X.dtype, asked)
        whole = X.rechunk({1: -1})
        sizes = whole.chunks[0]
        begins = np.cumsum([0, *sizes[:-1]]).tolist()
        blocks = zip(begins, sizes, whole.to_delayed()[:, 0], strict=True)
        self.blocks = [block for block in blocks if block[1]]

    def chunks(self) -> Iterator[FloatArray]:
        for _, _, block in self.blocks:
            yield from _pieces(block.compute(), self.dtype, self.chunk_rows)

    def reduce(
        self,
        summary: Callable[[Iterator[Chunk]], Any],
        combine: Callable[[Any, Any], Any],
        weights: FloatArray | None = None,
    ) -> Any:
        from dask import delayed

        # As nodes of the graph, so that each worker gets them once and not with every block.
        shared_summary = delayed(summary, traverse=False, name=None, pure=False)
        shared_combine = delayed(combine, traverse=False, name=None, pure=False)
        parts = []
        for begin, size, block in self.blocks:
            own = None if weights is None else weights[begin : begin + size]
            of_block = delayed(_summary_of_block, pure=False)
            parts.append(of_block(shared_summary, block, begin, own, self.dtype, self.chunk_rows))
        while len(parts) > 1:
            groups = [parts[i : i + FAN_IN] for i in range(0, len(parts), FAN_IN)]
            parts = [delayed(reduce, pure=False)(shared_combine, group) for group in groups]
        return parts[0].compute()


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


NEEDS_MEMORY = (
    "this model's steps look at single samples, which data that are read in chunks do not offer: "
    "give it X in memory (np.array(X)), or fit `em`, which needs sums over the samples only"
)


class _Unread:
    """Stands where samples in memory stand: has their shape, and says what to do when read."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.shape = shape

    def __getitem__(self, index: Any) -> Any:
        raise ValueError(NEEDS_MEMORY)


def is_stream(X: Any) -> bool:
    """Whether X is to be read in chunks: a path, a memory-mapped array, a Dask array, a `Stream`.

    Example:
        >>> is_stream("samples.npy"), is_stream(np.zeros((3, 2)))
        (True, False)
    """
    # What NumPy makes of a memory-mapped array may have its type and live in memory.
    mapped = isinstance(X, np.memmap) and X._mmap is not None  # type: ignore[attr-defined]
    return mapped or isinstance(X, str | os.PathLike | Stream) or _is_dask(X)


def in_memory(X: Any) -> Any:
    """X for models that cannot read it in chunks; a memory-mapped array is read whole.

    Raises:
        ValueError: X is a file, a Dask array or another stream.

    Example:
        >>> in_memory("samples.npy")
        Traceback (most recent call last):
        ValueError: this model's steps look at single samples, ...
    """
    if isinstance(X, np.memmap):
        return np.asarray(X)
    if is_stream(X):
        raise ValueError(NEEDS_MEMORY)
    return X


def opened(X: Any, dtype: str = "auto") -> Stream:
    """X as a stream.

    Args:
        X: The path of a ``.npy`` or ``.parquet`` file, a memory-mapped array or a Dask array,
            of shape (n_samples, n_features) [u]; a `Stream` is one already.
        dtype: "float64", "float32", or "auto": float32 for data of that type, else float64.

    Raises:
        ValueError: It is none of these, is empty, or does not hold numbers.
        OSError: The file cannot be read.
    """
    if isinstance(X, Stream):
        return X
    if isinstance(X, str | os.PathLike):
        return _opened_file(Path(X), dtype)
    return DaskStream(X, dtype) if _is_dask(X) else ArrayStream(X, dtype)


def read(
    X: Any,
    family: Family,
    reg_covar: float,
    random_state: np.random.RandomState,
    *,
    sample_weight: FloatArray | None = None,
    dtype: str = "auto",
    device: str = "cpu",
) -> tuple[StreamedSamples, FloatArray, FloatArray | None]:
    """The two passes before the first iteration.

    The first checks the samples and finds their mean and covariance, the second their largest
    distance from the centre, and takes the rows of which a start is to be made.

    Returns:
        The samples in their frame; some rows of X in their order, at most `START_ROWS` of them;
        the weights of these rows.

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
    moments = stream.reduce(_moments, _both_moments, sample_weight)
    if moments.fault:
        raise ValueError(moments.fault)
    frame = Frame.of(family, moments.mean, moments.scatter / moments.weight, reg_covar)
    chosen = _chosen_rows(stream, random_state)
    survey = partial(_survey, frame=frame, chosen=chosen)
    radius_squared, taken = stream.reduce(survey, _both_surveys)
    samples = StreamedSamples(
        stream, frame, Arrays.on(device, stream.dtype.name), sample_weight, radius_squared
    )
    weights = None if sample_weight is None else sample_weight[chosen]
    return samples, np.concatenate(taken), weights


def each_sample(method: Callable[[FloatArray], Any], X: Any) -> Any:
    """What a method says of every sample, such as `predict`; of a stream chunk by chunk.

    Of a Dask array it is computed on the workers; what comes back, n_samples long, is gathered.

    Example:
        >>> each_sample(lambda X: X.sum(axis=1), np.ones((3, 2))).tolist()
        [2.0, 2.0, 2.0]
    """
    if not is_stream(X):
        return method(X)
    return np.concatenate(opened(X).reduce(partial(_each, method), _joined))


def mean_of(method: Callable[[FloatArray], FloatArray], X: Any) -> float:
    """Mean over the samples of what a method says of each, such as `score_samples`.

    Example:
        >>> mean_of(lambda X: X[:, 0], np.array([[1.0], [2.0]]))
        1.5
    """
    if not is_stream(X):
        return float(method(X).mean())
    stream = opened(X)
    return float(stream.reduce(partial(_total, method), _sum)) / stream.n_samples


def _opened_file(path: Path, dtype: str) -> Stream:
    """A file as a stream, by its ending."""
    if path.suffix == ".parquet":
        return ParquetStream(path, dtype)
    if path.suffix != ".npy":
        raise ValueError(
            f"expected samples, or the path of a .npy or .parquet file of them, got {str(path)!r}"
        )
    try:
        mapped = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise ValueError(
            f"{path}: expected an array of numbers as numpy.save writes it: {error}"
        ) from error
    return ArrayStream(mapped, dtype)


def _is_dask(X: Any) -> bool:
    """Nobody has a Dask array who has not imported Dask: it need not be imported to know."""
    dask_array = sys.modules.get("dask.array")
    return dask_array is not None and isinstance(X, dask_array.Array)


def _parquet_file(path: Path) -> Any:
    """Open, and so that columns are read piece by piece: row groups can be large."""
    import pyarrow
    from pyarrow.parquet import ParquetFile

    try:
        return ParquetFile(path, pre_buffer=False, buffer_size=2**20)
    except pyarrow.ArrowInvalid as error:
        raise ValueError(f"{path}: not a readable Parquet file: {error}") from error


def _dtype_of(field: Any, path: Path) -> np.dtype[Any]:
    """The NumPy type of a Parquet column of numbers."""
    from pyarrow import types

    numeric = (types.is_integer, types.is_floating, types.is_boolean)
    if not any(is_type(field.type) for is_type in numeric):
        raise ValueError(
            f"{path}: expected numbers in every column, got {field.type} in column "
            f"{field.name!r}; write the file without it"
        )
    return np.dtype(field.type.to_pandas_dtype())


def _pieces(X: Any, dtype: np.dtype[Any], chunk_rows: int) -> Iterator[FloatArray]:
    """A block of a Dask array in chunks."""
    for rows in split(len(X), chunk_rows, at_least=1):
        yield np.asarray(X[rows], dtype=dtype)


def _numbered(
    chunks: Iterator[FloatArray], weights: FloatArray | None, begin: int = 0
) -> Iterator[Chunk]:
    """Chunks with the number of their first sample, and their own of the weights."""
    done = 0
    for X in chunks:
        own = None if weights is None else weights[done : done + len(X)]
        yield Chunk(begin + done, X, own)
        done += len(X)


def _summary_of_block(
    summary: Callable[[Iterator[Chunk]], Any],
    block: Any,
    begin: int,
    weights: FloatArray | None,
    dtype: np.dtype[Any],
    chunk_rows: int,
) -> Any:
    """What a Dask worker does with a block."""
    return summary(_numbered(_pieces(block, dtype, chunk_rows), weights, begin))


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
    """Sum of weights, mean [D] and weighted scatter about it [D, D] of some samples, or what is
    wrong with them."""

    weight: float
    mean: FloatArray
    scatter: FloatArray
    fault: str = ""


def _moments(chunks: Iterator[Chunk]) -> _Moments:
    return reduce(_both_moments, map(_moments_of, chunks))


def _moments_of(chunk: Chunk) -> _Moments:
    n_features = chunk.X.shape[1]
    weight = float(len(chunk.X) if chunk.weights is None else chunk.weights.sum())
    fault = _fault(chunk)
    if fault or weight == 0:
        return _Moments(0.0, np.zeros(n_features), np.zeros((n_features, n_features)), fault)
    mean, covariance = mean_and_covariance(chunk.X, chunk.weights)
    return _Moments(weight, mean, weight * covariance)


def _both_moments(one: _Moments, other: _Moments) -> _Moments:
    """Of neighbours; the fault is the earlier one."""
    weight = one.weight + other.weight
    share = other.weight / weight if weight else 0.0
    between = other.mean - one.mean
    scatter = one.scatter + other.scatter + one.weight * share * np.outer(between, between)
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


def _chosen_rows(stream: Stream, random_state: np.random.RandomState) -> IntArray:
    """Numbers of the rows for the start, ascending."""
    most = min(START_ROWS, START_BYTES // (stream.n_features * stream.dtype.itemsize))
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


def _each(method: Callable[[FloatArray], Any], chunks: Iterator[Chunk]) -> list[Any]:
    return [method(chunk.X) for chunk in chunks]


def _joined(one: list[Any], other: list[Any]) -> list[Any]:
    return one + other


def _total(method: Callable[[FloatArray], FloatArray], chunks: Iterator[Chunk]) -> float:
    return sum(float(method(chunk.X).sum(dtype=np.float64)) for chunk in chunks)


def _sum(one: float, other: float) -> float:
    return one + other
