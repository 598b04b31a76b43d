"""``em`` obeys the laws of EM, and goes scikit-learn's way step by step."""

from __future__ import annotations

import dataclasses
import tracemalloc
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture
from strategies import (
    COVARIANCE_TYPES,
    assert_same,
    compact,
    family_problems,
    law,
    permuted,
    problems,
    random_mixture,
    random_samples,
)

from embench import gaussian, make_dataset, make_model
from embench.models import spec
from embench.models.engine import PrecisionWarning, RegularisationWarning
from embench.types import Mixture

INIT_PARAMS = ("kmeans", "k-means++", "random", "random_from_data")

# Most fits here stop after a given number of steps on purpose.
pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")


def em(start=None, **params):
    """An EM that begins at ``start`` and runs all its steps."""
    model = make_model("em", **{"tol": 0.0, "random_state": 0, **params})
    if start is None:
        return model
    return model.set_params(n_components=start.n_components).start_from(start)


def fitted(start, X, **params):
    """The mixture after ``max_iter`` steps from ``start``."""
    return em(start, **params).fit(X).mixture_


@pytest.fixture(scope="module")
def blobs():
    return make_dataset("blobs", seed=1, n_samples=400, n_features=3, n_components=4, separation=3)


# The laws


@law
@given(family_problems)
def test_one_component_has_the_closed_form_likelihood(problem):
    covariance_type, (_, X) = problem
    D = X.shape[1]
    covariance = np.atleast_2d(np.cov(X.T, ddof=0))
    if covariance_type == "diag":
        covariance = np.diag(np.diag(covariance))
    elif "spherical" in covariance_type:
        covariance = np.eye(D) * np.trace(covariance) / D

    model = em(n_components=1, covariance_type=covariance_type, reg_covar=0.0).fit(X)

    closed_form = D / 2 * (1 + np.log(2 * np.pi)) + 0.5 * np.linalg.slogdet(covariance)[1]
    assert -gaussian.log_likelihood(model.mixture_, X) == pytest.approx(closed_form, rel=1e-10)


@law
@given(family_problems)
def test_the_judge_never_sees_the_likelihood_fall(problem):
    covariance_type, (start, X) = problem
    model = em(start, covariance_type=covariance_type, reg_covar=0.0, max_iter=15)

    likelihoods = [gaussian.log_likelihood(model.mixture_, X) for _ in model.iter_fit(X)]

    assert len(likelihoods) == 16
    assert np.all(np.diff(likelihoods) >= -1e-9)


@law
@given(family_problems)
def test_order_of_samples_and_components_changes_nothing(problem):
    covariance_type, (start, X) = problem
    order = np.roll(np.arange(start.n_components), 1)
    params = {"covariance_type": covariance_type, "max_iter": 5}
    expected = fitted(start, X, **params)

    other = fitted(permuted(start, order), X[::-1], **params)

    assert_same(other, permuted(expected, order), rtol=1e-8, atol=1e-8)


@law
@given(problems(max_features=3))
def test_a_linear_map_of_the_data_maps_the_fit(problem):
    start, X = problem
    A = np.array([[2.0, 1.0, 0.5], [0.0, 3.0, -1.0], [0.0, 0.0, 0.5]])[: X.shape[1], : X.shape[1]]
    expected = fitted(start, X, reg_covar=0.0, max_iter=5)

    mapped_start = mapped(start, A)
    other = fitted(mapped_start, X @ A, reg_covar=0.0, max_iter=5)

    assert_same(other, mapped(expected, A), rtol=1e-7, atol=1e-7)
    shift = np.linalg.slogdet(A)[1]
    assert gaussian.log_likelihood(other, X @ A) == pytest.approx(
        gaussian.log_likelihood(expected, X) - shift, abs=1e-9
    )


def mapped(mixture, A):
    return Mixture(mixture.weights, mixture.means @ A, A.T @ mixture.covariances @ A)


@law
@given(family_problems, st.sampled_from([1e-3, 0.2, 7.0, 1e4]))
def test_scaling_by_c_shifts_the_nll_by_n_features_log_c(problem, c):
    covariance_type, (start, X) = problem
    params = {"covariance_type": covariance_type, "reg_covar": 0.0, "max_iter": 5}
    expected = fitted(start, X, **params)

    other = fitted(mapped(start, c * np.eye(X.shape[1])), c * X, **params)

    assert gaussian.log_likelihood(other, c * X) == pytest.approx(
        gaussian.log_likelihood(expected, X) - X.shape[1] * np.log(c), abs=1e-9
    )


@law
@given(problems())
def test_full_em_is_the_specification_step_by_step(problem):
    start, X = problem
    expected = start
    model = em(start, reg_covar=spec.JITTER, max_iter=5)

    for n_iter in model.iter_fit(X):
        if n_iter:
            expected = spec.em_step(expected, X)

        assert_same(model.mixture_, expected, rtol=1e-10, atol=1e-10)


