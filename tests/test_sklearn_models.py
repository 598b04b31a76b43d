"""scikit-learn's models as players: ``fit`` is theirs, and watching it changes nothing."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.mixture import BayesianGaussianMixture, GaussianMixture
from strategies import COVARIANCE_TYPES, compact, random_mixture

from embench import gaussian, make_dataset, make_model

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")

ORIGINALS = {"sklearn-em": GaussianMixture, "sklearn-vb": BayesianGaussianMixture}


@pytest.fixture(scope="module")
def data():
    return make_dataset("blobs", seed=4, n_samples=250, n_features=2, n_components=3, separation=2)


def assert_fitted_alike(one, other):
    for name in ("weights_", "means_", "covariances_", "precisions_cholesky_"):
        assert_allclose(getattr(one, name), getattr(other, name), rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("covariance_type", COVARIANCE_TYPES)
@pytest.mark.parametrize("name", ORIGINALS)
def test_fit_is_scikit_learns_untouched(name, covariance_type, data):
    params = {"n_components": 3, "covariance_type": covariance_type, "random_state": 0}
    original = ORIGINALS[name](**params).fit(data.X_train)

    model = make_model(name, **params).fit(data.X_train)

    assert isinstance(model, ORIGINALS[name])
    assert_fitted_alike(model, original)
    assert (model.n_iter_, model.converged_) == (original.n_iter_, original.converged_)


@pytest.mark.parametrize("stop", [{"tol": 1e-2}, {"max_iter": 3}, {"max_iter": 1}, {}])
@pytest.mark.parametrize("n_init", [1, 4])
@pytest.mark.parametrize("covariance_type", COVARIANCE_TYPES)
@pytest.mark.parametrize("name", ORIGINALS)
def test_the_stream_ends_where_scikit_learn_ends(name, covariance_type, n_init, stop, data):
    params = {
        "n_components": 3,
        "covariance_type": covariance_type,
        "n_init": n_init,
        "init_params": "random_from_data",
        "random_state": 1,
        **stop,
    }
    original = ORIGINALS[name](**params).fit(data.X_train)
    model = make_model(name, **params)

    yields = list(model.iter_fit(data.X_train))

    assert_fitted_alike(model, original)
    assert yields == list(range(len(yields)))
    if n_init == 1:
        assert yields[-1] == original.n_iter_


@pytest.mark.parametrize("covariance_type", COVARIANCE_TYPES)
@pytest.mark.parametrize("name", ORIGINALS)
def test_covariances_are_there_from_the_start(name, covariance_type, data):
    model = make_model(name, n_components=3, covariance_type=covariance_type, random_state=0)

    next(model.iter_fit(data.X_train))

    judged = gaussian.log_likelihood(model.mixture_, data.X_test)
    assert model.score(data.X_test) == pytest.approx(judged, rel=1e-10)


@pytest.mark.parametrize("covariance_type", COVARIANCE_TYPES)
def test_a_start_is_honoured_exactly(covariance_type, data):
    start = random_mixture(np.random.default_rng(0), 3, 2, covariance_type)
    model = make_model("sklearn-em", n_components=3, covariance_type=covariance_type)

    stream = model.start_from(start).iter_fit(data.X_train)

    assert next(stream) == 0
    assert_allclose(model.weights_, start.weights, rtol=1e-14)
    assert_array_equal(model.means_, start.means)
    assert_allclose(model.covariances_, compact(start.covariances, covariance_type), rtol=1e-10)
    assert_allclose(model.mixture_.covariances, start.covariances, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("covariance_type", ["tied", "diag", "spherical"])
def test_a_start_of_another_family_is_refused(covariance_type):
    start = random_mixture(np.random.default_rng(0), 3, 2, "full")

    with pytest.raises(ValueError, match=f"not {covariance_type}"):
        make_model("sklearn-em", covariance_type=covariance_type).start_from(start)


def test_variational_scores_are_a_density_where_scikit_learns_are_not(data):
    params = {"n_components": 3, "random_state": 0}
    original = BayesianGaussianMixture(**params).fit(data.X_train)

    model = make_model("sklearn-vb", **params).fit(data.X_train)

    judged = gaussian.log_likelihood(model.mixture_, data.X_test)
    assert model.score(data.X_test) == pytest.approx(judged, rel=1e-10)
    assert abs(original.score(data.X_test) - judged) > 1e-3
    assert_array_equal(model.predict(data.X_test), original.predict(data.X_test))


def test_lower_bound_is_older_than_the_mixture(data):
    model = make_model("sklearn-em", n_components=3, max_iter=2, tol=0.0, random_state=0)

    model.fit(data.X_train)

    assert model.lower_bound_ < gaussian.log_likelihood(model.mixture_, data.X_train) - 1e-6


@pytest.mark.parametrize("name", ["em", "sklearn-em"])
def test_watched_and_not_no_iteration_at_all_is_the_start(name):
    X = np.random.default_rng(0).normal(size=(60, 2))
    watched, fitted = (make_model(name, n_components=2, random_state=0, max_iter=0) for _ in "ab")

    counts = list(watched.iter_fit(X))
    fitted.fit(X)

    assert counts == [0]
    assert_array_equal(watched.means_, fitted.means_)


@pytest.mark.parametrize("name", ["em", "sklearn-em"])
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_watched_and_not_a_warm_start_goes_on_alike(name):
    X = np.random.default_rng(0).normal(size=(200, 2))
    settings = {"n_components": 3, "random_state": 0, "max_iter": 3, "tol": 0, "warm_start": True}
    watched, fitted = (make_model(name, **settings).fit(X) for _ in "ab")

    for _ in watched.iter_fit(X):
        pass
    fitted.fit(X)

    assert_array_equal(watched.means_, fitted.means_)
