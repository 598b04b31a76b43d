"""A suite: what is to be run, as data (TOML), and changed from the command line or from Python."""

from __future__ import annotations

import itertools
import tomllib
from collections.abc import Iterable, Iterator, Sequence
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    FiniteFloat,
    NonNegativeInt,
    PositiveInt,
    ValidationError,
)

from embench import registry
from embench.types import COVARIANCE_ALIASES, InputError, Spec

SUITES = resources.files("embench.suites")

LONGEST = 10**7
"""The longest time limit [s], four months: clocks and timers know no infinity."""

Track = Literal["same-start", "budget", "default"]


Specs = str | Iterable[str | Spec]


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
