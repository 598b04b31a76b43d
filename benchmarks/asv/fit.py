"""What a fit costs and what it is worth, commit by commit.

Each cell is a trial of embench's same-start track: every model and every commit begins at the
same mixture and does the same ten iterations. asv times the fit with its own loops, because its
statistics need the samples; memory and quality are those of embench's record of the trial.

asv knows ratios only, and lower is better. So what is tracked is positive and falls when it gets
better, and whatever lies below the difference that embench counts as none is lifted to it: an
excess of 0.001 nat that becomes 0.002 nat is no news.

To hold two commits against each other: `asv run --interleave-rounds HEAD~2..HEAD`, so that a
drift of the machine hits both, then `asv compare HEAD~1 HEAD`.

Each ``version`` is set by hand: asv would take a digest of the source, and a name changed would
orphan the history. Raise one when its numbers mean something else than before, be it through the
code here or through `METRICS`, the datasets or the start that it rests on.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from contextlib import ExitStack
from functools import cache
from typing import Any

from sklearn.base import clone

from embench.measuring.isolate import TrialServer
from embench.measuring.plan import plan
from embench.measuring.prepare import prepared
from embench.measuring.suite import Suite
from embench.measuring.threads import limited_threads
from embench.metrics import METRICS
from embench.types import FloatArray, Model, Record, Trial

N_SAMPLES = 5000
MAX_ITER = 10

MODELS = ["em", "sklearn-em"]
N_FEATURES = [2, 8, 32]
N_COMPONENTS = [2, 16]


class Fit:
    """How long ``fit`` takes, by the sizes that decide it."""

    params = (MODELS, N_FEATURES, N_COMPONENTS)
    param_names = ("model", "n_features", "n_components")
    timeout = 60

    # Two processes per cell, 1.5 s each at most: the whole suite stays affordable.
    rounds = 2
    repeat = (3, 10, 1.5)

    def setup(self, *cell: Any) -> None:
        """asv calls this before every single fit: what does not change is made once."""
        trial, self.X, at_start = _ready(*cell)
        self.limits = ExitStack()
        self.limits.enter_context(limited_threads(trial.threads))
        self.model = clone(at_start)

    def teardown(self, *cell: Any) -> None:
        self.limits.close()

    def time_fit(self, *cell: Any) -> None:
        self.model.fit(self.X)

    time_fit.version = "1"  # MAX_ITER iterations on N_SAMPLES from the common start, one thread


class Outcome:
    """What ``fit`` needs and what it is worth, from embench's own records."""

    params = (MODELS, N_FEATURES, N_COMPONENTS)
    param_names = ("model", "n_features", "n_components")
    timeout = 60

    def setup_cache(self) -> dict[tuple[Any, ...], Record]:
        """Every trial once, each in a new process as in `embench run`.

        In a process that has done something before, peak memory is off by up to a factor of two.
        """
        trials = {cell: trial_of(*cell) for cell in itertools.product(*self.params)}
        with TrialServer(1, trials.values()) as server:
            return {cell: server.run(trial) for cell, trial in trials.items()}

    setup_cache.timeout = 600  # all cells of the class; asv would give up after 60 s

    def track_peak_memory(self, records: Mapping[Any, Record], *cell: Any) -> float:
        return _at_least_a_tie("peak_memory", _metrics(records[cell])["peak_memory"])

    track_peak_memory.version = "1"  # growth during fit, not the peak of the whole process
    track_peak_memory.unit = "bytes"

    def track_excess_nll(self, records: Mapping[Any, Record], *cell: Any) -> float:
        return _at_least_a_tie("excess_nll", _metrics(records[cell])["excess_nll"])

    track_excess_nll.version = "1"  # held-out NLL beyond that of the truth, at least 0.01 nat
    track_excess_nll.unit = "nat"

    def track_one_minus_ami(self, records: Mapping[Any, Record], *cell: Any) -> float:
        return _at_least_a_tie("ami", 1 - _metrics(records[cell])["ami"])

    track_one_minus_ami.version = "1"  # of held-out samples, arithmetic norm, at least 0.01
    track_one_minus_ami.unit = ""


def trial_of(model: str, n_features: int, n_components: int) -> Trial:
    """The trial behind a cell; tol = 0 never stops early."""
    suite = Suite.model_validate(
        {
            "models": [{"name": model, "tol": 0, "max_iter": MAX_ITER}],
            "datasets": [
                {
                    "name": "blobs",
                    "n_samples": N_SAMPLES,
                    "n_features": n_features,
                    "n_components": n_components,
                }
            ],
            "seeds": 1,
        }
    )
    (trial,) = plan(suite).trials
    return trial


@cache
def _ready(*cell: Any) -> tuple[Trial, FloatArray, Model]:
    """The trial, the samples to fit and the model at its start, made once per process."""
    trial = trial_of(*cell)
    with limited_threads(trial.threads):
        _, (X,), model = prepared(trial)
    return trial, X, model


def _metrics(record: Record) -> Mapping[str, float]:
    """What was measured.

    Raises:
        RuntimeError: The trial failed; asv shows the sentence beside the failed cell.
    """
    if record.status != "ok":
        raise RuntimeError(f"{record.trial.id}: {record.status}: {record.message}")
    return record.metrics


def _at_least_a_tie(metric: str, value: float) -> float:
    """``value``, lifted to the difference that embench counts as none."""
    return max(value, METRICS[metric].tie.absolute)
