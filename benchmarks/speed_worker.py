"""One process per model and dtype that keeps data and fits on demand: the crew of `speed.py`.

``python speed_worker.py MODEL DTYPE`` reads commands, one per line as JSON, and answers each with a
line. What a fit raises is an answer, too.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning
from threadpoolctl import threadpool_info

from embench import gaussian, registry
from embench.measuring.isolate import THREAD_VARIABLES
from embench.measuring.meter import metered
from embench.models.em import GaussianMixture
from embench.types import FloatArray, Mixture, Model

JUDGED = 5000
"""Rows of each dataset that the judge looks at: it prefers being right to being fast."""


@dataclass(frozen=True)
class Reading:
    """One fit: seconds on the wall and of the CPU, iterations done, threads that it might use, and
    the growth of memory at its peak in bytes, where the kernel tells."""

    seconds: float
    cpu_seconds: float
    n_iter: int
    threads: int
    peak_memory: int | None = None


class WorkerError(RuntimeError):
    """What a worker's command raised, in one sentence."""


class Worker:
    """A process of its own for one model in one dtype; made by `crew`."""

    def __init__(self, model: str, dtype: str, process: subprocess.Popen[str]) -> None:
        self.model, self.dtype, self._process = model, dtype, process

    def load(self, data: Path, params: Mapping[str, Any]) -> None:
        """Take the datasets and starts of `save` and the model's parameters; warm up."""
        self._ask("load", str(data), dict(params))

    def fit(self, max_iter: int) -> Reading:
        """Fit fresh copies of the model, one per dataset."""
        return Reading(**self._ask("fit", max_iter))

    def log_likelihood(self) -> float:
        """The judge's mean log-likelihood [nat] of what the last `fit` found."""
        return self._ask("log_likelihood")

    def _ask(self, command: str, *given: Any) -> Any:
        assert self._process.stdin
        assert self._process.stdout
        with suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps([command, *given]) + "\n")
            self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            raise WorkerError("its process died")
        value, complaint = json.loads(answer)
        if complaint:
            raise WorkerError(complaint)
        return value


@contextmanager
def crew(models: Sequence[str], dtypes: Sequence[str]) -> Iterator[list[Worker]]:
    """A worker per model and dtype, each limited to one thread before it imports anything."""
    environment = {**os.environ, **dict.fromkeys(THREAD_VARIABLES, "1")}
    with ExitStack() as stack:
        workers = []
        for dtype in dtypes:
            for model in models:
                process = subprocess.Popen(
                    [sys.executable, __file__, model, dtype],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    text=True,
                    env=environment,
                )
                workers.append(Worker(model, dtype, stack.enter_context(process)))
        yield workers


def save(path: Path, X: FloatArray, starts: Sequence[Mixture]) -> None:
    """Write datasets (n_datasets, n_samples, n_features), with a start for each or none."""
    parts = {
        name: np.stack([getattr(start, name) for start in starts])
        for name in ("weights", "means", "covariances")
        if starts
    }
    np.savez(path, X=X, **parts)


class _Desk:
    """The worker's own side: one method per command."""

    def __init__(self, model: str, dtype: str) -> None:
        self.name, self.dtype = model, dtype

    def load(self, path: str, params: dict[str, Any]) -> None:
        with np.load(path) as file:
            parts = dict(file)
        self.datasets = list(np.ascontiguousarray(parts.pop("X"), dtype=self.dtype))
        self.model = registry.make_model(self.name)
        known = self.model.get_params()
        asked = {"dtype": self.dtype, "random_state": 0, "tol": 0.0, **params}
        self.model.set_params(**{name: asked[name] for name in asked if name in known})
        _check(self.model, params)
        self.starts = [Mixture(*start) for start in zip(*parts.values(), strict=True)]
        self.fit(1)

    def fit(self, max_iter: int) -> dict[str, Any]:
        self.fitted = [clone(self.model).set_params(max_iter=max_iter) for _ in self.datasets]
        for model, start in zip(self.fitted, self.starts, strict=False):
            model.start_from(start)
        with metered("cpu") as reading:
            self.fitted = fit_all(self.fitted, self.datasets, self.starts)
        n_iter = max(model.n_iter_ for model in self.fitted)
        found = Reading(
            reading.seconds, reading.cpu_seconds, n_iter, _threads(), reading.peak_memory
        )
        return asdict(found)

    def log_likelihood(self) -> float:
        judged = [
            gaussian.log_likelihood(model.mixture_, X[:JUDGED])
            for model, X in zip(self.fitted, self.datasets, strict=True)
        ]
        return float(np.mean(judged))


def fit_all(
    models: Sequence[Model], datasets: Sequence[FloatArray], starts: Sequence[Mixture]
) -> Sequence[Model]:
    """Fit each model to its dataset: what the clock sees, and for most libraries a loop."""
    if len(datasets) > 1 and isinstance(models[0], GaussianMixture):
        return models[0].fit_many(np.stack(datasets), starts)
    return [model.fit(X) for model, X in zip(models, datasets, strict=True)]


def _check(model: Model, params: Mapping[str, Any]) -> None:
    """See that the model has every parameter that makes the work the same, but for one.

    A library may have no ``reg_covar``: what that is worth shows in the log-likelihoods.
    """
    lacking = set(params) - set(model.get_params()) - {"reg_covar"}
    if lacking:
        raise ValueError(f"it has no {', '.join(sorted(lacking))}")


def _threads() -> int:
    """The most threads of any pool in this process: verified, not assumed."""
    counts = [pool["num_threads"] for pool in threadpool_info()]
    if "torch" in sys.modules:
        counts.append(sys.modules["torch"].get_num_threads())
    return max(counts, default=1)


def main() -> None:
    """Answer commands until stdin closes."""
    warnings.simplefilter("ignore", ConvergenceWarning)
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    desk = _Desk(*sys.argv[1:])
    for line in sys.stdin:
        command, *given = json.loads(line)
        try:
            answer = [getattr(desk, command)(*given), ""]
        except Exception as error:
            answer = [None, str(error).partition("\n")[0] or type(error).__name__]
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
