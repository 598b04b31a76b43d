"""What the author of a model runs first: the laws that every player keeps, one function each.

scikit-learn's own ``check_estimator`` looks at the estimator; these look at the player: is its
score the judge's, does it end where its steps end, does it begin where it is told to?
"""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from sklearn.base import clone
from sklearn.utils import get_tags

from embench import gaussian, registry
from embench.types import (
    ConditionalModel,
    Dataset,
    FloatArray,
    Grouper,
    InputError,
    IterativeModel,
    Mixture,
    MixtureModel,
    Model,
    ScoredModel,
    Spec,
    StartableModel,
    task_of,
)

DATA: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "density": ("blobs", {"n_samples": 200, "n_components": 3}),
    "conditional": ("inverse-sine", {"n_samples": 200, "n_components": 3}),
    "grouping": ("shapes", {"n_train": 50, "n_test": 20, "size": 20, "n_shapes": 3}),
}
"""What a model of each task is fitted to."""


@dataclass(frozen=True)
class Finding:
    """One law and what became of it: ``broken`` says how, ``skipped`` why it does not apply."""

    law: str
    broken: str = ""
    skipped: str = ""


class NotApplicable(Exception):
    """The model does not claim the ability that a law is about."""


def check_model(spec: Spec) -> Iterator[Finding]:
    """Hold a model against every law, on small data with known truth.

    A `ConditionalModel` is fitted to X and Y of the dataset inverse-sine, a `Grouper` to images.

    Args:
        spec: The model and its parameters; ``n_components`` is 3 unless said.

    Raises:
        InputError: The model or a parameter is unknown.

    Example:
        >>> {finding.broken for finding in check_model(Spec("sklearn-em"))}
        {''}
    """
    model = registry.make_model(spec.name, **spec.params)
    dataset, params = DATA[task_of(model)]
    data = registry.make_dataset(dataset, seed=0, **params)
    defaults = {"n_components": 3, "random_state": 0}
    known = model.get_params()
    asked = {k: v for k, v in defaults.items() if k in known and k not in spec.params}
    model.set_params(**asked)
    for law in LAWS:
        sentence = _sentence(law)
        try:
            law(clone(model), data)
        except NotApplicable as reason:
            yield Finding(sentence, skipped=str(reason))
        except Exception as error:
            yield Finding(sentence, broken=str(error) or type(error).__name__)
        else:
            yield Finding(sentence)


def checked_apart(text: str, seconds: float = 300.0) -> list[Finding]:
    """`check_model` in a process of its own: a model may end it, hang it or print as it likes.

    Args:
        text: The model as the command line writes it.
        seconds: How long all laws together may take.

    Raises:
        InputError: This is not one model, or it is unknown.
    """
    if len(Spec.parse(text)) != 1:
        raise InputError(f"expected one model, got {text!r}")
    [spec] = Spec.parse(text)
    registry.make_model(spec.name, **spec.params)  # what is wrong with the name is said here
    with tempfile.TemporaryFile("w+") as findings:
        command = [sys.executable, "-P", "-m", "embench.checks", text, str(findings.fileno())]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        try:
            done = subprocess.run(
                command,
                pass_fds=[findings.fileno()],
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env=environment,
                timeout=seconds,
            )
            end = f"the model ended the process (exit code {done.returncode})"
        except subprocess.TimeoutExpired:
            end = f"no end within {seconds:g} s"
        findings.seek(0)
        found = [Finding(**json.loads(line)) for line in findings]
    if len(found) < len(LAWS):
        found.append(Finding(_sentence(LAWS[len(found)]), broken=end))
    return found


def has_a_line_for_the_list(model: Model, data: Dataset) -> None:
    """Its docstring begins with a line that can stand in a list."""
    line = (type(model).__doc__ or "").partition("\n")[0]
    _expect(0 < len(line) <= 100, f"expected a first line of 1 to 100 characters, got {line!r}")


def fits_and_leaves_the_data_alone(model: Model, data: Dataset) -> None:
    """`fit` returns the model itself and does not write to X or Y."""
    samples = [part.copy() for part in data.train]
    _expect(model.fit(*samples) is model, "fit did not return the model itself")
    for name, found, given in zip("XY", samples, data.train, strict=False):
        _expect(np.array_equal(found, given), f"fit changed {name}")


def is_repeatable(model: Model, data: Dataset) -> None:
    """Two fits with one random_state end at the same score, and global seeds stay as they are."""
    before = _global_random_state()
    first, second = (_quality(clone(model).fit(*data.train), data) for _ in range(2))
    _expect(first == second, f"two fits scored {first!r} and {second!r}")
    _expect(before == _global_random_state(), "fit drew from NumPy's global random state")


def survives_pickling(model: Model, data: Dataset) -> None:
    """A pickled copy of the fitted model scores the same."""
    copy = pickle.loads(pickle.dumps(model.fit(*data.train)))
    _expect(_quality(copy, data) == _quality(model, data), "the copy scores differently")


def predicts_components(model: Model, data: Dataset) -> None:
    """`predict` gives every sample, or every pixel of an image, a component's number."""
    if isinstance(model, ConditionalModel):
        raise NotApplicable("it predicts targets")
    labels = np.asarray(model.fit(*data.train).predict(data.X_test))
    expected = data.X_test.shape[: 2 if isinstance(model, Grouper) else 1]
    _expect(labels.shape == expected, f"got labels of shape {labels.shape}")
    highest = model.get_params().get("n_components", labels.max() + 1)
    _expect(
        labels.dtype.kind in "iu" and labels.min() >= 0 and labels.max() < highest,
        f"expected integers in [0, {highest}), got {np.unique(labels)}",
    )


