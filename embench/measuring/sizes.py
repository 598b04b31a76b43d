"""Trials that differ in nothing but the sizes of their data: a family, in order of size."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Mapping

from embench.types import Record, Spec, Trial

SIZES = ("n_samples", "n_features", "n_components", "n_train", "size")
"""Parameters of datasets and models that make a fit larger."""

HOPELESS = ("timeout", "out-of-memory")
"""Statuses that a larger trial of the family would end in, too."""


def family(spec: Spec) -> Hashable:
    """What a dataset or a model is but for its sizes.

    >>> family(Spec("blobs", {"n_samples": 10})) == family(Spec("blobs", {"n_samples": 20}))
    True
    """
    others = {key: value for key, value in spec.params.items() if not _is_size(key, value)}
    return spec.name, spec.version, str(sorted(others.items()))


def trial_family(trial: Trial) -> Hashable:
    """What a trial is but for sizes, seed and time limit."""
    settings = (trial.track, trial.device, trial.dtype, trial.threads)
    return family(trial.dataset), family(trial.model), settings


def asked_sizes(*specs: Spec) -> dict[str, float]:
    """The sizes in the parameters of a dataset, or of a dataset and a model.

    >>> asked_sizes(Spec("blobs", {"n_samples": 10, "separation": 2}), Spec("em"))
    {'0 n_samples': 10}
    """
    return {
        f"{place} {key}": value
        for place, spec in enumerate(specs)
        for key, value in spec.params.items()
        if _is_size(key, value)
    }


def amount(spec: Spec) -> float:
    """The product of all sizes asked for."""
    return math.prod(asked_sizes(spec).values())


def is_smaller(one: Mapping[str, float], other: Mapping[str, float]) -> bool:
    """Whether sizes are the same sizes, none larger and one at least smaller.

    >>> is_smaller({"n": 1, "d": 2}, {"n": 1, "d": 3}), is_smaller({"n": 1}, {"n": 1, "d": 3})
    (True, False)
    """
    return one.keys() == other.keys() and one != other and all(one[k] <= other[k] for k in one)


class Hopeless:
    """Knows which trials are not worth trying, by the records so far."""

    def __init__(self, records: Iterable[Record] = ()) -> None:
        self._failed: dict[Hashable, list[Record]] = {}
        self._finished: set[Hashable] = set()
        for record in records:
            self.learn(record)

    def learn(self, record: Record) -> None:
        if record.status == "ok":
            self._finished.add(_cell(record.trial))
        elif record.status in HOPELESS:
            self._failed.setdefault(trial_family(record.trial), []).append(record)

    def why(self, trial: Trial) -> str:
        """The sentence that says which smaller trial failed, empty if none has.

        One that failed under a shorter time limit, or at another seed of a cell that has finished,
        says nothing.
        """
        own = asked_sizes(trial.dataset, trial.model)
        for record in self._failed.get(trial_family(trial), ()):
            smaller = record.trial
            said = is_smaller(asked_sizes(smaller.dataset, smaller.model), own)
            longer = trial.time_limit > smaller.time_limit and record.status == "timeout"
            if said and not longer and _cell(smaller) not in self._finished:
                ended = "timed out" if record.status == "timeout" else "ran out of memory"
                return f"not run: a smaller one {ended} ({smaller.id})"
        return ""


def _cell(trial: Trial) -> Hashable:
    """What is repeated over seeds."""
    sizes = asked_sizes(trial.dataset, trial.model)
    return trial_family(trial), tuple(sorted(sizes.items()))


def _is_size(key: str, value: object) -> bool:
    return key in SIZES and isinstance(value, int | float) and not isinstance(value, bool)
