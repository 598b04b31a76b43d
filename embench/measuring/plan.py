"""From a suite to the list of trials, with every mistake found before anything is run."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
from sklearn.base import BaseEstimator
from sklearn.utils._param_validation import InvalidParameterError

from embench import registry
from embench.measuring.sizes import amount, family
from embench.measuring.suite import Entry, Suite, Track
from embench.types import (
    TASKS,
    InputError,
    IterativeModel,
    Spec,
    StartableModel,
    Trial,
    task_of,
)

T = TypeVar("T")


@dataclass(frozen=True)
class Plan:
    """The trials of a run in their order, and what was left out of it, in sentences."""

    trials: tuple[Trial, ...]
    left_out: tuple[str, ...] = ()


def plan(suite: Suite, *, elsewhere: bool = False) -> Plan:
    """Every trial of a suite, in random order: seed by seed, and in a seed dataset by dataset.

    The models of a dataset stay together, so that a drift of the machine hits all alike, each at a
    place drawn by lot. Every dataset is made once and every model built once, so that what cannot
    work is said now.

    Args:
        suite: What to run.
        elsewhere: It is run on other machines: what devices there are is not looked at.

    Raises:
        InputError: A name, a parameter or a combination of them cannot be run.
    """
    if not suite.datasets:
        raise InputError("no data to fit: name a --dataset, or a file of your own with --data")
    candidates = [
        _candidate(entry, spec, suite) for entry in suite.models for spec in entry.specs()
    ]
    datasets = [_checked_dataset(spec, candidates) for e in suite.datasets for spec in e.specs()]
    devices = {candidate: _device(candidate, suite, elsewhere) for candidate in candidates}
    rng = np.random.default_rng(suite.order_seed)
    trials = tuple(
        Trial(
            dataset=dataset.spec,
            model=candidate.spec,
            track=track,
            seed=seed,
            device=devices[candidate],
            dtype=candidate.spec.params.get("dtype", suite.dtype),
            threads=suite.threads,
            time_limit=suite.time_limit,
        )
        for seed in range(suite.seeds)
        for dataset in _dealt(datasets, rng)
        for track in suite.tracks
        for candidate in _shuffled(candidates, rng)
        if track in candidate.tracks and candidate.task == dataset.task
    )
    left_out = tuple(dict.fromkeys(_left_out(candidates, datasets)))
    if not trials:
        taken = ", ".join(sorted({t for entry in suite.models for t in entry.tracks or ()}))
        kept = f"models are kept to other tracks ({taken})"
        raise InputError(
            f"nothing to run in {', '.join(suite.tracks)}: {'; '.join(left_out) or kept}"
        )
    return Plan(tuple({trial.id: trial for trial in trials}.values()), left_out)


@dataclass(frozen=True, eq=False)
class _Checked:
    """A dataset of the suite, with its version, and its task."""

    spec: Spec
    task: str


@dataclass(frozen=True, eq=False)
class _Candidate:
    """A model of the suite: spec, all its parameters, task, and the tracks it can take or not."""

    spec: Spec
    params: Mapping[str, Any]
    task: str
    tracks: Sequence[Track]
    left_out: Sequence[Track]


def _candidate(entry: Entry, spec: Spec, suite: Suite) -> _Candidate:
    model = registry.make_model(spec.name, **spec.params)
    if isinstance(model, BaseEstimator) and hasattr(model, "_parameter_constraints"):
        try:
            model._validate_params()
        except InvalidParameterError as error:
            raise InputError(f"{spec.name}: {error}") from error
    _check_json(spec)
    startable = isinstance(model, StartableModel) and isinstance(model, IterativeModel)
    # The common start has the variance of the data, which a constant covariance has not.
    startable = startable and model.get_params().get("covariance_type") != "constant"
    wanted = [track for track in suite.tracks if track in (entry.tracks or suite.tracks)]
    return _Candidate(
        spec=replace(spec, version=registry.version("model", spec)),
        params=model.get_params(),
        task=task_of(model),
        tracks=[track for track in wanted if startable or track != "same-start"],
        left_out=[track for track in wanted if not startable and track == "same-start"],
    )


def _left_out(candidates: Iterable[_Candidate], datasets: Sequence[_Checked]) -> Iterator[str]:
    """What a reader of the suite might expect to be run and is not, and why."""
    for candidate in candidates:
        for track in candidate.left_out:
            yield f"{candidate.spec} is left out of {track}: it cannot begin at a given mixture"
        for task in TASKS if candidate.tracks else ():
            others = [str(dataset.spec) for dataset in datasets if dataset.task == task]
            if others and task != candidate.task:
                yield (
                    f"{candidate.spec} is left out on {', '.join(others)}: it is for "
                    f"{TASKS[candidate.task]}, and the task is {TASKS[task]}"
                )


def _checked_dataset(spec: Spec, candidates: Iterable[_Candidate]) -> _Checked:
    """The dataset with its version, after a look at what the models will find in it."""
    _check_json(spec)
    data = registry.make_dataset(spec.name, seed=0, **spec.params)
    for candidate in candidates:
        if candidate.task != data.task or "n_components" not in candidate.params:
            continue
        n_components = candidate.spec.params.get("n_components", data.n_components)
        if n_components is None:
            raise InputError(
                f"{spec}: nobody knows how many components to look for; say it with "
                "--n-components 2,3,5 or name a column of labels with --label"
            )
        if n_components > len(data.X_train) and data.task != "grouping":
            raise InputError(
                f"{candidate.spec} on {spec}: expected at least as many samples to fit on as "
                f"components, got {len(data.X_train)} samples and {n_components} components"
            )
    return _Checked(
        spec=replace(spec, version=registry.version("dataset", spec)),
        task=data.task,
    )


def _check_json(spec: Spec) -> None:
    """Parameters become part of the records, so they must be what JSON can say."""
    for name, value in spec.params.items():
        try:
            json.dumps(value)
        except TypeError:
            raise InputError(
                f"{spec.name}: {name}: expected a number, a text, a list of them or None, got "
                f"{type(value).__name__}: a record could not tell it"
            ) from None


def _shuffled(many: Sequence[T], rng: np.random.Generator) -> list[T]:
    return [many[place] for place in rng.permutation(len(many))]


def _dealt(datasets: Sequence[_Checked], rng: np.random.Generator) -> Iterator[_Checked]:
    """In random order, but in a sweep over sizes the smaller before the larger: where it fails,
    these need not be tried."""
    order = _shuffled(datasets, rng)
    smallest_first = sorted(order, key=lambda dataset: amount(dataset.spec))
    for place in order:
        same = [one for one in smallest_first if family(one.spec) == family(place.spec)]
        smallest_first.remove(same[0])
        yield same[0]


def _device(candidate: _Candidate, suite: Suite, elsewhere: bool) -> str:
    """ "cpu" or "cuda": the model's own parameter before the suite's, where it has a choice."""
    if "device" not in candidate.params:
        return "cpu"
    asked = candidate.spec.params.get("device", suite.device)
    return asked if elsewhere and asked != "auto" else resolved_device(asked)


def resolved_device(device: str) -> str:
    """ "cpu" or "cuda"; torch is only asked where a GPU is."""
    if device == "cpu":
        return device
    import torch

    if torch.cuda.is_available():
        return "cuda"
    if device == "auto":
        return "cpu"
    raise InputError("--device cuda: torch finds no CUDA device here; use --device cpu or auto")
