"""Where samples come from that need not fit into memory: files and Dask arrays, in chunks.

| data | class | chunks |
|---|---|---|
| memory-mapped array, or the path of a ``.npy`` | `ArrayStream` | rows of the file |
| path of a ``.parquet`` | `ParquetStream` | batches of its row groups |
| Dask array | `DaskStream` | its blocks, summed up where they are |
"""

from __future__ import annotations

import mmap
import os
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from functools import reduce
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from embench.models.engine import split
from embench.types import FloatArray

CHUNK_BYTES = 2**22
"""Raw samples of one chunk: enough that the kernels and not the calls take the time."""

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

    columns: list[str] | None = None
    """Names of the features, where they have some."""

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
    """The columns of a Parquet file, all of them numbers, but for the index of a pandas table.

    Missing values are NaN. Columns that pandas only numbered have no names.
    """

    def __init__(self, path: Path, asked: str = "auto") -> None:
        with _parquet_file(path) as file:
            schema = file.schema_arrow
            index = (schema.pandas_metadata or {}).get("index_columns", [])
            fields = [field for field in schema if field.name not in index]
            n_samples = file.metadata.num_rows
        dtypes = [_dtype_of(field, path) for field in fields]
        float32 = all(dtype == np.float32 for dtype in dtypes)
        dtype = np.dtype("float32" if float32 else "float64")
        super().__init__((n_samples, len(fields)), dtype, asked)
        self.path, self.fields = path, [field.name for field in fields]
        numbered = self.fields == [str(i) for i in range(len(fields))]
        self.columns = None if numbered else self.fields

    def chunks(self) -> Iterator[FloatArray]:
        with _parquet_file(self.path) as file:
            for batch in file.iter_batches(self.chunk_rows, columns=self.fields):
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


NEEDS_MEMORY = (
    "this model's steps look at single samples or draw, which data that are read in chunks do not "
    "offer: load X into memory, or fit `em`, which needs sums over the samples only"
)


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
        ValueError: this model's steps look at single samples or draw, ...
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