# The start


@law
@given(family_problems)
def test_a_given_start_is_honoured_exactly(problem):
    covariance_type, (start, X) = problem
    model = em(start, covariance_type=covariance_type)

    assert next(model.iter_fit(X)) == 0

    assert_same(model.mixture_, start, rtol=1e-10, atol=1e-12)
    assert model.score(X) == pytest.approx(gaussian.log_likelihood(start, X), rel=1e-12)
    assert model.n_iter_ == 0


@pytest.mark.parametrize("covariance_type", ["tied", "diag", "spherical"])
def test_a_start_of_another_family_is_refused(covariance_type, blobs):
    model = em(covariance_type=covariance_type)

    with pytest.raises(ValueError, match=f"not {covariance_type}"):
        model.start_from(blobs.truth)


@pytest.mark.parametrize("init_params", INIT_PARAMS)
@pytest.mark.parametrize("covariance_type", COVARIANCE_TYPES)
@pytest.mark.parametrize("max_iter", [1, 4])
def test_em_goes_scikit_learns_way_step_by_step(max_iter, covariance_type, init_params, blobs):
    params = {
        "n_components": 4,
        "covariance_type": covariance_type,
        "init_params": init_params,
        "max_iter": max_iter,
        "tol": 0.0,
        "random_state": 3,
    }
    expected = GaussianMixture(**params).fit(blobs.X_train)

    model = make_model("em", **params).fit(blobs.X_train)

    for name in ("weights_", "means_", "covariances_", "precisions_", "precisions_cholesky_"):
        assert getattr(model, name).shape == getattr(expected, name).shape
        assert_allclose(getattr(model, name), getattr(expected, name), rtol=1e-8, atol=1e-9)
    assert model.lower_bound_ == pytest.approx(expected.lower_bound_, rel=1e-11)
    assert model.n_iter_ == expected.n_iter_ == max_iter


@pytest.mark.parametrize("covariance_type", COVARIANCE_TYPES)
def test_em_stops_where_scikit_learn_stops(covariance_type, blobs):
    params = {"n_components": 4, "covariance_type": covariance_type, "random_state": 3}
    expected = GaussianMixture(**params).fit(blobs.X_train)

    model = make_model("em", **params).fit(blobs.X_train)

    assert (model.n_iter_, model.converged_) == (expected.n_iter_, expected.converged_)
    assert_allclose(model.lower_bounds_, expected.lower_bounds_, rtol=1e-10)
    assert model.score(blobs.X_test) == pytest.approx(expected.score(blobs.X_test), rel=1e-9)
    assert model.bic(blobs.X_test) == pytest.approx(expected.bic(blobs.X_test), rel=1e-9)
    assert_array_equal(model.predict(blobs.X_test), expected.predict(blobs.X_test))


@pytest.mark.parametrize("covariance_type", COVARIANCE_TYPES)
def test_a_partial_start_goes_scikit_learns_way(covariance_type, blobs):
    params = {
        "n_components": 4,
        "covariance_type": covariance_type,
        "means_init": blobs.truth.means,
        "max_iter": 3,
        "tol": 0.0,
        "random_state": 0,
    }
    expected = GaussianMixture(**params).fit(blobs.X_train)

    model = make_model("em", **params).fit(blobs.X_train)

    assert_allclose(model.means_, expected.means_, rtol=1e-9)
    assert_allclose(model.covariances_, expected.covariances_, rtol=1e-8, atol=1e-10)


def test_not_converging_is_a_warning(blobs):
    model = make_model("em", n_components=4, max_iter=1, random_state=0)

    with pytest.warns(ConvergenceWarning, match="did not converge"):
        model.fit(blobs.X_train)

    assert not model.converged_


# The controls


@pytest.mark.parametrize("covariance_type", COVARIANCE_TYPES)
def test_float32_ends_close_to_float64(covariance_type, blobs):
    params = {"covariance_type": covariance_type, "n_components": 4, "max_iter": 20}
    double = em(**params).fit(blobs.X_train)

    single = em(**params, dtype="float32").fit(blobs.X_train)

    assert single.means_.dtype == np.float32
    assert single.mixture_.means.dtype == np.float64
    assert gaussian.log_likelihood(single.mixture_, blobs.X_test) == pytest.approx(
        gaussian.log_likelihood(double.mixture_, blobs.X_test), abs=1e-4
    )


