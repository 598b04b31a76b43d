"""Figures of a comparison, one function each: quality against cost, scaling, agreement, costs.

Every function takes a comparison and one of its tracks and returns a figure, or None where there
is nothing to draw. A model has the same colour and marker in all figures of a comparison.
"""

from __future__ import annotations

import itertools
import math
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.axis import XAxis, YAxis
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter, Formatter, FuncFormatter, NullFormatter

from embench.comparing.change import Change
from embench.comparing.frames import by_label, natural, ok
from embench.comparing.tables import Comparison, dataset_title
from embench.comparing.targets import TARGETS, times_to_targets
from embench.metrics import METRICS

MAX_PANELS = 12
"""More panels than this are unreadable on one page; the title says what was left out."""

SMALLEST_EXCESS = 1e-3
"""An excess NLL [nat] below this is drawn here: a log axis has no zero, and a tenth of the
tolerance of a tie is no difference."""

SHORTEST = 1e-6
"""A time [s] below this is drawn here."""

CURVE_POINTS = 100
SIZES = ("n_samples", "n_features", "n_components")
MARKERS = "osD^vP*X<>"

_plain = FuncFormatter(lambda value, _: f"{value:g}")
_factor = FuncFormatter(lambda value, _: f"{value:g}×")


@dataclass(frozen=True)
class _Cost:
    """What a quality can be drawn against: its word, its metric, its place in a point of a curve,
    how its numbers are written, and what there is to remark."""

    word: str
    metric: str
    place: int
    formatter: Formatter
    remark: str = ""


_TIME = _Cost("time", "fit_seconds", 0, EngFormatter("s"))
_ITERATIONS = _Cost(
    "iterations", "n_iter", 1, _plain, "One model's iteration may cost many of another's. "
)


def figures(comparison: Comparison) -> dict[str, Figure]:
    """Every figure that has data, by a name that can be a file's."""
    drawings: Mapping[str, Callable[[Comparison, str], Figure | None]] = {
        "quality-against-time": lambda found, track: quality(found, track, _TIME),
        "quality-against-iterations": lambda found, track: quality(found, track, _ITERATIONS),
        "time-to-quality": time_to_quality,
        "groups-against-time": groups_against_time,
        "time-ratios": lambda found, track: ratios(found, track, "fit_seconds"),
        "scaling": scaling,
        "agreement": agreement,
        "prediction-time-ratios": lambda found, track: ratios(found, track, "predict_seconds"),
        "memory-ratios": lambda found, track: ratios(found, track, "peak_memory"),
    }
    tracks = dict.fromkeys(track for track, _ in comparison.tables())
    drawn = {
        f"{track}-{name}": draw(comparison, track)
        for track in tracks
        for name, draw in drawings.items()
    }
    return {name: figure for name, figure in drawn.items() if figure is not None}


def quality(comparison: Comparison, track: str, cost: _Cost) -> Figure | None:
    """Excess NLL [nat] against time or iterations, both logarithmic, one panel per dataset.

    A line is the median over seeds of what was reached by then, where a finished fit stays at its
    end; a small point is the end of one fit, a large one their median.
    """
    rows = _finished(comparison, track, "excess_nll", cost.metric)
    if rows.empty:
        return None
    rows = rows.assign(excess=rows["excess_nll"].clip(lower=SMALLEST_EXCESS))
    datasets = sorted(rows["dataset"].unique(), key=natural)
    figure, axes = _panels(len(datasets), f"Held-out NLL against {cost.word}", track)
    for axis, dataset in zip(axes, datasets, strict=False):
        here = rows[rows["dataset"] == dataset]
        _draw_quality(axis, comparison, here, cost)
        axis.set_ylabel(f"NLL over {here['reference'].iloc[0]} [nat]")
        _title(axis, dataset_title(comparison, dataset))
    _legend(figure, comparison, rows["label"])
    _caption(
        figure,
        "Lines: median over seeds of what was reached by then. Small points: the end of each fit; "
        f"large points: their median. {cost.remark}"
        f"Below {SMALLEST_EXCESS:g} nat is drawn at {SMALLEST_EXCESS:g}.",
    )
    return figure


