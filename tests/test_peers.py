"""Foreign libraries: the same EM as ours where they are installed, a hint where they are not."""

from __future__ import annotations

import pickle
import subprocess
import sys
from importlib.util import find_spec

import numpy as np
import pytest
from numpy.testing import assert_allclose

from embench import gaussian, make_dataset, make_model
from embench.models.starts import starting_mixture

onedal = pytest.mark.skipif(find_spec("daal4py") is None, reason="daal4py is not installed")
pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")

# Makes an interpreter one that has no daal4py, as far as its metadata tell.
HIDDEN = """
from importlib import metadata

found = metadata.version

def version(name):
    if name == "daal4py":
        raise metadata.PackageNotFoundError(name)
    return found(name)

metadata.version = version
"""


@pytest.fixture(scope="module")
def data():
    return make_dataset("blobs", seed=1, n_samples=600, n_features=3, n_components=3)


def without_daal4py(code):
    """What an interpreter that has no daal4py prints."""
    done = subprocess.run(
        [sys.executable, "-c", HIDDEN + code], capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def test_a_peer_that_is_not_installed_is_listed_with_what_would_install_it():
    printed = without_daal4py("from embench.cli import main; main(['models'])")

    lines = dict(line.split(maxsplit=1) for line in printed.splitlines())
    assert lines["onedal-em"] == "not installed: pip install 'embench[peers]'"
    assert lines["em"].startswith("Classical EM")


def test_a_peer_that_is_not_installed_is_an_input_error_when_asked_for():
    printed = without_daal4py(
        "import embench\n"
        "from embench.types import InputError\n"
        "try:\n    embench.make_model('onedal-em')\n"
        "except InputError as error:\n    print(error)"
    )

    assert printed == "model 'onedal-em' is not installed: pip install 'embench[peers]'"


@onedal
def test_a_peer_is_loaded_by_the_first_fit_and_not_before():
    code = (
        "import sys, embench; embench.models(); embench.make_model('onedal-em'); "
        "print([name for name in sys.modules if 'daal4py' in name])"
    )

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout.strip() == "[]"


@onedal
@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("covariance_type", ["full", "diag"])
def test_onedal_goes_the_way_of_scikit_learn_from_the_same_start(covariance_type, dtype, data):
    start = starting_mixture(data.X_train, 3, np.random.SeedSequence(0))
    ours, theirs = (
        make_model(name, n_components=3, covariance_type=covariance_type, tol=0, max_iter=5, **own)
        for name, own in (("onedal-em", {"dtype": dtype}), ("sklearn-em", {"reg_covar": 0}))
    )

    for model in (ours, theirs):
        model.start_from(start).fit(data.X_train)

    exact = {"float64": 1e-10, "float32": 1e-3}[dtype]
    assert ours.n_iter_ == theirs.n_iter_ == 5
    assert ours.means_.dtype == dtype
    assert ours.covariances_.shape == theirs.covariances_.shape
    for one, other in zip(
        vars(ours.mixture_).values(), vars(theirs.mixture_).values(), strict=True
    ):
        assert_allclose(one, other, rtol=exact, atol=exact)


@onedal
def test_onedal_starts_from_k_means_when_given_nothing(data):
    fitted = make_model("onedal-em", n_components=3, random_state=0).fit(data.X_train)

    assert data.truth is not None
    truth = gaussian.log_likelihood(data.truth, data.X_test)
    assert fitted.score(data.X_test) == pytest.approx(truth, abs=0.1)


@onedal
@pytest.mark.parametrize("covariance_type", ["tied", "spherical"])
def test_onedal_refuses_the_families_it_has_not(covariance_type, data):
    model = make_model("onedal-em", n_components=3, covariance_type=covariance_type)

    with pytest.raises(ValueError, match=f"Got '{covariance_type}'"):
        model.fit(data.X_train)


@onedal
def test_onedal_says_converged_when_iterations_are_left_over(data):
    model = make_model("onedal-em", n_components=3, random_state=0)

    assert not model.set_params(max_iter=2).fit(data.X_train).converged_
    assert model.set_params(max_iter=500).fit(data.X_train).converged_
    assert 2 < model.n_iter_ < 500


@onedal
def test_a_diagonal_fit_counts_its_own_parameters(data):
    model = make_model("onedal-em", n_components=3, covariance_type="diag").fit(data.X_train)
    deviance = -2 * model.score(data.X_test) * len(data.X_test)

    assert model.aic(data.X_test) - deviance == pytest.approx(2 * (2 + 3 * 3 + 3 * 3), rel=1e-6)


@onedal
def test_a_fitted_peer_is_pickled_without_its_library(data):
    model = make_model("onedal-em", n_components=3, dtype="float32").fit(data.X_train)

    assert b"_daal4py" not in pickle.dumps(model)