def test_restarts_keep_the_best(blobs):
    params = {"n_components": 4, "init_params": "random_from_data", "max_iter": 8, "tol": 0.0}
    shared = np.random.RandomState(2)
    alone = [make_model("em", **params, random_state=shared).fit(blobs.X_train) for _ in range(5)]
    best = max(alone, key=lambda model: model.lower_bound_)
    assert best not in (alone[0], alone[-1]), "neither first nor last wins this example"

    model = make_model("em", **params, n_init=5, random_state=np.random.RandomState(2))
    model.fit(blobs.X_train)

    assert model.lower_bound_ == pytest.approx(best.lower_bound_, rel=1e-12)
    assert_allclose(model.means_, best.means_, rtol=1e-10)


def test_restarts_take_their_iterations_side_by_side(blobs):
    model = em(n_components=4, max_iter=3, n_init=4, init_params="random")

    counted = list(model.iter_fit(blobs.X_train))

    assert counted == [0, 1, 2, 3]


def test_bound_of_the_shown_mixture_never_falls_over_restarts(blobs):
    model = em(n_components=4, max_iter=4, n_init=5, init_params="random_from_data")

    bounds = [model.lower_bound_ for _ in model.iter_fit(blobs.X_train)]

    assert np.all(np.diff(bounds[1:]) >= -1e-9)


def test_warm_start_continues(blobs):
    start = random_mixture(np.random.default_rng(0), 4, 3)
    expected = fitted(start, blobs.X_train, max_iter=6)
    model = em(start, max_iter=3, warm_start=True)

    model.fit(blobs.X_train).fit(blobs.X_train)

    assert_same(model.mixture_, expected, rtol=1e-12, atol=1e-12)


def test_without_warm_start_a_second_fit_begins_again(blobs):
    start = random_mixture(np.random.default_rng(0), 4, 3)
    expected = fitted(start, blobs.X_train, max_iter=3)
    model = em(start, max_iter=3)

    model.fit(blobs.X_train).fit(blobs.X_train)

    assert_same(model.mixture_, expected, rtol=0, atol=0)


def test_no_iterations_leave_the_start(blobs):
    start = random_mixture(np.random.default_rng(0), 4, 3)

    model = em(start, max_iter=0).fit(blobs.X_train)

    assert model.n_iter_ == 0
    assert_same(model.mixture_, start, rtol=1e-12, atol=1e-12)


def test_reg_covar_is_added_to_every_variance(blobs):
    small = em(n_components=1, reg_covar=0.0, max_iter=1).fit(blobs.X_train)

    large = em(n_components=1, reg_covar=2.5, max_iter=1).fit(blobs.X_train)

    assert_allclose(large.covariances_ - small.covariances_, 2.5 * np.eye(3)[None], atol=1e-10)


@pytest.mark.parametrize("covariance_type", COVARIANCE_TYPES)
def test_precisions_are_the_inverses_of_covariances(covariance_type, blobs):
    model = em(n_components=4, covariance_type=covariance_type, max_iter=3).fit(blobs.X_train)

    if covariance_type in ("diag", "spherical"):
        assert_allclose(model.precisions_ * model.covariances_, 1.0, rtol=1e-12)
    else:
        product = model.precisions_ @ model.covariances_
        assert_allclose(product, np.broadcast_to(np.eye(3), product.shape), atol=1e-9)
    assert_allclose(compact(model.mixture_.covariances, covariance_type), model.covariances_)


@pytest.mark.parametrize(
    ("params", "sentence"),
    [
        ({"device": "gpu"}, "'device' parameter"),
        ({"dtype": "float16"}, "'dtype' parameter"),
        ({"covariance_type": "round"}, "'covariance_type' parameter"),
        ({"n_components": 0}, "'n_components' parameter"),
        ({"reg_covar": -1.0}, "'reg_covar' parameter"),
        ({"n_components": 9}, "n_components = 9, n_samples = 8"),
        ({"n_components": 2, "weights_init": [0.7, 0.7]}, "weights"),
        ({"n_components": 2, "means_init": [[0.0]]}, "means"),
    ],
)
def test_a_bad_parameter_is_an_error_before_the_first_step(params, sentence):
    model = make_model("em", **params)

    with pytest.raises(ValueError, match=sentence):
        model.fit(np.random.default_rng(0).standard_normal((8, 2)))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("covariance_type", COVARIANCE_TYPES)
def test_cuda_ends_where_the_cpu_ends(covariance_type, blobs):
    params = {"covariance_type": covariance_type, "n_components": 4, "max_iter": 20}
    expected = em(**params).fit(blobs.X_train).mixture_

    model = em(**params, device="cuda").fit(blobs.X_train)

    assert_same(model.mixture_, expected, rtol=1e-8, atol=1e-8)


# Hard data


