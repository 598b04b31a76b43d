"""`embench compare`, `gate` and `show`: what runs have found."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from embench.cli.common import find_record, latest_run, run_folder, words
from embench.types import TRACKS, InputError

if TYPE_CHECKING:
    import pandas as pd

    from embench.comparing.tables import Comparison

STYLES = ("csv", "json", "markdown", "html")
"""What `embench compare --format` can print."""


@click.command()
@click.argument("runs", nargs=-1, metavar="[RUN]...")
@click.option(
    "--baseline",
    metavar="MODEL",
    help="Compare with this one.  [sklearn-em, else em; for p(Y|X) linear-gaussian; of images "
    "pixel-kmeans]",
)
@click.option(
    "--metric",
    "metrics",
    multiple=True,
    metavar="NAME",
    help="Compare only these; several by commas or by repeating.",
)
@click.option(
    "--track", "tracks", multiple=True, metavar="|".join(TRACKS), help="Look only at these."
)
@click.option(
    "--format", "style", type=click.Choice(STYLES), help="Print this and write no report."
)
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder of the report.  [report/ in the (last) run]",
)
def compare(
    runs: Sequence[str],
    baseline: str | None,
    metrics: Sequence[str],
    tracks: Sequence[str],
    style: str | None,
    out: Path | None,
) -> None:
    """Compare the models of RUNs (default: the latest) and write a page with figures.

    A RUN is a folder, or its name below results/. Models are paired by seed.
    """
    from embench.comparing.compare import compare
    from embench.comparing.frames import load

    folders = [run_folder(run) for run in runs] or [latest_run()]
    records = load(folders)
    found = compare(records, baseline=baseline, metrics=words(metrics), tracks=words(tracks))
    if style:
        click.echo(_formatted(style, records, found))
        return
    _print_comparison(found)
    page = _written_report(records, found, out or folders[-1] / "report")
    click.echo(f"\nreport with figures: {page}")


def _formatted(style: str, records: pd.DataFrame, found: Comparison) -> str:
    """The comparison as one text in one of STYLES."""
    from embench.reporting import page, text

    if style == "html":
        return page.html(records, found, page.images(found))
    return {"csv": text.csv, "json": text.as_json, "markdown": text.markdown}[style](found)


def _print_comparison(found: Comparison) -> None:
    from rich.console import Console

    from embench.reporting.text import terminal

    console = Console(highlight=False)
    for part in terminal(found):
        console.print(part)


def _written_report(records: pd.DataFrame, found: Comparison, folder: Path) -> Path:
    from embench.reporting.page import write_report

    try:
        return write_report(records, found, folder)
    except OSError as error:
        raise InputError(
            f"cannot write the report to {folder}: {error.strerror}; choose another --out"
        ) from error


class MisspeltGate(click.UsageError):
    """Ends with 4, nothing was compared: click's own 2 would read as a loss of quality."""

    exit_code = 4


class Gate(click.Command):
    """The command whose exit code is its verdict."""

    def make_context(self, *args: Any, **options: Any) -> click.Context:
        try:
            return super().make_context(*args, **options)
        except click.UsageError as error:
            raise MisspeltGate(error.format_message(), error.ctx) from error


@click.command(cls=Gate)
@click.option("--baseline", required=True, metavar="RUN", help="The run to be held against.")
@click.option("--candidate", required=True, metavar="RUN", help="The run to be judged.")
def gate(baseline: str, candidate: str) -> None:
    """Judge a run against an earlier one; the exit code is the verdict.

    \b
    0  no regression
    1  time or memory got worse
    2  quality got worse, or something is missing that was measured before
    3  inconclusive: the noise leaves it open
    4  nothing comparable was measured
    """
    from embench.comparing.frames import load
    from embench.comparing.gate import EXIT_CODES, gate

    try:
        runs = [load(run_folder(run)) for run in (baseline, candidate)]
    except InputError as error:
        click.echo(f"nothing to compare: {error}", err=True)
        sys.exit(EXIT_CODES["nothing compared"])
    verdict = gate(*runs)
    click.echo(str(verdict))
    sys.exit(verdict.exit_code)


@click.command()
@click.argument("trial")
@click.option(
    "--run", "folder", type=click.Path(path_type=Path), metavar="RUN", help="Look in this run only."
)
def show(trial: str, folder: Path | None) -> None:
    """Show everything known of TRIAL: its id, or as much of it as makes it unique."""
    from embench.reporting.text import record_page

    click.echo(record_page(find_record(trial, folder)))
