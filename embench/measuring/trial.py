"""Run one trial: timed pass, judgement, curve. With `meter` the only module that has a clock."""

from __future__ import annotations

import signal
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from statistics import median
from textwrap import shorten
from typing import Any

import numpy as np
import torch
from sklearn.base import clone
from threadpoolctl import threadpool_limits

from embench import gaussian
from embench.measuring.environment import describe
from embench.measuring.meter import Reading, metered
from embench.measuring.prepare import prepared
from embench.metrics import Outcome, judge
from embench.types import (
    ConditionalMixture,
    ConditionalModel,
    Dataset,
    FloatArray,
    Grouper,
    IntArray,
    IterativeModel,
    Mixture,
    MixtureModel,
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

LONGEST_SENTENCE = 300
"""Characters of a message that are kept."""

OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "Unable to allocate")


class Diverged(ArithmeticError):
    """A fit that ended without an error at something that is no density."""


def run_trial(trial: Trial, *, disposable: bool = False) -> Record:
    """Run a trial; whatever goes wrong becomes the record's status and a sentence.

    Args:
        trial: What to run.
        disposable: This process may be killed when a fit outlasts the trial's time limit. Where
            it may not, nothing is cut off but an iterative model on the budget track.
    """
    with limited_threads(trial.threads), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return _run(trial, disposable)
        except Exception as error:
            return Record(
                trial=trial,
                status=_status(error),
                message=_sentence(error),
                environment=describe(trial.device),
            )


def _run(trial: Trial, disposable: bool) -> Record:
    data, samples, model = prepared(trial)
    _warm_up(trial, model, samples, disposable)
    with _heard() as complaints:
        fitted, pulled, readings = _timed_pass(trial, model, samples, disposable)
    nll = _nll(fitted, data) if isinstance(fitted, ScoredModel) else None
    labels, predict_seconds = _labels(trial, fitted, data.X_test.astype(trial.dtype))
    curve, n_iter, complaint = _curve(trial, model, samples, data, pulled)
    outcome = Outcome(
        dataset=data,
        nll=nll,
        labels=labels,
        n_iter=n_iter or pulled or getattr(fitted, "n_iter_", None),
        fit_seconds=median(reading.seconds for reading in readings),
        predict_seconds=predict_seconds,
        cpu_seconds=median(reading.cpu_seconds for reading in readings),
        peak_memory=readings[0].peak_memory,
        gpu_peak_memory=readings[0].gpu_peak_memory,
        training_seconds=fitted.training_seconds if isinstance(fitted, PretrainedModel) else None,
    )
    environment = describe(trial.device)
    remarks = (
        _on_convergence(trial, fitted),
        _on_judge(fitted),
        _on_threads(trial, environment),
        *complaints,
        complaint,
    )
    return Record(
        trial=trial,
        status="ok",
        metrics=judge(outcome),
        curve=curve,
        sizes=_sizes(data, model),
        message="; ".join(filter(None, remarks)),
        environment=environment,
    )


@contextmanager
def _heard() -> Iterator[list[str]]:
    """What a fit warns of under a name of its own (a collapse, more regularisation than was asked
    for), each once; anything else is between a model and its author."""
    complaints: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("ignore")
        warnings.simplefilter("always", RuntimeWarning)
        yield complaints
    named = [str(one.message) for one in caught if one.category is not RuntimeWarning]
    complaints += dict.fromkeys(shorten(words, LONGEST_SENTENCE) for words in named)


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


def _sizes(data: Dataset, model: Model) -> dict[str, int]:
    """Sizes of the data fitted; those that do not exist, or that nobody knows, are absent."""
    sizes = {
        "n_samples": data.X_train.shape[0],
        "n_features": data.X_train.shape[-1],
        "n_steps": data.X_train.shape[1] if data.X_train.ndim == 3 else None,
        "n_targets": None if data.Y_train is None else data.Y_train.shape[1],
        "n_components": model.get_params().get("n_components") or data.n_components,
        "n_test": len(data.X_test),
        "n_table": data.n_table,
    }
    return {name: int(size) for name, size in sizes.items() if size is not None}


def _on_convergence(trial: Trial, fitted: Model) -> str:
    """A remark if the model stopped short of its own tolerance, unless it was told to."""
    told = trial.track == "budget" or fitted.get_params().get("tol") == 0
    if told or getattr(fitted, "converged_", True):
        return ""
    return f"not converged after {getattr(fitted, 'n_iter_', 'all its')} iterations"


def _on_judge(fitted: Model) -> str:
    """A remark if the judge had to take the model's word for its quality."""
    judged = isinstance(fitted, MixtureModel | ConditionalModel)
    if judged or not isinstance(fitted, ScoredModel):
        return ""
    return "its NLL is by its own score: it has no mixture_ that the judge could compute"


def _on_threads(trial: Trial, environment: Mapping[str, Any]) -> str:
    """A remark if the fit ended with another number of threads than it was given."""
    found = environment["blas_threads"]
    return "" if found == trial.threads else f"ran in {found} threads instead of {trial.threads}"


