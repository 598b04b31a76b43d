"""`embench train`: weights of a model that learns before any fit."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from embench.cli.common import AT_LEAST_ONE, INTERRUPTED, one_spec
from embench.types import Spec

if TYPE_CHECKING:
    from embench.measuring.training import Progress


@click.command()
@click.argument("model")
@click.option("--preset", metavar="NAME", help="The model's parameter of this name, if it has one.")
@click.option(
    "--suite", help="Its datasets are learned from; a name, or a TOML file.  [the model's own]"
)
@click.option("--updates", type=AT_LEAST_ONE, help="In all.  [the model's own number]")
@click.option(
    "--batch-size", type=AT_LEAST_ONE, help="Datasets, or images, of an update.  [the model's own]"
)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
@click.option("--threads", type=AT_LEAST_ONE, help="For every numerical library.  [the suite's]")
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder of the weights; the same folder again resumes.  [results/<date>-train-<model>]",
)
def train(
    model: str,
    preset: str | None,
    suite: str | None,
    updates: int | None,
    batch_size: int | None,
    seed: int,
    threads: int | None,
    out: Path | None,
) -> None:
    """Train MODEL, such as amortised-em or rnn-em:hidden=64, before any fit, once.

    Ctrl-C loses seconds of work; the same command again goes on where it stopped, and ends at the
    same weights.
    """
    from embench.measuring.run import default_folder
    from embench.measuring.suite import customised, load_suite
    from embench.measuring.training import train as trained
    from embench.measuring.training import trainable, weights_file

    spec = one_spec(model, "model")
    if preset:
        spec = Spec(spec.name, {**spec.params, "preset": preset})
    folder = out.expanduser() if out else default_folder(f"train-{spec.name}")
    chosen = customised(load_suite(suite or trainable(spec).training_suite), threads=threads)
    stream = trained(spec, chosen, folder, n_updates=updates, batch_size=batch_size, seed=seed)
    curve = []
    try:
        for progress in stream:
            click.echo(str(progress))
            curve.append(progress)
    except KeyboardInterrupt:
        click.echo(f"interrupted; the same command goes on with what is in {folder}")
        sys.exit(INTERRUPTED)
    weights = shlex.quote(str(weights_file(folder, spec.name)))
    click.echo(f"weights: {weights}")
    click.echo(f"picture: {_picture_of(curve, folder / 'progress.png')}")
    click.echo(f"next: embench run --model {spec.name}:checkpoint={weights}")


def _picture_of(curve: Sequence[Progress], path: Path) -> Path:
    """What a training was found to be worth against its updates, written to a file."""
    from embench.reporting.neural import progress

    findings = {
        name: [(moment.update, moment.findings[name]) for moment in curve]
        for name in curve[-1].findings
    }
    progress(findings).savefig(path, dpi=110, facecolor="white")
    return path
