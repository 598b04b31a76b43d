"""What learning over many datasets buys: NLL against steps, time per dataset, and when it pays.

Datasets that no training has seen, all models from the same starts: the mean NLL of held-out
samples beyond the truth's, after T steps of EM, of `unrolled-em`'s layer trained on each dataset
for so many steps, of `amortised-em` and of `recurrent-em` (EM's steps after the learned ones); on
the distribution of the training and on others. Then CPU seconds per dataset of the operators, all
datasets side by side, against a loop over scikit-learn that does as many iterations as it takes to
be as good, interleaved, medians over the rounds, in one thread; and the number of datasets from
which on the training has paid. ``python benchmarks/amortised.py --help`` says more.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before NumPy and torch are imported
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import click
import numpy as np
import pandas as pd
import seaborn as sns
import torch
from rich.console import Console
from rich.text import Text
from sklearn.mixture import GaussianMixture
from speed_table import empty_table

from embench import gaussian, registry
from embench.comparing.words import significant
from embench.models.starts import starting_mixture
from embench.models.unrolled.bridge import stacked
from embench.models.unrolled.checkpoint import Checkpoint, shipped
from embench.models.unrolled.em_map import Mixtures
from embench.models.unrolled.layer import EMLayer
from embench.models.unrolled.operators import EMOperator
from embench.models.unrolled.training import Task, nlls
from embench.types import Dataset, Mixture

MODELS = ("amortised-em", "recurrent-em")
STEPS = (1, 2, 3, 5, 10, 20, 50)
UNROLLED_STEPS = (1, 2, 3, 5)
LOOPED = 32
"""Datasets that the loop over scikit-learn is timed on."""

SEEN = {"n_samples": 500, "n_components": 4, "separation": (2.0, 3.0, 4.0, 5.0, 6.0)}
CELLS: Mapping[str, Mapping[str, Any]] = {
    "seen: 2 features": {"n_features": 2},
    "seen: 8 features": {"n_features": 8},
    "new: 10 components": {"n_features": 2, "n_components": 10},
    "new: 16 features": {"n_features": 16},
    "new: separation 1": {"n_features": 4, "separation": (1.0,)},
    "new: 10 % outliers": {"n_features": 2, "outliers": 0.1},
}
"""What `blobs` are asked for, beyond `SEEN`; separations take turns."""


@dataclass(frozen=True)
class Problem:
    """Datasets side by side, a start for each, and the mean NLL of the truth [nat]."""

    data: list[Dataset]
    starts: list[Mixture]
    true_nll: float

    @classmethod
    def drawn(cls, n_datasets: int, *, separation: tuple[float, ...], **params: Any) -> Problem:
        data = [
            registry.make_dataset(
                "blobs", seed=seed, separation=separation[seed % len(separation)], **params
            )
            for seed in range(n_datasets)
        ]
        starts = [
            starting_mixture(one.X_train, params["n_components"], np.random.SeedSequence(seed))
            for seed, one in enumerate(data)
        ]
        truths = [gaussian.log_likelihood(one.truth, one.X_test) for one in data if one.truth]
        return cls(data, starts, -float(np.mean(truths)))

    def task(self, dtype: torch.dtype = torch.float64) -> Task:
        X, X_new = (
            torch.tensor(np.stack([getattr(one, part) for one in self.data]), dtype=dtype)
            for part in ("X_train", "X_test")
        )
        return Task(X, X_new, stacked(self.starts, dtype))

    def excess(self, operator: EMOperator, n_steps: int) -> np.ndarray[Any, Any]:
        """Mean held-out NLL beyond the truth's after each step [nat]."""
        with torch.no_grad():
            return nlls(operator, self.task(), n_steps).numpy() - self.true_nll

    def excess_unrolled(self, n_steps: int, n_updates: int) -> float:
        """The same of layers trained on each dataset, for the likelihood of what they see."""
        task, found = self.task(), []
        for i in range(len(self.data)):
            X = task.X[i : i + 1]
            start = Mixtures(*(part[i : i + 1] for part in task.start))
            layer = EMLayer(
                X.shape[-1], start.means.shape[1], n_steps, random_state=i, dtype=X.dtype
            )
            optimizer = torch.optim.Adam(layer.corrections.parameters(), lr=3e-3)
            for _ in range(n_updates):
                optimizer.zero_grad()
                (-layer(X, start).log_likelihood.mean()).backward()
                optimizer.step()
            fitted = layer(X, start).parameters
            parts = (fitted.weights, fitted.means, fitted.covariances)
            fit = Mixture(*(part[0].detach().numpy() for part in parts))
            found.append(-gaussian.log_likelihood(fit, self.data[i].X_test))
        return float(np.mean(found)) - self.true_nll


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--datasets", type=click.IntRange(min=5), default=256, show_default=True)
@click.option("--rounds", type=click.IntRange(min=1), default=5, show_default=True)
@click.option("--n-samples", type=click.IntRange(min=10), default=500, show_default=True)
@click.option("--updates", type=click.IntRange(min=0), default=0,
              help="Of an unrolled layer's training on each dataset: slow.  [0: none]")  # fmt: skip
