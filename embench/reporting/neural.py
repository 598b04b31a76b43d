"""Figures of neural EM: what each group predicts step by step, and how a training went."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from embench.types import FloatArray

PANEL_INCHES = 1.15
CURVE_INCHES = (4.2, 3.0)


def groups(
    image: FloatArray, psi: FloatArray, gamma: FloatArray, image_shape: tuple[int, int]
) -> Figure:
    """What the groups of one image are after each step, as a grid: a column for each step.

    The first row shows which pixels belong to which group, brighter where the image is; the rows
    below what each group predicts.

    Args:
        image: (n_pixels,), or (n_steps, n_pixels) of a sequence.
        psi: Predictions, (n_steps, n_pixels, n_components).
        gamma: Responsibilities, likewise.
        image_shape: Height and width.
    """
    n_steps, _, n_components = psi.shape
    frames = np.broadcast_to(image, (n_steps, image.shape[-1]))
    colours = np.array([to_rgb(one) for one in sns.color_palette("colorblind", n_components)])
    n_rows = n_components + 2
    figure = Figure(
        figsize=(PANEL_INCHES * n_steps + 0.6, PANEL_INCHES * n_rows + 0.3), layout="constrained"
    )
    axes = figure.subplots(n_rows, n_steps, squeeze=False)
    for step, column in enumerate(axes.T):
        frame = np.clip(frames[step], 0, 1)
        mixed = gamma[step] @ colours
        shown = [frame, mixed * (0.25 + 0.75 * frame[:, None]), *psi[step].T]
        for axis, pixels in zip(column, shown, strict=True):
            _draw(axis, pixels, image_shape)
        column[0].set_title(f"step {step + 1}", fontsize=9)
    names = ["image", "groups", *(f"group {k + 1}" for k in range(n_components))]
    inks = ["black", "black", *colours * 0.8]
    for axis, name, ink in zip(axes[:, 0], names, inks, strict=True):
        axis.set_ylabel(name, color=ink, fontsize=9)
    return figure


def progress(findings: Mapping[str, Sequence[tuple[int, float]]]) -> Figure:
    """What a training was found to be worth against its updates: a panel for each finding.

    Args:
        findings: (update, value) by name, such as "held-out loss" and "AMI".
    """
    return _curves(findings, "updates")


def agreement_by_step(ami: Sequence[float]) -> Figure:
    """AMI against EM steps.

    Args:
        ami: After step 1, 2, ....
    """
    return _curves({"AMI": list(enumerate(ami, start=1))}, "EM steps")


def _curves(findings: Mapping[str, Sequence[tuple[int, float]]], unit: str) -> Figure:
    width, height = CURVE_INCHES
    figure = Figure(figsize=(width * len(findings), height), layout="constrained")
    for axis, (name, points) in zip(
        figure.subplots(1, len(findings), squeeze=False)[0], findings.items(), strict=True
    ):
        axis.plot(*zip(*points, strict=True), marker=".")
        axis.set(xlabel=unit, ylabel=name)
        if name == "AMI":
            axis.set_ylim(min(0.0, *(value for _, value in points)) - 0.02, 1.0)
        axis.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axis.grid(alpha=0.3)
        sns.despine(ax=axis)
    return figure


def _draw(axis: Axes, pixels: FloatArray, image_shape: tuple[int, int]) -> None:
    """A grey image of (n_pixels,), or one of (n_pixels, 3) in colours."""
    axis.imshow(pixels.reshape(*image_shape, *pixels.shape[1:]), cmap="gray", vmin=0, vmax=1)
    axis.set(xticks=[], yticks=[])
