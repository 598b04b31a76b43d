"""Your own file as a dataset: .csv, .npy, .npz or .parquet, with or without a column of labels."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pandas as pd
from numpy.lib.npyio import NpzFile
from pydantic import PositiveInt, validate_call

from embench.datasets.splitting import Seed, Share, split
from embench.registry import unknown
from embench.types import Dataset, FloatArray, InputError, IntArray


@dataclass(frozen=True)
class FileDataset:
    """A table in a file; calling it with a seed gives one split of it.

    Every column must hold finite numbers, but for a column of labels and those left out. Columns
    of .npy and .npz arrays are named "0", "1", ...; an .npz holds one table, or one named "X",
    and may hold columns beside it.
    """

    path: str

    @validate_call
    def __call__(
        self,
        seed: Seed,
        *,
        label: str | int | None = None,
        target: str | int | None = None,
        drop: str | None = None,
        n_components: PositiveInt | None = None,
        test_share: Share = 0.25,
        standardize: bool = True,
    ) -> Dataset:
        """Read, check and part the table.

        Args:
            seed: Decides which samples are held out.
            label: Name of a column of labels: not fitted on, but agreed with (AMI, ARI).
            target: Name of a column to predict from the others, or several joined by "+": the task
                is then their density given the others.
            drop: Name of a column to leave out, or several joined by "+".
            n_components: How many to look for; the number of labels if None, else unknown.
            test_share: Share of samples held out.
            standardize: Scale every column to mean 0 and standard deviation 1, see `split`.

        Raises:
            InputError: The file or a column is not there, is empty, or holds no finite numbers.
        """
        table = self._table()
        roles = {"label": [] if label is None else [str(label)]}
        roles |= {"target": _names(target), "left out": _names(drop)}
        self._check_roles(roles, table)
        labels, n_labels = None, None
        if label is not None:
            codes, classes = pd.factorize(table.pop(str(label)), sort=True)
            labels, n_labels = codes.astype(np.int64), len(classes)
        targets = table[roles["target"]]
        for name in targets:
            if targets[name].nunique() < 2:
                raise InputError(
                    f"{self.path}: target {name!r} is the same in all samples: there is nothing "
                    "to predict"
                )
        table = table.drop(columns=[*roles["target"], *roles["left out"]])
        try:
            return split(
                self._numbers(table),
                labels,
                seed,
                targets=self._numbers(targets) if roles["target"] else None,
                n_components=n_components or n_labels,
                test_share=test_share,
                standardize=standardize,
            )
        except InputError as error:
            raise InputError(f"{self.path}: {error}") from error

    def version(self, **params: Any) -> str:
        """Digest of the file's content: records of another content never answer for this one."""
        return hashlib.sha256(self._readable(Path.read_bytes)).hexdigest()[:8]

    def _table(self) -> pd.DataFrame:
        """The file as a table with text column names and at least one row."""
        reader = READERS[Path(self.path).suffix.lower()]
        table = self._readable(reader)
        table.columns = table.columns.astype(str)
        if table.empty:
            raise InputError(f"{self.path}: expected samples in rows, got an empty table")
        return table

    def _check_roles(self, roles: Mapping[str, list[str]], table: pd.DataFrame) -> None:
        """See that every column named is there, and has one role."""
        taken: dict[str, str] = {}
        for role, names in roles.items():
            for name in names:
                if name not in table.columns:
                    raise unknown(f"column of {self.path}", name, table.columns)
                if taken.setdefault(name, role) != role:
                    raise InputError(
                        f"{self.path}: column {name!r} cannot be {taken[name]} and {role} at once"
                    )

    def _readable(self, reader: Callable[[Path], Any]) -> Any:
        path = Path(self.path)
        try:
            return reader(path)
        except OSError as error:
            reason = error.strerror or _first_line(error)
            raise InputError(f"cannot read {path}: {reason}") from error
        except InputError as error:
            raise InputError(f"{path}: {error}") from error
        except MemoryError:
            raise
        except Exception as error:  # on a damaged file each parser raises what it likes
            raise InputError(
                f"{path}: not a readable {path.suffix} file: {_first_line(error)}"
            ) from error

    def _numbers(self, table: pd.DataFrame) -> FloatArray:
        """The columns as float64, or an error that names the first value that is none."""
        for name, column in table.items():
            if not pd.api.types.is_numeric_dtype(column) or column.dtype.kind == "c":
                raise InputError(self._no_number(str(name), column))
        X = table.to_numpy(dtype=np.float64, na_value=np.nan)
        if X.shape[1] == 0:
            raise InputError("expected at least one column of numbers, got none")
        bad = np.argwhere(~np.isfinite(X))
        if len(bad):
            row, column = bad[0]
            raise InputError(
                f"expected finite numbers, got {X[row, column]} in column "
                f"{table.columns[column]!r} of sample {row + 1} ({len(bad)} such values in all)"
            )
        return X

    def _no_number(self, name: str, column: pd.Series) -> str:
        """What to say of a column of text: the first value that is no number, and where."""
        bad = column.notna() & pd.to_numeric(column, errors="coerce").isna()
        bad = bad if bad.any() else column.notna()
        row = int(np.argmax(bad))
        return (
            f"column {name!r} holds {column.iloc[row]!r} in sample {row + 1}, "
            f"expected numbers ({bad.sum()} of {len(column)} are none); mend the file, name the "
            f"column as the label (--label {name}) or leave it out (--drop {name})"
        )


