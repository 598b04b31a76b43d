"""The nouns of embench: change this file first, the rest follows.

Every value here is frozen, printable and free of behaviour beyond reading and writing itself.
Data flow one way: a suite becomes trials, a trial becomes a record, records become a comparison.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from functools import cache, cached_property
from pathlib import Path, PurePath
from typing import Any, NamedTuple, Protocol, Self, runtime_checkable

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]

SCHEMA = 2
"""Number of the record format; raised when a reader of old records would misread new ones."""

READABLE = (1, 2)
"""Formats that are read; what the older one does not say has its default."""

TRACKS: Mapping[str, str] = {
    "same-start": "every model begins at the identical mixture",
    "budget": "every model has its own start, billed, and the same number of seconds",
    "default": "every model as its own user would call it",
}

TASKS: Mapping[str, str] = {
    "density": "a density of X",
    "conditional": "a density of Y given X",
    "grouping": "groups of the pixels of images",
}
"""What a dataset asks for and a model offers, each one of these."""

STATUSES: Mapping[str, str] = {
    "ok": "finished and judged",
    "diverged": "finished, but the judge finds no finite likelihood",
    "timeout": "cut off by the clock",
    "out-of-memory": "ran out of memory",
    "crashed": "the process died",
    "error": "the model or the dataset raised an error",
    "pruned": "not run, because a smaller one timed out or ran out of memory",
}

GRADES: Mapping[str, str] = {
    "timing": "it had its cores for itself: its seconds count",
    "quality": "it may have shared its cores: its seconds are not compared",
}

OWN_SCORE = "its NLL is by its own score"
"""What the message of a record says where the judge had to take a model's word."""

COVARIANCE_TYPES = ("full", "tied", "diag", "spherical", "tied_spherical", "constant")
"""Families of covariances."""

COVARIANCE_ALIASES: Mapping[str, str] = {
    "diagonal": "diag",
    "isotropic": "spherical",
    "shared_isotropic": "tied_spherical",
}
"""Other names of families, as gradient descent in PyTorch has them."""


_SORTED = json.JSONEncoder(sort_keys=True)


class InputError(ValueError):
    """What a user asked for cannot be done; the message says what was expected and what came."""


@dataclass(frozen=True)
class Spec:
    """A dataset or a model by name, with the parameters that differ from its defaults.

    ``version`` is the version of the code (or of the file) behind the name.

    >>> str(Spec("blobs", {"n_features": 8, "n_components": 16}))
    'blobs:n_features=8,n_components=16'
    """

    name: str
    params: Mapping[str, Any] = field(default_factory=dict)
    version: str = ""

    def __str__(self) -> str:
        """The text that the command line takes; a file goes by its name without its folder."""
        name = PurePath(self.name).name
        params = ",".join(f"{key}={_text(value)}" for key, value in self.params.items())
        return f"{name}:{params}" if params else name

    @classmethod
    def parse(cls, text: str) -> list[Self]:
        """Read the text of the command line: names, each with parameters, all parted by commas.

        A piece with a ``=`` belongs to the name before it. Values are read as JSON where they
        are JSON (numbers, true, null) and as words where they are not.

        >>> [str(spec) for spec in Spec.parse("em:tol=0,n_init=2,spec-em")]
        ['em:tol=0,n_init=2', 'spec-em']
        """
        found: list[tuple[str, dict[str, Any]]] = []
        for piece in text.split(","):
            left, equals, value = piece.strip().partition("=")
            name, colon, key = left.rpartition(":") if equals else (left, ":", "")
            if colon:
                found.append((name, {}))
            if equals and (not found or not key):
                raise InputError(f"expected NAME:PARAMETER=VALUE,..., got {text!r}")
            if equals:
                found[-1][1][key] = _value(value)
        if not found or not all(name.strip(":") == name != "" for name, _ in found):
            raise InputError(f"expected a name, got {text!r}")
        return [cls(name, params) for name, params in found]


@dataclass(frozen=True)
class Mixture:
    """A Gaussian mixture in float64: what a model hands to the judge.

    Shapes: ``weights`` (n_components,), sum 1; ``means`` (n_components, n_features) [u];
    ``covariances`` (n_components, n_features, n_features) [u^2], symmetric positive definite.
    """

    weights: FloatArray
    means: FloatArray
    covariances: FloatArray

    @property
    def n_components(self) -> int:
        return self.means.shape[0]

    @property
    def n_features(self) -> int:
        return self.means.shape[1]