def hard_data():
    rng = np.random.default_rng(0)
    normal = rng.standard_normal
    return {
        "all rows equal": np.ones((20, 3)),
        "two points, many times": np.repeat(normal((2, 3)), 10, axis=0),
        "constant column": np.column_stack([normal((30, 2)), np.full(30, 7.0)]),
        "fewer samples than features": normal((5, 12)),
        "as many samples as components": normal((3, 2)),
        "two samples": normal((3, 1)),
        "one feature": normal((40, 1)),
        "collinear": np.outer(normal(30), [1.0, 2.0, 3.0]),
        "heavy tails": rng.standard_cauchy((60, 2)) ** 3,
        "tiny": 1e-9 * normal((40, 2)),
        "huge": 1e9 * normal((40, 2)),
        "unequal units": normal((60, 2)) * [1e-6, 1e6],
        "one outlier at 1e8": np.vstack([normal((40, 2)), [[1e8, 1e8]]]),
    }


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("covariance_type", COVARIANCE_TYPES)
@pytest.mark.parametrize("name", hard_data())
@pytest.mark.filterwarnings("ignore::embench.models.engine.RegularisationWarning")
@pytest.mark.filterwarnings("ignore::embench.models.engine.PrecisionWarning")
def test_hard_data_are_fitted_or_refused_with_a_sentence(name, covariance_type, dtype):
    X = hard_data()[name]
    model = make_model(
        "em", n_components=3, covariance_type=covariance_type, dtype=dtype, random_state=0
    )

    refusal = error_of(model, X)

    if refusal:
        assert len(refusal.split()) > 5, "a sentence"
    else:
        for part in vars(model.mixture_).values():
            assert np.all(np.isfinite(part))
        assert np.isfinite(model.score(X))


def error_of(model, X) -> str:
    """What a fit says against X; nothing where it goes well."""
    try:
        model.fit(X)
    except ValueError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("covariance_type", COVARIANCE_TYPES)
def test_what_can_be_fitted_is_fitted(covariance_type):
    for name in ("constant column", "two points, many times", "one feature", "collinear"):
        X = hard_data()[name]

        model = em(n_components=2, covariance_type=covariance_type, max_iter=5).fit(X)

        assert np.isfinite(gaussian.log_likelihood(model.mixture_, X)), name


@pytest.mark.parametrize("covariance_type", COVARIANCE_TYPES)
def test_data_far_from_the_origin_are_fitted_as_if_near(covariance_type):
    rng = np.random.default_rng(1)
    start = random_mixture(rng, 3, 2, covariance_type)
    X = random_samples(rng, start, 300)
    expected = fitted(start, X, covariance_type=covariance_type, max_iter=10)

    there = Mixture(start.weights, start.means + 1e6, start.covariances)
    other = fitted(there, X + 1e6, covariance_type=covariance_type, max_iter=10)

    # Samples near 1e6 are rounded by 1e-10; a second moment about the origin would lose 1e-4.
    assert_allclose(other.covariances, expected.covariances, rtol=1e-7, atol=1e-7)
    assert_allclose(other.means - 1e6, expected.means, atol=1e-7)


def test_reversed_views_are_samples_like_others():
    # A side of length 1 keeps its negative stride, which torch does not take.
    X = np.random.default_rng(3).standard_normal((30, 1))[:, ::-1]

    model = em(n_components=2, max_iter=2).fit(X)

    assert model.score(X) == em(n_components=2, max_iter=2).fit(X.copy()).score(X.copy())


def test_data_far_from_the_origin_are_found_without_a_start():
    data = make_dataset("blobs", seed=0, n_features=2, n_components=3, separation=6, offset=1e6)

    model = make_model("em", n_components=3, random_state=0).fit(data.X_train)

    excess = gaussian.log_likelihood(data.truth, data.X_test) - gaussian.log_likelihood(
        model.mixture_, data.X_test
    )
    # 17 parameters cost 17 / (2 * 1000) nat on average.
    assert -0.05 < excess < 0.05


@pytest.mark.parametrize("covariance_type", COVARIANCE_TYPES)
def test_a_component_that_dies_leaves_a_mixture(covariance_type):
    rng = np.random.default_rng(2)
    start = random_mixture(rng, 3, 2, covariance_type)
    means = start.means.copy()
    X = random_samples(rng, start, 200)
    means[1] = 1e5

    model = em(
        Mixture(start.weights, means, start.covariances),
        covariance_type=covariance_type,
        max_iter=10,
    ).fit(X)

    assert np.all(np.isfinite(model.means_))
    assert np.all(np.isfinite(model.covariances_))
    assert np.all(np.isfinite(model.precisions_cholesky_))
    assert model.weights_[1] < 1e-12
    assert np.isfinite(gaussian.log_likelihood(model.mixture_, X))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_samples_that_are_not_finite_are_refused(value):
    X = np.ones((10, 2))
    X[3, 1] = value

    with pytest.raises(ValueError, match=r"NaN|infinity"):
        make_model("em").fit(X)


# A known optimum: the smallest total NLL on the demonstration's own sample, found by an
# independent float64 program and printed with 6 decimals. reg_covar moves it by less than 1e-8.
OPTIMUM = 4682.152574


