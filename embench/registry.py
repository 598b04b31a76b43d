"""Models and datasets by name, imported only when asked for.

Names come from the entry-point groups ``embench.models`` and ``embench.datasets``, so a package
adds its own without a change here. Two more spellings need no entry point: a model as
``package.module:Class`` and a dataset as the path of a file.
"""

from __future__ import annotations

import difflib
import hashlib
import inspect
import sys
from collections.abc import Callable, Iterable
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path, PurePath
from typing import Any

from embench.types import Dataset, Grouper, InputError, Model, ScoredModel, Spec

TABLE_SUFFIXES = (".csv", ".npy", ".npz", ".parquet")
IMAGE_SUFFIXES = (".h5", ".hdf5")
FILE_DATASETS = {
    **dict.fromkeys(TABLE_SUFFIXES, "embench.datasets.files:FileDataset"),
    **dict.fromkeys(IMAGE_SUFFIXES, "embench.datasets.hdf5:ImageFile"),
}


class NotInstalled(InputError):
    """What an optional package would bring; the entry point names the extra it comes with."""

    def __init__(self, kind: str, point: EntryPoint) -> None:
        package = point.dist.name if point.dist else "embench"
        self.remedy = f"pip install '{package}[{','.join(point.extras)}]'"
        super().__init__(f"{kind} {point.name!r} is not installed: {self.remedy}")


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
    model = _call("model", name, **params)
    if not isinstance(model, Model) or not isinstance(model, ScoredModel | Grouper):
        wanted = ("fit", "predict", "score", "get_params", "set_params")
        lacking = [method for method in wanted if method not in dir(model)]
        raise InputError(
            f"{name}: expected a scikit-learn estimator, got an object without {', '.join(lacking)}"
        )
    return model


def make_dataset(name: str, seed: int = 0, **params: Any) -> Dataset:
    """Make a dataset by name; the data depend on the seed and the parameters only.

    Args:
        name: A name listed by `datasets`, or the path of a .csv, .npy, .npz, .parquet, .h5 or .hdf5
            file.
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
    suffix = PurePath(name).suffix.lower()
    if kind == "dataset" and suffix in FILE_DATASETS:
        return EntryPoint(name, FILE_DATASETS[suffix], "").load()(name)
    point = _entry_points(kind).get(name)
    if point is None and kind == "dataset" and (suffix or "/" in name):
        raise InputError(f"{name}: expected a file that ends in {', '.join(FILE_DATASETS)}")
    if point is None and kind == "model" and ":" in name:
        point = EntryPoint(name, name, "")
    if point is None:
        raise unknown(kind, name, _entry_points(kind))
    try:
        found = point.load()
    except (Exception, SystemExit) as error:  # a module of the user's may do anything
        if isinstance(error, ModuleNotFoundError) and point.extras:
            raise NotInstalled(kind, point) from error
        words = f"{type(error).__name__}: {error}"
        raise InputError(f"{kind} {name!r} cannot be imported: {words}") from error
    if not callable(found):
        raise InputError(f"{kind} {name!r}: expected a class, got a {type(found).__name__}")
    return found


def parameters(kind: str, name: str) -> list[str]:
    """The names of the parameters that what stands behind a name takes.

    Raises:
        InputError: The name is unknown, or a package that it needs is not installed.
    """
    return list(inspect.signature(load(kind, name)).parameters)


def version(kind: str, spec: Spec) -> str:
    """What decides, beside the parameters, what a name gives: records of another never answer.

    It is what the object declares in an attribute ``version``, a text or a function of the
    parameters: the version of a library, the content of a file. Models add a digest of their
    source, so that nobody measures an edit and reads the numbers of before. Datasets are "1" until
    they say otherwise: the same data in other words are the same data.
    """
    found = load(kind, spec.name)
    declared = getattr(found, "version", "")
    declared = declared(**spec.params) if callable(declared) else declared
    if kind == "dataset":
        return declared or "1"
    return ", ".join(filter(None, (declared, source_digest(found.__module__))))


@cache
def source_digest(module: str) -> str:
    """Digest of a module's source; empty where there is none.

    A module in a package is likely to rest on what stands around it: its source is all of the
    sub-package, such as ``embench.models``, or of the package that holds no sub-packages.
    """
    found = sys.modules.get(module)
    file = getattr(found, "__file__", None)
    if found is None or file is None:
        return ""
    folder = Path(file).parent
    depth = len((found.__package__ or "").split("."))
    for _ in range(2, depth):
        folder = folder.parent
    files = sorted(folder.rglob("*.py")) if found.__package__ else [Path(file)]
    digest = hashlib.sha256()
    for path in files:
        digest.update(path.read_bytes())
    return digest.hexdigest()[:8]


def unknown(kind: str, name: str, known: Iterable[str]) -> InputError:
    """The error for a name that is not there, with the nearest one that is.

    >>> print(unknown("model", "sklern-em", ["em", "sklearn-em"]))
    unknown model 'sklern-em'; did you mean 'sklearn-em'? (known: em, sklearn-em)
    """
    known = sorted(known)
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    listed = f"known: {', '.join(known)}" if known else "there is none yet"
    return InputError(f"unknown {kind} {name!r}{hint} ({listed})")


def _call(kind: str, name: str, /, **params: Any) -> Any:
    """Call what stands behind a name, after a look at the names of the parameters."""
    from pydantic import ValidationError  # `embench --help` does without

    found, known = load(kind, name), parameters(kind, name)
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
        except NotInstalled as error:
            lines[name] = f"not installed: {error.remedy}"
        except InputError as error:
            lines[name] = f"not available: {error}"
    return lines


@cache
def _entry_points(kind: str) -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=f"embench.{kind}s")}