def _draw_quality(axis: Axes, comparison: Comparison, rows: pd.DataFrame, cost: _Cost) -> None:
    """One panel: a line, the ends of all seeds and their median for each model."""
    style: dict[str, Any] = {"hue": "label", "palette": _colours(comparison), "legend": False}
    curves = pd.concat([_median_curve(label, here, cost) for label, here in by_label(rows).items()])
    if len(curves):
        sns.lineplot(curves, x="spent", y="excess", estimator=None, ax=axis, **style)
    _draw_ends(axis, comparison, rows, cost.metric, "excess")
    axis.set(yscale="log", xlabel=cost.word)
    _log_ticks(axis.xaxis, cost.formatter, most=4)
    # A decade at least: less would blow a difference up that is none.
    _log_ticks(axis.yaxis, _plain, span=10)


def time_to_quality(comparison: Comparison, track: str) -> Figure | None:
    """Share of all fits that were within each target by then, over a logarithmic time.

    A data profile (More and Wild, 2009, Benchmarking derivative-free optimization algorithms, SIAM
    Journal on Optimization 20): steps up where a fit arrives, and stays below 1 if some never do.
    """
    times = times_to_targets(comparison.records)
    times = times[times["track"] == track]
    arrived = times.loc[np.isfinite(times["seconds"]), "seconds"].clip(lower=SHORTEST)
    if arrived.empty:
        return None
    figure, axes = _panels(
        len(TARGETS), "Time until a fit was nearly as good as the best known", track
    )
    for axis, target in zip(axes, TARGETS, strict=True):
        axis.set(xscale="log", xlim=(arrived.min() / 1.5, arrived.max() * 1.5), xlabel="time")
        axis.set(ylim=(-0.03, 1.03), ylabel="share of fits")
        _log_ticks(axis.xaxis, EngFormatter("s"), most=4)
        for label, rows in by_label(times[times["target"] == target]).items():
            _draw_profile(axis, comparison, label, rows["seconds"].to_numpy(float))
        _title(axis, f"within {target:g} nat")
    _legend(figure, comparison, times["label"])
    _caption(
        figure,
        "Share of a model's fits (datasets × seeds) whose held-out NLL was by then within so much "
        "of the best known for their data. The point is the last fit to get there; a line that "
        "stays below 1 is of a model that never got there with the rest.",
    )
    return figure


def _draw_profile(axis: Axes, comparison: Comparison, label: str, seconds: np.ndarray) -> None:
    """A step up for each fit that arrived, at its time; to the right edge it stays where it is."""
    arrived = np.sort(seconds[np.isfinite(seconds)]).clip(min=SHORTEST)
    shares = np.arange(len(arrived) + 1) / len(seconds)
    style: dict[str, Any] = {"color": _colours(comparison)[label]}
    left, right = axis.get_xlim()
    axis.step([left, *arrived, right], [*shares, shares[-1]], where="post", **style)
    if len(arrived):
        marker = _markers(comparison)[label]
        axis.plot(arrived[-1], shares[-1], marker=marker, linestyle="none", **style)


def groups_against_time(comparison: Comparison, track: str) -> Figure | None:
    """AMI of groups of pixels against the time of fit and prediction, one panel per dataset."""
    rows = _finished(comparison, track, "ami", "fit_seconds", "predict_seconds")
    if rows.empty:
        return None
    rows = rows.assign(seconds=rows["fit_seconds"] + rows["predict_seconds"])
    datasets = sorted(rows["dataset"].unique(), key=natural)
    figure, axes = _panels(len(datasets), "Groups of pixels against time", track)
    for axis, dataset in zip(axes, datasets, strict=False):
        _draw_ends(axis, comparison, rows[rows["dataset"] == dataset], "seconds", "ami")
        axis.set_ylim(-0.05, 1.05)
        _log_ticks(axis.xaxis, EngFormatter("s"), most=4)
        axis.set(xlabel="fit and prediction", ylabel="AMI (1 is perfect, 0 is chance)")
        _title(axis, dataset_title(comparison, dataset))
    _legend(figure, comparison, rows["label"])
    _caption(figure, "Small points: seeds; large points: their median.")
    return figure