def total_nll(model, X):
    return -len(X) * gaussian.log_likelihood(model.mixture_, X)


@pytest.mark.parametrize("name", ["em", "sklearn-em", "spec-em"])
def test_known_optimum_is_reached_from_a_good_start(name):
    data = make_dataset("three-gaussians", seed=7)
    params = {} if name == "spec-em" else {"tol": 0.0}
    model = make_model(name, n_components=3, max_iter=300, **params).start_from(data.truth)

    model.fit(data.X_train)

    assert total_nll(model, data.X_train) == pytest.approx(OPTIMUM, rel=0, abs=1e-6)
    assert_allclose(sorted(model.weights_), [0.2539, 0.3417, 0.4043], atol=5e-5)
    means = model.means_[np.argsort(model.weights_)]
    assert_allclose(means, [[0.048, 4.958], [4.920, -0.036], [0.013, 0.079]], atol=6e-4)


@pytest.mark.parametrize("init_params", INIT_PARAMS)
def test_known_optimum_is_never_beaten(init_params):
    data = make_dataset("three-gaussians", seed=7)
    nlls = []

    for random_state in range(5):
        model = em(n_components=3, init_params=init_params, random_state=random_state, max_iter=200)
        nlls.append(total_nll(model.fit(data.X_train), data.X_train))

    assert min(nlls) > OPTIMUM - 1e-6
    assert min(nlls) < OPTIMUM + 1.0


def test_verbose_is_silent_by_default(blobs, capsys):
    em(n_components=2, max_iter=2).fit(blobs.X_train)

    assert capsys.readouterr().out == ""