@dataclass(frozen=True)
class ConditionalMixture:
    """One Gaussian mixture of the targets for each sample, in float64: p(y|x) for the judge.

    Shapes: ``weights`` (n_samples, n_components), rows sum to 1; ``means`` (n_samples,
    n_components, n_targets) [u]; ``covariances`` (n_samples, n_components, n_targets, n_targets)
    [u^2], symmetric positive definite.
    """

    weights: FloatArray
    means: FloatArray
    covariances: FloatArray


@dataclass(frozen=True)
class Dataset:
    """Data to fit on and data to be judged on. Models see the training samples only.

    Shapes: ``X_train`` and ``X_test`` (n_samples, n_features) [u]; labels (n_samples,), where -1
    marks a sample that belongs to no component and is left out of label metrics. ``n_components``
    is None where nobody knows how many to look for: the models have to be told. ``n_table`` is the
    number of rows of the table that every seed splits anew, None where each seed draws new data.

    ``Y_train`` and ``Y_test`` (n_samples, n_targets) are None where there is nothing to be
    predicted from X; with them the task is the density p(Y|X), for conditional models.
    ``true_log_likelihood`` is the mean log-density [nat] of what is held out, given X if there are
    targets, under the law that it was drawn from, where that law is no ``truth`` as a mixture.

    With an ``image_shape`` (height, width) the task is to group pixels: X is images (n_images,
    n_pixels), rows of pixels joined, or sequences of them (n_sequences, n_steps, n_pixels), and
    ``y_test``, of the same shape, has a group for every pixel: -1 for those of the ground and those
    under several objects. The latter are in the mask ``overlap_test``, and in ``y_top_test`` they
    belong to the object drawn last; either is None where nobody knows.
    """

    X_train: FloatArray
    X_test: FloatArray
    n_components: int | None
    y_train: IntArray | None = None
    y_test: IntArray | None = None
    truth: Mixture | None = None
    n_table: int | None = None
    Y_train: FloatArray | None = None
    Y_test: FloatArray | None = None
    true_log_likelihood: float | None = None
    image_shape: tuple[int, int] | None = None
    overlap_test: BoolArray | None = None
    y_top_test: IntArray | None = None

    @property
    def task(self) -> str:
        """What is asked for, one of `TASKS`."""
        if self.image_shape is not None:
            return "grouping"
        return "density" if self.Y_train is None else "conditional"

    @property
    def train(self) -> tuple[FloatArray, ...]:
        """What a model is fitted to: (X_train,), or (X_train, Y_train) if there are targets."""
        return (self.X_train,) if self.Y_train is None else (self.X_train, self.Y_train)

    @property
    def test(self) -> tuple[FloatArray, ...]:
        """What it is judged on: (X_test,), or (X_test, Y_test) if there are targets."""
        return (self.X_test,) if self.Y_test is None else (self.X_test, self.Y_test)


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One model on one dataset under one track, device, dtype, thread count and seed."""

    dataset: Spec
    model: Spec
    track: str
    seed: int
    device: str = "cpu"
    dtype: str = "float64"
    threads: int = 1
    time_limit: float = 60.0

    @cached_property
    def id(self) -> str:
        """Readable name ending in a digest of every field, versions included."""
        specs = {"dataset": vars(self.dataset), "model": vars(self.model)}
        text = _SORTED.encode({**vars(self), **specs})
        digest = hashlib.sha256(text.encode()).hexdigest()[:8]
        return f"{_words(self.model.name, self.dataset.name, self.track)}-s{self.seed}-{digest}"

    @classmethod
    def from_json(cls, fields: Mapping[str, Any], id: str | None = None) -> Self:
        """The inverse of ``dataclasses.asdict``; an id that is known is not computed anew."""
        specs = {key: Spec(**fields[key]) for key in ("dataset", "model")}
        trial = cls(**{**fields, **specs})
        if id is not None:
            vars(trial)["id"] = id
        return trial


@dataclass(frozen=True, kw_only=True)
class Record:
    """What one trial gave: a status, the metrics that exist, and where it was measured.

    ``curve`` holds (seconds, n_iter, held-out NLL [nat]) at selected iterations. ``sizes`` are
    those of the data: n_samples, n_features, n_components, n_test, n_targets where there are
    targets, n_steps where samples are sequences, and n_table where seeds split one table. A metric
    that does not exist (AMI without labels, GPU memory without a GPU) is absent, never NaN.

    ``fits`` are (seconds, CPU seconds) of every timed fit, ``trial_seconds`` those of the whole
    trial with data, warm-up, judgement and curve, ``ended`` is when, in UTC. ``grade`` is one of
    `GRADES`. ``noise`` is what the kernel saw of others meanwhile, and ``disturbed`` says what of
    it makes the seconds doubtful, if anything.
    """

    trial: Trial
    status: str
    metrics: Mapping[str, float] = field(default_factory=dict)
    curve: tuple[tuple[float, int, float], ...] = ()
    sizes: Mapping[str, int] = field(default_factory=dict)
    message: str = ""
    fits: tuple[tuple[float, float], ...] = ()
    trial_seconds: float | None = None
    grade: str = "timing"
    noise: Mapping[str, float] = field(default_factory=dict)
    disturbed: str = ""
    ended: str = ""
    environment: Mapping[str, Any] = field(default_factory=dict)
    schema: int = SCHEMA

    def to_json(self) -> dict[str, Any]:
        return {"schema": self.schema, "id": self.trial.id, **asdict(self)}

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Self:
        """The inverse of ``to_json``.

        Raises:
            ValueError: The record was written in another schema.
        """
        check_schema(fields)
        own = {key: value for key, value in fields.items() if key != "id"}
        own["trial"] = Trial.from_json(fields["trial"], fields.get("id"))
        own["curve"] = tuple((seconds, n_iter, nll) for seconds, n_iter, nll in fields["curve"])
        own["fits"] = tuple((seconds, cpu) for seconds, cpu in fields.get("fits", ()))
        return cls(**{**own, "schema": SCHEMA})


@dataclass(frozen=True, kw_only=True)
class Reference:
    """The lowest held-out NLL [nat] at which a fit to certain data is known to have ended.

    The data are told by the text and the version of the dataset, the seed, and the numbers of
    samples to fit on and held out; the fit by the text of its model, its trial, when it ended (in
    UTC, empty where nobody wrote it down) and the commit of embench that measured it.
    """

    dataset: str
    version: str
    seed: int
    n_samples: int
    n_test: int
    nll: float
    model: str
    trial: str
    ended: str = ""
    commit: str = ""

    @property
    def data(self) -> tuple[str, str, int, int, int]:
        """What tells the data."""
        return self.dataset, self.version, self.seed, self.n_samples, self.n_test


def check_schema(fields: Mapping[str, Any]) -> None:
    """Raise a ValueError where a record was written in another schema than those that we read."""
    if fields["schema"] not in READABLE:
        raise ValueError(f"expected schema {SCHEMA}, got schema {fields['schema']}")


@runtime_checkable
class Model(Protocol):
    """What every plug-in offers: a scikit-learn estimator.

    Methods take X alone, or X and Y where the model is a `ConditionalModel`.
    """

    def fit(self, X: FloatArray, *Y: FloatArray) -> Self: ...

    def predict(self, X: FloatArray) -> NDArray[Any]:
        """Most probable component of each sample, (n_samples,), or a prediction of its targets.

        Of a `Grouper`: the group of each pixel, in the shape of X.
        """
        ...

    def get_params(self, deep: bool = True) -> dict[str, Any]: ...

    def set_params(self, **params: Any) -> Self: ...


@runtime_checkable
class ScoredModel(Protocol):
    """A model with a likelihood, as all are but those that only group."""

    def score(self, X: FloatArray, *Y: FloatArray) -> float:
        """Mean log-likelihood per sample [nat]; of a `Grouper` per image."""
        ...


@runtime_checkable
class IterativeModel(Protocol):
    """A model whose fit can be watched and cut: the harness pulls, so it owns the clock."""

    def iter_fit(self, X: FloatArray, *Y: FloatArray) -> Iterator[int]:
        """Yield 0 at the start and n_iter after each iteration; usable at every yield."""
        ...


@runtime_checkable
class MixtureModel(Protocol):
    """A fitted model that is a Gaussian mixture."""

    @property
    def mixture_(self) -> Mixture: ...


@runtime_checkable
class ConditionalModel(Protocol):
    """A model of p(Y|X), a Gaussian mixture of the targets for each sample: `fit(X, Y)`."""

    def conditional_mixture(self, X: FloatArray) -> ConditionalMixture:
        """What the fitted model says of the targets of each sample."""
        ...


@runtime_checkable
class Grouper(Protocol):
    """A model of images that says which pixels belong together; a likelihood it may lack.

    X is images (n_images, n_pixels) or sequences of them (n_sequences, n_steps, n_pixels). Those
    that need height and width have a parameter ``image_shape``.
    """

    def group_proba(self, X: FloatArray) -> FloatArray:
        """Probability of each group for each pixel, (..., n_pixels, n_components), sums 1."""
        ...


@runtime_checkable
class SteppedGrouper(Protocol):
    """A grouper whose groups can be watched on their way."""

    def em_steps(
        self, X: FloatArray, n_steps: int | None = None
    ) -> Iterator[tuple[FloatArray, FloatArray]]:
        """What each group predicts, and its probability, after each step.

        Both (n_images, n_pixels, n_components); None for as many steps as ``predict`` takes.
        """
        ...


@runtime_checkable
class PretrainedModel(Protocol):
    """A model that learned before any fit what it knows of data in general."""

    @property
    def training_seconds(self) -> float:
        """What that took, once [s]."""
        ...


@runtime_checkable
class StartableModel(Protocol):
    """A model that can begin at a given mixture, exactly."""

    def start_from(self, start: Mixture) -> Self:
        """Set the constructor's parameters so that the next fit begins at ``start``."""
        ...


