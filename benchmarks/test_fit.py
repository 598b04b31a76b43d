"""Micro-benchmarks of ``fit``: `make perf`, while you work on a model.

For before-and-after on one machine: save with ``--benchmark-autosave``, change the code, run again
with ``--benchmark-compare``. All models do the same work from the same start as in embench's
same-start track, and what the fit was worth stands beside its time in ``extra_info``: NLL, excess
NLL and AMI of embench's own record, so that speed bought with quality shows.

Not for saying which model is faster: the rounds of one model run in a row, so whatever else the
machine does in that second hits this model alone. `embench compare` interleaves models over seeds
and gives a ratio with its interval; `asv run` keeps the history over commits.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from pytest_benchmark.fixture import BenchmarkFixture
from sklearn.base import clone

from embench.measuring.plan import plan
from embench.measuring.prepare import prepared
from embench.measuring.suite import Suite
from embench.measuring.threads import limited_threads
from embench.measuring.trial import run_trial
from embench.types import Trial

MODELS = [
    {"name": "em", "tol": 0, "max_iter": 10},
    {"name": "sklearn-em", "tol": 0, "max_iter": 10},
    {"name": "spec-em", "max_iter": 10},
]
DATASETS = [
    {"name": "blobs", "n_samples": 2000, "n_features": 2, "n_components": 3},
    {"name": "blobs", "n_samples": 2000, "n_features": 8, "n_components": 8},
]
ROUNDS = 5

TRIALS = plan(Suite.model_validate({"models": MODELS, "datasets": DATASETS, "seeds": 1})).trials


def _label(trial: Trial) -> str:
    sizes = trial.dataset.params
    return f"{trial.model.name}, {sizes['n_features']} features, {sizes['n_components']} components"


@pytest.fixture(params=TRIALS, ids=_label)
def trial(request: pytest.FixtureRequest) -> Iterator[Trial]:
    """One trial of the suite, in as many threads as it asks for."""
    with limited_threads(request.param.threads):
        yield request.param


# tol = 0 never stops early, so every fit says that it did not converge.
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_fit(benchmark: BenchmarkFixture, trial: Trial) -> None:
    _, (X,), model = prepared(trial)
    record = run_trial(trial)
    assert record.status == "ok", record.message
    benchmark.group = str(trial.dataset)
    for name in ("nll", "excess_nll", "ami"):
        benchmark.extra_info[name] = record.metrics[name]

    benchmark.pedantic(
        lambda fresh: fresh.fit(X),
        setup=lambda: ((clone(model),), {}),
        rounds=ROUNDS,
        warmup_rounds=1,
    )
