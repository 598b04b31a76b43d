"""What several commands need: how arguments are read, where runs are, how a mistake ends."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import click

from embench import store
from embench.registry import unknown
from embench.types import InputError, Record, Spec

INTERRUPTED = 130
"""Exit code after Ctrl-C, as shells have it."""

AT_LEAST_ONE = click.IntRange(min=1)
ABOVE_ZERO = click.FloatRange(min=0, min_open=True)


class UserMistake(click.ClickException):
    """One line that says what was expected and what came; exit code 2, no traceback."""

    exit_code = 2


def words(texts: Sequence[str]) -> list[str] | None:
    """Words from an option that may be repeated and may hold several, parted by commas."""
    return [word for text in texts for word in text.split(",")] or None


def counts(text: str, option: str, least: int = 1) -> list[int]:
    """Integers from "2,3,5"."""
    try:
        found = [int(word) for word in text.split(",")]
    except ValueError:
        found = []
    if not found or min(found) < least:
        raise InputError(f"{option}: expected integers >= {least} like 2,3,5, got {text!r}")
    return found


def bytes_of(text: str, option: str) -> int:
    """Bytes from "2GiB" or "500 MB"."""
    from pydantic import ByteSize, TypeAdapter, ValidationError

    try:
        found = int(TypeAdapter(ByteSize).validate_python(text))
    except ValidationError:
        found = 0
    if found < 1:
        raise InputError(f"{option}: expected a size like 2GiB or 500MB, got {text!r}")
    return found


def one_spec(text: str, kind: str) -> Spec:
    """A model or a dataset as the command line writes it."""
    found = Spec.parse(text)
    if len(found) != 1:
        raise InputError(f"expected one {kind}, got {text!r}")
    return found[0]


def run_folder(text: str) -> Path:
    """A run by its folder, or by its name below results/."""
    for folder in (Path(text), store.RESULTS / text):
        if (folder / store.RECORDS).exists():
            return folder
    known = [folder.name for folder in store.runs(store.RESULTS)]
    raise unknown("run", text, known)


def find_record(trial: str, folder: Path | None) -> Record:
    """The newest record of a trial by its id, or by what makes it unique, in a run or in all."""
    folders = [run_folder(str(folder))] if folder else store.runs(store.RESULTS)
    records = [record for place in folders for record in store.read(place)]
    if not records:
        raise InputError(f"no records in {store.RESULTS}/; name the folder of a run with --run")
    found = [record for record in store.latest(records) if trial in record.trial.id]
    found = [record for record in found if record.trial.id.startswith(trial)] or found
    exact = [record for record in found if record.trial.id == trial]
    if not found:
        raise unknown("trial", trial, {record.trial.id for record in records})
    if len(found) > 1 and not exact:
        listed = "\n  ".join(record.trial.id for record in found)
        raise InputError(f"{trial!r} is part of {len(found)} trials; say which:\n  {listed}")
    return (exact or found)[0]


def latest_run() -> Path:
    """The run that those mean who name none."""
    if not (found := store.runs(store.RESULTS)):
        raise InputError(f"no run in {store.RESULTS}/ yet; start one with: embench run")
    return found[-1]


def print_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Columns of text under their names, numbers to the right."""
    import pandas as pd
    from rich.console import Console

    from embench.reporting.text import rich_table

    table = pd.DataFrame(list(rows), columns=list(head))
    Console(highlight=False).print(rich_table(table))


def print_aligned(lines: Mapping[str, str]) -> None:
    """A name and what is said of it on each line, in two columns."""
    width = max(map(len, lines), default=0)
    for name, line in lines.items():
        click.echo(f"{name:{width}}  {line}")
