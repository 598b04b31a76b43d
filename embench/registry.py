"""Models and datasets by name, imported only when asked for.

Names come from the entry-point groups ``embench.models`` and ``embench.datasets``, so a package
adds its own without a change here. Two more spellings need no entry point: a model as
``package.module:Class`` and a dataset as the path of a file.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Iterable
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import PurePath
from typing import Any

from pydantic import ValidationError

from embench.types import Dataset, InputError, Model, Spec

FILE_DATASET = "embench.datasets.files:FileDataset"
FILE_SUFFIXES = (".csv", ".npy", ".npz", ".parquet")


def make_model(name: str, **params: Any) -> Model:
    """Make an unfitted estimator by name.

    Args:
        name: A name listed by `models`, or ``package.module:Class``.
        **params: Parameters of the estimator's constructor.

    Returns:
        The estimator; nothing is computed before its ``fit``.

    Raises:
        InputError: The name or a parameter is unknown, or a package it needs is not installed.

    Example:
        >>> make_model("sklearn-em", n_components=3).get_params()["n_components"]
        3
    """
    return _call("model", name, **params)


def make_dataset(name: str, seed: int = 0, **params: Any) -> Dataset:
    """Make a dataset by name; the data depend on the seed and the parameters only.

    Args:
        name: A name listed by `datasets`, or the path of a .csv, .npy, .npz or .parquet file.
        seed: Any integer >= 0.
        **params: Parameters of the dataset.

    Raises:
        InputError: The name or a parameter is unknown, or the data cannot be used.

    Example:
        >>> make_dataset("blobs", seed=0, n_features=8, n_components=16).X_train.shape
        (1000, 8)
    """
    return _call("dataset", name, seed=seed, **params)


def models() -> dict[str, str]:
    """Every model's name and what it is, in one line each."""
    return _first_lines("model")


def datasets() -> dict[str, str]:
    """Every dataset's name and what it is, in one line each."""
    return _first_lines("dataset")


def load(kind: str, name: str) -> Callable[..., Any]:
    """Import what stands behind a name; ``kind`` is ``"model"`` or ``"dataset"``.

    Raises:
        InputError: The name is unknown, or a package that it needs is not installed.
    """
    if kind == "dataset" and PurePath(name).suffix.lower() in FILE_SUFFIXES:
        return EntryPoint(name, FILE_DATASET, "").load()(name)
    point = _entry_points(kind).get(name)
    if point is None and kind == "model" and ":" in name:
        point = EntryPoint(name, name, "")
    if point is None:
        raise unknown(kind, name, _entry_points(kind))
    try:
        return point.load()
    except (ImportError, AttributeError) as error:
        raise InputError(f"{kind} {name!r} cannot be imported: {error}") from error


def version(kind: str, spec: Spec) -> str:
    """The version of the code, or of the file, behind a name: "1" where none is given."""
    found = getattr(load(kind, spec.name), "version", "1")
    return found(**spec.params) if callable(found) else found


def unknown(kind: str, name: str, known: Iterable[str]) -> InputError:
    """The error for a name that is not there, with the nearest one that is.

    >>> print(unknown("model", "sklern-em", ["em", "sklearn-em"]))
    unknown model 'sklern-em'; did you mean 'sklearn-em'? (known: em, sklearn-em)
    """
    known = sorted(known)
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return InputError(f"unknown {kind} {name!r}{hint} (known: {', '.join(known)})")


def _call(kind: str, name: str, /, **params: Any) -> Any:
    """Call what stands behind a name, after a look at the names of the parameters."""
    found = load(kind, name)
    known = list(inspect.signature(found).parameters)
    for param in params:
        if param not in known:
            raise unknown(f"parameter of {kind} {name}", param, known)
    try:
        return found(**params)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise InputError(f"{name}: {where}: {first['msg']}, got {first['input']!r}") from error


def _first_lines(kind: str) -> dict[str, str]:
    lines = {}
    for name in sorted(_entry_points(kind)):
        try:
            lines[name] = (inspect.getdoc(load(kind, name)) or "").partition("\n")[0]
        except InputError as error:
            lines[name] = f"not available: {error}"
    return lines


@cache
def _entry_points(kind: str) -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=f"embench.{kind}s")}
