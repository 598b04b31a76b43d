"""What a trial costs beyond its model: `python benchmarks/overhead.py`.

The model does nothing, on twenty samples: what is left is the harness, that is process, data,
clocks, judge, and a record on the disk. In milliseconds for each trial, by the wall clock, over the
first hundred trials of a run and over its last hundred: does it grow with their number? Then a
model that computes for ten seconds, and the share of its trial that was not its own; and two
workers against one on trials that compute for a tenth of a second.

`--trials 10000` takes ten minutes and more. Quiet machines only: the harness is a process among
others.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any, Self

import click
import numpy as np
from sklearn.base import BaseEstimator

from embench.measuring.execution import Execution
from embench.measuring.plan import plan
from embench.measuring.run import execute
from embench.measuring.suite import Suite
from embench.types import FloatArray, Trial

WINDOW = 100
DATASET = {"name": "blobs", "n_samples": 20, "n_test": 20, "n_components": 2}


class Null(BaseEstimator):
    """Fits nothing, for so many seconds."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.seconds = seconds

    def fit(self, X: FloatArray, y: Any = None) -> Self:
        """Compute until the time is over."""
        end = time.process_time() + self.seconds
        while time.process_time() < end:
            pass
        return self

    def predict(self, X: FloatArray) -> Any:
        """Component 0."""
        return np.zeros(len(X), dtype=int)

    def score(self, X: FloatArray, y: Any = None) -> float:
        """Nothing is said of the data."""
        return 0.0


def trials(number: int, seconds: float = 0.0) -> tuple[Trial, ...]:
    """So many trials of the model that does nothing."""
    model = {"name": "overhead:Null", "seconds": seconds}
    suite = {"models": [model], "datasets": [DATASET], "tracks": ["default"], "seeds": number}
    return plan(Suite.model_validate(suite)).trials


def moments(many: tuple[Trial, ...], **how: Any) -> Iterator[float]:
    """When each record was on the disk [s]."""
    with tempfile.TemporaryDirectory() as folder:
        stream = execute(many, Path(folder), Execution(remeasure=False, **how))
        for record in stream:
            assert record.status == "ok", record.message
            yield time.perf_counter()


@click.command(help=(__doc__ or "").partition("\n")[0])
@click.option("--trials", "n_trials", default=300, show_default=True, help="Of a run.")
@click.option("--rounds", default=3, show_default=True, help="Of one worker against two.")
@click.option("--seconds", default=10.0, show_default=True, help="Of the model that computes.")
def main(n_trials: int, rounds: int, seconds: float) -> None:
    """Print all of it as it comes."""
    click.echo(f"milliseconds a trial, of {n_trials} trials: the first {WINDOW}, the last {WINDOW}")
    for isolation in ("trial", "model", "none"):
        first, last = per_trial(n_trials, isolation=isolation)
        click.echo(f"  isolation {isolation:6} {first:6.1f} {last:6.1f}")
    click.echo(
        f"a model of {seconds:g} s: {share_of_harness(seconds):.2%} of its trial is not its own"
    )
    ratios = [two_workers() for _ in range(rounds)]
    click.echo(
        f"two workers do {median(ratios):.2f} times the trials of one "
        f"({min(ratios):.2f} to {max(ratios):.2f})"
    )


def per_trial(number: int, **how: Any) -> tuple[float, float]:
    """Milliseconds of a trial, over the first window but for the first trial, and over the last."""
    ends = np.array(list(moments(trials(number), **how)))
    window = min(WINDOW, number - 1)
    first, last = ends[: window + 1], ends[-window - 1 :]
    return 1e3 * np.diff(first).mean(), 1e3 * np.diff(last).mean()


def share_of_harness(seconds: float) -> float:
    """Of a trial whose model takes so long twice, to warm up and on the clock."""
    *_, before, after = moments(trials(2, seconds))
    return (after - before) / (2 * seconds) - 1


def two_workers() -> float:
    """Rate of two workers over that of one, when the first of them are done."""
    rates = []
    for workers in (1, 2):
        ends = list(moments(trials(60, 0.1), workers=workers))
        rates.append(50 / (ends[-1] - ends[-51]))
    return rates[1] / rates[0]


if __name__ == "__main__":
    main()