def _warm_up(trial: Trial, model: Model, samples: tuple[FloatArray, ...], disposable: bool) -> None:
    """A short fit off the clock: the first call pays for paging libraries in, for all of them."""
    twin = clone(model)
    if "max_iter" in twin.get_params():
        twin.set_params(max_iter=WARM_UP_ITERATIONS)
    # What is wrong with the model comes to light in the timed pass.
    with _killed_after(_longest(trial) + WARM_UP_SECONDS, disposable), suppress(Exception):
        twin.fit(*(part[:WARM_UP_SAMPLES] for part in samples))


def _timed_pass(
    trial: Trial, model: Model, samples: tuple[FloatArray, ...], disposable: bool
) -> tuple[Model, int | None, list[Reading]]:
    """Fit fresh copies until the clock can be believed; all of them end at the same parameters.

    On the budget track the clock is what is given, and one fit is all there is.
    """
    readings: list[Reading] = []
    most = 1 if trial.track == "budget" else MAX_FITS
    while len(readings) < most and sum(r.seconds for r in readings) < ENOUGH_SECONDS:
        fitted = clone(model)
        with _killed_after(_longest(trial), disposable), metered(trial.device) as reading:
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
) -> tuple[tuple[tuple[float, int, float], ...], int | None, str]:
    """Held-out NLL along a second fit, judged while the clock stands.

    Args:
        trial: What is run.
        model: Not fitted.
        samples: What to fit to.
        data: What to be judged on.
        pulled: The iteration to stop at, None for the model's own end.

    Returns:
        Points (seconds, n_iter, nat), the number of iterations, and what went wrong, if anything
        did: the timed pass stays good.
    """
    points: list[tuple[float, int, float]] = []
    if not (isinstance(model, IterativeModel) and isinstance(model, ScoredModel)):
        return (), None, ""
    try:
        for seconds, n_iter, twin in watched(clone(model), samples, pulled):
            if seconds > _longest(trial) and n_iter != pulled:
                raise TimeoutError("the watched fit took longer than the timed one may")
            if _is_checkpoint(n_iter):
                with suppress(Diverged):
                    points.append((seconds, n_iter, _nll(twin, data)))
        if not _is_checkpoint(n_iter):
            points.append((seconds, n_iter, _nll(twin, data)))
    except Exception as error:
        return (), None, f"no curve: {_sentence(error)}"
    return tuple(points), n_iter, ""


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


def _nll(model: Model, data: Dataset) -> float:
    """The judge's mean NLL of what is held out [nat]; where he cannot, the model's own.

    Raises:
        Diverged: There is no finite likelihood.
    """
    try:
        nll = -_log_likelihood(model, data)
    except np.linalg.LinAlgError as error:
        raise Diverged(f"a fitted covariance is not positive definite ({error})") from error
    if not np.isfinite(nll):
        raise Diverged(f"the held-out NLL is {nll}")
    return float(nll)


def _log_likelihood(model: Model, data: Dataset) -> float:
    """By the judge where the model is a mixture, or one for each sample; else by the model."""
    if isinstance(model, ConditionalModel):
        assert data.Y_test is not None
        mixtures = model.conditional_mixture(data.X_test)
        _check(mixtures)
        return gaussian.conditional_log_likelihood(mixtures, data.Y_test)
    if isinstance(model, MixtureModel):
        _check(model.mixture_)
        return gaussian.log_likelihood(model.mixture_, data.X_test)
    assert isinstance(model, ScoredModel)
    return model.score(data.X_test)


def _check(mixture: Mixture | ConditionalMixture) -> None:
    try:
        gaussian.check(mixture)
    except ValueError as error:
        raise Diverged(f"the fit is no mixture: {error}") from error


def _sentence(error: Exception) -> str:
    """What was wrong, in one line of bearable length."""
    words = shorten(str(error), LONGEST_SENTENCE, placeholder=" ...")
    return words if isinstance(error, Diverged) else f"{type(error).__name__}: {words}"


def _status(error: Exception) -> str:
    if isinstance(error, Diverged):
        return "diverged"
    told = any(words in str(error) for words in OUT_OF_MEMORY)
    return "out-of-memory" if told or isinstance(error, MemoryError) else "error"


@contextmanager
def limited_threads(count: int) -> Iterator[None]:
    """Exactly ``count`` threads in torch and every BLAS and OpenMP pool."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        with threadpool_limits(count):
            yield
    finally:
        torch.set_num_threads(before)


def _longest(trial: Trial) -> float:
    """Seconds after which a fit is given up."""
    return GRACE[trial.track] * trial.time_limit


@contextmanager
def _killed_after(seconds: float, disposable: bool) -> Iterator[None]:
    """Let the kernel end this process when the time is over: native code cannot hold it up."""
    if not disposable:
        yield
        return
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
