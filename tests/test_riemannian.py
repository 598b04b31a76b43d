"""Riemannian optimisation follows the likelihood's own gradient and ends where EM ends."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose
from pymanopt.manifolds import SymmetricPositiveDefinite
from scipy.special import logsumexp
from strategies import assert_same, law, model_at, path, permuted, problems, seeds

from embench import gaussian, make_dataset, make_model
from embench.models.engine import FAMILIES, Arrays, Frame, Parameters, Samples
from embench.models.gradient.formulations import FORMULATIONS
from embench.models.gradient.manifold import Manifold, Point
from embench.models.gradient.riemannian import RiemannianMixture
from embench.models.gradient.solvers import SOLVERS
from embench.types import Mixture

WAYS = [
    {"solver": "lbfgs"},
    {"solver": "cg"},
    {"solver": "gradient"},
    {"solver": "lbfgs", "formulation": "naive"},
    {"solver": "cg", "formulation": "naive"},
]

NEAR = 1e-6
"""How far from the optimum [nat] a model has arrived."""

few = settings(law, max_examples=12)
ways = st.sampled_from(WAYS)
each_way = pytest.mark.parametrize("way", WAYS, ids=lambda way: "-".join(way.values()))

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")


def blobs(separation, seed=0, n_components=3, **params):
    """Blobs, and a start near them: equal weights, covariance of the data."""
    data = make_dataset(
        "blobs", seed=seed, n_components=n_components, separation=separation, **params
    )
    X, means = data.X_train, data.truth.means
    covariance = np.atleast_2d(np.cov(X.T, ddof=0))
    return X, Mixture(
        np.full(n_components, 1 / n_components), means + 0.3, np.stack([covariance] * n_components)
    )


def e_steps(name, X, start, optimum, **params):
    """How many E-steps bring a model near the optimum."""
    model = model_at(name, start, max_iter=5000, **params)
    for n_iter in model.iter_fit(X):
        if gaussian.log_likelihood(model.mixture_, X) >= optimum - NEAR:
            return getattr(model, "n_evaluations_", n_iter)
    raise AssertionError("never came near")


def optimum_of_em(X, start):
    model = model_at("em", start, tol=1e-13, max_iter=20_000).fit(X)
    assert model.converged_
    return gaussian.log_likelihood(model.mixture_, X)


# The gradient


def at_a_point(problem, formulation, seed, reg_covar=0.0):
    """A formulation in the samples' own units, and a point of it near a mixture."""
    mixture, X = problem
    D = mixture.n_features
    frame = Frame(FAMILIES["full"], np.zeros(D), np.eye(D), np.eye(D))
    samples = Samples.within(frame, Arrays.on("cpu", "float64"), X)
    parameters = Parameters(*vars(mixture).values(), precisions(mixture))
    found = FORMULATIONS[formulation](samples, reg_covar, parameters)
    start = found.point(parameters)
    size = start.factors.size + start.free.size
    return found, found.manifold.moved(start, 0.2 * tangent(found, size, seed))[0]


def precisions(mixture):
    return np.linalg.inv(np.linalg.cholesky(mixture.covariances)).swapaxes(1, 2)


def tangent(formulation, size, seed):
    """Coordinates of a tangent vector: symmetric matrices, and numbers."""
    vector = np.random.default_rng(seed).standard_normal(size)
    A, free = formulation.manifold._split(vector)
    return formulation.manifold._joined((A + A.swapaxes(-1, -2)) / 2, free)


def judged(formulation, point, X):
    """The judge's log-likelihood of what a point stands for, without the model's formulas."""
    S = point.factors @ point.factors.swapaxes(1, 2)
    K, n, _ = S.shape
    log_weights = point.free[-K:] - logsumexp(point.free[-K:])
    if formulation == "naive":
        mixture = Mixture(np.exp(log_weights), point.free[:-K].reshape(K, n), S)
        return gaussian.log_likelihood(mixture, X)
    augmented = Mixture(np.exp(log_weights), np.zeros((K, n)), S)
    Y = np.column_stack([np.ones(len(X)), X])
    return gaussian.log_likelihood(augmented, Y) + 0.5 * np.log(2 * np.pi) + 0.5


@few
@given(problems(), st.sampled_from(list(FORMULATIONS)), seeds)
def test_the_cost_is_what_the_judge_says_of_the_point(problem, name, seed):
    formulation, point = at_a_point(problem, name, seed)

    cost = formulation.evaluated(point).cost

    assert -cost == pytest.approx(judged(name, point, problem[1]), rel=1e-10)


