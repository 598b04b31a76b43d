"""What optimisation on a manifold costs where components overlap, against EM from the same start.

    python benchmarks/manifolds.py            # a few minutes
    python benchmarks/manifolds.py --quick    # small problems only

Every model begins at the same mixture, equal weights, means near the true ones and the covariance
of the data, and runs until its log-likelihood rises no more. A row says what it took to come within
1e-6 nat of there: E-steps, which is where all of them spend their time on large data, and CPU
milliseconds of a fit that ends there, medians over the seeds. "below" is how far below the best of
all models it ended, in the worst seed: badly overlapping mixtures have several optima, and who
stops at a lower one got there sooner. Give it one thread: OMP_NUM_THREADS=1.
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Iterator, Sequence
from statistics import median
from typing import Any, NamedTuple

import numpy as np
from rich.console import Console
from rich.table import Table
from sklearn.exceptions import ConvergenceWarning

import embench
from embench.types import FloatArray, Mixture

NEAR = 1e-6
"""Below its end [nat], where a fit has arrived."""

STILL, PATIENCE = 1e-11, 50
"""A fit is at its end when so many iterations gain no more than that [nat]."""

MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "em": ("em", {}),
    "squarem-em": ("squarem-em", {}),
    "anderson-em": ("anderson-em", {}),
    "lbfgs": ("riemannian", {}),
    "cg": ("riemannian", {"solver": "cg"}),
    "gradient": ("riemannian", {"solver": "gradient"}),
    "lbfgs, naive": ("riemannian", {"formulation": "naive"}),
    "cg, naive": ("riemannian", {"formulation": "naive", "solver": "cg"}),
}

SIZES = ((2, 3), (8, 5), (16, 8))


class Problem(NamedTuple):
    """Blobs with these sizes, and how far apart and how elongated they are."""

    n_features: int
    n_components: int
    separation: float
    conditioning: float

    def drawn(self, seed: int) -> tuple[FloatArray, Mixture]:
        """The samples and the start."""
        n_samples = 1000 * self.n_components
        data = embench.make_dataset("blobs", seed, n_samples=n_samples, **self._asdict())
        assert data.truth is not None
        means = data.truth.means
        means = means + 0.3 * np.random.default_rng(seed).standard_normal(means.shape)
        covariances = np.stack([np.cov(data.X_train.T, ddof=0)] * self.n_components)
        weights = np.full(self.n_components, 1 / self.n_components)
        return data.X_train, Mixture(weights, means, covariances)


class Result(NamedTuple):
    """What one fit took, and the log-likelihood [nat] where it ended."""

    e_steps: int
    milliseconds: float
    end: float


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="small problems, one seed")
    quick = parser.parse_args().quick
    warnings.simplefilter("ignore", ConvergenceWarning)
    problems = [
        Problem(*sizes, separation, conditioning)
        for sizes in SIZES[: 1 if quick else None]
        for conditioning in (4.0, 100.0)
        for separation in (4.0, 2.0, 1.5, 1.0)
    ]
    table = Table("D", "K", "separation", "conditioning", "model", box=None)
    for name in ("E-steps", "CPU ms", "below nat"):
        table.add_column(name, justify="right")
    for problem in problems:
        for row in rows(problem, range(1 if quick else 3)):
            table.add_row(*row)
        table.add_section()
    Console().print(table)


def rows(problem: Problem, seeds: Sequence[int]) -> Iterator[list[str]]:
    """The problem's row of each model."""
    results = [measured(*problem.drawn(seed)) for seed in seeds]
    words = [f"{number:g}" for number in problem]
    for name in MODELS:
        below = max(max(one.end for one in each.values()) - each[name].end for each in results)
        e_steps = median(each[name].e_steps for each in results)
        milliseconds = median(each[name].milliseconds for each in results)
        far = f"{below:.0e}" if below > NEAR else ""
        yield [*words, name, f"{e_steps:g}", f"{milliseconds:.0f}", far]
        words = [""] * len(words)


def measured(X: FloatArray, start: Mixture) -> dict[str, Result]:
    """All models on one sample."""
    return {name: one(*MODELS[name], X, start) for name in MODELS}


def one(name: str, params: dict[str, Any], X: FloatArray, start: Mixture) -> Result:
    """Watched to its end, then fitted again, as far as it has to go, by the clock."""
    model = embench.make_model(name, n_components=start.n_components, tol=0.0, **params)
    model.set_params(max_iter=10_000).start_from(start)
    e_steps, bounds = [], np.empty(0)
    for n_iter in model.iter_fit(X):
        e_steps.append(getattr(model, "n_evaluations_", n_iter))
        bounds = np.array(model.lower_bounds_)  # before each step, the start's first
        if n_iter > PATIENCE and bounds[-1] - bounds[-PATIENCE] < STILL:
            break
    arrived = int(np.argmax(bounds >= bounds.max() - NEAR))
    model.set_params(max_iter=max(arrived, 1))
    begin = time.process_time()
    model.fit(X)
    return Result(e_steps[arrived], 1e3 * (time.process_time() - begin), float(bounds.max()))


if __name__ == "__main__":
    main()