def _draw_ends(axis: Axes, comparison: Comparison, rows: pd.DataFrame, x: str, y: str) -> None:
    """The ends of all seeds and their median for each model, over a log axis."""
    style: dict[str, Any] = {"x": x, "y": y, "hue": "label", "style": "label", "ax": axis}
    style |= {"palette": _colours(comparison), "markers": _markers(comparison), "legend": False}
    middle = rows.groupby("label", as_index=False)[[x, y]].median()
    sns.scatterplot(rows, s=16, alpha=0.5, linewidth=0, **style)
    sns.scatterplot(middle, s=60, zorder=3, **style)
    axis.set(xscale="log")


def scaling(comparison: Comparison, track: str) -> Figure | None:
    """Fit time [s] against each size of the data that varies while the others stay the same."""
    rows = _finished(comparison, track, "fit_seconds")
    panels = [panel for size in SIZES if size in rows for panel in _sweeps(rows, size)]
    if not panels:
        return None
    figure, axes = _panels(len(panels), "Fit time against the size of the data", track)
    for axis, (size, fixed, here) in zip(axes, panels, strict=False):
        sns.lineplot(
            here,
            x=size,
            y="fit_seconds",
            hue="label",
            style="label",
            markers=_markers(comparison),
            dashes=False,
            palette=_colours(comparison),
            estimator="median",
            errorbar=("pi", 100),
            legend=False,
            ax=axis,
        )
        axis.set(xscale="log", yscale="log", xlabel=size, ylabel="fit time")
        _log_ticks(axis.yaxis, EngFormatter("s"))
        values = sorted(here[size].unique())
        axis.set_xticks(values, [f"{value:g}" for value in values])
        axis.xaxis.set_minor_formatter(NullFormatter())
        _title(axis, fixed)
    _legend(figure, comparison, pd.concat([here for _, _, here in panels])["label"])
    _caption(figure, "Lines: median over seeds. Bands: from the fastest to the slowest seed.")
    return figure


def agreement(comparison: Comparison, track: str) -> Figure | None:
    """AMI of predicted and true labels per dataset and model, means and extremes over seeds."""
    rows = _finished(comparison, track, "ami")
    if rows.empty:
        return None
    datasets = sorted(rows["dataset"].unique(), key=natural)
    figure, axis = _rows_figure(datasets, rows["label"].nunique(), "Agreement with labels", track)
    for row, dataset in enumerate(datasets):
        here = rows[rows["dataset"] == dataset]
        for y, label in _lanes(comparison, here["label"], row):
            values = here.loc[here["label"] == label, "ami"]
            ends = [[values.mean() - values.min()], [values.max() - values.mean()]]
            _point(axis, comparison, label, values.mean(), y, ends)
    axis.set_xlabel("AMI (1 is perfect, 0 is chance)")
    _legend(figure, comparison, rows["label"])
    _caption(figure, "Points: mean over seeds. Bars: from the lowest to the highest seed.")
    return figure


def ratios(comparison: Comparison, track: str, metric: str) -> Figure | None:
    """A cost's ratio to the baseline per dataset, with its interval, on a log axis."""
    found = [item for item in comparison.changes if (item.track, item.metric) == (track, metric)]
    if not found:
        return None
    datasets = sorted({item.dataset for item in found}, key=natural)
    labels = pd.Series([item.candidate for item in found])
    title = METRICS[metric].title
    figure, axis = _rows_figure(
        datasets, labels.nunique(), f"{title.capitalize()} against the baseline", track
    )
    axis.axvline(1, color="0.4", linewidth=1, zorder=0)
    for row, dataset in enumerate(datasets):
        here = {item.candidate: item for item in found if item.dataset == dataset}
        for y, label in _lanes(comparison, pd.Series(list(here)), row):
            _point(axis, comparison, label, here[label].interval.estimate, y, _ends(here[label]))
    baselines = ", ".join(dict.fromkeys(item.baseline for item in found))
    axis.set_xscale("log")
    _log_ticks(axis.xaxis, _factor, most=9)
    axis.set_xlabel(f"{title} / {title} of {baselines} (left of 1 is better)")
    _legend(figure, comparison, labels)
    _caption(
        figure,
        "Points: geometric mean over seeds. Bars: 95 % interval; none where one pair gives none.",
    )
    return figure