def test_a_gpu_that_is_not_there_is_said_and_auto_does_without(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    X = np.random.default_rng(0).normal(size=(30, 2))

    with pytest.raises(ValueError, match="torch finds no CUDA device"):
        make_model("em", device="cuda").fit(X)
    fitted = make_model("em", device="auto").fit(X)

    assert np.isfinite(fitted.means_).all()


@pytest.mark.parametrize("covariance_type", COVARIANCE_TYPES)
@pytest.mark.parametrize("init_params", ["kmeans", "random"])
def test_a_start_of_its_own_does_not_suffer_from_a_far_origin(covariance_type, init_params):
    near = make_dataset("blobs", seed=0).X_train
    # 2^26 is added without rounding only to samples on a grid, so put both on it.
    near = np.round(near * 2**20) / 2**20
    model = make_model(
        "em", n_components=3, covariance_type=covariance_type, init_params=init_params,
        random_state=0, max_iter=20, tol=0,
    )  # fmt: skip

    with pytest.warns(ConvergenceWarning):
        here, there = (clone(model).fit(near + offset) for offset in (0.0, 2.0**26))

    assert_allclose(there.score(near + 2.0**26), here.score(near), rtol=1e-6)


@pytest.mark.parametrize("covariance_type", COVARIANCE_TYPES)
def test_weights_of_samples_count_like_repetitions(covariance_type, blobs):
    rng = np.random.default_rng(30)
    X, counts = blobs.X_train[:120], rng.integers(0, 4, 120)
    start = random_mixture(rng, 3, X.shape[1], covariance_type)
    params = {"n_components": 3, "covariance_type": covariance_type, "max_iter": 6, "tol": 0.0}

    weighted = em(**params).start_from(start).fit(X, sample_weight=counts)

    repeated = em(**params).start_from(start).fit(np.repeat(X, counts, axis=0))
    assert_allclose(weighted.means_, repeated.means_, rtol=1e-9, atol=1e-9)
    assert_allclose(weighted.covariances_, repeated.covariances_, rtol=1e-9, atol=1e-9)
    assert weighted.lower_bound_ == pytest.approx(repeated.lower_bound_, rel=1e-12)


@pytest.mark.parametrize("init_params", ["kmeans", "k-means++", "random", "random_from_data"])
def test_a_start_looks_at_no_sample_without_weight(init_params, blobs):
    weights = np.r_[np.ones(200), np.zeros(200)]
    params = {"n_components": 3, "init_params": init_params, "max_iter": 0, "reg_covar": 1e-2}

    begun = em(**params).fit(blobs.X_train, sample_weight=weights)

    moved = np.r_[blobs.X_train[:200], blobs.X_train[200:] + 1.0]
    again = em(**params).fit(moved, sample_weight=weights)
    assert begun.weights_.sum() == pytest.approx(1.0)
    assert_allclose(again.means_, begun.means_, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("covariance_type", COVARIANCE_TYPES)
def test_many_datasets_at_once_are_fitted_like_one_by_one(covariance_type):
    rng = np.random.default_rng(31)
    starts = [random_mixture(rng, 3, 2, covariance_type) for _ in range(5)]
    X = np.stack([random_samples(rng, start, 80) for start in starts])
    model = em(n_components=3, covariance_type=covariance_type, tol=1e-4)

    fitted = model.fit_many(X, starts)

    assert len({one.n_iter_ for one in fitted}) > 1, "they stop at different iterations"
    for one, x, start in zip(fitted, X, starts, strict=True):
        alone = clone(model).start_from(start).fit(x)
        assert one.n_iter_ == alone.n_iter_
        assert one.converged_ == alone.converged_
        assert_allclose(one.lower_bounds_, alone.lower_bounds_, rtol=1e-11)
        assert_allclose(one.means_, alone.means_, rtol=1e-8, atol=1e-9)
        assert_allclose(one.covariances_, alone.covariances_, rtol=1e-8, atol=1e-9)
        assert_array_equal(one.predict(x), alone.predict(x))


def test_many_datasets_find_starts_of_their_own():
    X = np.random.default_rng(32).standard_normal((4, 60, 2)) + 100 * np.arange(4)[:, None, None]

    fitted = em(n_components=2).fit_many(X)

    centres = [one.weights_ @ one.means_ for one in fitted]
    assert_allclose(centres, X.mean(axis=1), rtol=1e-9)


@pytest.mark.parametrize(
    ("shape", "n_starts", "words"),
    [
        (
            (10, 2),
            None,
            r"expected X of shape \(n_problems, .*, got \(10, 2\)",
        ),
        ((3, 10, 2), 2, "expected 3 starts, one for each dataset, got 2"),
        ((3, 10, 4), 3, r"expected means of shape .* = \(2, 4\) in every start, got \(2, 2\)"),
        ((3, 1, 2), None, "n_samples = 1 in each dataset"),
    ],
)
def test_many_datasets_of_a_wrong_shape_are_refused(shape, n_starts, words):
    starts = n_starts and [random_mixture(np.random.default_rng(0), 2, 2)] * n_starts

    with pytest.raises(ValueError, match=words):
        em(n_components=2).fit_many(np.zeros(shape), starts)


def test_many_datasets_are_not_restarted():
    with pytest.raises(ValueError, match="one start for each dataset, got n_init=3"):
        em(n_components=2, n_init=3).fit_many(np.zeros((3, 10, 2)))


def test_one_hard_dataset_leaves_the_digits_of_the_others_alone():
    # The covariance of the second one is tight: its squares must not be expanded.
    rng = np.random.default_rng(36)
    start = random_mixture(rng, 2, 2, "tied")
    broad = random_samples(rng, start, 80)
    tight = Mixture(start.weights, 1e6 * start.means, start.covariances)
    X = np.stack([broad, random_samples(rng, tight, 80)])
    model = em(n_components=2, covariance_type="tied", max_iter=5)

    for one, x, begin in zip(model.fit_many(X, [start, tight]), X, [start, tight], strict=True):
        alone = clone(model).start_from(begin).fit(x)
        assert_allclose(one.lower_bounds_, alone.lower_bounds_, rtol=1e-11)
        assert_allclose(one.covariances_, alone.covariances_, rtol=1e-8)


@pytest.mark.parametrize("covariance_type", ["full", "tied"])
def test_the_precisions_of_a_start_are_symmetric_to_the_last_digit(covariance_type):
    # Else scikit-learn refuses them: an inverse of flat covariances is not.
    start = random_mixture(np.random.default_rng(37), 3, 30, covariance_type)
    stretched = np.diag(np.geomspace(1e3, 1e-3, 30))
    start = Mixture(start.weights, start.means, stretched @ start.covariances @ stretched)

    precisions = em(start, covariance_type=covariance_type).precisions_init

    assert_array_equal(precisions, precisions.swapaxes(-1, -2))


@pytest.mark.parametrize("covariance_type", ["full", "tied"])
def test_any_factor_of_the_precisions_may_be_set(covariance_type):
    X = np.random.default_rng(39).standard_normal((300, 20))
    ours, theirs = (
        model.fit(X)
        for model in (
            em(n_components=3, covariance_type=covariance_type, max_iter=5),
            GaussianMixture(3, covariance_type=covariance_type, max_iter=5, tol=0, random_state=0),
        )
    )
    for model in (ours, theirs):
        model.precisions_cholesky_ = np.linalg.cholesky(model.precisions_)

    assert_allclose(ours.score_samples(X), theirs.score_samples(X), rtol=1e-9)


def test_many_fits_leave_the_model_that_made_them_alone(blobs):
    model = em(n_components=2).partial_fit(blobs.X_train[:100])
    again = clone(model).partial_fit(blobs.X_train[:100])
    means = model.means_.copy()

    model.fit_many(blobs.X_train[None, :50])

    assert_array_equal(model.means_, means)
    assert_array_equal(
        model.partial_fit(blobs.X_train[100:]).means_, again.partial_fit(blobs.X_train[100:]).means_
    )


@pytest.mark.parametrize("covariance_type", COVARIANCE_TYPES)
def test_only_the_ratio_of_weights_of_samples_counts(covariance_type, blobs):
    weights = np.random.default_rng(38).uniform(0.5, 2.0, len(blobs.X_train))
    params = {"n_components": 3, "covariance_type": covariance_type, "max_iter": 10}
    expected = em(**params).fit(blobs.X_train, sample_weight=weights)

    faint = em(**params).fit(blobs.X_train, sample_weight=1e-12 * weights)

    assert faint.lower_bound_ == pytest.approx(expected.lower_bound_, rel=1e-9)
    assert_allclose(faint.covariances_, expected.covariances_, rtol=1e-6, atol=1e-9)


def test_a_tied_start_may_have_a_component_without_samples():
    X = np.repeat([[0.0, 0.0], [1.0, 2.0]], 20, axis=0)
    params = {"covariance_type": "tied", "max_iter": 3, "reg_covar": 1e-3}

    with pytest.warns(ConvergenceWarning, match="distinct clusters"):
        model = em(n_components=3, **params).fit(X, sample_weight=np.ones(40))

    assert np.isfinite(model.means_).all()


def test_batches_one_after_another_lead_to_where_all_samples_lead():
    data = make_dataset("blobs", seed=3, n_samples=6000, n_components=3, separation=6)
    order = np.random.default_rng(33).permutation(6000)
    start = random_mixture(np.random.default_rng(34), 3, data.X_train.shape[1])
    start = dataclasses.replace(start, means=data.truth.means + 0.5)
    model = em(n_components=3).start_from(start)

    for batch in np.array_split(data.X_train[order], 60):
        model.partial_fit(batch)

    whole = em(n_components=3, tol=1e-6).start_from(start).fit(data.X_train)
    assert model.n_iter_ == 60
    assert model.score(data.X_train) == pytest.approx(whole.score(data.X_train), abs=0.01)


def test_a_batch_may_be_a_single_sample_after_the_first_and_must_have_the_same_features(blobs):
    model = em(n_components=3).partial_fit(blobs.X_train[:50])

    model.partial_fit(blobs.X_train[50:51])

    assert model.n_iter_ == 2
    with pytest.raises(ValueError, match="features"):
        model.partial_fit(blobs.X_train[:, :1])


def test_batches_go_on_from_a_fit_and_a_fit_forgets_them(blobs):
    fitted = em(n_components=3).fit(blobs.X_train)
    before = fitted.means_.copy()

    fitted.partial_fit(blobs.X_train)

    assert_allclose(fitted.means_, before, atol=0.1)
    again = fitted.fit(blobs.X_train)
    assert_array_equal(again.means_, before)


@pytest.mark.parametrize("covariance_type", COVARIANCE_TYPES)
@pytest.mark.parametrize("n_samples", [1, 20])
def test_a_few_samples_after_a_fit_move_it_a_little(n_samples, covariance_type, blobs):
    fitted = em(n_components=4, covariance_type=covariance_type).fit(blobs.X_train)
    before = fitted.mixture_
    few = blobs.X_test[:n_samples]

    fitted.partial_fit(few)

    # The first step has size 2^-0.6: the rest of the average is the mixture that was there.
    step = 2**-0.6
    resp = gaussian.responsibilities(before, few).mean(axis=0)
    assert_allclose(fitted.weights_, (1 - step) * before.weights + step * resp, rtol=1e-9)
    with pytest.raises(ValueError, match=r"3 features|expecting 3"):
        fitted.partial_fit(few[:, :2])


@pytest.mark.parametrize("path", ["x.npy", Path("x.npy")])
def test_a_batch_is_no_file(path):
    with pytest.raises(ValueError, match=r"expected samples in memory, got 'x.npy': only fit"):
        em(n_components=3).partial_fit(path)


@pytest.mark.parametrize("change", [{"covariance_type": "tied"}, {"n_components": 5}])
def test_another_model_than_that_of_the_last_batch_is_refused(change, blobs):
    model = em(n_components=3).partial_fit(blobs.X_train)

    with pytest.raises(ValueError, match="changed since the last batch"):
        model.set_params(**change).partial_fit(blobs.X_train)


def test_batches_far_from_the_origin_lose_no_digits():
    data = make_dataset("blobs", seed=5, n_samples=1000, n_components=3, n_features=3)
    near, far = (em(n_components=3, reg_covar=1e-6) for _ in range(2))

    for batch in np.array_split(data.X_train, 5):
        near.partial_fit(batch)
        far.partial_fit(batch + 2.0**26)

    assert_allclose(far.means_ - 2.0**26, near.means_, atol=1e-6)
    assert_allclose(far.covariances_, near.covariances_, rtol=1e-5, atol=1e-6)


def test_many_features_without_their_products_cost_in_proportion():
    X = np.random.default_rng(40).standard_normal((20, 30_000))
    params = {"covariance_type": "diag", "init_params": "random_from_data", "max_iter": 2}

    tracemalloc.start()
    em(n_components=2, **params).fit(X)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert peak < 20 * X.nbytes, "a matrix of all pairs of features is 1500 times X"


def test_fewer_samples_than_features_are_fitted_with_a_warning_if_at_all():
    X = np.random.default_rng(35).standard_normal((8, 30)) * 1e6

    with pytest.warns(RegularisationWarning, match="times reg_covar"):
        model = em(n_components=3, reg_covar=1e-12, max_iter=5).fit(X)

    assert np.isfinite(model.score(X))
    assert np.isfinite(gaussian.log_likelihood(model.mixture_, X))


def test_what_float32_cannot_resolve_is_said_and_float64_can(blobs):
    tight = 1e-5 * blobs.X_train[:200]
    X = np.vstack([tight, tight + 1e3])

    with pytest.warns(PrecisionWarning, match="float32 does not resolve .*: use dtype='float64'"):
        em(n_components=2, reg_covar=1e-14, dtype="float32").fit(X)

    with warnings.catch_warnings():
        warnings.simplefilter("error", PrecisionWarning)
        em(n_components=2, reg_covar=1e-14).fit(X)


def test_lower_bounds_are_the_judges_along_the_way(blobs):
    model, watched = (em(n_components=3, max_iter=4) for _ in range(2))

    model.fit(blobs.X_train)

    judged = [
        gaussian.log_likelihood(watched.mixture_, blobs.X_train)
        for _ in watched.iter_fit(blobs.X_train)
    ]
    assert_allclose(model.lower_bounds_, judged[:-1], rtol=1e-12)
    assert model.lower_bound_ == model.lower_bounds_[-1]


def test_float32_data_stay_float32_and_integers_become_float64(blobs):
    single = em(n_components=2).fit(blobs.X_train.astype(np.float32))
    double = em(n_components=2).fit((10 * blobs.X_train).astype(int))

    assert {single.means_.dtype, single.covariances_.dtype} == {np.dtype("float32")}
    assert double.means_.dtype == np.float64


# Families that scikit-learn does not have


@pytest.mark.parametrize(
    ("alias", "name"),
    [
        ("diagonal", "diag"),
        ("isotropic", "spherical"),
        ("shared_isotropic", "tied_spherical"),
    ],
)
@pytest.mark.parametrize("init_params", INIT_PARAMS)
def test_aliases_are_the_same_family(alias, name, init_params, blobs):
    params = {"n_components": 3, "max_iter": 3, "init_params": init_params}

    one, other = (em(covariance_type=word, **params).fit(blobs.X_train) for word in (alias, name))

    assert_same(one.mixture_, other.mixture_, rtol=0, atol=0)
    assert one.get_params()["covariance_type"] == alias


def test_one_variance_for_all_starts_as_the_mean_of_those_of_each(blobs):
    def start(covariance_type):
        return em(n_components=3, max_iter=0, covariance_type=covariance_type).fit(blobs.X_train)

    pooled, each = start("tied_spherical"), start("spherical")

    assert pooled.covariances_ == pytest.approx(each.weights_ @ each.covariances_, rel=1e-12)
    assert_array_equal(pooled.means_, each.means_)


@pytest.mark.parametrize("weighted", [False, True])
def test_a_constant_covariance_stays_and_the_likelihood_rises(weighted, blobs):
    weight = np.random.default_rng(0).integers(1, 4, size=400) if weighted else None
    model = em(n_components=3, covariance_type="constant", max_iter=30)

    bounds = model.fit(blobs.X_train, sample_weight=weight).lower_bounds_

    assert_array_equal(model.mixture_.covariances, np.stack([np.eye(3)] * 3))
    assert np.all(np.diff(bounds) >= -1e-12)
    assert bounds[-1] > bounds[0]
    assert model.bic(blobs.X_train) == pytest.approx(
        -2 * 400 * model.score(blobs.X_train) + (3 * 3 + 2) * np.log(400), rel=1e-12
    )


@pytest.mark.parametrize(
    ("covariance_type", "given"),
    [("tied_spherical", [1.0, 1.0, 1.0]), ("constant", 2.0), ("constant", [1.0])],
)
def test_precisions_that_are_not_one_number_are_refused(covariance_type, given, blobs):
    model = em(n_components=3, covariance_type=covariance_type, precisions_init=given)

    with pytest.raises(ValueError, match=f"{covariance_type}: expected precisions_init of"):
        model.fit(blobs.X_train)
