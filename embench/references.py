"""The best known held-out NLL of datasets, from run to run: one JSON line each, sorted.

The only module that touches ``results/reference/``. Entries only ever improve, and those of an
older version of a dataset stay beside the new ones: they are of other data.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from embench import store
from embench.types import InputError, Reference

FOLDER = store.RESULTS / "reference"
"""Where the references are, below the folder that we stand in."""

FILE = "best-known.jsonl"

SHIPPED = (
    Path(__file__).parent,  # where it is installed
    Path(__file__).parents[1] / FOLDER,  # in a checkout
)
"""Where the references are that come with embench."""


@dataclass(frozen=True, kw_only=True)
class Entered:
    """What became of the store: numbers of its entries, and the largest improvement [nat]."""

    new: int
    better: int
    unchanged: int
    largest: float

    def __str__(self) -> str:
        by = f" (by {self.largest:.4g} nat at most)" if self.better else ""
        return f"{self.new} new, {self.better} better{by}, {self.unchanged} unchanged"


def read(folder: Path = FOLDER) -> list[Reference]:
    """All entries of a store, none where there is no store.

    Raises:
        InputError: A line is unreadable (said with file and line), or the file is.
    """
    path = folder / FILE
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return []
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read {path}: {error}") from error
    return [_parse(line, path, number) for number, line in enumerate(lines, start=1)]


def known() -> list[Reference]:
    """The best of what the store here has and of what comes with embench, sorted by data.

    Raises:
        InputError: As `read` does.
    """
    folders = dict.fromkeys(folder.resolve() for folder in (*SHIPPED, FOLDER))
    return best(entry for folder in folders for entry in read(folder))


def enter(references: Iterable[Reference], folder: Path = FOLDER) -> Entered:
    """Take into a store what is better than what it has.

    Args:
        references: Ends of fits, in any order, also several of the same data.
        folder: Made if it is not there.

    Returns:
        How many entries are new, better and unchanged; the last include those of other data.

    Raises:
        InputError: The store cannot be read or written.
    """
    try:
        with _alone(folder):
            old = {entry.data: entry for entry in read(folder)}
            new = {entry.data: entry for entry in best([*old.values(), *references])}
            if new != old:
                _write(new.values(), folder / FILE)
    except OSError as error:
        raise InputError(f"cannot write to {folder}: {error.strerror}") from error
    gains = [old[data].nll - new[data].nll for data in old]
    better = [gain for gain in gains if gain > 0]
    return Entered(
        new=len(new) - len(old),
        better=len(better),
        unchanged=len(old) - len(better),
        largest=max(better, default=0.0),
    )


def best(references: Iterable[Reference]) -> list[Reference]:
    """The lowest of those of the same data, sorted by data; of equals the one that was earliest."""
    found: dict[tuple[str, str, int, int, int], Reference] = {}
    for entry in references:
        found[entry.data] = min(found.get(entry.data, entry), entry, key=_rank)
    return [found[data] for data in sorted(found)]


def _rank(entry: Reference) -> tuple[float, str, str, str, str]:
    """Lowest first; every field else decides between equals, so that no order of entering does."""
    return entry.nll, entry.ended, entry.trial, entry.model, entry.commit


def _write(references: Iterable[Reference], path: Path) -> None:
    """All at once or not at all."""
    text = "".join(json.dumps(asdict(entry), allow_nan=False) + "\n" for entry in references)
    beside = path.with_suffix(".new")
    beside.write_text(text, encoding="utf-8")
    os.replace(beside, path)


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Make the folder, and wait until no other process enters anything."""
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _parse(line: str, path: Path, number: int) -> Reference:
    try:
        return Reference(**json.loads(line))
    except (ValueError, TypeError) as error:
        raise InputError(
            f"{path}:{number}: not a reference ({error}); mend or delete this line"
        ) from error