def _finished(comparison: Comparison, track: str, *metrics: str) -> pd.DataFrame:
    """The ok trials of a track that have all these metrics."""
    rows = ok(comparison.records)
    if any(metric not in rows for metric in metrics):
        return rows.iloc[:0]
    return rows[rows["track"] == track].dropna(subset=list(metrics))


def _median_curve(label: str, rows: pd.DataFrame, cost: _Cost) -> pd.DataFrame:
    """Columns label, spent, excess: the median over the seeds of one model that have a curve.

    Every seed counts at every point: from its end on it stays where it ended. A median over only
    those that still run would jump whenever one of them stops.
    """
    curves = []
    for nll, excess, curve in zip(rows["nll"], rows["excess_nll"], rows["curve"], strict=True):
        points = [(at[cost.place], at[2] - nll + excess) for at in curve if at[cost.place] > 0]
        if points:
            curves.append(np.array(points).T)
    if not curves:
        return pd.DataFrame(columns=["label", "spent", "excess"])
    first, last = max(curve[0, 0] for curve in curves), max(curve[0, -1] for curve in curves)
    spent = np.geomspace(first, last, CURVE_POINTS)
    reached = [np.interp(np.log(spent), np.log(curve[0]), curve[1]) for curve in curves]
    excess = np.median(reached, axis=0).clip(min=SMALLEST_EXCESS)
    return pd.DataFrame({"label": label, "spent": spent, "excess": excess})


def _sweeps(rows: pd.DataFrame, size: str) -> list[tuple[str, str, pd.DataFrame]]:
    """The size, what stays fixed, and the rows, wherever this size alone takes several values."""
    fixed = [name for name in SIZES if name != size and name in rows]
    family = rows["dataset"].str.split(":").str[0].rename("family")
    found = []
    for names, here in rows.dropna(subset=[size]).groupby([family, *fixed], dropna=False):
        if here[size].nunique() > 1:
            sizes = [f"{name}={value:g}" for name, value in zip(fixed, names[1:], strict=True)]
            found.append((size, f"{names[0]} ({', '.join(sizes)})", here))
    return found


def _labels(comparison: Comparison) -> list[str]:
    """Every model of the comparison, in the order that gives colours."""
    return sorted(comparison.models["label"].unique(), key=natural)


def _slots(comparison: Comparison) -> dict[str, int]:
    """A number for each model that no other model of its tracks has.

    Models of one name in different tracks share theirs, so that a name keeps its colour.
    """
    tracks: dict[str, set[str]] = {}
    names: dict[str, str] = {}
    for track, label, model in comparison.models.itertuples(index=False):
        tracks.setdefault(label, set()).add(track)
        names.setdefault(label, model.split(":")[0])
    found: dict[str, tuple[str, int]] = {}
    for label in _labels(comparison):
        taken = {slot for other, slot in found.items() if tracks[other] & tracks[label]}
        own = ((names[label], at) for at in itertools.count())
        found[label] = next(slot for slot in own if slot not in taken)
    order = sorted(set(found.values()))
    return {label: order.index(slot) for label, slot in found.items()}


def _colours(comparison: Comparison) -> dict[str, Any]:
    slots = _slots(comparison)
    count = max(slots.values()) + 1
    palette = sns.color_palette("colorblind" if count <= 10 else "husl", count)
    return {label: palette[slot] for label, slot in slots.items()}


def _markers(comparison: Comparison) -> dict[str, str]:
    return {label: MARKERS[slot % len(MARKERS)] for label, slot in _slots(comparison).items()}


def _panels(wanted: int, title: str, track: str) -> tuple[Figure, list[Axes]]:
    """A grid of at most MAX_PANELS axes; the title says how many are left out."""
    count = min(wanted, MAX_PANELS)
    columns = min(count, 3)
    rows = math.ceil(count / columns)
    figure = Figure(figsize=(1.6 + 3.7 * columns, 1.0 + 3.0 * rows), layout="constrained")
    axes = [figure.add_subplot(rows, columns, place + 1) for place in range(count)]
    cut = f" (the first {count} of {wanted} panels)" if count < wanted else ""
    figure.suptitle(f"{title}, track {track}{cut}", fontweight="bold")
    for axis in axes:
        axis.grid(alpha=0.3)
        sns.despine(ax=axis)
    return figure, axes


