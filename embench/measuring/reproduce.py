"""Run a trial again that a record tells of, with what its model and its data are now."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from embench import registry
from embench.measuring.execution import Execution
from embench.measuring.executors import pool
from embench.measuring.plan import resolved_device
from embench.types import Record, Spec, Trial


def again(record: Record, how: Execution | None = None) -> tuple[Record, list[str]]:
    """Run the trial of a record once more, and nothing is written.

    Args:
        record: What is to be reproduced.
        how: Where and how apart; by default in a process of its own.

    Returns:
        The new record, and in sentences what is not what it was then: versions of the model and of
        the data, machine and libraries.

    Raises:
        InputError: The model, the dataset or the device is not here any more.
    """
    trial = replace(
        record.trial,
        dataset=_as_of_now("dataset", record.trial.dataset),
        model=_as_of_now("model", record.trial.model),
    )
    resolved_device(trial.device)
    how = how or Execution()
    with pool([trial], how) as workers:
        future = workers.submit(trial)
        new = workers.record(future, trial)
    return new, [*_other_versions(record.trial, trial), *_other_surroundings(record, new)]


def _as_of_now(kind: str, spec: Spec) -> Spec:
    return replace(spec, version=registry.version(kind, spec))


def _other_versions(before: Trial, now: Trial) -> Sequence[str]:
    """What has another version than then, of model and data."""
    pairs = {"model": (before.model, now.model), "dataset": (before.dataset, now.dataset)}
    return [
        f"{kind} {new}: version {old.version} then, {new.version} now"
        for kind, (old, new) in pairs.items()
        if old.version != new.version
    ]


def _other_surroundings(before: Record, now: Record) -> Sequence[str]:
    """What the environments do not agree in."""
    keys = dict.fromkeys([*before.environment, *now.environment])
    return [
        f"{key}: {before.environment[key]} then, {now.environment[key]} now"
        for key in keys
        if key in before.environment
        and key in now.environment
        and before.environment[key] != now.environment[key]
    ]
