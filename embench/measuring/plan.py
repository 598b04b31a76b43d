"""From a suite (TOML) to the list of trials, with every mistake found before anything is run."""

from __future__ import annotations

import itertools
import json
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import numpy as np
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    FiniteFloat,
    NonNegativeInt,
    PositiveInt,
    ValidationError,
)
from sklearn.base import BaseEstimator
from sklearn.utils._param_validation import InvalidParameterError

from embench import registry
from embench.measuring.sizes import amount, family
from embench.types import (
    COVARIANCE_ALIASES,
    TASKS,
    InputError,
    IterativeModel,
    Spec,
    StartableModel,
    Trial,
    task_of,
)

SUITES = resources.files("embench.suites")

LONGEST = 10**7
"""The longest time limit [s], four months: clocks and timers know no infinity."""

Track = Literal["same-start", "budget", "default"]


Specs = str | Iterable[str | Spec]
T = TypeVar("T")


class Entry(BaseModel):
    """A model or dataset of a suite; every further key is a parameter, a list is a sweep."""

    model_config = ConfigDict(extra="allow")

    name: str
    tracks: list[Track] | None = None

    def specs(self) -> Iterator[Spec]:
        """One spec per combination of the swept values."""
        params = self.model_extra or {}
        values = [value if isinstance(value, list) else [value] for value in params.values()]
        for name, swept in params.items():
            if swept == []:
                raise InputError(f"{self.name}: {name}: expected at least one value, got []")
        for combination in itertools.product(*values):
            chosen = dict(zip(params, combination, strict=True))
            family = chosen.get("covariance_type")
            if isinstance(family, str):  # an alias, also where a library does not know it
                chosen["covariance_type"] = COVARIANCE_ALIASES.get(family, family)
            yield Spec(self.name, chosen)


class Suite(BaseModel):
    """What to run. A sweep is data: see the files in ``embench/suites``.

    ``time_limit`` [s] is the budget of a fit on the budget track and cuts it on the others;
    ``order_seed`` decides the order of the trials, which is random.
    """

    model_config = ConfigDict(extra="forbid")

    description: str = ""
    datasets: list[Entry] = Field(default_factory=list)
    models: list[Entry]
    tracks: list[Track] = ["same-start"]
    seeds: PositiveInt = 3
    device: Literal["cpu", "cuda", "auto"] = "cpu"
    dtype: Literal["float64", "float32"] = "float64"
    threads: PositiveInt = 1
    time_limit: Annotated[FiniteFloat, Field(gt=0, le=LONGEST)] = 60.0
    order_seed: NonNegativeInt = 0


@dataclass(frozen=True)
class Plan:
    """The trials of a run in their order, and what was left out of it, in sentences."""

    trials: tuple[Trial, ...]
    left_out: tuple[str, ...] = ()


def suites() -> dict[str, str]:
    """The suites shipped with embench and what each is for."""
    return {name: load_suite(name).description for name in _shipped()}


def load_suite(name: str | Path) -> Suite:
    """A shipped suite by name, or one of your own by the path of its TOML file.

    Raises:
        InputError: There is no such suite, or the file says something that a suite cannot.
    """
    text = _suite_text(name)
    try:
        return Suite.model_validate(tomllib.loads(text))
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"{name}: not TOML: {error}") from error
    except ValidationError as error:
        raise InputError(f"{name}: {_first_mistake(error)}") from error


def customised(
    suite: Suite,
    *,
    models: Specs | None = None,
    datasets: Specs | None = None,
    n_components: Sequence[int] | None = None,
    tracks: str | Sequence[str] | None = None,
    **changes: Any,
) -> Suite:
    """The suite with some of its fields replaced; those that are None stay.

    Args:
        suite: What to start from.
        models, datasets: Specs, or texts of the command line like "em,spec-em:max_iter=9".
        n_components: Counts that every model with components is to try, whatever the datasets say.
        tracks: One, or several, also as a text with commas.
        **changes: Other fields of `Suite`.

    Raises:
        InputError: A value is not one that a suite can have.

    Example:
        >>> [entry.name for entry in customised(load_suite("quick"), models="em,spec-em").models]
        ['em', 'spec-em']
    """
    if isinstance(tracks, str):
        tracks = tracks.split(",")
    changes |= {"models": _entries(models), "datasets": _entries(datasets), "tracks": tracks}
    fields = suite.model_dump(exclude_unset=True)
    fields |= {key: value for key, value in changes.items() if value is not None}
    if n_components is not None:
        own = {"n_components": list(dict.fromkeys(n_components))}
        fields["models"] = [
            {**model, **own}
            if "n_components" in registry.parameters("model", model["name"])
            else model
            for model in fields["models"]
        ]
    try:
        return Suite.model_validate(fields)
    except ValidationError as error:
        raise InputError(_first_mistake(error)) from error


def _entries(specs: Specs | None) -> list[dict[str, Any]] | None:
    if specs is None:
        return None
    found: list[Spec] = []
    for item in [specs] if isinstance(specs, str) else specs:
        found += Spec.parse(item) if isinstance(item, str) else [item]
    return [{"name": spec.name, **spec.params} for spec in found]


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


def _suite_text(name: str | Path) -> str:
    if str(name).endswith(".toml"):
        try:
            return Path(name).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"cannot read the suite {name}: {error}") from error
    if name not in _shipped():
        raise registry.unknown("suite", str(name), _shipped())
    return (SUITES / f"{name}.toml").read_text(encoding="utf-8")


def _shipped() -> list[str]:
    """Names of the suites in the package."""
    files = (Path(file.name) for file in SUITES.iterdir())
    return sorted(file.stem for file in files if file.suffix == ".toml")


def _first_mistake(error: ValidationError) -> str:
    """The first thing pydantic found wrong, as one line with the key, the rule and the value."""
    first = error.errors()[0]
    where = ".".join(map(str, first["loc"]))
    if first["type"] == "extra_forbidden":
        return str(registry.unknown("key of a suite", where, Suite.model_fields))
    return f"{where}: {first['msg']}, got {first['input']!r}"
