"""Pictures of a fit on its way: ellipses over the samples, as a strip of frames or an animation."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import seaborn as sns
from matplotlib.animation import FuncAnimation, PillowWriter
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Ellipse
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist

from embench import gaussian
from embench.types import FloatArray, InputError, Mixture

SUFFIXES = (".png", ".pdf", ".svg", ".gif")
"""Kinds of pictures; the last moves."""

STILL = SUFFIXES[:-1]

FRAMES = 6
"""Panels of a strip for the fit itself."""

COLUMNS = 4
PANEL_INCHES = 3.0
MOVING_FRAMES, PER_SECOND = 60, 10

MOST_POINTS = 2000
"""More samples than this make one blot."""

STANDARD_DEVIATIONS = (1, 2)
FAINTEST = 0.15


class Fitted(Protocol):
    """A mixture after so many iterations, with its mean NLL [nat]."""

    @property
    def n_iter(self) -> int: ...

    @property
    def nll(self) -> float: ...

    @property
    def mixture(self) -> Mixture: ...


@dataclass(frozen=True)
class Picture:
    """One panel: a mixture and what to say of it."""

    title: str
    mixture: Mixture


def check_path(path: Path, suffixes: Sequence[str] = SUFFIXES) -> None:
    """See that pictures can be written there, in this format, before anybody waits for them.

    Raises:
        InputError: They cannot.
    """
    if path.suffix.lower() not in suffixes:
        raise InputError(f"expected a file that ends in {', '.join(suffixes)}, got {path}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        was_there = path.exists()
        path.open("ab").close()
        if not was_there:
            path.unlink()
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror}; choose another --out") from error


def draw(path: Path, X: FloatArray, fit: Sequence[Fitted], beside: Mapping[str, Fitted]) -> None:
    """Write the pictures of a fit, in their order, and of others by their names beside it.

    Args:
        path: A strip of frames or, if it ends in .gif, an animation.
        X: Samples, shape (n_samples, n_features) [u]; of many features the first two are drawn, of
            one its histogram and the density.
        fit: On its way, of which so many are shown as there is room for.
        beside: Shown as they are.

    Raises:
        InputError: The path cannot be written, or ends in something else.
    """
    under_way = [Picture(f"iteration {at.n_iter}\nNLL {at.nll:.3f} nat", at.mixture) for at in fit]
    still = [
        Picture(f"{name}\nNLL {at.nll:.3f} nat", _in_order_of(fit[-1].mixture, at.mixture))
        for name, at in beside.items()
    ]
    if path.suffix.lower() != ".gif":
        _save(strip(X, [*_some(under_way, FRAMES), *still]), path)
        return
    try:
        animation = _animation(X, _some(under_way, MOVING_FRAMES), still)
        animation.save(path, PillowWriter(PER_SECOND))
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror}; choose another --out") from error


def draw_side_by_side(path: Path, X: FloatArray, fits: Mapping[str, Sequence[Fitted]]) -> None:
    """Write the pictures of several fits, a row for each, in columns of the same iteration.

    Args:
        path: Of the picture, which does not move.
        X: Samples, shape (n_samples, n_features) [u]; see `draw`.
        fits: By the names of their models, from one start.

    Raises:
        InputError: The path cannot be written, or ends in something else.
    """
    iterations = sorted({at.n_iter for fit in fits.values() for at in fit})
    figure, axes = _panels(len(fits) * len(iterations), len(iterations))
    for row, (name, fit) in enumerate(fits.items()):
        at_iteration = {at.n_iter: at for at in fit}
        for column, n_iter in enumerate(iterations):
            axis = axes[row * len(iterations) + column]
            if n_iter not in at_iteration:
                axis.set_axis_off()
                continue
            at = at_iteration[n_iter]
            title = f"{name}, iteration {n_iter}\nheld-out NLL {at.nll:.3f} nat"
            _draw(axis, X, Picture(title, at.mixture))
    _save(figure, path)


def _save(figure: Figure, path: Path) -> None:
    try:
        figure.savefig(path, dpi=110, facecolor="white")
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror}; choose another --out") from error


def _in_order_of(other: Mixture, mixture: Mixture) -> Mixture:
    """Components in the order, and so in the colours, of the nearest ones of another mixture."""
    _, order = linear_sum_assignment(cdist(other.means, mixture.means))
    return Mixture(mixture.weights[order], mixture.means[order], mixture.covariances[order])


def strip(X: FloatArray, pictures: Sequence[Picture]) -> Figure:
    """All pictures side by side, with common axes."""
    figure, axes = _panels(len(pictures))
    for axis, picture in zip(axes, pictures, strict=True):
        _draw(axis, X, picture)
    return figure


def _animation(X: FloatArray, fit: Sequence[Picture], beside: Sequence[Picture]) -> FuncAnimation:
    figure, [moving, *still] = _panels(1 + len(beside))
    for axis, picture in zip(still, beside, strict=True):
        _draw(axis, X, picture)

    def show(number: int) -> list[Axes]:
        moving.clear()
        _draw(moving, X, fit[number])
        return [moving]

    # The end stays for two seconds before it begins again.
    numbers = [*range(len(fit)), *[len(fit) - 1] * 2 * PER_SECOND]
    return FuncAnimation(figure, show, frames=numbers, blit=False)


def _panels(count: int, columns: int = COLUMNS) -> tuple[Figure, list[Axes]]:
    columns = min(count, columns)
    rows = math.ceil(count / columns)
    figure = Figure((PANEL_INCHES * columns, (PANEL_INCHES + 0.3) * rows), layout="constrained")
    with sns.axes_style("ticks"):
        axes = [figure.add_subplot(rows, columns, number + 1) for number in range(count)]
    return figure, axes


def _draw(axis: Axes, X: FloatArray, picture: Picture) -> None:
    axis.set_title(picture.title, fontsize="medium")
    if X.shape[1] == 1:
        _draw_density(axis, X, picture.mixture)
    else:
        _draw_ellipses(axis, X, picture.mixture)
    sns.despine(ax=axis)


def _draw_ellipses(axis: Axes, X: FloatArray, mixture: Mixture) -> None:
    shown = X[:: math.ceil(len(X) / MOST_POINTS), :2]
    axis.scatter(shown[:, 0], shown[:, 1], s=3, color="0.6", linewidth=0, rasterized=True)
    colours = sns.color_palette("husl", mixture.n_components)
    for colour, weight, mean, covariance in zip(
        colours, mixture.weights, mixture.means, mixture.covariances, strict=True
    ):
        # A component of average weight is opaque.
        alpha = max(FAINTEST, min(1.0, weight * mixture.n_components))
        for deviations in STANDARD_DEVIATIONS:
            axis.add_patch(_ellipse(mean[:2], covariance[:2, :2], deviations, colour, alpha))
        axis.plot(*mean[:2], "+", color=colour, alpha=alpha)
    low, high = X[:, :2].min(axis=0), X[:, :2].max(axis=0)
    margin = 0.1 * (high - low)
    axis.set_xlim(low[0] - margin[0], high[0] + margin[0])
    axis.set_ylim(low[1] - margin[1], high[1] + margin[1])
    of_all = f" of {X.shape[1]}" if X.shape[1] > 2 else ""
    axis.set(xlabel=f"feature 1{of_all}", ylabel=f"feature 2{of_all}")


def _ellipse(
    mean: FloatArray, covariance: FloatArray, deviations: int, colour: object, alpha: float
) -> Ellipse:
    variances, axes = np.linalg.eigh(covariance)
    width, height = 2 * deviations * np.sqrt(variances)
    angle = math.degrees(math.atan2(axes[1, 0], axes[0, 0]))
    return Ellipse(
        tuple(mean),
        width,
        height,
        angle=angle,
        fill=False,
        color=colour,
        alpha=alpha,
        linewidth=1.5,
    )


def _draw_density(axis: Axes, X: FloatArray, mixture: Mixture) -> None:
    sns.histplot(x=X[:, 0], stat="density", color="0.8", linewidth=0, ax=axis)
    top = axis.get_ylim()[1]
    grid = np.linspace(X.min(), X.max(), 500)[:, None]
    joint = np.exp(gaussian.log_joint(mixture, grid))
    for colour, density in zip(
        sns.color_palette("husl", mixture.n_components), joint.T, strict=True
    ):
        axis.plot(grid[:, 0], density, color=colour)
    axis.plot(grid[:, 0], joint.sum(axis=1), color="black", linewidth=1)
    axis.set(xlabel="feature 1", ylabel="density", ylim=(0, 1.3 * top))


def _some(pictures: Sequence[Picture], most: int) -> Sequence[Picture]:
    """At most so many of them: the first, the last, and those between that see most change."""
    if len(pictures) <= most:
        return pictures
    # Descents are quick at first: as close together in log time as there are pictures.
    wanted = np.geomspace(1, len(pictures), most) - 1
    chosen = sorted({round(place) for place in wanted})
    spare = (place for place in range(len(pictures)) if place not in chosen)
    while len(chosen) < most:
        chosen = sorted([*chosen, next(spare)])
    return [pictures[place] for place in chosen]