@few
@given(problems(), st.sampled_from(list(FORMULATIONS)), seeds)
def test_the_gradient_is_that_of_finite_differences(problem, name, seed):
    formulation, point = at_a_point(problem, name, seed)
    gradient = formulation.evaluated(point).gradient
    direction, step = tangent(formulation, len(gradient), seed + 1), 1e-5

    ends = [formulation.manifold.moved(point, sign * step * direction)[0] for sign in (1, -1)]
    ahead, behind = (-judged(name, end, problem[1]) for end in ends)

    assert gradient @ direction == pytest.approx((ahead - behind) / (2 * step), rel=1e-5, abs=1e-6)


@few
@given(problems(), seeds)
def test_the_gradient_is_that_of_autograd(problem, seed):
    formulation, point = at_a_point(problem, "augmented", seed)
    L, free = point.factors, point.free
    S = torch.tensor(L @ L.swapaxes(1, 2), requires_grad=True)
    log_weights = torch.tensor(free, requires_grad=True)
    Y = torch.tensor(np.column_stack([np.ones(len(problem[1])), problem[1]]))
    quadratic = torch.einsum("ni,kij,nj->nk", Y, torch.linalg.inv(S), Y)
    log_joint = log_weights.log_softmax(0) - 0.5 * (quadratic + torch.logdet(S))
    (-log_joint.logsumexp(1).mean()).backward()

    A, along_weights = formulation.manifold._split(formulation.evaluated(point).gradient)

    assert_allclose(A, L.swapaxes(1, 2) @ S.grad.numpy() @ L, rtol=1e-8, atol=1e-9)
    assert_allclose(along_weights, log_weights.grad, rtol=1e-8, atol=1e-9)


@few
@given(problems(), seeds)
def test_the_penalty_has_the_gradient_that_it_should_have(problem, seed):
    formulation, point = at_a_point(problem, "augmented", seed, reg_covar=0.3)
    gradient = formulation.evaluated(point).gradient
    direction, step = tangent(formulation, len(gradient), seed + 1), 1e-5

    ends = [formulation.manifold.moved(point, sign * step * direction)[0] for sign in (1, -1)]
    ahead, behind = (formulation.evaluated(end).cost for end in ends)

    assert gradient @ direction == pytest.approx((ahead - behind) / (2 * step), rel=1e-5, abs=1e-6)


@few
@given(problems())
def test_steepest_descent_points_to_where_em_goes(problem):
    start, X = problem
    formulation, _ = at_a_point(problem, "augmented", 0)
    point = formulation.point(Parameters(*vars(start).values(), precisions(start)))
    here = formulation.evaluated(point)
    expected = model_at("em", start, max_iter=1, reg_covar=0.0).fit(X)

    A, _ = formulation.manifold._split(-here.scale * here.gradient)

    L = point.factors
    S = L @ (np.eye(L.shape[1]) + A) @ L.swapaxes(1, 2)
    means = S[:, 1:, 0]
    assert_allclose(S[:, 0, 0], 1.0, rtol=1e-9)
    assert_allclose(means, expected.means_, rtol=1e-7, atol=1e-8)
    covariances = S[:, 1:, 1:] - means[:, :, None] * means[:, None, :]
    assert_allclose(covariances, expected.covariances_, rtol=1e-6, atol=1e-7)


@few
@given(problems(), seeds)
def test_showing_a_point_keeps_the_responsibilities_and_loses_nothing(problem, seed):
    formulation, point = at_a_point(problem, "augmented", seed)
    there = formulation.evaluated(point)

    shown = formulation.shown(there)

    again = formulation.evaluated(shown.point)
    assert shown.cost == pytest.approx(-there.log_likelihood, rel=1e-10)
    assert shown.cost <= there.cost + 1e-12
    assert_allclose(shown.gradient, again.gradient, rtol=1e-7, atol=1e-9)
    assert shown.cost == pytest.approx(again.cost, rel=1e-10)


# The manifold


def two_points(seed, n_matrices=3, size=4):
    rng = np.random.default_rng(seed)
    factors = np.tril(rng.standard_normal((2, n_matrices, size, size)), -1)
    factors += np.exp(rng.standard_normal((2, n_matrices, size)))[..., None] * np.eye(size)
    points = [Point(one, rng.standard_normal(5)) for one in factors]
    manifold = Manifold(n_matrices, size)
    A = rng.standard_normal((2, n_matrices, size, size))
    vectors = manifold._joined(A + A.swapaxes(-1, -2), rng.standard_normal((2, 5)))
    return manifold, points, vectors