class Drawn(NamedTuple):
    """A dataset that was drawn to be learned from, with what it was asked for by."""

    spec: Spec
    seed: int
    data: Dataset


Draw = Callable[[np.random.SeedSequence, int], Iterator[Drawn]]
"""So many datasets of one spec, which the seed chooses, too, each made when it is asked for; of
seeds that no run has, which makes them new wherever seeds make data."""


class Training(Protocol):
    """Learning before all fits: the harness pulls, saves and resumes, so it owns the clock."""

    @property
    def done(self) -> int:
        """Updates done."""
        ...

    @property
    def n_updates(self) -> int:
        """Updates in all, at most."""
        ...

    @property
    def is_finished(self) -> bool: ...

    def update(self) -> None:
        """Learn once more."""
        ...

    def state(self) -> dict[str, Any]:
        """All that the next update depends on: tensors and plain values."""
        ...

    def resume(self, state: Mapping[str, Any]) -> None:
        """Go on from a `state`, as if there had been no break."""
        ...

    def findings(self) -> Mapping[str, float]:
        """How good it is so far on data that it does not learn from, by name."""
        ...

    def facts(self) -> Mapping[str, Any]:
        """What else is to be known of it, beside what was asked for."""
        ...

    def predictions(self) -> tuple[IntArray, IntArray] | None:
        """True groups of such data and those it predicts, for the judge; None if there are none."""
        ...

    def save(self, path: Path, provenance: Mapping[str, Any]) -> None:
        """Write what was learned, and where it comes from."""
        ...


