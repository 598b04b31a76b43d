"""What learning over many datasets buys: NLL against steps, time per dataset, and when it pays.

Datasets that no training has seen, all models from the same starts: the mean NLL of held-out
samples beyond the truth's, after T steps of EM, of `unrolled-em`'s layer trained on each dataset
for so many steps, of `amortised-em` and of `recurrent-em` (EM's steps after the learned ones); on
the distribution of the training and on others. Then CPU seconds per dataset of the operators, all
datasets side by side, for a whole pass and for as many of its steps as it takes to be as good as
the others: EM side by side in the same way, and a loop over scikit-learn, which do as many
iterations as it takes; interleaved, medians over the rounds, in one thread; and the number of
datasets after which the training has paid against EM side by side.
``python benchmarks/amortised.py --help`` says more.
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
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator
from rich.console import Console
from rich.text import Text
from sklearn.mixture import GaussianMixture
from speed_table import empty_table

from embench import gaussian, registry
from embench.comparing.words import significant
from embench.models.starts import starting_mixture
from embench.models.unrolled.bridge import stacked
from embench.models.unrolled.checkpoint import Checkpoint, shipped
from embench.models.unrolled.em_map import Mixtures, e_step, em_map, framed, n_products
from embench.models.unrolled.layer import EMLayer
from embench.models.unrolled.operators import IN_CACHE, EMOperator
from embench.models.unrolled.training import Task, nlls
from embench.types import Dataset, Mixture

MODELS = ("amortised-em", "recurrent-em")
STEPS = (1, 2, 3, 5, 10, 20, 50)
UNROLLED_STEPS = (1, 2, 3, 5)
LONGEST = 200
"""Steps among which EM's best is looked for; its held-out NLL often rises again."""

TIE = 1e-3
"""NLLs this close are equal [nat]."""

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
    console = Console(highlight=False, width=132)
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
    _print_times(console, {name: cells[name] for name in list(cells)[:2]}, rounds)
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


def _print_times(console: Console, cells: Mapping[str, Problem], rounds: int) -> None:
    """To the NLL that both reach: that of the whole pass, or the best of EM if it is no better."""
    drawn = empty_table(
        "", "model", "dtype", "pass", "steps", "as good", "EM's", "side by side", "ratio",
        "scikit-learn", "ratio", "pays after",
    )  # fmt: skip
    for name, problem in cells.items():
        of_em = problem.excess(_operators()["em"], LONGEST)
        for model in MODELS:
            checkpoint = Checkpoint.load(shipped(model))
            operator = checkpoint.operator
            own = problem.excess(_operators()[model], operator.n_steps)
            level = max(own[-1], of_em.min()) + TIE
            n_steps, n_iter = (int(np.argmax(path <= level)) + 1 for path in (own, of_em))
            for dtype in (torch.float64, torch.float32):
                work = _Work(problem, operator.to(dtype), dtype)
                whole, ours, em, theirs = work.seconds(n_steps, n_iter, rounds)
                paid = checkpoint.provenance["cpu_seconds"] / (em - whole)
                drawn.add_row(
                    name, model, str(dtype).removeprefix("torch."), significant(1e3 * whole),
                    str(n_steps), significant(1e3 * ours), str(n_iter), significant(1e3 * em),
                    significant(em / ours), significant(1e3 * theirs), significant(theirs / ours),
                    f"{paid:,.0f}" if paid > 0 else "never",
                )  # fmt: skip
    console.print(drawn)


class _Work:
    """The same datasets from the same starts, side by side or one after another."""

    def __init__(self, problem: Problem, operator: EMOperator, dtype: torch.dtype) -> None:
        self._problem, self._operator, self._task = problem, operator, problem.task(dtype)
        self._samples = [X.numpy() for X in self._task.X[:LOOPED]]

    def seconds(self, n_steps: int, n_iter: int, rounds: int) -> tuple[float, ...]:
        """CPU seconds per dataset, medians of interleaved rounds: of a whole pass, of so many of
        its steps, and of so many iterations of EM side by side and of scikit-learn's."""
        works = (
            (lambda: self._ours(None), len(self._problem.data)),
            (lambda: self._ours(n_steps), len(self._problem.data)),
            (lambda: self._em(n_iter), len(self._problem.data)),
            (lambda: self._theirs(n_iter), len(self._samples)),
        )
        for work, _ in works:
            work()
        found = [[_seconds(work) / count for work, count in works] for _ in range(rounds)]
        return tuple(median(column) for column in zip(*found, strict=True))

    def _ours(self, n_steps: int | None) -> None:
        with torch.no_grad():
            self._operator(self._task.X, self._task.start, n_steps=n_steps)

    def _em(self, n_iter: int) -> None:
        """The steps that the learned ones are made of, without what was learned."""
        X, start = self._task.X, self._task.start
        size = max(1, IN_CACHE // (X.shape[1] * n_products(X.shape[2])))
        blocks = zip(X.split(size), *(part.split(size) for part in start), strict=True)
        with torch.no_grad():
            for block, *parts in blocks:
                samples = framed(block)
                mixtures = samples.inward(Mixtures(*parts))
                for _ in range(n_iter):
                    _, mixtures = em_map(samples, mixtures)
                e_step(samples, mixtures)

    def _theirs(self, n_iter: int) -> None:
        for start, X in zip(self._problem.starts, self._samples, strict=False):
            GaussianMixture(
                start.n_components,
                weights_init=start.weights,
                means_init=start.means,
                precisions_init=np.linalg.inv(start.covariances),
                max_iter=n_iter,
                tol=0,
            ).fit(X)


def _seconds(work: Callable[[], None]) -> float:
    before = time.process_time()
    work()
    return time.process_time() - before


def _draw(rows: pd.DataFrame) -> Any:
    sns.set_theme(style="ticks")
    grid = sns.relplot(
        rows, x="T", y="excess", hue="model", style="model", col="cell", col_wrap=3, kind="line",
        markers=True, dashes=False, height=2.7, aspect=1.3,
        facet_kws={"sharey": False, "sharex": False},
    )  # fmt: skip
    grid.set(xscale="log", yscale="log")
    grid.set_axis_labels("steps T", "excess NLL [nat]").set_titles("{col_name}")
    for axis in grid.axes.flat:
        axis.set_xticks(STEPS, [str(T) for T in STEPS])
        axis.xaxis.set_minor_locator(NullLocator())
        axis.yaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 4, 6, 8)))
        axis.yaxis.set_minor_locator(NullLocator())
        axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    grid.figure.tight_layout(rect=(0, 0, grid.legend.get_window_extent().x0
                                   / grid.figure.get_window_extent().x1, 1))  # fmt: skip
    return grid.figure


if __name__ == "__main__":
    main()