def predicts_the_most_probable_group(model: Model, data: Dataset) -> None:
    """`group_proba` of each pixel sums to 1, and is largest for the group that is predicted."""
    if not isinstance(model, Grouper):
        raise NotApplicable("it groups no pixels")
    labels = np.asarray(model.fit(*data.train).predict(data.X_test))
    proba = model.group_proba(data.X_test)
    _expect(proba.shape[:-1] == labels.shape, f"got probabilities of shape {proba.shape}")
    _expect(np.allclose(proba.sum(axis=-1), 1, atol=1e-6), "probabilities do not sum to 1")
    of_labels = np.take_along_axis(proba, labels[..., None], axis=-1)[..., 0]
    _expect(np.array_equal(of_labels, proba.max(axis=-1)), "another group is more probable")


def scores_as_the_judge_does(model: Model, data: Dataset) -> None:
    """`score` is the judge's mean log-likelihood of `mixture_`, or of `conditional_mixture(X)`."""
    model.fit(*data.train)
    if isinstance(model, ConditionalModel):
        assert data.Y_test is not None
        mixtures = model.conditional_mixture(data.X_test)
        gaussian.check(mixtures)
        judged = gaussian.conditional_log_likelihood(mixtures, data.Y_test)
    elif isinstance(model, MixtureModel):
        judged = gaussian.log_likelihood(model.mixture_, data.X_test)
    else:
        raise NotApplicable("it has no mixture_")
    _same(model, _score(model, data.test), judged)


def steps_to_where_it_fits(model: Model, data: Dataset) -> None:
    """`iter_fit` counts 0, 1, 2 ... and ends where `fit` ends."""
    if not isinstance(model, IterativeModel):
        raise NotApplicable("it has no iter_fit")
    if not isinstance(model, ScoredModel):
        raise NotApplicable("it has no score")
    counts = list(model.iter_fit(*data.train))
    _expect(counts == list(range(len(counts))), f"expected 0, 1, 2 ..., got {counts[:5]} ...")
    fitted = clone(model).fit(*data.train)
    _same(model, _score(model, data.test), _score(fitted, data.test))


def begins_where_it_is_told(model: Model, data: Dataset) -> None:
    """After `start_from(mixture)` the first yield of `iter_fit` is at that mixture."""
    if not (isinstance(model, StartableModel) and isinstance(model, IterativeModel)):
        raise NotApplicable("it has no start_from and iter_fit")
    assert data.truth
    K, D = data.truth.means.shape
    unit = np.repeat(np.eye(D)[None], K, 0)
    start = Mixture(np.full(K, 1 / K), data.truth.means + 0.3, 2 * unit)
    try:
        model.start_from(start)
    except ValueError:  # of a family in which nothing is learned about covariances
        start = Mixture(start.weights, start.means, unit)
        model.start_from(start)
    next(iter(model.iter_fit(data.X_train)))
    _same(model, _score(model, (data.X_train,)), gaussian.log_likelihood(start, data.X_train))


def refuses_what_is_no_data(model: Model, data: Dataset) -> None:
    """NaN, one-dimensional data, and Y with fewer rows than X are a ValueError."""
    X, *Y = data.train
    broken = X.copy()
    broken[3, -1] = np.nan
    wrong = {"one dimension": (X[:, 0], *Y), "NaN": (broken, *Y)}
    if Y:
        wrong["fewer rows of Y than of X"] = X, Y[0][1:]
    if get_tags(model).input_tags.allow_nan:
        del wrong["NaN"]  # to this model it is a missing value
    for what, samples in wrong.items():
        try:
            clone(model).fit(*samples)
        except ValueError:
            continue
        raise AssertionError(f"{what} was fitted without a word")


LAWS: tuple[Callable[[Any, Dataset], None], ...] = (
    has_a_line_for_the_list,
    fits_and_leaves_the_data_alone,
    is_repeatable,
    survives_pickling,
    predicts_components,
    predicts_the_most_probable_group,
    scores_as_the_judge_does,
    steps_to_where_it_fits,
    begins_where_it_is_told,
    refuses_what_is_no_data,
)


def _score(model: Model, samples: tuple[FloatArray, ...]) -> float:
    """A model's own likelihood [nat]."""
    assert isinstance(model, ScoredModel)
    return model.score(*samples)


def _quality(model: Model, data: Dataset) -> float | bytes:
    """What tells two fits apart: the score, and where there is none, the groups."""
    if isinstance(model, ScoredModel):
        return _score(model, data.test)
    return np.asarray(model.predict(data.X_test)).tobytes()


def _sentence(law: Callable[[Any, Dataset], None]) -> str:
    """A law in words: the first line of its docstring."""
    return (law.__doc__ or "").partition("\n")[0].rstrip(".")


def _global_random_state() -> bytes:
    return pickle.dumps(np.random.get_state())  # noqa: NPY002


def _same(model: Model, found: float, expected: float) -> None:
    dtype = model.get_params().get("dtype", "float64")
    _expect(gaussian.agree(found, expected, dtype), f"expected {expected!r} nat, got {found!r}")


def _expect(law: bool, otherwise: str) -> None:
    if not law:
        raise AssertionError(otherwise)


if __name__ == "__main__":
    with os.fdopen(int(sys.argv[2]), "w") as out:
        for one in check_model(*Spec.parse(sys.argv[1])):
            out.write(json.dumps(asdict(one)) + "\n")
            out.flush()