@runtime_checkable
class TrainableModel(Protocol):
    """A model that can learn before any fit, from data drawn for that: `embench train`."""

    @property
    def training_suite(self) -> str:
        """Name of the suite whose datasets it learns from where nobody says."""
        ...

    def training(
        self, draw: Draw, seed: int, n_updates: int | None, batch_size: int | None
    ) -> Training:
        """A training at its beginning; what is None is the model's to choose."""
        ...


def task_of(model: Model) -> str:
    """What a model is for, one of `TASKS`, by the method that only such models have."""
    if isinstance(model, Grouper):
        return "grouping"
    return "conditional" if isinstance(model, ConditionalModel) else "density"


def printable(text: str) -> str:
    """A text as UTF-8 can say it: of a file's name that is none, the odd bytes are escaped.

    >>> printable("caf\\udce9.csv")
    'caf\\\\udce9.csv'
    """
    return text.encode(errors="backslashreplace").decode()


@cache  # the names of a run are few, its trials many
def _words(model: str, dataset: str, track: str) -> str:
    """Names joined, fit for a file's name."""
    words = (model, PurePath(dataset).stem, track)
    return "-".join(re.sub(r"[^A-Za-z0-9.]+", "-", word) for word in words)


def _value(text: str) -> Any:
    """A parameter's value as JSON where it is JSON, else as the word it is."""
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


def _text(value: Any) -> str:
    """A parameter's value as the command line writes it."""
    return value if isinstance(value, str) else json.dumps(value)
