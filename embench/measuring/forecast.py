"""What a run is going to take, by the records of earlier ones."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import Literal

from embench.measuring.sizes import Hopeless, asked_sizes, trial_family
from embench.measuring.trial import ENOUGH_SECONDS, MAX_FITS
from embench.types import Record, Spec, Trial

Basis = Literal["measured", "scaled", "unknown", "pruned"]

MATRICES = ("full", "tied")
"""Families of covariances whose cost grows with the square of n_features."""


@dataclass(frozen=True)
class Forecast:
    """What a trial is going to take, and how that is known.

    ``seconds`` are those of the whole trial and ``memory`` is what a fit needs at its peak [bytes],
    None where nothing like it was measured. ``basis`` is "measured" (the same trial, perhaps at
    another seed or with an earlier version), "scaled" (one of its family, of other sizes),
    "unknown", or "pruned", with the reason in ``remark``.
    """

    trial: Trial
    seconds: float | None
    memory: float | None
    basis: Basis
    remark: str = ""


def forecasts(trials: Sequence[Trial], records: Iterable[Record]) -> list[Forecast]:
    """Forecast trials by whatever was measured before, best by the same, else by the nearest.

    Seconds of a trial of other sizes are scaled by n_samples n_components n_features (squared for
    matrices as covariances), memory by the sizes of data, responsibilities and covariances.
    A fit that would outlast its limit is taken to be cut off there.

    Args:
        trials: What is going to be run, in order.
        records: Of earlier runs, in any order.
    """
    known = [record for record in records if record.trial_seconds is not None or record.metrics]
    families: dict[Hashable, list[Record]] = {}
    for record in known:
        families.setdefault(_family(record.trial), []).append(record)
    hopeless = Hopeless(known)
    return [_forecast(trial, families.get(_family(trial), []), hopeless) for trial in trials]


def _forecast(trial: Trial, relatives: list[Record], hopeless: Hopeless) -> Forecast:
    if reason := hopeless.why(trial):
        return Forecast(trial, 0.0, 0.0, "pruned", reason)
    own = _sizes(trial)
    same = [record for record in relatives if _sizes(record.trial) == own]
    if same and (found := _measured(trial, same)):
        return found
    scalable = [r for r in relatives if r.status == "ok" and _sizes(r.trial).keys() == own.keys()]
    if not scalable:
        return Forecast(trial, None, None, "unknown")
    return _scaled(trial, min(scalable, key=lambda record: abs(math.log(_growth(record, trial)))))


def _measured(trial: Trial, same: Sequence[Record]) -> Forecast | None:
    """By the medians over what was the same trial but for seed and version."""
    seconds = [record.trial_seconds for record in same if record.trial_seconds is not None]
    memory = [r.metrics["peak_memory"] for r in same if "peak_memory" in r.metrics]
    if not seconds:
        return None
    failed = sorted({record.status for record in same} - {"ok"})
    remark = f"ended before in {', '.join(failed)}" if failed else ""
    return Forecast(trial, median(seconds), median(memory) if memory else None, "measured", remark)


def _scaled(trial: Trial, record: Record) -> Forecast:
    """By one trial of other sizes."""
    growth = _growth(record, trial)
    fit = record.metrics["fit_seconds"] * growth
    remark = f"by {record.trial.id}"
    if fit > trial.time_limit:
        fit, remark = trial.time_limit, f"{remark}: likely to be cut off"
    rest = 0.0
    if record.trial_seconds is not None and record.fits:
        rest = record.trial_seconds - _fitting(record.metrics["fit_seconds"])
    memory = record.metrics.get("peak_memory")
    bytes_ = None if memory is None else memory * _memory_growth(record, trial)
    return Forecast(trial, _fitting(fit) + max(0.0, rest), bytes_, "scaled", remark)


def _fitting(seconds: float) -> float:
    """Seconds of all fits of a trial, of which each takes so many: the timed ones and the curve."""
    repetitions = min(MAX_FITS, math.ceil(ENOUGH_SECONDS / max(seconds, 1e-9)))
    return seconds * (repetitions + 1)


def _growth(record: Record, trial: Trial) -> float:
    """How many times the work of a record's fit a trial's is."""
    power = 2 if trial.model.params.get("covariance_type", "full") in MATRICES else 1
    powers = {"n_features": power, "size": 2}
    return math.prod(
        ratio ** powers.get(name.partition(" ")[2], 1)
        for name, ratio in _ratios(record, trial).items()
    )


def _memory_growth(record: Record, trial: Trial) -> float:
    """How many times the numbers: data, responsibilities and covariances."""
    before = {
        key: float(record.sizes.get(key, 1)) for key in ("n_samples", "n_features", "n_components")
    }
    now = dict(before)
    for name, ratio in _ratios(record, trial).items():
        key = name.partition(" ")[2]
        now["n_samples" if key not in before else key] *= ratio
    return _numbers(now) / _numbers(before)


def _numbers(sizes: Mapping[str, float]) -> float:
    n, d, k = (sizes[key] for key in ("n_samples", "n_features", "n_components"))
    return n * (d + k) + k * d * d


def _ratios(record: Record, trial: Trial) -> dict[str, float]:
    before, now = _sizes(record.trial), _sizes(trial)
    return {name: now[name] / before[name] for name in now if before.get(name)}


def _sizes(trial: Trial) -> dict[str, float]:
    return asked_sizes(trial.dataset, trial.model)


def _family(trial: Trial) -> Hashable:
    """The family, whatever the versions: what was measured of old code says what new code takes."""
    dataset, model = (Spec(spec.name, spec.params) for spec in (trial.dataset, trial.model))
    return trial_family(replace(trial, dataset=dataset, model=model))
