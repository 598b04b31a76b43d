"""The same model twice, under two names: `python benchmarks/a_a.py`.

Nothing differs, so whatever a comparison says is noise. Many small comparisons, each over a few
seeds of its own, count how often a metric differs at the 1 % level (the 99 % interval of paired
differences, or ratios, leaves out none): in the long run that must be 1 % of them. And how often
`embench compare` would have called one better or worse, which takes a difference that matters, too.

The run is an ordinary one: isolated trials in random order, those that others disturbed measured
again. On a busy machine it takes longer and must come to the same end.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import click
import pandas as pd
from scipy.stats import binomtest

from embench import store
from embench.comparing.change import change
from embench.comparing.frames import metric_values
from embench.comparing.stats import Interval, paired_difference, paired_ratio
from embench.measuring.execution import Execution
from embench.measuring.plan import plan
from embench.measuring.run import execute
from embench.measuring.suite import Suite
from embench.metrics import METRICS, Metric

NAMES = ("em", "embench.models.em:GaussianMixture")
LEVEL = 0.01


@click.command(help=(__doc__ or "").partition("\n")[0])
@click.option("--comparisons", default=200, show_default=True)
@click.option("--seeds", default=5, show_default=True, help="Of each comparison.")
@click.option("--dataset", default="iris", show_default=True)
@click.option("--workers", default=1, show_default=True)
@click.option("--out", type=click.Path(path_type=Path), help="Keep the records, and resume.")
def main(comparisons: int, seeds: int, dataset: str, workers: int, out: Path | None) -> None:
    """Run, compare, count."""
    with tempfile.TemporaryDirectory() as folder:
        records = measured(comparisons * seeds, dataset, workers, out or Path(folder))
    click.echo(f"{comparisons} comparisons over {seeds} seeds each, on {dataset}")
    click.echo(f"{'metric':18} {'differs at 1 %':>15} {'in truth':>18} {'better or worse':>16}")
    for name in METRICS:
        pairs = list(compared(records, name, seeds))
        if pairs:
            differ, verdicts = (sum(column) for column in zip(*pairs, strict=True))
            bounds = binomtest(differ, len(pairs)).proportion_ci()
            share, low, high = (f"{x:.1%}" for x in (differ / len(pairs), bounds.low, bounds.high))
            click.echo(f"{name:18} {share:>15} {f'{low} to {high}':>18} {verdicts:16}")


def measured(seeds: int, dataset: str, workers: int, folder: Path) -> pd.DataFrame:
    """A row for each trial, of both names."""
    suite = Suite.model_validate(
        {
            "models": [{"name": name} for name in NAMES],
            "datasets": [{"name": dataset}],
            "tracks": ["default"],
            "seeds": seeds,
        }
    )
    trials = plan(suite).trials
    with click.progressbar(length=len(trials), label="trials") as bar:
        for _ in execute(trials, folder, Execution(workers=workers)):
            bar.update(1)
    return store.frame(store.latest(store.read(folder)))


def compared(records: pd.DataFrame, name: str, seeds: int) -> Iterator[tuple[bool, bool]]:
    """Of each comparison: does the metric differ at the level, is one called better or worse?"""
    sides = [metric_values(records[records["model"] == model], name) for model in NAMES]
    common = sorted(sides[0].index.intersection(sides[1].index))
    for first in range(0, len(common) - seeds + 1, seeds):
        block = common[first : first + seeds]
        old, new = (side[block] for side in sides)
        found = change(METRICS[name], old, new)
        assert found is not None
        interval, none = _interval(METRICS[name], old, new)
        yield not interval.low <= none <= interval.high, found.verdict in ("better", "worse")


def _interval(metric: Metric, old: pd.Series, new: pd.Series) -> tuple[Interval, float]:
    """The interval at the level, and what none of a difference is in it."""
    if metric.kind == "quality":
        return paired_difference(old, new, confidence=1 - LEVEL), 0.0
    old, new = (side.clip(lower=metric.resolution) for side in (old, new))
    return paired_ratio(old, new, confidence=1 - LEVEL), 1.0


if __name__ == "__main__":
    main()
