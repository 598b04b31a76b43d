"""How long an iteration of EM takes, models side by side: ``make perf`` or this file with options.

Every model does the same work from the same start in one thread, in a process of its own that keeps
data and model. The processes are asked in turn, in an order that changes from round to round, so
that what else the machine does hits all of them; a speed-up is the median over rounds of the ratio
within a round, with the lowest and the highest. Everything that ``fit`` does counts. What a model
found is judged: a speed bought with another result is no speed.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click
import numpy as np
from rich.console import Console
from rich.text import Text
from speed_table import BASELINE, Job, Result, remarks, table
from speed_worker import Reading, Worker, WorkerError, crew, save

from embench import registry
from embench.models.starts import starting_mixture
from embench.types import Dataset, InputError

MODELS = (BASELINE, "em", "onedal-em")
FAMILIES = ("full", "tied", "diag")
DTYPES = ("float64", "float32")

CELLS = (
    Job("A", 10_000, 2, 3),
    Job("B", 100_000, 8, 16),
    Job("C", 100_000, 32, 16),
    Job("D", 20_000, 64, 32),
    Job("E", 10_000, 128, 64),
    Job("F", 1_000_000, 16, 8),
)
BATCH = Job("", 500, 2, 3, n_datasets=256, n_iter=20, per="dataset")
RESTARTS = Job(
    "",
    5000,
    4,
    5,
    n_iter=20,
    per="restart",
    params={"n_init": 8, "init_params": "random_from_data"},
)
QUICK_CELLS = (CELLS[0], Job("", 5000, 16, 8))

MOST_ITERATIONS = 200
REG_COVAR = 1e-6


@dataclass(frozen=True)
class Plan:
    """Jobs by the title of their table, and how long to look at each."""

    sections: dict[str, Sequence[Job]]
    families: Sequence[str]
    dtypes: Sequence[str]
    rounds: int
    least_iterations: int = 10
    least_seconds: float = 0.2


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--cells", metavar="A,B,...", help="Only these of A to F.")
@click.option(
    "--cell", "own", multiple=True, metavar="SAMPLESxFEATURESxCOMPONENTS", help="One of your own."
)
@click.option("--families", metavar=",".join(FAMILIES))
@click.option("--dtypes", metavar=",".join(DTYPES))
@click.option("--sections", metavar="cells,batch,restarts")
@click.option("--rounds", type=click.IntRange(min=3), default=3, show_default=True)
@click.option("--quick", is_flag=True, help="Small cells and short fits, in seconds.")
def main(quick: bool, **asked: Any) -> None:
    """Time per EM iteration: embench's EM against scikit-learn's and, if installed, oneDAL's."""
    plan = _planned(quick, **asked)
    models, notes = _available(MODELS)
    console = Console(highlight=False)
    console.print(
        f"Milliseconds in one thread, medians over {plan.rounds} rounds. Speed-up: how many times "
        f"faster than {BASELINE} in the same dtype by CPU time, median (lowest-highest) over the "
        "rounds; 'vs float64': than that in float64. Means over cells are geometric."
    )
    with crew(models, plan.dtypes) as workers, tempfile.TemporaryDirectory() as folder:
        for section, family, jobs in _tables(plan):
            results: list[Result] = []
            for job in jobs:
                with console.status(f"{section}, {family}: {job}"):
                    _prepare(job, family, file := Path(folder) / "job.npz")
                    found, left_out = _measured(job, family, file, workers, plan)
                results += found
                notes += left_out
            for dtype in plan.dtypes if results else ():
                title = f"\n{section}: {family}, {dtype} [ms per {results[0].job.per}]"
                console.print(Text(title, style="bold"))
                console.print(table(results, dtype))
            notes += [f"{section}, {family}: {remark}" for remark in remarks(results)]
    for note in dict.fromkeys(notes):
        console.print(Text(f"! {note}"), soft_wrap=True)


def _planned(
    quick: bool,
    cells: str | None,
    own: Sequence[str],
    families: str | None,
    dtypes: str | None,
    sections: str | None,
    rounds: int,
) -> Plan:
    """The options as a plan; what is not said is everything, or little of it with ``quick``."""
    named = {job.name: job for job in CELLS}
    chosen = [named[name] for name in _words("--cells", cells, named, ())] + list(map(_job, own))
    jobs: dict[str, Sequence[Job]] = {
        "cells": chosen or (QUICK_CELLS if quick else CELLS),
        "batch": [replace(BATCH, n_datasets=16) if quick else BATCH],
        "restarts": [RESTARTS],
    }
    shown = _words("--sections", sections, jobs, ["cells"] if chosen else jobs)
    usual = ("full", "diag") if quick else FAMILIES
    plan = Plan(
        sections={name: jobs[name] for name in shown},
        families=_words("--families", families, FAMILIES, usual),
        dtypes=_words("--dtypes", dtypes, DTYPES, DTYPES),
        rounds=rounds,
    )
    return replace(plan, least_iterations=5, least_seconds=0.03) if quick else plan