def matrices(point):
    return point.factors @ point.factors.swapaxes(1, 2)


@few
@given(seeds)
def test_coordinates_are_those_of_the_library_at_any_point(seed):
    manifold, (point, _), (one, other) = two_points(seed)
    library, S, L = SymmetricPositiveDefinite(4, k=3), matrices(point), point.factors
    V, W = (L @ manifold._split(vector)[0] @ L.swapaxes(1, 2) for vector in (one, other))

    moved, _ = manifold.moved(point, 0.3 * one)

    product = library.inner_product(S, V, W) + one[-5:] @ other[-5:]
    assert one @ other == pytest.approx(product, rel=1e-8, abs=1e-8)
    assert_allclose(matrices(moved), library.exp(S, 0.3 * V), rtol=1e-7, atol=1e-7)


@few
@given(seeds)
def test_transport_is_parallel(seed):
    manifold, (old, new), (one, other) = two_points(seed)

    step, here, there = manifold.transported(old, new, [one, other])

    # Lengths and angles stay, and the step that leads on leads back.
    assert [here @ here, here @ there] == pytest.approx([one @ one, one @ other], rel=1e-7)
    back, _ = manifold.moved(new, -step)
    assert_allclose(matrices(back), matrices(old), rtol=1e-6, atol=1e-7)
    assert_allclose(back.free, old.free, atol=1e-12)
    returned = manifold.transported(new, old, [here, there])[1:]
    assert_allclose(returned, [one, other], rtol=1e-6, atol=1e-7)


@few
@given(seeds)
def test_a_geodesic_transports_its_own_velocity(seed):
    manifold, (point, _), (step, _) = two_points(seed)

    end, velocity = manifold.moved(point, 0.3 * step)

    assert_allclose(velocity, manifold.transported(point, end, [])[0], rtol=1e-6, atol=1e-7)


# The way, and where it ends


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("separation", "n_features"), [(4.0, 2), (2.0, 2), (2.0, 5), (3.0, 1)])
@each_way
def test_the_optimum_is_that_of_em(way, separation, n_features, seed):
    X, start = blobs(separation, seed, n_features=n_features)
    model = model_at("riemannian", start, tol=1e-11, max_iter=1000, **way).fit(X)

    again = model_at("em", model.mixture_, max_iter=300).fit(X)

    found = gaussian.log_likelihood(model.mixture_, X)
    assert model.converged_ or way["solver"] == "gradient"
    assert gaussian.log_likelihood(again.mixture_, X) == pytest.approx(found, abs=1e-8)
    if way["solver"] == "lbfgs" and n_features > 1:
        assert found == pytest.approx(optimum_of_em(X, start), abs=NEAR)


@settings(law, max_examples=20)
@given(problems(), ways, st.integers(0, 3))
def test_the_judge_never_sees_the_likelihood_fall(problem, way, warm_up):
    start, X = problem
    model = model_at("riemannian", start, reg_covar=0.0, max_iter=15, warm_up=warm_up, **way)

    likelihoods = [gaussian.log_likelihood(model.mixture_, X) for _ in model.iter_fit(X)]

    assert len(likelihoods) == 16
    assert np.all(np.diff(likelihoods) >= -1e-9)


@few
@given(problems(), ways)
def test_lower_bounds_are_the_judges_of_the_mixtures_before(problem, way):
    start, X = problem
    model = model_at("riemannian", start, max_iter=8, **way)

    shown = path(model, X)

    assert len(model.lower_bounds_) == 8
    expected = [gaussian.log_likelihood(mixture, X) for mixture in shown[:-1]]
    assert_allclose(model.lower_bounds_, expected, rtol=1e-10)


@few
@given(problems(), st.sampled_from(["lbfgs", "cg", "gradient"]), seeds)
def test_mapped_samples_take_the_mapped_way(problem, solver, seed):
    start, X = problem
    rng = np.random.default_rng(seed)
    D = X.shape[1]
    A = 10.0 ** rng.uniform(-2, 2) * (np.eye(D) + 0.4 * rng.standard_normal((D, D)) / D)
    shift = 10 * rng.standard_normal(D)
    params = {"solver": solver, "reg_covar": 0.0, "max_iter": 7, "warm_up": 1}

    mapped = path(model_at("riemannian", moved_by(start, A, shift), **params), X @ A.T + shift)

    ways = zip(mapped, path(model_at("riemannian", start, **params), X), strict=True)
    for ours, theirs in ways:
        back = moved_by(ours, np.linalg.inv(A), -np.linalg.solve(A, shift))
        assert_same(back, theirs, rtol=1e-5, atol=1e-6)


