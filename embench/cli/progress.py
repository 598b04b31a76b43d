"""How far a run is, shown while its records come in."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import click

from embench.cli.common import INTERRUPTED, UserMistake
from embench.types import Record


@dataclass
class Counts:
    """What became of the trials of a run, each by its last record."""

    statuses: dict[str, str] = field(default_factory=dict)
    disturbed: set[str] = field(default_factory=set)
    shared: set[str] = field(default_factory=set)
    repeated: int = 0

    def add(self, record: Record) -> bool:
        """Count a record; whether its trial had one before."""
        name = record.trial.id
        again = name in self.statuses
        self.repeated += again
        self.statuses[name] = record.status
        for names, belongs in (
            (self.disturbed, bool(record.disturbed)),
            (self.shared, record.grade == "quality"),
        ):
            (names.add if belongs else names.discard)(name)
        return again

    @property
    def failed(self) -> int:
        return sum(status not in ("ok", "pruned") for status in self.statuses.values())

    @property
    def pruned(self) -> int:
        return sum(status == "pruned" for status in self.statuses.values())

    def __str__(self) -> str:
        """One line; what there is none of is not said, but for failures."""
        ok = len(self.statuses) - self.failed - self.pruned
        words = [f"{ok} ok", f"{self.failed} failed"]
        words += [f"{self.pruned} left out behind smaller ones that failed"] * bool(self.pruned)
        words += [f"{self.repeated} measured again"] * bool(self.repeated)
        words += [f"{len(self.disturbed)} disturbed all the same"] * bool(self.disturbed)
        words += [
            f"{len(self.shared)} may have shared cores: no times, run again on an idle machine"
        ] * bool(self.shared)
        return ", ".join(words)


def follow(records: Iterator[Record], total: int, folder: Path) -> Counts:
    """Pull the records and show how far they are; what became of them."""
    counts = Counts()
    try:
        with _bar(total) as advance:
            for record in records:
                advance(record, counts.add(record))
    except KeyboardInterrupt:
        click.echo(f"interrupted; what is finished is in {folder}, the same command resumes")
        sys.exit(INTERRUPTED)
    except OSError as error:  # the disk is full, or a cluster is gone
        what = f"cannot write to {folder}: {error.strerror}" if error.strerror else str(error)
        raise UserMistake(f"{what}; what is finished is kept, the same command resumes") from error
    return counts


@contextmanager
def _bar(total: int) -> Iterator[Callable[[Record, bool], None]]:
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

        def advance(record: Record, again: bool) -> None:
            nonlocal total
            total += again
            progress.update(task, total=total, advance=1)
            if record.status not in ("ok", "pruned"):
                console.print(
                    f"{record.status}: {record.trial.id}: {record.message}",
                    markup=False,
                    highlight=False,
                    soft_wrap=True,
                )

        yield advance
