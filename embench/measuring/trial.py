"""Run one trial: timed pass, judgement, curve. The clocks of models are here and in `meter`.

What else has one (`noise`, the server, Dask's worker) minds deadlines and times no model.
"""

from __future__ import annotations

import datetime
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import chdir, suppress
from dataclasses import replace
from statistics import median

import numpy as np
from sklearn.base import clone

from embench.measuring import judging, noise
from embench.measuring.environment import describe
from embench.measuring.judging import Diverged
from embench.measuring.meter import Reading, device_memory, metered
from embench.measuring.prepare import prepared
from embench.measuring.threads import limited_threads
from embench.metrics import Outcome, judge
from embench.types import (
    ConditionalModel,
    Dataset,
    FloatArray,
    Grouper,
    IntArray,
    IterativeModel,
    Model,
    PretrainedModel,
    Record,
    ScoredModel,
    Trial,
)

MAX_FITS = 5
ENOUGH_SECONDS = 0.5
"""A fit is repeated until all have taken this long, at most MAX_FITS times; the median counts."""

WARM_UP_SAMPLES = 2000
WARM_UP_IMAGES = 2
WARM_UP_ITERATIONS = 2
WARM_UP_SECONDS = 3.0
"""What a warm-up may take beyond the grace of a fit: libraries import more when they are first used
(torch's optimisers for a second), and a short budget should not die of it."""

GRACE = {"same-start": 1.1, "budget": 2.0, "default": 1.1}
"""A fit is killed this many time limits after its start. On the budget track a last iteration may
come to its end: the harness stops pulling where another one like it would overrun."""

PATIENCE = 60.0
"""Seconds that anything else in a trial, such as making the data or a prediction, may take at
least, or a fit's limit if that is longer."""

Enter = Callable[[str, float], None]
"""Is told what is done next, and how many seconds it may take before the process is killed."""


def run_trial(trial: Trial) -> Record:
    """Run a trial here; whatever goes wrong becomes the record's status and a sentence.

    Nothing is cut off but an iterative model on the budget track.
    """
    *_, record = stages(trial)
    return record


def stages(
    trial: Trial, enter: Enter = lambda *_: None, patience: float = PATIENCE
) -> Iterator[Record]:
    """The record of a trial as soon as it is judged, and again with its curve.

    Whoever loses the process to the curve still has the first. What a model changes for all that
    comes after it (warnings, NumPy's errors, the folder, threads) is set back at the end.
    """
    began = time.perf_counter()
    with limited_threads(trial.threads), warnings.catch_warnings(), np.errstate(), chdir("."):
        warnings.simplefilter("ignore")
        try:
            for record in _run(trial, enter, max(patience, _longest(trial))):
                yield _ended(record, began)
        except Exception as error:
            failed = Record(
                trial=trial,
                status=judging.status(error),
                message=judging.sentence(error),
                environment=describe(trial.device),
            )
            yield _ended(failed, began)


