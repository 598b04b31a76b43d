"""`embench watch` and `groups`: a model at work, step by step, as a picture."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path

import click

from embench.cli.common import AT_LEAST_ONE, counts, one_spec, print_aligned
from embench.types import Spec

WATCHED = ("em", "amortised-em", "recurrent-em")
"""What `embench watch` shows unless it is told otherwise."""


@click.command()
@click.argument("models", nargs=-1, metavar="[MODEL[:PARAM=VALUE,...]]...")
@click.option(
    "--dataset",
    default="blobs:n_components=4,separation=3",
    show_default=True,
    metavar="NAME[:PARAM=VALUE,...]",
)
@click.option("--iterations", default="0,1,2,3,5", show_default=True, metavar="N[,N...]")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
@click.option(
    "--out",
    type=click.Path(dir_okay=False, path_type=Path),
    default="watch.png",
    show_default=True,
    help="The picture: .png, .pdf or .svg.",
)
def watch(models: Sequence[str], dataset: str, iterations: str, seed: int, out: Path) -> None:
    """Watch MODELs fit from one start, a row of pictures for each, with their held-out NLL.

    By default EM beside what has learned to do with few of its steps.
    """
    from embench.measuring.demo import side_by_side
    from embench.reporting.demo import STILL, check_path, draw_side_by_side

    check_path(out, STILL)
    specs = [spec for text in models or WATCHED for spec in Spec.parse(text)]
    wanted = counts(iterations, "--iterations", least=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # fits are cut off on purpose
        data, fits = side_by_side(specs, Spec.parse(dataset)[0], wanted, seed)
    print_aligned({name: f"held-out {path[-1]}" for name, path in fits.items()})
    draw_side_by_side(out, data.X_train, fits)
    click.echo(f"picture: {out}")


@click.command()
@click.argument("model")
@click.option(
    "--dataset",
    default="shapes",
    show_default=True,
    metavar="NAME[:PARAM=VALUE,...]",
    help="Images.",
)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
@click.option(
    "--image", type=click.IntRange(min=0), default=0, show_default=True, help="Its number."
)
@click.option("--steps", type=AT_LEAST_ONE, help="Of EM.  [the model's own]")
@click.option(
    "--out",
    type=click.Path(dir_okay=False, path_type=Path),
    default="groups.png",
    show_default=True,
    help="The picture; that of agreement against steps is written beside it.",
)
def groups(model: str, dataset: str, seed: int, image: int, steps: int | None, out: Path) -> None:
    """Watch MODEL (rnn-em, n-em) group the pixels of a held-out image, step by step.

    \b
    embench groups rnn-em:checkpoint=FILE     with what embench train has written
    embench groups rnn-em:preset=quick --dataset shapes:size=20
    """
    from embench.measuring.groups import followed
    from embench.reporting import neural
    from embench.reporting.demo import check_path

    beside = out.with_stem(f"{out.stem}-by-step")
    check_path(out)
    found = followed(
        one_spec(model, "model"),
        one_spec(dataset, "dataset"),
        seed=seed,
        image=image,
        n_steps=steps,
    )
    figures = {
        out: neural.groups(found.image, found.psi, found.gamma, found.image_shape),
        beside: neural.agreement_by_step(found.ami),
    }
    for path, figure in figures.items():
        figure.savefig(path, dpi=110, facecolor="white")
    click.echo(f"AMI after {len(found.ami)} steps: {found.ami[-1]:.3f}")
    click.echo(f"pictures: {out}, {beside}")
