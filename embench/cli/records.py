"""`embench merge` and `export`: records into one run, and out to other programs."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

import click

from embench import store
from embench.cli.common import latest_run, run_folder
from embench.types import InputError

STYLES = ("csv", "parquet")
"""What `embench export` can write."""


@click.command()
@click.argument("runs", nargs=-1, required=True, metavar="RUN...")
@click.option(
    "--out",
    required=True,
    type=click.Path(file_okay=False, path_type=Path),
    metavar="FOLDER",
    help="Folder of the new run; it must not hold records yet.",
)
def merge(runs: Sequence[str], out: Path) -> None:
    """Put the records of RUNs into one new run, those that are the same once.

    A RUN is a folder, or its name below results/. The runs stay as they are. Where several records
    are of one trial, the one that ended last counts, as ever.
    """
    folder = out.expanduser()
    merged = store.merge([run_folder(run) for run in runs], folder)
    for torn in merged.torn:
        click.echo(f"the last line of {torn / store.RECORDS} is unfinished: left out", err=True)
    trials = f"{merged.n_records} records of {merged.n_trials} trials"
    click.echo(f"{trials}, {merged.n_same} were the same: {folder / store.RECORDS}")
    click.echo(f"next: embench compare {shlex.quote(str(folder))}")


@click.command()
@click.argument("runs", nargs=-1, metavar="[RUN]...")
@click.option("--csv", "csv", is_flag=True, help="Text; curves and fits are JSON in it.")
@click.option("--parquet", "parquet", is_flag=True, help="Typed; curves and fits are lists in it.")
@click.option(
    "--out",
    type=click.Path(dir_okay=False, allow_dash=True, path_type=Path),
    metavar="FILE",
    help="- is stdout, for CSV.  [records.csv or records.parquet in the (last) run]",
)
def export(runs: Sequence[str], csv: bool, parquet: bool, out: Path | None) -> None:
    """Write all records of RUNs (default: the latest) as one flat table, for other programs.

    A RUN is a folder, or its name below results/. One row per record, one column for each metric,
    size, parameter, and key of the environment.
    """
    from embench.comparing.frames import load
    from embench.reporting.export import FORMATS

    style = _style([name for name, asked in (("csv", csv), ("parquet", parquet)) if asked], out)
    folders = [run_folder(run) for run in runs] or [latest_run()]
    frame = load(folders)
    if frame.empty:
        raise InputError(f"no record in {', '.join(map(str, folders))} yet")
    data = FORMATS[style](frame)
    if _is_stdout(out):
        click.echo(data, nl=False)
        return
    path = out.expanduser() if out else folders[-1] / f"records.{style}"
    try:
        path.write_bytes(data)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror}; choose another --out") from error
    click.echo(f"{len(frame)} records: {path}")


def _style(asked: Sequence[str], out: Path | None) -> str:
    """One of STYLES: what was asked for, or what the file's name says."""
    suffix = "csv" if _is_stdout(out) else out.suffix[1:].lower() if out else ""
    wanted = {*asked, *({suffix} & {*STYLES})}
    if len(wanted) == 1:
        return wanted.pop()
    if wanted:
        options = [f"--{name}" for name in asked] + [f"--out {out}"] * (len(asked) == 1)
        raise click.UsageError(f"{' and '.join(options)} do not go together")
    raise click.UsageError("give --csv or --parquet, or an --out that ends in .csv or .parquet")


def _is_stdout(out: Path | None) -> bool:
    return str(out) == "-"