def _read_csv(path: Path) -> pd.DataFrame:
    """A CSV with or without a header, parted by commas, semicolons or tabs."""
    with path.open(encoding="utf-8-sig", newline="") as lines:
        first = lines.readline()
    if not first.strip():
        raise InputError("expected samples in rows, got an empty file")
    separator = max(",;\t", key=first.count)
    header = None if all(map(_is_number, first.split(separator))) else 0
    table = pd.read_csv(path, sep=separator, header=header, encoding="utf-8-sig")
    if separator != ";":
        return table
    # Where semicolons part the columns, commas often part the decimals.
    other = pd.read_csv(path, sep=separator, header=header, encoding="utf-8-sig", decimal=",")
    return min(table, other, key=lambda read: read.select_dtypes(exclude="number").shape[1])


def _read_npy(path: Path) -> pd.DataFrame:
    with path.open("rb") as file:
        return _array_table(_load(file, np.ndarray, "numpy.save"), {})


def _read_npz(path: Path) -> pd.DataFrame:
    with path.open("rb") as file, _load(file, NpzFile, "numpy.savez") as arrays:
        named = dict(arrays)
    tables = [name for name, array in named.items() if array.ndim == 2]
    if len(tables) != 1 and "X" not in tables:
        raise InputError(f"expected one two-dimensional array, or one named X, got {sorted(named)}")
    X = named.pop("X" if "X" in tables else tables[0])
    columns = {name: array for name, array in named.items() if array.shape == X.shape[:1]}
    return _array_table(X, columns)


def _read_parquet(path: Path) -> pd.DataFrame:
    with path.open("rb") as file:
        return pd.read_parquet(file)


def _load(file: BinaryIO, kind: type, writer: str) -> Any:
    """What a function of NumPy has written to the file, without running any code from it."""
    expected = f"expected plain arrays of numbers, as {writer} writes them"
    try:
        found = np.load(file, allow_pickle=False)
    except ValueError as error:
        raise InputError(expected) from error
    if not isinstance(found, kind):
        raise InputError(f"{expected}, got those of another function")
    return found


def _array_table(X: FloatArray, columns: Mapping[str, IntArray]) -> pd.DataFrame:
    if X.ndim != 2:
        raise InputError(
            f"expected an array (n_samples, n_features), got shape {X.shape}; one feature is "
            "X.reshape(-1, 1)"
        )
    return pd.DataFrame(X).rename(columns=str).assign(**columns)


def _names(columns: str | int | None) -> list[str]:
    """Columns from a text that joins several by "+"."""
    return [name for name in str("" if columns is None else columns).split("+") if name]


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


READERS: Mapping[str, Callable[[Path], pd.DataFrame]] = {
    ".csv": _read_csv,
    ".npy": _read_npy,
    ".npz": _read_npz,
    ".parquet": _read_parquet,
}
