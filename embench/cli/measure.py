"""`embench run`: measure models on datasets."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from embench import store
from embench.cli.common import ABOVE_ZERO, AT_LEAST_ONE, counts, words
from embench.cli.progress import follow
from embench.registry import IMAGE_SUFFIXES
from embench.types import TRACKS, InputError, Spec


@click.command()
@click.argument("suite", required=False)
@click.option(
    "--model",
    "models",
    multiple=True,
    metavar="NAME[:PARAM=VALUE,...]",
    help="Models in place of the suite's; several by commas or by repeating.",
)
@click.option(
    "--dataset",
    "datasets",
    multiple=True,
    metavar="NAME[:PARAM=VALUE,...]",
    help="Datasets in place of the suite's, written like models.",
)
@click.option(
    "--data",
    "files",
    multiple=True,
    type=click.Path(),
    metavar="FILE",
    help="A file of your own: .csv, .npy, .npz, .parquet, .h5; several by repeating.",
)
@click.option("--label", metavar="COLUMN", help="The column of --data that holds labels.")
@click.option(
    "--target",
    metavar="COLUMN[,...]",
    help="Columns of --data to predict from the others: densities p(Y|X).",
)
@click.option("--drop", metavar="COLUMN[,...]", help="Columns of --data to leave out.")
@click.option("--n-components", metavar="N[,N...]", help="Component counts to try.")
@click.option("--seeds", type=AT_LEAST_ONE, help="Number of seeds.")
@click.option(
    "--track",
    "tracks",
    multiple=True,
    metavar="|".join(TRACKS),
    help="What is kept equal; several by commas or by repeating.",
)
@click.option("--device", type=click.Choice(["cpu", "cuda", "auto"]))
@click.option("--dtype", type=click.Choice(["float64", "float32"]))
@click.option("--threads", type=AT_LEAST_ONE, help="For every numerical library.")
@click.option(
    "--time-limit",
    type=ABOVE_ZERO,
    metavar="SECONDS",
    help="Budget of a fit on the budget track, cut-off on the others.",
)
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder of this run; the same folder again resumes.  [results/<date>-<suite>]",
)
def run(
    suite: str | None,
    models: Sequence[str],
    datasets: Sequence[str],
    files: Sequence[str],
    label: str | None,
    target: str | None,
    drop: str | None,
    n_components: str | None,
    tracks: Sequence[str],
    out: Path | None,
    **others: Any,
) -> None:
    """Run SUITE (default: quick; with --data own-data, conditional or, of images, grouping).

    SUITE is the name of a shipped suite (see `embench suites`) or the path of a TOML file.
    Ctrl-C loses nothing that is finished; the same command again goes on where it stopped.
    Trials that fail are records, too; only if all fail is the exit code 1.
    """
    from embench.measuring.plan import customised, load_suite, plan
    from embench.measuring.run import default_folder, execute, remaining

    own = _own_datasets(files, label, target, drop)
    suite = suite or _suite_for(files, target)
    chosen = customised(
        load_suite(suite),
        models=models or None,
        datasets=[*datasets, *own] or None,
        n_components=counts(n_components, "--n-components") if n_components is not None else None,
        tracks=words(tracks),
        **others,
    )
    folder = out.expanduser() if out else default_folder(suite, *files)
    planned = plan(chosen)
    trials = remaining(planned.trials, folder)
    for sentence in planned.left_out:
        click.echo(sentence, err=True)
    click.echo(_announcement(len(planned.trials), len(trials), folder), err=True)
    failed = 0
    if trials:
        failed = follow(execute(trials, folder), len(trials), folder)
        click.echo(f"{len(trials) - failed} ok, {failed} failed: {folder / store.RECORDS}")
    click.echo(f"next: embench compare {shlex.quote(str(folder))}")
    sys.exit(bool(trials) and failed == len(trials))


def _own_datasets(
    files: Sequence[str], label: str | None, target: str | None, drop: str | None
) -> list[Spec]:
    """The files of --data, with what their columns are for."""
    several = {"target": target, "drop": drop}
    columns = {"label": label} if label else {}
    columns |= {role: names.replace(",", "+") for role, names in several.items() if names}
    if columns and not files:
        raise InputError(f"--{next(iter(columns))} names columns of --data; name a file, too")
    return [Spec(os.path.expanduser(file), columns) for file in files]


def _suite_for(files: Sequence[str], target: str | None) -> str:
    """The suite of those who name none, by what is in their files."""
    if target:
        return "conditional"
    if any(Path(file).suffix.lower() in IMAGE_SUFFIXES for file in files):
        return "grouping"
    return "own-data" if files else "quick"


def _announcement(planned: int, left: int, folder: Path) -> str:
    trials = "1 trial" if planned == 1 else f"{planned} trials"
    if left == 0:
        return f"{trials}, all done, in {folder}; another --out measures again"
    resumed = f" ({planned - left} are done)" if left < planned else ""
    return f"{trials}{resumed} into {folder}"
