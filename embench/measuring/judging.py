"""What a finished fit is worth, and what is to be remarked of it; off the clock."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np

from embench import gaussian
from embench.types import (
    OWN_SCORE,
    ConditionalMixture,
    ConditionalModel,
    Dataset,
    Mixture,
    MixtureModel,
    Model,
    ScoredModel,
    Trial,
)

LONGEST_SENTENCE = 300
"""Characters of a message that are kept."""

OUT_OF_MEMORY = (
    "out of memory",
    "can't allocate memory",
    "Cannot allocate memory",
    "Unable to allocate",
    "bad_alloc",
    "Memory allocation still failed",
    "MemoryError",
)

ESCAPES = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]")
"""What colours a terminal, moves its cursor or clears it."""


class Diverged(ArithmeticError):
    """A fit that ended without an error at something that is no density."""


def nll(model: Model, data: Dataset) -> float:
    """The judge's mean NLL of what is held out [nat]; where he cannot, the model's own.

    Raises:
        Diverged: There is no finite likelihood.
    """
    try:
        found = -_log_likelihood(model, data)
    except np.linalg.LinAlgError as error:
        raise Diverged(f"a fitted covariance is not positive definite ({error})") from error
    if not np.isfinite(found):
        raise Diverged(f"the held-out NLL is {found}")
    return float(found)


def sizes(data: Dataset, model: Model) -> dict[str, int]:
    """Sizes of the data fitted; those that do not exist, or that nobody knows, are absent."""
    found = {
        "n_samples": data.X_train.shape[0],
        "n_features": data.X_train.shape[-1],
        "n_steps": data.X_train.shape[1] if data.X_train.ndim == 3 else None,
        "n_targets": None if data.Y_train is None else data.Y_train.shape[1],
        "n_components": model.get_params().get("n_components") or data.n_components,
        "n_test": len(data.X_test),
        "n_table": data.n_table,
    }
    return {name: int(size) for name, size in found.items() if size is not None}


@contextmanager
def heard() -> Iterator[list[str]]:
    """What a fit warns of under a name of its own (a collapse, more regularisation than was asked
    for), each once; anything else is between a model and its author."""
    complaints: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("ignore")
        warnings.simplefilter("always", RuntimeWarning)
        yield complaints
    named = [str(one.message) for one in caught if one.category is not RuntimeWarning]
    complaints += dict.fromkeys(map(in_one_line, named))


def remarks(trial: Trial, fitted: Model, environment: Mapping[str, Any]) -> list[str]:
    """What a reader of the numbers has to know."""
    found = (
        _on_convergence(trial, fitted),
        _on_judge(fitted),
        _on_threads(trial, environment),
    )
    return [remark for remark in found if remark]


def sentence(error: Exception) -> str:
    """What was wrong, in one line of bearable length."""
    words = in_one_line(str(error))
    if isinstance(error, Diverged):
        return words
    return f"{type(error).__name__}: {words}" if words else type(error).__name__


def in_one_line(text: str) -> str:
    """What others wrote, so that any terminal can show it: no escapes, no newlines, not for ever.

    >>> in_one_line("\\x1b[31mred\\x1b[0m\\n and  blue\\x07")
    'red and blue'
    """
    few = ESCAPES.sub("", text[: 10 * LONGEST_SENTENCE])
    line = " ".join("".join(c if c.isprintable() else " " for c in few).split())
    return line if len(line) <= LONGEST_SENTENCE else f"{line[: LONGEST_SENTENCE - 4]} ..."


def status(error: Exception) -> str:
    """The status of a trial that ended in this error."""
    if isinstance(error, Diverged):
        return "diverged"
    told = is_about_memory(str(error))
    return "out-of-memory" if told or isinstance(error, MemoryError) else "error"


def is_about_memory(text: str) -> bool:
    """Whether a library says in these words that there is no more memory."""
    return any(words in text for words in OUT_OF_MEMORY)


def _on_convergence(trial: Trial, fitted: Model) -> str:
    """A remark if the model stopped short of its own tolerance, unless it was told to."""
    told = trial.track == "budget" or fitted.get_params().get("tol") == 0
    if told or getattr(fitted, "converged_", True):
        return ""
    return f"not converged after {getattr(fitted, 'n_iter_', 'all its')} iterations"


def _on_judge(fitted: Model) -> str:
    """A remark if the judge had to take the model's word for its quality."""
    judged = isinstance(fitted, MixtureModel | ConditionalModel)
    if judged or not isinstance(fitted, ScoredModel):
        return ""
    return f"{OWN_SCORE}: it has no mixture_ that the judge could compute"


def _on_threads(trial: Trial, environment: Mapping[str, Any]) -> str:
    """A remark if the fit ended with another number of threads than it was given."""
    found = environment["blas_threads"]
    return "" if found == trial.threads else f"ran in {found} threads instead of {trial.threads}"


def _log_likelihood(model: Model, data: Dataset) -> float:
    """By the judge where the model is a mixture, or one for each sample; else by the model."""
    if isinstance(model, ConditionalModel):
        assert data.Y_test is not None
        mixtures = model.conditional_mixture(data.X_test)
        _check(mixtures)
        return gaussian.conditional_log_likelihood(mixtures, data.Y_test)
    if isinstance(model, MixtureModel):
        _check(model.mixture_)
        return gaussian.log_likelihood(model.mixture_, data.X_test)
    assert isinstance(model, ScoredModel)
    return model.score(data.X_test)


def _check(mixture: Mixture | ConditionalMixture) -> None:
    try:
        gaussian.check(mixture)
    except ValueError as error:
        raise Diverged(f"the fit is no mixture: {error}") from error
