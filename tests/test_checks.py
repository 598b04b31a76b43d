"""The laws for plug-ins hold for our own models, and each catches the model that breaks it."""

from __future__ import annotations

import numpy as np
import pytest
from click.testing import CliRunner

import embench
from embench.checks import check_model
from embench.cli import main
from embench.models.em import GaussianMixture
from embench.types import Spec, task_of

NAMES = [
    name
    for name, line in embench.models().items()
    if not line.startswith("not ") and task_of(embench.make_model(name)) == "density"
]
"""All densities of X; test_conditional.py and test_grouping.py hold the others to these laws."""

FAMILIES = ("full", "tied", "diag", "spherical")


@pytest.mark.parametrize(
    "spec",
    [
        *(Spec(name) for name in NAMES),
        *(Spec("em", {"covariance_type": family, "dtype": "float32"}) for family in FAMILIES),
        *(Spec("sklearn-em", {"covariance_type": family}) for family in FAMILIES),
    ],
    ids=str,
)
def test_our_own_models_keep_every_law(spec):
    findings = list(check_model(spec))

    assert [finding for finding in findings if finding.broken] == []
    skipped = {finding.skipped for finding in findings} - {""}
    no_mixture = {"it has no mixture_", "it has no start_from and iter_fit"}
    assert skipped <= no_mixture | {"it has no iter_fit", "it groups no pixels"}
    assert ("it has no mixture_" in skipped) == (spec.name in ("student-t-em", "noise-em"))


class Changer(GaussianMixture):
    """Writes to its data."""

    def fit(self, X, y=None):
        X[0] += 1
        return super().fit(X)


class Gambler(GaussianMixture):
    """Draws from the global random state."""

    def fit(self, X, y=None):
        np.random.rand()  # noqa: NPY002
        return super().fit(X)


class Braggart(GaussianMixture):
    """Scores itself higher than the judge does."""

    def score(self, X, y=None):
        return super().score(X) + 0.1


class Laggard(GaussianMixture):
    """Does one step less when it is watched."""

    def iter_fit(self, X):
        self.max_iter -= 1
        yield from super().iter_fit(X)

    def fit(self, X, y=None):
        for _ in super().iter_fit(X):
            pass
        return self


class FalseStarter(GaussianMixture):
    """Begins elsewhere."""

    def start_from(self, start):
        return self


class Swallower(GaussianMixture):
    """Takes NaN for zero."""

    def fit(self, X, y=None):
        return super().fit(np.nan_to_num(X))


class Fractional(GaussianMixture):
    """Predicts what are no labels."""

    def predict(self, X):
        return super().predict(X) + 0.5


class Nameless(GaussianMixture):
    __doc__ = ""


@pytest.mark.parametrize(
    ("model", "law"),
    [
        (Changer, "does not write to X"),
        (Gambler, "global seeds"),
        (Braggart, "is the judge's"),
        (Laggard, "ends where `fit` ends"),
        (FalseStarter, "at that mixture"),
        (Swallower, "NaN"),
        (Fractional, "component's number"),
        (Nameless, "stand in a list"),
    ],
)
def test_a_model_that_breaks_a_law_is_caught_by_it(monkeypatch, model, law):
    monkeypatch.setattr("embench.registry.load", lambda kind, name: _found(kind, name, model))

    # No tolerance to stop at: one step less is a difference.
    findings = list(check_model(Spec("theirs", {"max_iter": 4} if model is Laggard else {})))

    assert [f.law for f in findings if f.broken and law in f.law], findings


@pytest.mark.parametrize("model", ["Exiter", "Segfaulter", "Chatterbox"])
def test_a_model_that_ends_the_process_or_prints_does_not_pass_by_that(model):
    result = CliRunner().invoke(main, ["check", f"bad_models:{model}"])

    assert ("ended the process" in result.output) == (model != "Chatterbox")
    assert all(line[:6].strip() in {"ok", "-", "BROKEN"} for line in result.output.splitlines())


def test_what_is_no_estimator_is_said_in_words():
    result = CliRunner().invoke(main, ["check", "bad_models:Bystander"])

    assert result.exit_code == 2
    assert "an object without predict, score, get_params, set_params" in result.output


def test_the_command_ends_with_1_for_a_broken_law():
    good = CliRunner().invoke(main, ["check", "em"])
    bad = CliRunner().invoke(main, ["check", "bad_models:FalseStarter"])

    assert (good.exit_code, bad.exit_code) == (0, 1)
    assert "BROKEN After `start_from(mixture)`" in bad.output


LOAD = embench.make_model.__globals__["load"]


def _found(kind, name, model):
    return model if kind == "model" else LOAD(kind, name)