def moved_by(mixture, A, shift):
    return Mixture(mixture.weights, mixture.means @ A.T + shift, A @ mixture.covariances @ A.T)


@few
@given(problems(), ways, seeds)
def test_the_order_of_components_changes_nothing(problem, way, seed):
    start, X = problem
    order = np.random.default_rng(seed).permutation(start.n_components)
    params = {**way, "max_iter": 6}

    permuted_way = path(model_at("riemannian", permuted(start, order), **params), X)

    for ours, theirs in zip(
        permuted_way, path(model_at("riemannian", start, **params), X), strict=True
    ):
        assert_same(ours, permuted(theirs, order), rtol=1e-6, atol=1e-7)


@each_way
def test_however_much_is_added_to_covariances_it_ends_where_em_ends(way):
    X, start = blobs(4.0, imbalance=4)
    params = {"reg_covar": 0.5, "max_iter": 1000}
    expected = model_at("em", start, **params).fit(X)

    model = model_at("riemannian", start, tol=1e-12, warm_up=0, **params, **way).fit(X)

    assert_same(model.mixture_, expected.mixture_, rtol=1e-3, atol=1e-4)


@each_way
def test_components_that_collapse_are_held_up_as_by_em(way):
    X = np.repeat(np.random.default_rng(0).standard_normal((5, 2)), 40, axis=0)
    params = {"n_components": 5, "random_state": 0, "tol": 1e-6, "reg_covar": 1e-4}
    expected = make_model("em", **params).fit(X).score(X)

    model = make_model("riemannian", **params, **way).fit(X)

    assert model.score(X) == pytest.approx(expected, abs=1e-3)


def test_a_start_of_another_size_than_the_data_is_no_obstacle():
    X, start = blobs(4.0)
    optimum = optimum_of_em(X, start)
    narrow = Mixture(start.weights, start.means, 1e-8 * start.covariances)

    for warm_up in (0, 1):
        model = model_at("riemannian", narrow, tol=1e-10, max_iter=500, warm_up=warm_up).fit(X)

        assert model.score(X) == pytest.approx(optimum, abs=NEAR)


# The line search, and what there is without it


def ready(problem, seed, **params):
    """A model at work, its formulation and an evaluation there."""
    start, X = problem
    model = model_at("riemannian", start, max_iter=0, **params).fit(X)
    formulation, point = at_a_point(problem, model.formulation, seed)
    return model, formulation, formulation.evaluated(point)


@few
@given(problems(), st.sampled_from(list(FORMULATIONS)), seeds, st.sampled_from([0.3, 1.0, 2.5]))
def test_the_slope_of_a_trial_is_that_of_the_costs_around_it(problem, name, seed, length):
    model, formulation, here = ready(problem, seed, formulation=name)
    direction, step = 0.2 * tangent(formulation, len(here.gradient), seed + 1), 1e-5

    ahead, (_, slope, _), behind = (
        model._tried(formulation, here.point, at * direction, 1 / at)
        for at in (length + step, length, length - step)
    )

    assert slope == pytest.approx((ahead[0] - behind[0]) / (2 * step), rel=1e-5, abs=1e-6)


@few
@given(problems(), st.sampled_from(list(SOLVERS)), seeds)
def test_a_step_ends_at_a_mixture_that_is_shown_as_it_is(problem, solver, seed):
    model, formulation, here = ready(problem, seed)
    here = formulation.shown(here)

    there = model._searched(formulation, here, SOLVERS[solver]())

    assert there is None or there.cost == -there.log_likelihood <= here.cost
    assert there is None or np.all(there.point.factors[:, 0, 0] == 1)


def test_where_the_line_search_finds_nothing_the_steps_are_ems(monkeypatch):
    X, start = blobs(2.0)
    monkeypatch.setattr(RiemannianMixture, "_searched", lambda *_: None)

    ours, theirs = (path(model_at(name, start, max_iter=9), X) for name in ("riemannian", "em"))

    for one, other in zip(ours, theirs, strict=True):
        assert_same(one, other, rtol=1e-9)