def _rows_figure(
    datasets: Sequence[str], n_labels: int, title: str, track: str
) -> tuple[Figure, Axes]:
    """One axis with a row per dataset, tall enough for a lane per model."""
    height = 1.6 + len(datasets) * max(0.5, 0.2 * n_labels)
    figure = Figure(figsize=(9, height), layout="constrained")
    axis = figure.add_subplot()
    figure.suptitle(f"{title}, track {track}", fontweight="bold")
    axis.set_yticks(range(len(datasets)), [_wrapped(name, 26) for name in datasets])
    axis.set_ylim(len(datasets) - 0.5, -0.5)
    axis.tick_params(axis="y", length=0)
    axis.grid(axis="x", alpha=0.3)
    for between in np.arange(0.5, len(datasets) - 1):
        axis.axhline(between, color="0.85", linewidth=0.8, zorder=0)
    sns.despine(ax=axis, left=True)
    return figure, axis


def _lanes(comparison: Comparison, labels: pd.Series, row: int) -> list[tuple[float, str]]:
    """A height within a dataset's row for each model that is there, in the order of colours."""
    here = [label for label in _labels(comparison) if label in set(labels)]
    offsets = np.linspace(-0.3, 0.3, len(here)) if len(here) > 1 else [0.0]
    return [(row + offset, label) for offset, label in zip(offsets, here, strict=True)]


def _point(
    axis: Axes,
    comparison: Comparison,
    label: str,
    x: float,
    y: float,
    ends: list[list[float]] | None,
) -> None:
    axis.errorbar(
        x,
        y,
        xerr=ends,
        fmt=_markers(comparison)[label],
        color=_colours(comparison)[label],
        markersize=6,
        capsize=2,
    )


def _ends(change: Change) -> list[list[float]] | None:
    """The lengths of an interval's two arms; None where it has no end."""
    interval = change.interval
    if not (interval.low > 0 and math.isfinite(interval.high)):
        return None
    return [[interval.estimate - interval.low], [interval.high - interval.estimate]]


def _log_ticks(axis: XAxis | YAxis, formatter: Formatter, span: float = 4, most: int = 6) -> None:
    """A log axis over a factor of ``span`` at least, with at most so many ticks."""
    low, high = axis.get_view_interval()
    widen = max(1.0, math.sqrt(span * low / high))
    low, high = low / widen, high * widen
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for steps in ((1, 2, 5), (1, 3), (1,)):
        ticks = [step * 10.0**decade for decade in decades for step in steps]
        ticks = [tick for tick in ticks if low <= tick <= high]
        if len(ticks) <= most:
            break
    axis.set_ticks(ticks[:: math.ceil(len(ticks) / most)])
    axis.set_major_formatter(formatter)
    axis.set_minor_formatter(NullFormatter())
    axis.set_view_interval(low, high, ignore=True)


def _legend(figure: Figure, comparison: Comparison, labels: pd.Series) -> None:
    """One legend for all panels, to the right of the data, in a figure tall enough for it."""
    here = set(labels)
    handles = [
        Line2D([], [], color=colour, marker=_markers(comparison)[label], label=_wrapped(label, 30))
        for label, colour in _colours(comparison).items()
        if label in here
    ]
    legend = figure.legend(
        handles=handles, loc="outside right center", frameon=False, title="model"
    )
    needed = legend.get_window_extent().height / figure.dpi + 0.5
    figure.set_figheight(max(figure.get_figheight(), needed))


def _caption(figure: Figure, text: str) -> None:
    """What lines, points and bars are, below the data."""
    width = int(figure.get_figwidth() * 14)
    figure.supxlabel("\n".join(textwrap.wrap(text, width)), fontsize="small", color="0.35")


def _title(axis: Axes, text: str) -> None:
    axis.set_title(_wrapped(text, 34), fontsize="medium")


def _wrapped(text: str, width: int) -> str:
    """Text in lines; a name may break after a colon or comma."""
    spaced = text.replace(":", ":\u200b ").replace(",", ",\u200b ").replace("\u200b  ", " ")
    return "\n".join(textwrap.wrap(spaced, width)).replace("\u200b ", "")
