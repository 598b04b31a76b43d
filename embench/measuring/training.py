"""Train a model over a suite's datasets, once, for all fits to come: `embench train`."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import torch

from embench import registry
from embench.measuring.environment import describe
from embench.measuring.meter import metered
from embench.measuring.plan import Suite
from embench.measuring.trial import limited_threads
from embench.models.starts import starting_mixture
from embench.models.unrolled.amortised import LearnedEM
from embench.models.unrolled.bridge import stacked
from embench.models.unrolled.checkpoint import Checkpoint, read, write
from embench.models.unrolled.operators import EMOperator
from embench.models.unrolled.training import Task, Trainer, nlls
from embench.types import Dataset, InputError, Spec

STATE = "training.pt"
"""The file that an interrupted training goes on from."""

SAVED_EVERY = 20
"""Updates from one saved state to the next: seconds of work are all that can be lost."""

N_REPORTS = 20
"""How often a training is held against EM."""

N_HELD_OUT = 8
"""Tasks that it is held against EM on; none is ever learned from."""

EM_STEPS = 20
"""What EM may do there, from the same start."""

FIRST_SEED = 2**32
"""Of the datasets learned from: those of runs begin at 0, so nothing is learned from these."""


@dataclass(frozen=True)
class Progress:
    """How far a training is: mean NLL [nat] of new samples of datasets that it does not learn
    from, and that of EM after `EM_STEPS` steps from the same starts; CPU seconds so far."""

    update: int
    n_updates: int
    seconds: float
    nll: float
    em_nll: float

    def __str__(self) -> str:
        """One line."""
        gain = self.em_nll - self.nll
        side = "below" if gain >= 0 else "above"
        return (
            f"{self.update}/{self.n_updates}  held-out NLL {self.nll:.4f} nat, {abs(gain):.4f} "
            f"{side} {EM_STEPS} steps of EM, after {self.seconds:.0f} CPU s"
        )


def train(
    model: str,
    suite: Suite,
    folder: Path,
    *,
    n_updates: int = 3000,
    batch_size: int = 32,
    seed: int = 0,
) -> Iterator[Progress]:
    """Train a model on datasets drawn from a suite's, and leave its weights in a folder.

    Every update learns from ``batch_size`` fresh datasets of one entry of the suite, drawn with all
    its sweeps; nothing depends on when or how often the training was interrupted.

    Args:
        model: Name of one that learns before it fits, such as "amortised-em".
        suite: What to learn from: its datasets and ``threads``.
        folder: Of the weights, ``<model>.pt``, what is known of them, ``provenance.json``, and the
            state to resume from.
        n_updates: Of all.
        batch_size: Datasets of an update.
        seed: Decides the networks' first weights and every dataset.

    Yields:
        Progress, `N_REPORTS` times; at the last one the weights are written.

    Raises:
        InputError: The model does not learn, a dataset cannot be learned from, or the folder holds
            another training or cannot be written.
    """
    kind = _learner(model)
    plan = {
        "model": model,
        "suite": suite.model_dump(mode="json", include={"description", "datasets"}),
        "n_updates": n_updates,
        "batch_size": batch_size,
        "seed": seed,
    }
    learning, held_out = np.random.SeedSequence(seed).spawn(2)
    task = _tasks(suite, batch_size, learning)
    trainer = Trainer(kind.untrained(seed).double(), n_updates)
    with limited_threads(suite.threads):
        seconds = _resumed(trainer, plan, folder)
        unseen = [_tasks(suite, batch_size, held_out)(i) for i in range(N_HELD_OUT)]
        em_nll = _held_out_nll(kind.untrained(seed).double(), unseen, EM_STEPS)
        every = SAVED_EVERY * max(1, round(n_updates / N_REPORTS / SAVED_EVERY))
        while trainer.done < n_updates:
            with metered("cpu") as reading:
                for _ in range(min(SAVED_EVERY, n_updates - trainer.done)):
                    trainer.update(task(trainer.done))
            seconds += reading.cpu_seconds
            _save({"plan": plan, "seconds": seconds, "trainer": trainer.state()}, folder)
            if trainer.done % every == 0 and trainer.done < n_updates:
                nll = _held_out_nll(trainer.operator, unseen, trainer.operator.n_steps)
                yield Progress(trainer.done, n_updates, seconds, nll, em_nll)
        nll = _held_out_nll(trainer.operator, unseen, trainer.operator.n_steps)
    progress = Progress(n_updates, n_updates, seconds, nll, em_nll)
    _finish(trainer, plan, progress, folder)
    yield progress


def weights_file(folder: Path, model: str) -> Path:
    """Where a training leaves what it has learned."""
    return folder / f"{model}.pt"


def _learner(model: str) -> type[LearnedEM]:
    """The class of a model that learns before it fits."""
    found = registry.load("model", model)
    if not (isinstance(found, type) and issubclass(found, LearnedEM)):
        raise InputError(
            f"{model} learns nothing before it fits; expected a model that does, such as "
            "amortised-em or recurrent-em"
        )
    return found


def _tasks(suite: Suite, batch_size: int, seed: np.random.SeedSequence) -> Callable[[int], Task]:
    """Task number i, whatever was asked for before."""
    specs = [spec for entry in suite.datasets for spec in entry.specs()]
    if not specs:
        raise InputError("no data to learn from: the suite names no datasets")

    def task(i: int) -> Task:
        own = np.random.SeedSequence(seed.entropy, spawn_key=(*seed.spawn_key, i))
        rng = np.random.default_rng(own)
        spec = specs[rng.integers(len(specs))]
        seeds = rng.integers(FIRST_SEED, 2**63, size=batch_size)
        return _task(spec, [int(one) for one in seeds])

    return task


def _task(spec: Spec, seeds: list[int]) -> Task:
    """Datasets of one spec, in float64."""
    made = [registry.make_dataset(spec.name, seed=seed, **spec.params) for seed in seeds]
    _check(spec, made[0])
    n_components = made[0].n_components or 1
    starts = [
        starting_mixture(data.X_train, n_components, np.random.SeedSequence(seed))
        for data, seed in zip(made, seeds, strict=True)
    ]
    return Task(
        torch.as_tensor(np.stack([data.X_train for data in made])),
        torch.as_tensor(np.stack([data.X_test for data in made])),
        stacked(starts),
    )


def _check(spec: Spec, data: Dataset) -> None:
    """See that it can be learned from."""
    if data.n_components is None or data.Y_train is not None:
        lacking = "a number of components" if data.n_components is None else "a density of X alone"
        raise InputError(f"{spec}: cannot be learned from: it has not {lacking}")


def _held_out_nll(operator: EMOperator, tasks: list[Task], n_steps: int) -> float:
    """Mean NLL of new samples over tasks that are not learned from [nat]."""
    with torch.no_grad():
        return mean(nlls(operator, task, n_steps)[-1].item() for task in tasks)


def _resumed(trainer: Trainer, plan: Mapping[str, Any], folder: Path) -> float:
    """Bring the trainer to where the folder's training has got; seconds that took."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot write to {folder}: {error.strerror}") from error
    if not (folder / STATE).exists():
        return 0.0
    found = read(folder / STATE)
    if found["plan"] != plan:
        keys = [key for key in plan if found["plan"].get(key) != plan[key]]
        raise InputError(
            f"{folder} holds another training, of another {', '.join(keys)}; choose another --out"
        )
    trainer.resume(found["trainer"])
    return float(found["seconds"])


def _save(state: Mapping[str, Any], folder: Path) -> None:
    try:
        write(state, folder / STATE)
    except OSError as error:
        raise InputError(f"cannot write to {folder}: {error.strerror}") from error


def _finish(trainer: Trainer, plan: Mapping[str, Any], progress: Progress, folder: Path) -> None:
    """Write the weights and what is known of them."""
    provenance = {
        **plan,
        "n_datasets": plan["n_updates"] * plan["batch_size"],
        "cpu_seconds": progress.seconds,
        "held_out_nll": progress.nll,
        f"held_out_nll_of_em_after_{EM_STEPS}_steps": progress.em_nll,
        "environment": describe(),
    }
    Checkpoint(trainer.operator, provenance).save(weights_file(folder, plan["model"]))
    (folder / "provenance.json").write_text(json.dumps(provenance, indent=2) + "\n")