def test_where_not_even_em_finds_anything_the_model_stays(monkeypatch):
    X, start = blobs(2.0)
    monkeypatch.setattr(RiemannianMixture, "_searched", lambda *_: None)
    monkeypatch.setattr(RiemannianMixture, "_em_step", lambda *_: (0.0, wide))
    model = model_at("riemannian", start, max_iter=3, warm_up=0)
    samples, _ = model._fitting(X, None)
    wider = Mixture(start.weights, start.means, 9 * start.covariances)
    wide = samples.frame.inward(Parameters(*vars(wider).values(), precisions(wider)))

    shown = path(model, X)

    for mixture in shown:
        assert_same(mixture, start)


# What it costs


@pytest.mark.parametrize("separation", [2.0, 1.5, 1.0])
def test_overlapping_components_cost_a_share_of_ems_e_steps(separation):
    X, start = blobs(separation, seed=1)
    optimum = optimum_of_em(X, start)

    needed = e_steps("riemannian", X, start, optimum)

    assert needed <= 0.4 * e_steps("em", X, start, optimum)


@pytest.mark.parametrize("seed", range(3))
def test_the_augmented_formulation_needs_fewer_e_steps_than_the_naive_one(seed):
    X, start = blobs(2.0, seed, n_features=8, n_components=5, conditioning=100, n_samples=2000)
    optimum = optimum_of_em(X, start)

    augmented, naive = (
        e_steps("riemannian", X, start, optimum, formulation=formulation)
        for formulation in ("augmented", "naive")
    )

    assert augmented <= 0.6 * naive


@each_way
def test_e_steps_of_all_restarts_are_counted_anew_by_each_fit(way):
    X, start = blobs(4.0)
    model = model_at("riemannian", start, max_iter=6, **way)
    once = model.fit(X).n_evaluations_

    again = model.fit(X).n_evaluations_
    thrice = model.set_params(n_init=3).fit(X).n_evaluations_

    assert once >= 7
    assert (again, thrice) == (once, 3 * once)


# As every other model


@each_way
def test_each_sample_counts_as_often_as_its_weight(way):
    X, start = blobs(4.0)
    weights = np.random.default_rng(0).integers(0, 3, len(X))
    expected = model_at("riemannian", start, max_iter=8, **way).fit(np.repeat(X, weights, axis=0))

    model = model_at("riemannian", start, max_iter=8, **way).fit(X, sample_weight=weights)

    assert_allclose(model.means_, expected.means_, rtol=1e-6, atol=1e-6)


@each_way
def test_float32_ends_close_to_float64(way):
    X, start = blobs(3.0)
    double = model_at("riemannian", start, max_iter=60, **way).fit(X)

    single = model_at("riemannian", start, max_iter=60, dtype="float32", **way).fit(X)

    judge = [gaussian.log_likelihood(model.mixture_, X) for model in (single, double)]
    assert judge[0] == pytest.approx(judge[1], abs=1e-4)


def test_a_file_is_fitted_like_samples_in_memory(tmp_path):
    X, start = blobs(2.0)
    np.save(tmp_path / "x.npy", X)
    expected = model_at("riemannian", start, max_iter=10).fit(X)

    model = model_at("riemannian", start, max_iter=10).fit(tmp_path / "x.npy")

    assert_same(model.mixture_, expected.mixture_, rtol=1e-6, atol=1e-6)


def test_one_component_is_the_gaussian_of_the_data():
    X = np.random.default_rng(0).standard_normal((100, 1)) ** 2

    model = make_model("riemannian", warm_up=0, reg_covar=0.0, tol=1e-12).fit(X)

    assert_allclose(model.means_[0], X.mean(axis=0), rtol=1e-5)
    assert_allclose(model.covariances_[0], [[X.var()]], rtol=1e-5)


@pytest.mark.parametrize(
    "params",
    [{"covariance_type": "diag"}, {"solver": "newton"}, {"formulation": "bold"}, {"warm_up": -1}],
)
def test_what_it_cannot_do_is_refused(params):
    X, _ = blobs(4.0)

    with pytest.raises(ValueError, match=f"'{next(iter(params))}' parameter"):
        make_model("riemannian", n_components=3, **params).fit(X)


def test_its_library_is_loaded_by_the_first_fit_only():
    code = (
        "import sys, embench; embench.make_model('riemannian', n_components=2); "
        "print({'pymanopt', 'torch'} & sys.modules.keys())"
    )

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout.strip() == "set()"
