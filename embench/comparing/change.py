"""What changes in one metric from a baseline to a candidate, over pairs, and whether it matters."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd

from embench.comparing.stats import Interval, geometric_mean, paired_difference, paired_ratio
from embench.metrics import Metric, Tolerance

Verdict = Literal["better", "worse", "same", "inconclusive"]


@dataclass(frozen=True, kw_only=True)
class Change:
    """One metric of a candidate against a baseline on one dataset in one track.

    ``interval`` is a difference in the metric's unit for a quality, and the ratio
    candidate / baseline for a cost. The values are means over the pairs, geometric for costs, so
    that their difference or ratio is the estimate.
    """

    track: str
    dataset: str
    metric: str
    baseline: str
    candidate: str
    n_pairs: int
    baseline_value: float
    candidate_value: float
    interval: Interval
    verdict: Verdict


def change(
    metric: Metric,
    old: pd.Series,
    new: pd.Series,
    *,
    overlap: float = 0.0,
    track: str = "",
    dataset: str = "",
    baseline: str = "",
    candidate: str = "",
) -> Change | None:
    """Compare two models by the seeds that both have; None where they share none.

    Args:
        metric: A row of METRICS.
        old: The baseline's values [the metric's unit], indexed by seed.
        new: The candidate's, likewise.
        overlap: Of the data of different seeds, as in `mean_interval`.
        track, dataset, baseline, candidate: The names that the result carries.
    """
    seeds = old.index.intersection(new.index).sort_values()
    if seeds.empty:
        return None
    pairs = old[seeds].to_numpy(float), new[seeds].to_numpy(float)
    if metric.kind == "quality":
        interval = paired_difference(*pairs, overlap=overlap)
        values = float(pairs[0].mean()), float(pairs[1].mean())
    else:
        pairs = np.maximum(pairs[0], metric.resolution), np.maximum(pairs[1], metric.resolution)
        interval = paired_ratio(*pairs, overlap=overlap)
        values = geometric_mean(pairs[0]), geometric_mean(pairs[1])
    return Change(
        track=track,
        dataset=dataset,
        metric=metric.name,
        baseline=baseline,
        candidate=candidate,
        n_pairs=len(seeds),
        baseline_value=values[0],
        candidate_value=values[1],
        interval=interval,
        verdict=_verdict(metric, interval, values),
    )


def allowed(metric: Metric, tolerance: Tolerance, values: tuple[float, float]) -> float:
    """The change that counts as none: a difference for a quality, a ratio >= 1 for a cost.

    It is taken at the smaller of the two values, so that it does not depend on which of the two
    is called the baseline.

    >>> from embench.metrics import METRICS
    >>> allowed(METRICS["fit_seconds"], Tolerance(0.002, 0.3), (0.010, 0.020))
    1.3
    """
    smaller = min(map(abs, values))
    bound = tolerance.of(smaller)
    return bound if metric.kind == "quality" else 1 + bound / smaller


def loss(metric: Metric, interval: Interval) -> Interval:
    """The interval on a scale where 0 is no change and more is worse; costs become logs."""
    if metric.kind == "cost":
        with np.errstate(divide="ignore"):
            return interval.map(np.log)
    if metric.better == "lower":
        return interval
    return Interval(-interval.estimate, -interval.high, -interval.low)


def bound(metric: Metric, tolerance: Tolerance, values: tuple[float, float]) -> float:
    """What is `allowed`, on the scale of `loss`."""
    limit = allowed(metric, tolerance, values)
    return limit if metric.kind == "quality" else math.log(limit)


def _verdict(metric: Metric, interval: Interval, values: tuple[float, float]) -> Verdict:
    """Better or worse only if certain and large; same only if certainly small."""
    shift, limit = loss(metric, interval), bound(metric, metric.tie, values)
    if -limit <= shift.low and shift.high <= limit:
        return "same"
    if shift.low > 0 and shift.estimate > limit:
        return "worse"
    if shift.high < 0 and shift.estimate < -limit:
        return "better"
    return "inconclusive"