def utc_now() -> str:
    """In UTC, as records have it."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")


def _ended(record: Record, began: float) -> Record:
    return replace(record, trial_seconds=time.perf_counter() - began, ended=utc_now())


def _run(trial: Trial, enter: Enter, patience: float) -> Iterator[Record]:
    enter("making model and data", patience)
    idle = device_memory() if trial.device == "cuda" else None
    data, samples, model = prepared(trial)
    enter("warming up", _longest(trial) + WARM_UP_SECONDS)
    cold_seconds = _warm_up(trial, model, samples)
    with judging.heard() as complaints, noise.witnessed() as witness:
        fitted, pulled, readings = _timed_pass(trial, model, samples, enter)
        enter("judging", patience)
    nll = judging.nll(fitted, data) if isinstance(fitted, ScoredModel) else None
    labels, predict_seconds = _labels(trial, fitted, data.X_test.astype(trial.dtype))
    outcome = Outcome(
        dataset=data,
        nll=nll,
        labels=labels,
        n_iter=pulled or getattr(fitted, "n_iter_", None),
        fit_seconds=median(reading.seconds for reading in readings),
        cold_seconds=cold_seconds,
        predict_seconds=predict_seconds,
        cpu_seconds=median(reading.cpu_seconds for reading in readings),
        peak_memory=readings[0].peak_memory,
        gpu_peak_memory=readings[0].gpu_peak_memory,
        gpu_reserved_memory=readings[0].gpu_reserved_memory,
        gpu_device_memory=_growth(idle, readings[0].gpu_device_memory),
        training_seconds=fitted.training_seconds if isinstance(fitted, PretrainedModel) else None,
    )
    environment = describe(trial.device)
    metrics = judge(outcome)
    not_told = [f"{name} is left out: {x}" for name, x in metrics.items() if not np.isfinite(x)]
    record = Record(
        trial=trial,
        status="ok",
        metrics={name: x for name, x in metrics.items() if np.isfinite(x)},
        sizes=judging.sizes(data, model),
        message="; ".join([*judging.remarks(trial, fitted, environment), *not_told, *complaints]),
        fits=tuple((reading.seconds, reading.cpu_seconds) for reading in readings),
        noise=witness,
        environment=environment,
    )
    yield record
    if isinstance(model, IterativeModel) and isinstance(model, ScoredModel):
        enter("drawing the curve", patience + _longest(trial))
        yield _with_curve(record, model, samples, data, pulled)


def _growth(before: int | None, after: int | None) -> int | None:
    return None if before is None or after is None else max(0, after - before)


def _with_curve(
    record: Record,
    model: Model,
    samples: tuple[FloatArray, ...],
    data: Dataset,
    pulled: int | None,
) -> Record:
    """The record with its curve and the iterations counted on it, or with what went wrong with it:
    the timed pass stays good."""
    try:
        curve = tuple(_curve(record.trial, model, samples, data, pulled))
    except Exception as error:
        words = f"no curve: {judging.sentence(error)}"
        return replace(record, message="; ".join(filter(None, (record.message, words))))
    metrics = {**record.metrics, "n_iter": float(curve[-1][1])} if curve else record.metrics
    return replace(record, curve=curve, metrics=metrics)


def _labels(trial: Trial, fitted: Model, X: FloatArray) -> tuple[IntArray | None, float | None]:
    """The components that a density predicts, or a grouper the groups of pixels, with seconds.

    A grouper may do all of its work here: of densities the seconds are of no interest. A
    conditional model predicts targets.
    """
    if isinstance(fitted, ConditionalModel):
        return None, None
    if not isinstance(fitted, Grouper):
        return fitted.predict(X), None
    fitted.predict(X[:WARM_UP_IMAGES])
    with metered(trial.device) as reading:
        labels = fitted.predict(X)
    return labels, reading.seconds


def _warm_up(trial: Trial, model: Model, samples: tuple[FloatArray, ...]) -> float:
    """Seconds of a short fit, the first of this process: it pays for all that is done but once."""
    twin = clone(model)
    if "max_iter" in twin.get_params():
        twin.set_params(max_iter=WARM_UP_ITERATIONS)
    few = tuple(part[:WARM_UP_SAMPLES] for part in samples)
    # What is wrong with the model comes to light in the timed pass.
    with metered(trial.device) as reading, suppress(Exception):
        twin.fit(*few)
    return reading.seconds


def _timed_pass(
    trial: Trial, model: Model, samples: tuple[FloatArray, ...], enter: Enter
) -> tuple[Model, int | None, list[Reading]]:
    """Fit fresh copies until the clock can be believed; all of them end at the same parameters.

    On the budget track the clock is what is given, and one fit is all there is.
    """
    readings: list[Reading] = []
    most = 1 if trial.track == "budget" else MAX_FITS
    while len(readings) < most and sum(r.seconds for r in readings) < ENOUGH_SECONDS:
        fitted = clone(model)
        enter("fitting", _longest(trial))
        with metered(trial.device) as reading:
            pulled = _fit(fitted, samples, trial)
        readings.append(reading)
    return fitted, pulled, readings


def _fit(model: Model, samples: tuple[FloatArray, ...], trial: Trial) -> int | None:
    """Fit, or pull iterations while the budget lasts and return how many."""
    if trial.track != "budget" or not isinstance(model, IterativeModel):
        model.fit(*samples)
        return None
    done = 0
    before = time.perf_counter()
    end = before + trial.time_limit
    for n_iter in model.iter_fit(*samples):
        done = int(n_iter)
        now = time.perf_counter()
        if now + (now - before) > end:
            break
        before = now
    return done


def _curve(
    trial: Trial,
    model: Model,
    samples: tuple[FloatArray, ...],
    data: Dataset,
    pulled: int | None,
) -> Iterator[tuple[float, int, float]]:
    """Held-out NLL along a second fit, judged while the clock stands.

    Args:
        trial: What is run.
        model: Not fitted.
        samples: What to fit to.
        data: What to be judged on.
        pulled: The iteration to stop at, None for the model's own end.

    Yields:
        Points (seconds, n_iter, nat), the last at the end of the fit.
    """
    for seconds, n_iter, twin in watched(clone(model), samples, pulled):
        if seconds > _longest(trial) and n_iter != pulled:
            raise TimeoutError("the watched fit took longer than the timed one may")
        if _is_checkpoint(n_iter):
            with suppress(Diverged):
                yield seconds, n_iter, judging.nll(twin, data)
    if not _is_checkpoint(n_iter):
        yield seconds, n_iter, judging.nll(twin, data)


def watched(
    model: Model, samples: tuple[FloatArray, ...], pulled: int | None
) -> Iterator[tuple[float, int, Model]]:
    """Seconds and iterations of a fit under way, up to iteration ``pulled``; pausing is free."""
    seconds = 0.0
    began = time.perf_counter()
    assert isinstance(model, IterativeModel)
    for n_iter in model.iter_fit(*samples):
        seconds += time.perf_counter() - began
        yield seconds, int(n_iter), model
        if n_iter == pulled:
            break
        began = time.perf_counter()


def _is_checkpoint(n_iter: int) -> bool:
    """Whether a curve has a point here: 0, 1, 2, 3, 5, 8, 13 ..."""
    before, at = 0, 1
    while at < n_iter:
        before, at = at, before + at
    return n_iter in (0, at)


def _longest(trial: Trial) -> float:
    """Seconds after which a fit is given up."""
    return GRACE[trial.track] * trial.time_limit