@click.option("--figure", type=click.Path(path_type=Path), help="Draw NLL against steps there.")
@click.option("--quick", is_flag=True, help="Fewer datasets: seconds.")
def main(
    datasets: int, rounds: int, n_samples: int, updates: int, figure: Path | None, quick: bool
) -> None:
    """Amortised EM: quality, time, and when the training has paid."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    console = Console(highlight=False)
    datasets = 10 if quick else datasets
    cells = {
        name: Problem.drawn(datasets, **{**SEEN, "n_samples": n_samples, **own})
        for name, own in CELLS.items()
    }
    rows = pd.DataFrame(
        row for name, cell in cells.items() for row in _quality(name, cell, updates)
    )
    console.print(Text(f"\nmean excess NLL of {datasets} datasets [nat]", style="bold"))
    for name, table in rows.groupby("cell", sort=False):
        _print_quality(console, str(name), table)
    console.print(Text("\nCPU time per dataset [ms]", style="bold"))
    _print_times(console, {name: cells[name] for name in list(cells)[:2]}, rows, rounds)
    if figure:
        _draw(rows).savefig(figure, dpi=110, facecolor="white")
        console.print(f"figure: {figure}")


def _operators() -> dict[str, EMOperator]:
    return {
        "em": EMOperator("feed-forward", random_state=0).double(),
        **{name: Checkpoint.load(shipped(name)).operator.double() for name in MODELS},
    }


def _quality(cell: str, problem: Problem, updates: int) -> Iterator[dict[str, Any]]:
    for model, operator in _operators().items():
        excess = problem.excess(operator, max(STEPS))
        yield from ({"cell": cell, "model": model, "T": T, "excess": excess[T - 1]} for T in STEPS)
    for T in UNROLLED_STEPS if updates else ():
        excess = problem.excess_unrolled(T, updates)
        yield {"cell": cell, "model": "unrolled-em", "T": T, "excess": excess}


def _print_quality(console: Console, name: str, rows: pd.DataFrame) -> None:
    drawn = empty_table(name, *(f"T = {T}" for T in STEPS))
    for model, own in rows.groupby("model", sort=False):
        at = dict(zip(own["T"], own["excess"], strict=True))
        drawn.add_row(str(model), *(f"{at[T]:.4f}" if T in at else "" for T in STEPS))
    console.print(drawn)


def _print_times(
    console: Console, cells: Mapping[str, Problem], rows: pd.DataFrame, rounds: int
) -> None:
    drawn = empty_table(
        "", "model", "dtype", "own", "scikit-learn", "iterations", "ratio", "pays after"
    )
    for name, problem in cells.items():
        curve = problem.excess(_operators()["em"], 200)
        for model in MODELS:
            operator = Checkpoint.load(shipped(model)).operator
            own = rows[
                (rows.cell == name) & (rows.model == model) & (rows["T"] == operator.n_steps)
            ]
            as_good = np.flatnonzero(curve <= own["excess"].iloc[0])
            # Never as good: then as many as it takes to come within 0.001 nat of its own best.
            n_iter = int(as_good[0]) + 1 if len(as_good) else _steps_to_rest(curve)
            for dtype in (torch.float64, torch.float32):
                ours, theirs = _interleaved(problem, operator.to(dtype), n_iter, dtype, rounds)
                seconds = Checkpoint.load(shipped(model)).provenance["cpu_seconds"]
                drawn.add_row(
                    name, model, str(dtype).removeprefix("torch."),
                    significant(1e3 * ours), significant(1e3 * theirs),
                    f"{n_iter}" if len(as_good) else f"{n_iter}, never as good",
                    f"{theirs / ours:.0f}", f"{seconds / (theirs - ours):,.0f} datasets",
                )  # fmt: skip
    console.print(drawn)


def _steps_to_rest(curve: np.ndarray[Any, Any]) -> int:
    return int(np.flatnonzero(curve <= curve.min() + 1e-3)[0]) + 1


def _interleaved(
    problem: Problem, operator: EMOperator, n_iter: int, dtype: torch.dtype, rounds: int
) -> tuple[float, float]:
    """CPU seconds per dataset of the operator and of scikit-learn, medians."""
    task = problem.task(dtype)
    fits = [
        GaussianMixture(
            start.n_components,
            weights_init=start.weights,
            means_init=start.means,
            precisions_init=np.linalg.inv(start.covariances),
            max_iter=n_iter,
            tol=0,
        )
        for start in problem.starts[:LOOPED]
    ]
    samples = [X.numpy() for X in task.X[:LOOPED]]

    def ours() -> None:
        with torch.no_grad():
            operator(task.X, task.start)

    def theirs() -> None:
        for fit, X in zip(fits, samples, strict=True):
            fit.fit(X)

    ours()
    theirs()
    seconds = [(_seconds(ours), _seconds(theirs)) for _ in range(rounds)]
    return (
        median(own for own, _ in seconds) / len(problem.data),
        median(other for _, other in seconds) / len(fits),
    )


def _seconds(work: Callable[[], None]) -> float:
    before = time.process_time()
    work()
    return time.process_time() - before


def _draw(rows: pd.DataFrame) -> Any:
    sns.set_theme(style="ticks")
    grid = sns.relplot(
        rows, x="T", y="excess", hue="model", style="model", col="cell", col_wrap=3, kind="line",
        markers=True, dashes=False, height=2.6, aspect=1.25, facet_kws={"sharey": False},
    )  # fmt: skip
    grid.set(xscale="log", yscale="log", xticks=STEPS, xticklabels=STEPS)
    grid.set_axis_labels("steps T", "excess NLL [nat]").set_titles("{col_name}")
    return grid.figure


if __name__ == "__main__":
    main()
