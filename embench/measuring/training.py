"""Train a model over a suite's datasets, once, for all fits to come: `embench train`."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from embench import registry
from embench.measuring.environment import describe
from embench.measuring.groups import mean_ami
from embench.measuring.meter import metered
from embench.measuring.suite import Suite
from embench.measuring.threads import limited_threads
from embench.models.checkpoint import read, write
from embench.types import Draw, Drawn, InputError, Spec, TrainableModel, Training

STATE = "training.pt"
"""The file that an interrupted training goes on from."""

SAVED_EVERY = 5.0
"""CPU seconds from one saved state to the next: all that can be lost."""

AT_A_TIME = 100
"""Updates between two looks at the clock."""

N_REPORTS = 20
"""How often a training is judged."""

FIRST_SEED = 2**32
"""Of the datasets learned from: those of runs begin at 0, so nothing is learned from these."""


@dataclass(frozen=True)
class Progress:
    """How far a training is: what it is found to be worth, after CPU seconds of all sessions."""

    update: int
    n_updates: int
    seconds: float
    findings: Mapping[str, float]

    def __str__(self) -> str:
        """One line."""
        words = ", ".join(f"{name} {value:.4f}" for name, value in self.findings.items())
        return f"{self.update}/{self.n_updates}  {words}, after {self.seconds:.0f} CPU s"


@dataclass
class Session:
    """What is saved beside a training's own state: its plan, and what it took and gave so far."""

    plan: Mapping[str, Any]
    seconds: float
    curve: list[Progress]


def train(
    model: Spec,
    suite: Suite,
    folder: Path,
    *,
    n_updates: int | None = None,
    batch_size: int | None = None,
    seed: int = 0,
) -> Iterator[Progress]:
    """Train a model on datasets drawn from a suite's, and leave its weights in a folder.

    The weights do not depend on when or how often the training was interrupted.

    Args:
        model: One that learns before it fits, such as "amortised-em" or "rnn-em:preset=quick".
        suite: What to learn from: its datasets and ``threads``.
        folder: Of the weights, ``<model>.pt``, what is known of them, ``provenance.json``, and the
            state to resume from.
        n_updates: Of all; None for the model's own number.
        batch_size: Datasets, or images, of an update; None likewise.
        seed: Decides the first weights and every dataset.

    Yields:
        Progress, about `N_REPORTS` times, first that of earlier sessions; at the last one the
        weights are written.

    Raises:
        InputError: The model does not learn, a dataset cannot be learned from, or the folder holds
            another training or cannot be written.
    """
    plan = {
        "model": model.name,
        "params": dict(model.params),
        "suite": suite.model_dump(mode="json", include={"datasets"}),
        "dataset_versions": _versions(suite),
        "n_updates": n_updates,
        "batch_size": batch_size,
        "seed": seed,
    }
    with limited_threads(suite.threads):
        training = trainable(model).training(_drawer(suite), seed, n_updates, batch_size)
        session = _resumed(training, plan, folder)
        yield from session.curve[:-1] if training.is_finished else session.curve
        every, saved = max(1, round(training.n_updates / N_REPORTS)), session.seconds
        while not training.is_finished:
            session.seconds += _pulled(training, every)
            judged = training.done % every == 0 or training.is_finished
            if judged:
                session.curve.append(_judged(training, session.seconds))
            if judged or session.seconds >= saved + SAVED_EVERY:
                _save(training, session, folder)
                saved = session.seconds
            if judged and not training.is_finished:
                yield session.curve[-1]
        _finish(training, session, folder)
    yield session.curve[-1]


def _versions(suite: Suite) -> dict[str, str]:
    """What decides beside the parameters what is learned from: the content of a file."""
    specs = (spec for entry in suite.datasets for spec in entry.specs())
    return {spec.name: registry.version("dataset", spec) for spec in specs}


def weights_file(folder: Path, model: str) -> Path:
    """Where a training leaves what it has learned."""
    return folder / f"{model}.pt"


def trainable(spec: Spec) -> TrainableModel:
    """The model, which learns before it fits.

    Raises:
        InputError: It does not, or is unknown.
    """
    model = registry.make_model(spec.name, **spec.params)
    if not isinstance(model, TrainableModel):
        raise InputError(
            f"{spec.name} learns nothing before it fits; expected a model that does, such as "
            "amortised-em, recurrent-em or rnn-em"
        )
    return model


def _drawer(suite: Suite) -> Draw:
    """Draws datasets of the suite, with all its sweeps, by seeds that no run has."""
    specs = [spec for entry in suite.datasets for spec in entry.specs()]
    if not specs:
        raise InputError("no data to learn from: the suite names no datasets")

    def draw(seed: np.random.SeedSequence, n: int) -> Iterator[Drawn]:
        rng = np.random.default_rng(seed)
        spec = specs[rng.integers(len(specs))]
        for one in map(int, rng.integers(FIRST_SEED, 2**63, size=n)):
            yield Drawn(spec, one, registry.make_dataset(spec.name, seed=one, **spec.params))

    return draw


def _pulled(training: Training, every: int) -> float:
    """Some updates, to the next judgement at most, and the CPU seconds that they took."""
    n = min(AT_A_TIME, every - training.done % every)
    with metered("cpu") as reading:
        for _ in range(n):
            if not training.is_finished:
                training.update()
    return reading.cpu_seconds


def _judged(training: Training, seconds: float) -> Progress:
    findings = dict(training.findings())
    if (predicted := training.predictions()) is not None:
        findings["AMI"] = mean_ami(*predicted)
    return Progress(training.done, training.n_updates, seconds, findings)


def _resumed(training: Training, plan: Mapping[str, Any], folder: Path) -> Session:
    """Bring the training to where the folder's has got."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot write to {folder}: {error.strerror}") from error
    if not (folder / STATE).exists():
        return Session(plan, 0.0, [])
    found = read(folder / STATE)
    if not isinstance(found, dict) or "plan" not in found:
        raise InputError(f"{folder / STATE}: expected the state of a training")
    if found["plan"] != plan:
        keys = [key for key in plan if found["plan"].get(key) != plan[key]]
        raise InputError(
            f"{folder} holds another training, of another {', '.join(keys)}; choose another --out"
        )
    training.resume(found["training"])
    return Session(plan, found["seconds"], [Progress(**moment) for moment in found["curve"]])


def _save(training: Training, session: Session, folder: Path) -> None:
    try:
        write({**asdict(session), "training": training.state()}, folder / STATE)
    except OSError as error:
        raise InputError(f"cannot write to {folder}: {error.strerror}") from error


def _finish(training: Training, session: Session, folder: Path) -> None:
    """Write the weights and what is known of them."""
    provenance = {
        **session.plan,
        **training.facts(),
        "cpu_seconds": session.seconds,
        **{_key(name): value for name, value in session.curve[-1].findings.items()},
        "environment": describe(),
    }
    training.save(weights_file(folder, session.plan["model"]), provenance)
    (folder / "provenance.json").write_text(json.dumps(provenance, indent=2) + "\n")


def _key(name: str) -> str:
    """What is found as a key: "held-out NLL" is held_out_nll."""
    return name.lower().replace("-", "_").replace(" ", "_")
