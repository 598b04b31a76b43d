"""A report in a folder: one HTML page that holds everything, the same in Markdown, the figures."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from embench.comparing import tables
from embench.comparing.frames import natural
from embench.comparing.tables import Comparison
from embench.metrics import METRICS
from embench.reporting import text

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PIXELS_PER_INCH = 130
PAGE_METRICS = (
    *("nll", "excess_nll", "ami", "ami_max", "ami_overlaps"),
    *("fit_seconds", "predict_seconds", "n_iter", "peak_memory"),
)
"""What fits beside each other on a page; the changes below each table show all."""


def write_report(frame: pd.DataFrame, comparison: Comparison, folder: Path) -> Path:
    """Write report.html, report.md and figures/*.png.

    Args:
        frame: Every record of the runs, as `store.frame` makes it: the page tells from it where
            they were measured, also what the comparison leaves out.
        comparison: What `compare` found in them.
        folder: Made if it is not there; files of an earlier report are written over.

    Returns:
        The path of report.html, which needs no other file.
    """
    drawn = images(comparison)
    (folder / "figures").mkdir(parents=True, exist_ok=True)
    for name, data in drawn.items():
        (folder / "figures" / f"{name}.png").write_bytes(data)
    paths = [f"figures/{name}.png" for name in drawn]
    (folder / "report.md").write_text(text.markdown(comparison, paths), encoding="utf-8")
    page = folder / "report.html"
    page.write_text(html(frame, comparison, drawn), encoding="utf-8")
    return page


def images(comparison: Comparison) -> dict[str, bytes]:
    """Every figure that has data as a PNG, by name."""
    from embench.reporting.plots import figures

    return {name: _png(figure) for name, figure in figures(comparison).items()}


def html(frame: pd.DataFrame, comparison: Comparison, drawn: Mapping[str, bytes]) -> str:
    """The page; whatever a model or a dataset said is escaped by the template."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("embench.reporting"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html.j2").render(
        comparison=comparison,
        tables=tables,
        tracks=text.by_track(comparison),
        closing=tables.closing_groups(comparison),
        images={name: base64.b64encode(data).decode() for name, data in drawn.items()},
        sources=sources(frame),
        provenance=provenance(frame),
        n_trials=len(frame),
        page_metrics=PAGE_METRICS,
        text_columns=text.TEXT_COLUMNS,
    )


def sources(frame: pd.DataFrame) -> list[tuple[str, str]]:
    """Who says so, for each metric that the records have, by its title."""
    return [(metric.title, metric.source) for name, metric in METRICS.items() if name in frame]


def provenance(frame: pd.DataFrame) -> list[tuple[str, list[str]]]:
    """What the environments of all records say: each key with its distinct values."""
    if "environment" not in frame:
        return []
    found: dict[str, set[str]] = {}
    for environment in frame["environment"]:
        for key, value in environment.items():
            if value not in (None, ""):
                found.setdefault(key, set()).add(str(value))
    return [(key, sorted(values, key=natural)) for key, values in found.items()]


def _png(figure: Figure) -> bytes:
    """A figure's image, on white so that it can be read on a dark page."""
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=PIXELS_PER_INCH, facecolor="white")
    return stream.getvalue()
