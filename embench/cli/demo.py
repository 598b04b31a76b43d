"""`embench demo`: gradient descent and EM on mock data, to look at."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from embench.cli.common import ABOVE_ZERO, AT_LEAST_ONE, print_aligned
from embench.types import COVARIANCE_ALIASES, COVARIANCE_TYPES

if TYPE_CHECKING:
    from embench.measuring.demo import Moment


@click.command()
@click.option("--samples", type=click.IntRange(min=2), default=1000, show_default=True)
@click.option("--components", type=AT_LEAST_ONE, default=5, show_default=True)
@click.option("--dims", type=AT_LEAST_ONE, default=2, show_default=True)
@click.option(
    "--family",
    type=click.Choice([*COVARIANCE_TYPES, *COVARIANCE_ALIASES]),
    default="full",
    show_default=True,
)
@click.option("--radius", type=ABOVE_ZERO, default=8.0, show_default=True, help="Of the means.")
@click.option("--seed", type=click.IntRange(0, 2**32 - 1), default=42, show_default=True)
@click.option("--iterations", type=AT_LEAST_ONE, default=500, show_default=True)
@click.option("--mixture-lr", type=ABOVE_ZERO, default=0.05, show_default=True)
@click.option("--component-lr", type=ABOVE_ZERO, default=0.05, show_default=True)
@click.option(
    "--init",
    type=click.Choice(["kmeans", "uniform"]),
    default="kmeans",
    show_default=True,
    help="Where it begins; uniform: means anywhere within the radius.",
)
@click.option(
    "--standardize/--no-standardize",
    default=True,
    show_default=True,
    help="Learning rates in standard deviations of the components, not in units of the data.",
)
@click.option("--log-freq", type=AT_LEAST_ONE, metavar="N", help="Iterations from line to line.")
@click.option("--visualize/--no-visualize", default=True, show_default=True)
@click.option(
    "--out",
    type=click.Path(dir_okay=False, path_type=Path),
    default="demo.png",
    show_default=True,
    help="The picture: .png, .pdf, .svg, or .gif, which moves.",
)
def demo(
    samples: int,
    components: int,
    dims: int,
    family: str,
    radius: float,
    seed: int,
    iterations: int,
    mixture_lr: float,
    component_lr: float,
    log_freq: int | None,
    visualize: bool,
    out: Path,
    **how: Any,
) -> None:
    """Watch gradient descent fit a mixture to mock data, with EM beside it.

    Weights that hardly move and means that get stuck, as published settings have them:

    \b
    embench demo --init uniform --no-standardize --mixture-lr 3e-5 --component-lr 1e-2
    """
    from embench.measuring.demo import beside, gradient_descent, mock_data

    if visualize:
        from embench.reporting.demo import check_path

        check_path(out)
    data = mock_data(
        family,
        n_samples=samples,
        n_features=dims,
        n_components=components,
        radius=radius,
        seed=seed,
    )
    rates = {"mixture_lr": mixture_lr, "component_lr": component_lr, "radius": radius, **how}
    every = log_freq or max(1, iterations // 25)
    stream = gradient_descent(data, family, every, max_iter=iterations, seed=seed, **rates)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a descent that is cut off shows in the picture
        fit = _follow(stream, iterations)
        others = beside(data, family, seed)
    print_aligned(
        {"gradient descent": str(fit[-1]), **{name: str(end) for name, end in others.items()}}
    )
    if visualize:
        from embench.reporting.demo import draw

        draw(out, data.X_train, fit, others)
        click.echo(f"picture: {out}")


def _follow(moments: Iterator[Moment], total: int) -> list[Moment]:
    """Pull a fit to its end, a line for each moment, and return them all."""
    from rich.console import Console
    from rich.progress import Progress

    seen = []
    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("gradient descent", total=total)
        for moment in moments:
            seen.append(moment)
            progress.update(task, completed=moment.n_iter)
            progress.console.print(str(moment), highlight=False)
    return seen
