"""All records as one flat table, for other programs: CSV or Parquet."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from itertools import chain
from typing import Any

import pandas as pd
import pyarrow as pa

from embench.types import printable

MAPPINGS = {
    "dataset_params": "dataset",
    "model_params": "model",
    "noise": "noise",
    "environment": "environment",
}
"""Columns of `store.frame` that hold mappings, and what the names of their columns begin with."""

SERIES = ("curve", "fits")
NUMBERS = pa.list_(pa.list_(pa.float64()))
"""Columns that hold lists of lists of numbers, and how Parquet calls that."""


def csv(frame: pd.DataFrame) -> bytes:
    """A frame of records as CSV in UTF-8; curves and fits are JSON, what is absent is empty."""
    # A carriage return, as progress bars leave it in messages, would end a row.
    table = flat(frame).replace({"\r\n?": "\n"}, regex=True)
    table = table.assign(**{name: table[name].map(json.dumps) for name in SERIES})
    return table.to_csv(index=False).encode()


def parquet(frame: pd.DataFrame) -> bytes:
    """A frame of records as Parquet; curves and fits are nested lists, what is absent is null."""
    table = flat(frame)
    schema = pa.Schema.from_pandas(table, preserve_index=False)
    for name in SERIES:  # guessed from the first rows, which may have none
        schema = schema.set(schema.get_field_index(name), pa.field(name, NUMBERS))
    return table.to_parquet(index=False, schema=schema)


FORMATS: Mapping[str, Callable[[pd.DataFrame], bytes]] = {"csv": csv, "parquet": parquet}
"""How a table is written, by the suffix of its file."""


def flat(frame: pd.DataFrame) -> pd.DataFrame:
    """The columns of `store.frame` with one for each parameter, ``dataset.n_features``, and so on.

    Args:
        frame: One row per record, as `store.frame` makes it.

    Returns:
        As many rows. A column is of numbers, of truth values or of text; where records disagree,
        all of it is text as the command line takes it. Curve and fits are as they were.
    """
    columns = (_columns(str(name), column) for name, column in frame.items())
    return pd.DataFrame(dict(chain.from_iterable(columns)), index=frame.index)


def _columns(name: str, column: pd.Series) -> Iterator[tuple[str, pd.Series]]:
    """One column, or one for each key of a column of mappings."""
    if name not in MAPPINGS:
        yield name, column if name in SERIES else _plain(column)
        return
    for key in dict.fromkeys(chain.from_iterable(column)):
        cells = (mapping.get(key) for mapping in column)
        values = [printable(cell) if isinstance(cell, str) else cell for cell in cells]
        yield f"{MAPPINGS[name]}.{key}", _plain(pd.Series(values, index=column.index))


def _plain(column: pd.Series) -> pd.Series:
    """A column of one kind; pandas calls what is not so an object."""
    if column.dtype != object or {type(value) for value in column.dropna()} <= {bool}:
        return column
    return column.map(_text, na_action="ignore")


def _text(value: Any) -> str:
    """A parameter's value as the command line writes it."""
    return value if isinstance(value, str) else json.dumps(value)
