"""What a step of gradient descent takes: `gd`, `gd-closed-form`, and `torch.distributions`.

The same descent (Adam, all samples, from the same start) in one thread, a process each that take
turns; CPU milliseconds per step of everything that ``fit`` does, medians over the rounds, and the
growth of resident memory at its peak. ``python benchmarks/gradients.py --help`` says more.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import median

import click
import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text
from speed_table import Job, Result, empty_table, speedup, verdict
from speed_worker import Worker, WorkerError, crew, save

from embench import registry
from embench.comparing.words import significant
from embench.models.starts import starting_mixture

MODELS = ("torch_distributions:DistributionsMixture", "gd", "gd-closed-form")
FAMILIES = ("full", "tied", "diag", "spherical", "tied_spherical", "constant")
CELLS = (Job("", 1000, 2, 3), Job("", 10_000, 8, 8), Job("", 10_000, 32, 16))
MEBIBYTE = 2**20


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--rounds", type=click.IntRange(min=3), default=5, show_default=True)
@click.option("--steps", type=click.IntRange(min=1), default=50, show_default=True)
@click.option("--quick", is_flag=True, help="The full family at 10000x8x8 in float64 alone.")
def main(rounds: int, steps: int, quick: bool) -> None:
    """Time and memory per step of gradient descent, by autograd and in closed form."""
    console = Console(highlight=False)
    dtypes = ("float64",) if quick else ("float64", "float32")
    with crew(MODELS, dtypes) as workers, tempfile.TemporaryDirectory() as folder:
        for dtype in dtypes:
            own = [worker for worker in workers if worker.dtype == dtype]
            for family in FAMILIES[:1] if quick else FAMILIES:
                cells = CELLS[1:2] if quick or family != "full" else CELLS
                drawn = empty_table("cell", "model", "CPU", "peak MiB", "over autograd", "verdict")
                for job in cells:
                    _prepare(job, file := Path(folder) / "job.npz")
                    _add_rows(drawn, _measured(job, family, file, own, rounds, steps))
                console.print(Text(f"\n{family}, {dtype} [ms per step]", style="bold"))
                console.print(drawn)


def _prepare(job: Job, file: Path) -> None:
    """Write data and start. The covariances of the start are 1, which every family has."""
    sizes = {name: getattr(job, name) for name in ("n_samples", "n_features", "n_components")}
    X = registry.make_dataset("blobs", **sizes, n_test=1).X_train
    start = starting_mixture(X, job.n_components, np.random.SeedSequence(0))
    unit = np.broadcast_to(np.eye(job.n_features), start.covariances.shape)
    save(file, X[None], [type(start)(start.weights, start.means, unit)])


def _measured(
    job: Job, family: str, file: Path, workers: Sequence[Worker], rounds: int, steps: int
) -> list[Result]:
    """What each model took, round by round; those that lack the family are left out."""
    able = []
    for worker in workers:
        try:
            worker.load(file, {"n_components": job.n_components, "covariance_type": family})
        except WorkerError:
            continue
        able.append(worker)
    turns = [able[::-1] if number % 2 else able for number in range(rounds)]
    readings = [{worker.model: worker.fit(steps) for worker in turn} for turn in turns]
    return [
        Result(
            worker.model,
            worker.dtype,
            job,
            [reading[worker.model] for reading in readings],
            worker.log_likelihood(),
        )
        for worker in able
    ]


def _add_rows(drawn: Table, results: Sequence[Result]) -> None:
    [autograd] = [result for result in results if result.model == "gd"]
    for result in results:
        peak = median(reading.peak_memory or 0 for reading in result.readings) / MEBIBYTE
        ratio = speedup(result, autograd)
        words = [] if result is autograd else [str(ratio), verdict(ratio.middle)]
        drawn.add_row(
            str(result.job) if result is results[0] else "",
            result.model.partition(":")[0],
            significant(median(result.milliseconds)),
            significant(peak),
            *words,
        )


if __name__ == "__main__":
    main()