def _words(
    option: str, text: str | None, known: Collection[str], usual: Iterable[str]
) -> list[str]:
    """Words parted by commas; one that is not known is met with those that are."""
    words = text.split(",") if text else list(usual)
    for word in words:
        if word not in known:
            raise click.BadParameter(f"{word!r} is none of {', '.join(known)}", param_hint=option)
    return words


def _job(text: str) -> Job:
    """A cell from text like 50000x10x5."""
    sizes = text.lower().split("x")
    if len(sizes) != 3 or not all(size.isdecimal() and int(size) for size in sizes):
        raise click.BadParameter(f"expected 50000x10x5, got {text!r}", param_hint="--cell")
    job = Job("", *map(int, sizes))
    if job.n_samples < job.n_components:
        raise click.BadParameter(
            f"expected at least as many samples as components, got {text!r}", param_hint="--cell"
        )
    return job


def _available(models: Iterable[str]) -> tuple[list[str], list[str]]:
    """The models that can be imported here, and a sentence for each that cannot."""
    found, notes = [], []
    for name in models:
        try:
            registry.load("model", name)
            found.append(name)
        except InputError as error:
            notes.append(str(error))
    return found, notes


def _tables(plan: Plan) -> Iterator[tuple[str, str, Sequence[Job]]]:
    for section, jobs in plan.sections.items():
        for family in plan.families:
            yield section, family, jobs


def _prepare(job: Job, family: str, file: Path) -> None:
    """Write the job's datasets and, where the models do not make their own, the common starts."""
    datasets = [_blobs(job, family, seed).X_train for seed in range(job.n_datasets)]
    starts = [
        starting_mixture(X, job.n_components, np.random.SeedSequence(seed))
        for seed, X in enumerate(datasets)
        if "init_params" not in job.params
    ]
    save(file, np.stack(datasets), starts)


def _blobs(job: Job, family: str, seed: int) -> Dataset:
    """Components nearly apart, of the family that is fitted.

    Where there are many features, means as far from each other as a component is wide: closer ones
    leave the start with components of fewer samples than features, and singular covariances.
    """
    return registry.make_dataset(
        "blobs",
        seed=seed,
        n_samples=job.n_samples,
        n_features=job.n_features,
        n_components=job.n_components,
        covariance_type=family,
        separation=max(4.0, math.sqrt(job.n_features)),
        n_test=1,
    )


def _measured(
    job: Job, family: str, file: Path, workers: Sequence[Worker], plan: Plan
) -> tuple[list[Result], list[str]]:
    """Ask the workers in turn; also a sentence for each that cannot do the job."""
    params = {"n_components": job.n_components, "covariance_type": family, "reg_covar": REG_COVAR}
    failed: dict[Worker, str] = {}

    def able(order: Iterable[Worker] = workers) -> list[Worker]:
        return [worker for worker in order if worker not in failed]

    def ask(worker: Worker, command: str, *given: Any) -> Any:
        try:
            return getattr(worker, command)(*given)
        except WorkerError as error:
            failed[worker] = (
                f"{worker.model} in {worker.dtype} is left out of {family}, {job}: {error}"
            )

    for worker in workers:
        ask(worker, "load", file, {**params, **job.params})
    n_iter = job.n_iter or _enough_iterations([ask(worker, "fit", 2) for worker in able()], plan)
    readings: dict[Worker, list[Reading]] = {worker: [] for worker in able()}
    for number in range(plan.rounds):
        for worker in able(reversed(workers) if number % 2 else workers):
            readings[worker].append(ask(worker, "fit", n_iter))
    judged = {worker: ask(worker, "log_likelihood") for worker in able()}
    results = [
        Result(worker.model, worker.dtype, job, readings[worker], judged[worker])
        for worker in able()
    ]
    return results, list(failed.values())


def _enough_iterations(readings: Iterable[Reading | None], plan: Plan) -> int:
    """As many as keep the fastest model busy for the least seconds, within bounds."""
    fastest = min((one.seconds / one.n_iter for one in readings if one), default=1.0)
    wanted = math.ceil(plan.least_seconds / fastest)
    return max(plan.least_iterations, min(wanted, MOST_ITERATIONS))


if __name__ == "__main__":
    main()
