"""Quality against time in numbers: seconds until a fit was within so much of the best known.

Every implementation ends by a rule of its own, and its end says little of when it was good. These
times do not depend on when a model stops, if only it goes on for long enough.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from embench.comparing.frames import has_shared_cores

TARGETS = (0.1, 0.01, 0.001)
"""Held-out NLL beyond the best known [nat] that fits are timed to; the middle one is the tolerance
within which two models count as equal."""

MIDDLE = TARGETS[1]

FIT = ["track", "dataset", "label", "seed"]
NEEDED = [*FIT, "status", "best_known", "nll", "fit_seconds", "curve"]


def first_time(seconds: ArrayLike, nll: ArrayLike, level: float) -> float:
    """The first time at which a curve is at or below a level, straight from point to point.

    Between two points at which the judge looked nobody knows the NLL; where the curve is convex, as
    that of EM is but for plateaus, a straight line lies above it and the time found is an upper
    bound, alike for all models. What comes before the first point is left out, as is any descent
    below the level and back up again from one point to the next.

    Args:
        seconds: Shape (n_points,), n_points >= 1, never falling [s].
        nll: Shape (n_points,) [nat].
        level: What is to be reached [nat].

    Returns:
        Seconds, or inf where no point is at or below the level. Scaling the seconds by c > 0 scales
        it by c; adding a constant to the NLL and to the level leaves it as it is.

    Raises:
        ValueError: There is no point, or the shapes differ.

    Example:
        >>> first_time([1.0, 2.0, 4.0], [3.0, 2.0, 1.0], 1.5)
        3.0
        >>> first_time([1.0, 2.0, 4.0], [3.0, 2.0, 1.0], 0.5)
        inf
    """
    seconds, nll = np.asarray(seconds, np.float64), np.asarray(nll, np.float64)
    if seconds.ndim != 1 or seconds.shape != nll.shape or not len(nll):
        raise ValueError(
            f"expected seconds and nll of one shape (n_points,), n_points >= 1, got "
            f"{seconds.shape} and {nll.shape}"
        )
    there = np.flatnonzero(nll <= level)
    if not len(there):
        return np.inf
    after = there[0]
    if after == 0:
        return float(seconds[0])
    before = after - 1
    share = (nll[before] - level) / (nll[before] - nll[after])
    time = seconds[before] + share * (seconds[after] - seconds[before])
    return float(min(time, seconds[after]))  # rounding could lead a hair beyond it


def times_to_targets(records: pd.DataFrame) -> pd.DataFrame:
    """Seconds of each fit to each target, over all datasets that have a line.

    Args:
        records: A tidy table, with ``best_known``.

    Returns:
        One row per fit and target, in the order of the records: track, dataset, label, seed,
        target [nat] and seconds [s], inf where the fit never got there. A fit that failed got
        nowhere. One whose ``grade`` is "quality" is left out: its seconds say nothing. A model
        without a curve counts with its end alone.
    """
    if records.empty:
        return _times([])
    raced = records["best_known"].groupby([records["track"], records["dataset"]])
    fair = ~has_shared_cores(records)
    rows = records.filter(NEEDED)[raced.transform("count").gt(0) & fair].to_dict("records")
    times = [
        {**{name: row[name] for name in FIT}, "target": target, "seconds": _time(row, target)}
        for row in rows
        for target in TARGETS
    ]
    return _times(times)


def over_seeds(times: pd.DataFrame) -> pd.DataFrame:
    """The median time to each target over the seeds that a model was given.

    Args:
        times: As `times_to_targets` makes it.

    Returns:
        One row per track, dataset, model and target [nat]: ``reached`` of ``planned`` (numbers of
        seeds) and ``seconds``, their median [s] with inf for every seed on which the target was not
        reached: inf if that is so on half of them or more.
    """
    columns = ["track", "dataset", "model", "target", "reached", "planned", "seconds"]
    groups = times.groupby(["track", "dataset", "label", "target"], sort=False)["seconds"]
    rows = [
        [*names, int(np.isfinite(some).sum()), len(some), float(np.median(some))]
        for names, some in groups
    ]
    return pd.DataFrame(rows, columns=columns)


def _times(rows: list[dict[str, Any]]) -> pd.DataFrame:
    """Rows with all columns, also where there are none."""
    times = pd.DataFrame(rows, columns=[*FIT, "target", "seconds"])
    return times.astype({"target": float, "seconds": float})


def _time(row: Mapping[Any, Any], target: float) -> float:
    """Seconds of one trial to one target."""
    if row["status"] != "ok":
        return np.inf
    seconds, _, nll = zip(*(row["curve"] or [(row["fit_seconds"], 0, row["nll"])]), strict=True)
    return first_time(seconds, nll, row["best_known"] + target)
