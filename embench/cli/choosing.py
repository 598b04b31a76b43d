"""The options that say what is to be run, which `embench run` and `embench plan` share."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from embench.cli.common import ABOVE_ZERO, AT_LEAST_ONE, counts, words
from embench.registry import IMAGE_SUFFIXES
from embench.types import TRACKS, InputError, Spec

if TYPE_CHECKING:
    from embench.measuring.suite import Suite

OPTIONS = (
    click.argument("suite", required=False),
    click.option(
        "--model",
        "models",
        multiple=True,
        metavar="NAME[:PARAM=VALUE,...]",
        help="Models in place of the suite's; several by commas or by repeating.",
    ),
    click.option(
        "--dataset",
        "datasets",
        multiple=True,
        metavar="NAME[:PARAM=VALUE,...]",
        help="Datasets in place of the suite's, written like models.",
    ),
    click.option(
        "--data",
        "files",
        multiple=True,
        type=click.Path(),
        metavar="FILE",
        help="A file of your own: .csv, .npy, .npz, .parquet, .h5; several by repeating.",
    ),
    click.option("--label", metavar="COLUMN", help="The column of --data that holds labels."),
    click.option(
        "--target",
        metavar="COLUMN[,...]",
        help="Columns of --data to predict from the others: densities p(Y|X).",
    ),
    click.option("--drop", metavar="COLUMN[,...]", help="Columns of --data to leave out."),
    click.option("--n-components", metavar="N[,N...]", help="Component counts to try."),
    click.option("--seeds", type=AT_LEAST_ONE, help="Number of seeds."),
    click.option(
        "--track",
        "tracks",
        multiple=True,
        metavar="|".join(TRACKS),
        help="What is kept equal; several by commas or by repeating.",
    ),
    click.option("--device", type=click.Choice(["cpu", "cuda", "auto"])),
    click.option("--dtype", type=click.Choice(["float64", "float32"])),
    click.option("--threads", type=AT_LEAST_ONE, help="For every numerical library."),
    click.option(
        "--time-limit",
        type=ABOVE_ZERO,
        metavar="SECONDS",
        help="Budget of a fit on the budget track, cut-off on the others.",
    ),
    click.option(
        "--order-seed",
        type=click.IntRange(min=0),
        help="Of the order of the trials, which is random.  [the suite's, 0]",
    ),
    click.option(
        "--out",
        type=click.Path(file_okay=False, path_type=Path),
        help="Folder of this run; the same folder again resumes.  [results/<date>-<suite>]",
    ),
)


def chooses_trials(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command these options; `chosen_trials` reads them."""
    for option in reversed(OPTIONS):
        command = option(command)
    return command


def chosen_trials(
    *,
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
) -> tuple[Suite, Path]:
    """The suite that was asked for, and the folder of its run."""
    from embench.measuring.run import default_folder
    from embench.measuring.suite import customised, load_suite

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
    return chosen, out.expanduser() if out else default_folder(suite, *files)


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
