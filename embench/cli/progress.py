"""How far a run is, shown while its records come in."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import click

from embench.cli.common import INTERRUPTED, UserMistake
from embench.types import Record


def follow(records: Iterator[Record], total: int, folder: Path) -> int:
    """Pull the records and show how far they are; the number that failed."""
    failed = 0
    try:
        with _bar(total) as advance:
            for record in records:
                failed += record.status != "ok"
                advance(record)
    except KeyboardInterrupt:
        click.echo(f"interrupted; what is finished is in {folder}, the same command resumes")
        sys.exit(INTERRUPTED)
    except OSError as error:
        raise UserMistake(
            f"cannot write to {folder}: {error.strerror}; what is finished is kept and the same "
            "command resumes"
        ) from error
    return failed


@contextmanager
def _bar(total: int) -> Iterator[Callable[[Record], None]]:
    """A bar with the time that is left on a terminal, now and then a line elsewhere."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left:"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("trials", total=total)

        def advance(record: Record) -> None:
            progress.advance(task)
            if record.status != "ok":
                console.print(
                    f"{record.status}: {record.trial.id}: {record.message}",
                    markup=False,
                    highlight=False,
                    soft_wrap=True,
                )

        yield advance
