"""How every model did on a dataset: means over seeds, ranks, and which one to take."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping
from typing import Any

import pandas as pd

from embench.comparing.frames import by_label, leading, metric_values, ok
from embench.comparing.stats import geometric_mean, stddev
from embench.metrics import METRICS, Metric


def summarise(frame: pd.DataFrame) -> pd.DataFrame:
    """One row per track, dataset and model of a tidy frame, in order of rank.

    Columns: track, dataset, rank (1 is best), model, ok and planned (numbers of seeds), then per
    metric its mean (geometric for costs) and, as ``<metric>_std``, its standard deviation over
    seeds (two or more), both in the metric's unit and NaN where the metric does not exist.
    """
    if frame.empty:
        return pd.DataFrame(columns=["track", "dataset", "rank", "model", "ok", "planned"])
    tables = [_table(rows) for _, rows in frame.groupby(["track", "dataset"], sort=False)]
    return pd.concat(tables, ignore_index=True)


def recommend(table: pd.DataFrame) -> pd.Series | None:
    """The row of a summary table to take: the first in rank of those with the fewest failures.

    A mean over the seeds that a model survived flatters it, so a model that failed is not taken
    while another did not.
    """
    candidates = table[table["ok"] > 0]
    if candidates.empty or leading(table).name not in candidates:
        return None
    return candidates[candidates["ok"] == candidates["ok"].max()].iloc[0]


def seconds(row: Mapping[str, Any] | pd.Series) -> float:
    """Of the fit, and of the prediction where it is a grouper's: some do all of their work there.

    Infinite where no time was measured.
    """
    predicting = row.get("predict_seconds", 0.0)
    return row.get("fit_seconds", float("inf")) + (0.0 if math.isnan(predicting) else predicting)


def centre(metric: Metric, values: Iterable[float]) -> float:
    """Mean over seeds, geometric for a cost, whose errors are ratios."""
    series = pd.Series(values, dtype=float)
    if metric.kind == "quality":
        return float(series.mean())
    return geometric_mean(series.clip(lower=metric.resolution))


def _table(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows of one track and dataset."""
    planned = frame["seed"].nunique()
    rows = [_row(rows, planned) for rows in by_label(frame).values()]
    ranked = _ranked(rows)
    return pd.DataFrame([{**row, "rank": rank} for rank, row in enumerate(ranked, start=1)])


def _row(frame: pd.DataFrame, planned: int) -> dict[str, Any]:
    """One model's row; ``planned`` counts the seeds that any model of the table was given."""
    first = frame.iloc[0]
    row: dict[str, Any] = {"track": first["track"], "dataset": first["dataset"], "rank": 0}
    row |= {"model": first["label"], "ok": len(ok(frame)), "planned": planned}
    for metric in METRICS.values():
        values = metric_values(frame, metric.name)
        if len(values):
            row[metric.name] = centre(metric, values)
        if len(values) > 1:
            row[f"{metric.name}_std"] = stddev(values)
    return row


def _ranked(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """By the leading metric; models within its tie tolerance of the best of the rest go by time.

    The excess of the NLL is what is ranked: it takes the level of each seed's data out, so that a
    model that failed on the hard seeds gains nothing by it.
    """
    metric = leading(pd.DataFrame(rows))
    left = [row for row in rows if metric.name in row]
    without = [row for row in rows if metric.name not in row]
    ranked: list[dict[str, Any]] = []
    while left:
        tied = tied_with_best(metric, [row[metric.name] for row in left])
        ranked += sorted(itertools.compress(left, tied), key=seconds)
        left = [row for row, is_tied in zip(left, tied, strict=True) if not is_tied]
    return ranked + without


def tied_with_best(metric: Metric, values: Iterable[float]) -> list[bool]:
    """Which of these are the best value, or within the metric's tie tolerance of it."""
    sign = 1 if metric.better == "lower" else -1
    losses = [sign * value for value in values]
    limit = min(losses) + metric.tie.of(min(losses))
    return [loss <= limit for loss in losses]
