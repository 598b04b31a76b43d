"""Gradients through EM against the number of its steps: how right, how long, how much memory.

The gradient of a function of the fitted means and covariances by the data, in four ways
(`embench.models.unrolled.implicit.fit_em`), against that of a long unroll in float64; CPU seconds
of value and gradient, medians over the rounds, and the growth of resident memory at its peak, in
one thread. ``python benchmarks/em_gradients.py --help`` says more.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported

import warnings
from dataclasses import dataclass
from statistics import median

import click
import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from rich.text import Text
from speed_table import empty_table
from torch import Tensor

from embench import registry
from embench.comparing.words import significant
from embench.measuring.meter import Reading, metered
from embench.models.starts import starting_mixture
from embench.models.unrolled.bridge import stacked
from embench.models.unrolled.em_map import Mixtures
from embench.models.unrolled.implicit import Gradient, fit_em

WAYS: tuple[tuple[Gradient, int], ...] = (
    ("unroll", 1),
    ("truncated", 5),
    ("one-step", 1),
    ("implicit", 1),
)
"""Ways to a gradient, with the steps that a truncated one keeps."""

MEBIBYTE = 2**20


@dataclass(frozen=True)
class Problem:
    """Datasets side by side, [B, n_samples, n_features], and a start for each."""

    X: Tensor
    start: Mixtures

    @classmethod
    def drawn(
        cls, n_datasets: int, n_samples: int, n_features: int, n_components: int, separation: float
    ) -> Problem:
        sizes = {"n_samples": n_samples, "n_features": n_features, "n_components": n_components}
        drawn = [
            registry.make_dataset("blobs", seed=seed, separation=separation, n_test=1, **sizes)
            for seed in range(n_datasets)
        ]
        starts = [
            starting_mixture(one.X_train, n_components, np.random.SeedSequence(seed))
            for seed, one in enumerate(drawn)
        ]
        return cls(torch.tensor(np.stack([one.X_train for one in drawn])), stacked(starts))

    def gradient(self, gradient: Gradient, n_last: int, n_steps: int) -> Tensor:
        """Of a function of the fitted mixtures by the data, [B, n_samples, n_features]."""
        X = self.X.clone().requires_grad_()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # few steps end far from any rest
            found = fit_em(X, self.start, n_steps, gradient=gradient, n_last=n_last)
            (found.means.sin().sum() + found.covariances.square().sum()).backward()
        assert X.grad is not None
        return X.grad


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--rounds", type=click.IntRange(min=1), default=3, show_default=True)
@click.option("--long", type=click.IntRange(min=1), default=2000, show_default=True,
              help="Steps of the unroll that is taken for the truth.")  # fmt: skip
@click.option("--quick", is_flag=True, help="Fewer samples and steps: seconds.")
def main(rounds: int, long: int, quick: bool) -> None:
    """Accuracy, time and memory of gradients through EM."""
    torch.set_num_threads(1)
    console = Console(highlight=False)
    n_datasets, n_samples = (2, 300) if quick else (4, 1000)
    for separation in (4.0,) if quick else (4.0, 2.5):
        problem = Problem.drawn(n_datasets, n_samples, 2, 3, separation)
        title = f"\n{n_datasets} datasets {n_samples}x2x3, separation {separation:g} [CPU in ms]"
        console.print(Text(title, style="bold"))
        console.print(_table(problem, (5, 50) if quick else (5, 20, 100, 500), rounds, long))


def _table(problem: Problem, numbers_of_steps: tuple[int, ...], rounds: int, long: int) -> Table:
    drawn = empty_table("T", "gradient", "error", "CPU", "peak MiB")
    truth = problem.gradient("unroll", 1, long)
    for n_steps in numbers_of_steps:
        for gradient, n_last in WAYS:
            found = problem.gradient(gradient, n_last, n_steps)  # and so it is warmed up
            error = float((found - truth).norm() / truth.norm())
            del found
            readings = [_metered(problem, gradient, n_last, n_steps) for _ in range(rounds)]
            drawn.add_row(
                str(n_steps) if gradient == "unroll" else "",
                f"{gradient}, {n_last} steps" if gradient == "truncated" else gradient,
                f"{error:.1e}",
                significant(1e3 * median(one.cpu_seconds for one in readings)),
                significant(median(one.peak_memory or 0 for one in readings) / MEBIBYTE),
            )
        drawn.add_section()
    return drawn


def _metered(problem: Problem, gradient: Gradient, n_last: int, n_steps: int) -> Reading:
    with metered("cpu") as reading:
        problem.gradient(gradient, n_last, n_steps)
    return reading


if __name__ == "__main__":
    main()
