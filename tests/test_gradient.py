"""Gradient descent: right gradients, EM's optimum, and something done about singularities."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose
from sklearn.exceptions import ConvergenceWarning
from strategies import (
    ALL_COVARIANCE_TYPES,
    assert_same,
    compact,
    law,
    model_at,
    path,
    problems,
    random_mixture,
    seeds,
)

from embench import gaussian, make_dataset, make_model
from embench.models import spec
from embench.models.base import DivergenceWarning
from embench.models.engine import FAMILIES, Parameters, Samples
from embench.models.gradient import objective
from embench.models.gradient.closed_form import ClosedFormNLL
from embench.models.gradient.coordinates import to_coordinates, to_parameters
from embench.models.gradient.likelihood import Coordinates, components, log_joint
from embench.models.gradient.mitigation import SingularityWarning, reset
from embench.types import Mixture

every_family = pytest.mark.parametrize("covariance_type", ALL_COVARIANCE_TYPES)
both = pytest.mark.parametrize("name", ["gd", "gd-closed-form"])

family_problems = st.sampled_from(ALL_COVARIANCE_TYPES).flatmap(
    lambda family: st.tuples(st.just(family), problems(family))
)

# Most descents here stop after a given number of steps on purpose.
pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")


def at(mixture, X, covariance_type, **how):
    """Samples in their frame, and a mixture's free numbers there, ready for gradients."""
    family = FAMILIES[covariance_type]
    samples = Samples.of(X, family, **how)
    covariances = compact(mixture.covariances, covariance_type)
    parameters = Parameters(
        mixture.weights, mixture.means, covariances, family.precisions_cholesky(covariances)
    )
    coordinates = to_coordinates(samples.frame.inward(parameters), family)
    return samples, Coordinates(*(part.requires_grad_() for part in coordinates))


def inward(samples, mixture):
    """A mixture of full covariances in the frame of samples."""
    factors = samples.family.precisions_cholesky(mixture.covariances)
    parameters = Parameters(mixture.weights, mixture.means, mixture.covariances, factors)
    return Mixture(*samples.frame.inward(parameters)[:3])


def loss_and_gradients(likelihood, samples, coordinates):
    for part in coordinates:
        part.grad = None
    loss = likelihood(coordinates, samples)
    loss.backward()
    zero = torch.zeros_like
    return loss.item(), [zero(part) if part.grad is None else part.grad for part in coordinates]


def blobs(seed=0, covariance_type="full", **params):
    family = "spherical" if covariance_type in ("tied_spherical", "constant") else covariance_type
    return make_dataset("blobs", seed=seed, covariance_type=family, **params).X_train


# Likelihood and gradients


@law
@given(family_problems)
def test_log_joints_are_the_judges(problem):
    covariance_type, (mixture, X) = problem
    samples, coordinates = at(mixture, X, covariance_type)

    joint = log_joint(torch.as_tensor(samples.Y), components(coordinates)).detach()

    expected = gaussian.log_joint(mixture, X) + samples.frame.log_scale
    assert_allclose(joint.numpy().T, expected, rtol=1e-9, atol=1e-9)


@every_family
@pytest.mark.parametrize("n_features", [1, 3])
def test_a_mixture_for_each_sample_is_the_same_as_one_for_each_in_turn(covariance_type, n_features):
    rng = np.random.default_rng(0)
    mixtures = [random_mixture(rng, 3, n_features, covariance_type) for _ in range(5)]
    X = rng.standard_normal((5, n_features))
    one_by_one = [at(mixture, X, covariance_type) for mixture in mixtures]
    Y = torch.as_tensor(one_by_one[0][0].Y)
    stacked = Coordinates(
        *(torch.cat(parts, dim=-1) for parts in zip(*(own for _, own in one_by_one), strict=True))
    )

    together = log_joint(Y, components(stacked))

    for i, (_, own) in enumerate(one_by_one):
        alone = log_joint(Y[:, i : i + 1], components(own))
        assert_allclose(together[:, i].detach(), alone[:, 0].detach(), rtol=1e-10, atol=1e-10)


@law
@given(family_problems)
def test_free_numbers_are_the_same_mixture_there_and_back(problem):
    covariance_type, (mixture, X) = problem
    samples, coordinates = at(mixture, X, covariance_type)

    parameters = samples.frame.outward(to_parameters(coordinates, samples.family))

    assert_allclose(parameters.weights, mixture.weights, rtol=1e-12)
    assert_allclose(parameters.means, mixture.means, rtol=1e-9, atol=1e-9)
    covariances = compact(mixture.covariances, covariance_type)
    assert_allclose(parameters.covariances, covariances, rtol=1e-9, atol=1e-9)


@law
@given(family_problems, st.booleans())
def test_the_closed_form_is_autograds(problem, weighted):
    covariance_type, (mixture, X) = problem
    weight = np.random.default_rng(0).uniform(0, 3, size=len(X)) if weighted else None
    samples, coordinates = at(mixture, X, covariance_type, sample_weight=weight)

    (one, gradients), (other, closed) = (
        loss_and_gradients(likelihood, samples, coordinates)
        for likelihood in (objective.by_autograd, objective.in_closed_form)
    )

    assert one == pytest.approx(other, rel=1e-12)
    for ours, theirs in zip(closed, gradients, strict=True):
        assert_allclose(ours, theirs, rtol=1e-10, atol=1e-10)


@law
@given(family_problems)
def test_gradients_are_differences_of_the_judges_likelihood(problem):
    covariance_type, (mixture, X) = problem
    samples, coordinates = at(mixture, X, covariance_type)
    rng = np.random.default_rng(0)
    direction = [torch.as_tensor(rng.standard_normal(part.shape)) for part in coordinates]
    if covariance_type == "constant":
        direction[2:] = [torch.zeros_like(part) for part in direction[2:]]

    _, gradients = loss_and_gradients(objective.in_closed_form, samples, coordinates)

    def judged(step):
        moved = Coordinates(
            *(part.detach() + step * d for part, d in zip(coordinates, direction, strict=True))
        )
        outward = samples.frame.outward(to_parameters(moved, samples.family))
        found = make_model("em", covariance_type=covariance_type)
        found.weights_, found.means_, found.covariances_, _ = outward
        return -gaussian.log_likelihood(found.mixture_, X)

    step = 1e-5
    slope = sum(float((g * d).sum()) for g, d in zip(gradients, direction, strict=True))
    assert slope == pytest.approx((judged(step) - judged(-step)) / (2 * step), rel=1e-5, abs=1e-7)


@law
@given(problems("full"))
def test_gradients_are_the_specifications_vector_jacobian_products(problem):
    mixture, X = problem
    samples, coordinates = at(mixture, X, "full")
    mixture, X = inward(samples, mixture), samples.Y[:-1].T

    _, gradients = loss_and_gradients(objective.in_closed_form, samples, coordinates)

    resp = spec.responsibilities(mixture, X)
    products = [spec.forward_vjp(mixture, x, -r / len(X)) for x, r in zip(X, resp, strict=True)]
    # Pulled back by torch from weights, means and covariances to the free numbers behind them.
    log_weights, means, factors = (part[..., 0] for part in components(coordinates))
    factors = factors if factors.ndim == 3 else torch.diag_embed(factors)
    parts = {
        "weights": log_weights.exp(),
        "means": means,
        "covariances": torch.linalg.inv(factors @ factors.mT),
    }
    _, expected = loss_and_gradients(
        lambda *_: sum(
            (part * torch.as_tensor(sum(getattr(one, name) for one in products))).sum()
            for name, part in parts.items()
        ),
        samples,
        coordinates,
    )
    for ours, theirs in zip(gradients, expected, strict=True):
        assert_allclose(ours, theirs, rtol=1e-8, atol=1e-9)


@both
def test_chunks_change_nothing(name, monkeypatch):
    X = blobs(n_samples=300)
    whole = make_model(name, n_components=3, max_iter=5, random_state=0).fit(X)

    monkeypatch.setattr(objective, "GRAPH", 2_000)
    cut = make_model(name, n_components=3, max_iter=5, random_state=0).fit(X)

    assert_same(whole.mixture_, cut.mixture_, rtol=1e-12, atol=1e-12)


# A published loss that is written from scratch has two errors


def published_full_nll(x, covariance):
    """It takes the covariance for its Cholesky factor, and leaves out the constant."""
    inverse = torch.cholesky_inverse(torch.as_tensor(covariance)).numpy()
    return 0.5 * (x @ inverse @ x + np.linalg.slogdet(covariance)[1])


def published_diag_nll(x, stddevs):
    """It subtracts the size of the logarithms of the standard deviations from the log-density."""
    quadratic = np.square(x / stddevs).sum()
    return 0.5 * (quadratic + len(x) * np.log(2 * np.pi)) + np.abs(np.log(stddevs)).sum()


def our_nll(x, covariance):
    one = spec.symmetric_start(1, len(x))
    mixture = type(one)(one.weights, one.means, covariance[None])
    samples, coordinates = at(mixture, np.stack([x, -x, x + 1]), "full")
    joint = log_joint(torch.as_tensor(samples.Y), components(coordinates))
    return float(samples.frame.log_scale - joint[0, 0].item())


@law
@given(seeds)
def test_the_published_full_loss_is_right_only_for_unit_covariances(seed):
    rng = np.random.default_rng(seed)
    x, constant = rng.standard_normal(2), np.log(2 * np.pi)

    assert our_nll(x, np.eye(2)) == pytest.approx(published_full_nll(x, np.eye(2)) + constant)
    doubled = 2 * np.eye(2)
    assert our_nll(x, doubled) == pytest.approx(
        published_full_nll(x, doubled) + constant + 0.5 * (x @ x) * (1 / 2 - 1 / 4)
    )


@pytest.mark.parametrize("stddev", [0.5, 1.0, 2.0])
def test_the_published_diagonal_loss_is_wrong_for_small_deviations(stddev):
    x = np.array([0.3, -1.2])

    error = published_diag_nll(x, np.full(2, stddev)) - our_nll(x, stddev**2 * np.eye(2))

    # At 0.5 in two dimensions: 2.7726 nat, as 8.3319 is above 5.5594.
    assert error == pytest.approx(4 * max(0.0, -np.log(stddev)), abs=1e-9)


# The descent


@every_family
@pytest.mark.parametrize("optimizer", ["adam", "lbfgs"])
def test_the_optimum_is_ems(covariance_type, optimizer):
    for seed in range(10):
        X = blobs(seed, covariance_type, n_samples=400)
        params = {"n_components": 3, "covariance_type": covariance_type, "random_state": 0}

        em = make_model("em", tol=1e-9, max_iter=3000, **params).fit(X)
        gd = make_model("gd-closed-form", optimizer=optimizer, **params).fit(X)

        ours, theirs = (gaussian.log_likelihood(model.mixture_, X) for model in (gd, em))
        assert ours > theirs - 1e-3, f"seed {seed}"
        assert gd.converged_


@every_family
def test_autograd_and_the_closed_form_go_the_same_way(covariance_type):
    X = blobs(1, covariance_type, n_samples=300)
    params = {"n_components": 3, "covariance_type": covariance_type, "random_state": 0}

    one, other = (
        path(make_model(name, max_iter=30, **params), X) for name in ("gd", "gd-closed-form")
    )

    for ours, theirs in zip(one, other, strict=True):
        assert_same(ours, theirs, rtol=1e-7, atol=1e-7)


@both
@pytest.mark.parametrize("optimizer", ["adam", "adamw", "sgd", "lbfgs"])
@pytest.mark.parametrize("weighted", [False, True])
def test_the_bound_is_the_judges_of_the_mixture_that_is_returned(name, optimizer, weighted):
    X = blobs(n_samples=200)
    weight = np.random.default_rng(0).integers(1, 4, size=200) if weighted else np.ones(200, int)
    model = make_model(name, n_components=3, optimizer=optimizer, max_iter=7, random_state=0)

    bounds = []
    for n_iter in model.iter_fit(X, sample_weight=weight if weighted else None):
        if n_iter:
            judged = gaussian.log_likelihoods(model.mixture_, X) @ weight / weight.sum()
            assert model.lower_bound_ == pytest.approx(judged, rel=1e-10)
            bounds.append(model.lower_bound_)

    assert len(bounds) == 7
    assert bounds == model.lower_bounds_
    assert model.loss_ == -bounds[-1]
    assert bounds[-1] > bounds[0]


@both
@every_family
def test_scaled_data_give_the_scaled_mixture(name, covariance_type):
    if covariance_type == "constant":
        pytest.skip("what is constant does not scale")
    X = blobs(2, covariance_type, n_samples=200)
    model = make_model(name, covariance_type=covariance_type, n_components=2, reg_covar=0)
    model.set_params(max_iter=20, random_state=0)

    one, other = (model.fit(c * X + 3 * c).score(c * X + 3 * c) for c in (1.0, 1e3))

    assert one - other == pytest.approx(2 * np.log(1e3), abs=1e-6)


def test_rates_in_units_of_the_data_follow_shifts_but_not_scales():
    X = blobs(n_samples=200)
    start = random_mixture(np.random.default_rng(0), 2, 2)
    shifted = type(start)(start.weights, start.means + 50, start.covariances)

    def fitted(start, X):
        return model_at("gd", start, standardize=False, max_iter=20).fit(X).mixture_

    one, other = fitted(start, X), fitted(shifted, X + 50)

    assert_allclose(one.means + 50, other.means, rtol=1e-9)
    assert_allclose(one.covariances, other.covariances, rtol=1e-8)
    standardized = model_at("gd", start, max_iter=20).fit(X).mixture_
    assert np.abs(standardized.means - one.means).max() > 1e-3


@both
def test_a_sample_of_weight_two_is_a_sample_twice(name):
    X = blobs(n_samples=150)
    weight = np.random.default_rng(0).integers(1, 3, size=150)
    start = random_mixture(np.random.default_rng(1), 3, 2)

    weighted = model_at(name, start, max_iter=15).fit(X, sample_weight=weight)
    repeated = model_at(name, start, max_iter=15).fit(np.repeat(X, weight, axis=0))

    assert_same(weighted.mixture_, repeated.mixture_, rtol=1e-7, atol=1e-7)


@both
def test_every_sample_is_in_one_batch_of_a_pass(name, monkeypatch):
    X, sizes, seen = blobs(n_samples=103), [], []
    whole = objective.Objective.evaluate_batch

    def watched(self, batch, share=1.0):
        if batch is not self.samples:
            sizes.append((batch.n_samples, share))
            seen.append(batch.Y)
        return whole(self, batch, share)

    monkeypatch.setattr(objective.Objective, "evaluate_batch", watched)
    make_model(name, n_components=2, batch_size=25, max_iter=2, random_state=0).fit(X)

    second = [seen.pop() for _ in range(5)][::-1]
    sizes[5:] = []
    assert not np.array_equal(np.hstack(seen), np.hstack(second)), "every pass in another order"
    assert sorted(size for size, _ in sizes) == [20, 20, 21, 21, 21]
    assert [share for _, share in sizes] == pytest.approx([5 * size / 103 for size, _ in sizes])
    samples = Samples.of(X, FAMILIES["full"])
    assert_allclose(np.sort(np.hstack(seen)[0]), np.sort(samples.Y[0]), rtol=1e-12)


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "sgd"])
def test_mini_batches_come_near_the_optimum(optimizer):
    X = blobs(n_samples=1000)
    em = make_model("em", n_components=3, tol=1e-9, max_iter=1000, random_state=0).fit(X)
    rates = {"mixture_lr": 0.02, "component_lr": 0.02} if optimizer != "sgd" else {}

    gd = make_model("gd", n_components=3, optimizer=optimizer, batch_size=64, max_iter=100)
    gd.set_params(random_state=0, **rates).fit(X)

    assert gd.score(X) > em.score(X) - 2e-3
    assert gd.converged_ or optimizer == "sgd"


@both
def test_float32_ends_where_float64_does(name):
    X = blobs(n_samples=500)

    double, single = (
        make_model(name, n_components=3, dtype=dtype, random_state=0).fit(X)
        for dtype in ("float64", "float32")
    )

    assert single.means_.dtype == np.float32
    assert single.score(X) == pytest.approx(double.score(X), abs=1e-4)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # some of them collapse
def test_the_best_of_many_starts_is_kept():
    X = blobs(n_samples=300, n_components=4, separation=6)
    params = {"n_components": 4, "init": "random_from_data", "optimizer": "lbfgs"}

    one, many = (
        make_model("gd-closed-form", n_init=n, random_state=1, **params).fit(X) for n in (1, 8)
    )

    assert many.lower_bound_ > one.lower_bound_ + 0.1
    assert many.score(X) == pytest.approx(many.lower_bound_, rel=1e-10)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # a component may well collapse onto it
@pytest.mark.parametrize("optimizer", ["adam", "sgd", "lbfgs"])
@pytest.mark.parametrize("distance", [10.0, 1e2, 1e4, 1e6])
@pytest.mark.parametrize("covariance_type", ["full", "spherical"])
def test_an_outlier_does_not_send_it_below_its_start(covariance_type, distance, optimizer):
    X = np.vstack([blobs(n_samples=150), [[distance, distance]]])
    model = make_model("gd-closed-form", n_components=3, covariance_type=covariance_type)
    model.set_params(optimizer=optimizer, max_iter=100, random_state=0)
    bounds, scores = [], []

    for _ in model.iter_fit(X):
        bounds.append(model.lower_bound_)
        scores.append(model.score(X))

    assert np.all(np.diff(bounds[1:]) >= 0), "the best so far is what is shown"
    assert scores[-1] >= scores[0]


@pytest.mark.parametrize("init", ["k-means++", "random_from_data"])
def test_components_that_begin_as_single_samples_grow(init):
    for seed in range(3):
        X = blobs(seed, n_samples=400)
        model = make_model("gd-closed-form", n_components=3, init=init, random_state=0)

        *_, end = (model.score(X) for _ in model.iter_fit(X))

        em = make_model("em", n_components=3, tol=1e-8, max_iter=1000, random_state=0).fit(X)
        # Where they grow to may be another optimum; where they begin is thousands of nat away.
        assert end > em.score(X) - 1.0


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_optimizers_are_not_adam(optimizer):
    X = blobs(n_samples=200)
    params = {"n_components": 2, "max_iter": 20, "random_state": 0}

    one, other = (make_model("gd", optimizer=name, **params).fit(X) for name in ("adam", optimizer))

    assert np.abs(one.means_ - other.means_).max() > 1e-5


def test_a_cosine_ends_with_small_steps_and_a_constant_rate_does_not():
    X = blobs(n_samples=200)

    def last_step(schedule):
        model = make_model("gd", n_components=2, schedule=schedule, optimizer="sgd", tol=0)
        model.set_params(max_iter=20, mixture_lr=0.5, component_lr=0.5, random_state=0)
        *_, before, after = path(model, X)
        return np.abs(after.means - before.means).max()

    assert last_step("cosine") < 0.1 * last_step("constant")


def test_steps_that_are_too_long_keep_the_last_mixture_and_say_so():
    X = blobs(n_samples=200)
    model = make_model("gd", n_components=2, optimizer="sgd", component_lr=1e200, random_state=0)

    with pytest.warns(DivergenceWarning, match="try smaller learning rates"):
        model.fit(X)

    assert np.isfinite(model.score(X))
    assert not model.converged_


@both
@every_family
@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("params", [{}, {"batch_size": 50}, {"mitigation": "map"}], ids=str)
def test_cuda_ends_where_the_cpu_ends(name, covariance_type, params):
    X = blobs(1, covariance_type, n_samples=300)
    model = make_model(name, n_components=3, covariance_type=covariance_type, max_iter=20, **params)
    expected = model.set_params(random_state=0).fit(X).mixture_

    found = model.set_params(device="cuda").fit(X).mixture_

    assert_same(found, expected, rtol=1e-7, atol=1e-7)


# What the published original does by its settings, and the defaults do not

ORIGINAL = {
    "init": "uniform",
    "radius": 8.0,
    "mixture_lr": 3e-5,
    "component_lr": 1e-2,
    "standardize": False,
    "tol": 0.0,
}


def test_slow_logits_freeze_the_weights():
    rng = np.random.default_rng(0)
    X = np.concatenate([rng.normal(-4, 1, 900), rng.normal(4, 1, 100)])[:, None]
    params = {"n_components": 2, "random_state": 0}

    frozen = make_model("gd-closed-form", max_iter=1000, **ORIGINAL, **params).fit(X)
    ours = make_model("gd", **params).fit(X)

    # Adam moves a logit by about its rate a step, which falls to 0 along a cosine.
    farthest = np.exp(2 * 3e-5 * 1000 / 2)
    assert frozen.weights_.max() / frozen.weights_.min() == pytest.approx(farthest, rel=1e-3)
    assert frozen.score(X) < ours.score(X) - 0.2
    assert np.sort(ours.weights_) == pytest.approx([0.1, 0.9], abs=0.01)
    assert ours.score(X) == pytest.approx(-1.7178, abs=1e-3)


@pytest.mark.parametrize("covariance_type", ["diag", "spherical"])
def test_starts_far_from_the_data_get_stuck(covariance_type):
    X = blobs(n_samples=400, n_components=5, separation=6)
    params = {"n_components": 5, "covariance_type": covariance_type}
    em = make_model("em", tol=1e-8, max_iter=1000, random_state=0, **params).fit(X)

    original = {**ORIGINAL, "max_iter": 1000}
    scores = [
        make_model("gd-closed-form", random_state=seed, **original, **params).fit(X).score(X)
        for seed in range(3)
    ]
    ours = make_model("gd", random_state=0, **params).fit(X)

    assert np.median(scores) < em.score(X) - 0.05
    assert ours.score(X) > em.score(X) - 1e-3


def test_a_uniform_start_has_unit_covariances_and_means_within_the_radius():
    model = make_model("gd", n_components=50, init="uniform", radius=3.0, random_state=0)

    next(model.iter_fit(blobs()))

    assert np.abs(model.means_).max() <= 3.0
    assert np.abs(model.means_).max() > 2.5
    assert_allclose(model.covariances_, np.broadcast_to(np.eye(2), (50, 2, 2)), atol=1e-12)
    assert_allclose(model.weights_, 1 / 50, rtol=1e-12)


# Singularities


@both
@pytest.mark.parametrize("optimizer", ["adam", "lbfgs"])
def test_a_clamped_deviation_bounds_the_likelihood(name, optimizer):
    model = make_model(name, n_components=2, optimizer=optimizer, min_stddev=1e-6)

    with pytest.warns(SingularityWarning, match="min_stddev = 1e-06"):
        model.fit(np.zeros((20, 1)))

    # log N(0; 0, 1e-12), the smallest variance that there may be
    assert model.score(np.zeros((1, 1))) == pytest.approx(12.896572, abs=1e-6)
    assert model.n_mitigations_ > 0


def pair_on_its_samples(**params):
    """Two components that begin on the two samples, and what they came to."""
    X = np.array([[0.0], [1.0]])
    start = spec.symmetric_start(2, 1)
    start = type(start)(start.weights, X, start.covariances)
    return model_at("gd", start, optimizer="lbfgs", **params).fit(X), X


@pytest.mark.filterwarnings("ignore::embench.models.gradient.mitigation.SingularityWarning")
def test_a_reset_component_begins_anew_as_wide_as_the_data():
    clamped, X = pair_on_its_samples(mitigation="clamp", min_stddev=1e-3)
    again, _ = pair_on_its_samples(mitigation="reset", min_stddev=1e-3)

    assert clamped.covariances_.ravel() == pytest.approx([1e-6, 1e-6], rel=1e-6)
    assert again.n_mitigations_ >= 1
    # The optimum of one Gaussian: 0.725791 nat, which no collapse has spoilt.
    assert -again.score(X) == pytest.approx(0.725791, abs=1e-5)


def test_a_reset_covariance_that_is_shared_leaves_the_means_where_they_are():
    X = blobs(n_samples=100)
    samples, coordinates = at(random_mixture(np.random.default_rng(0), 3, 2, "tied"), X, "tied")
    means = coordinates.means.detach().clone()

    with torch.no_grad():
        reset(coordinates, torch.ones(1, dtype=torch.bool), samples, np.random.RandomState(0))

    assert torch.equal(coordinates.means, means)
    fitted = samples.frame.outward(to_parameters(coordinates, samples.family))
    assert_allclose(fitted.covariances, np.cov(X.T, ddof=0), rtol=1e-4)


def test_what_is_constant_does_not_collapse():
    model = make_model("gd", n_components=2, covariance_type="constant", min_stddev=100.0)

    model.set_params(random_state=0).fit(blobs(n_samples=100))

    assert model.covariances_ == 1.0
    assert model.n_mitigations_ == 0


@every_family
@both
def test_with_a_prior_the_optimum_is_that_of_map_em(name, covariance_type):
    X = blobs(3, covariance_type, n_samples=200)
    params = {"n_components": 3, "covariance_type": covariance_type, "random_state": 0}

    gd = make_model(name, mitigation="map", optimizer="lbfgs", tol=1e-6, **params).fit(X)
    em = make_model("map-em", tol=1e-11, max_iter=1000, reg_covar=0, **params)
    em.start_from(gd.mixture_).fit(X)

    assert gd.converged_
    assert gd.lower_bound_ == pytest.approx(em.lower_bound_, abs=1e-7)
    assert_same(gd.mixture_, em.mixture_, rtol=1e-3, atol=1e-3)
    assert gd.n_mitigations_ == 0


def test_a_prior_keeps_components_off_single_samples():
    model, _ = pair_on_its_samples(mitigation="map", tol=1e-6)

    assert model.covariances_.min() > 1e-3
    assert model.n_mitigations_ == 0
    assert model.converged_


# Errors


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"optimizer": "lbfgs", "batch_size": 10}, "lbfgs' needs all samples .* batch_size=10"),
        ({"mitigation": "map", "standardize": False}, "standardize=True"),
        ({"init": "uniform", "weights_init": [0.5, 0.5]}, "all of weights_init, means_init"),
        ({"optimizer": "rmsprop"}, "optimizer"),
        ({"batch_size": 0}, "batch_size"),
        ({"component_lr": 0.0}, "component_lr"),
        ({"min_stddev": -1.0}, "min_stddev"),
        ({"covariance_type": "banded"}, "covariance_type"),
    ],
)
def test_what_cannot_be_done_is_said(params, message):
    with pytest.raises(ValueError, match=message):
        make_model("gd", n_components=2, **params).fit(blobs())


def test_a_descent_that_is_cut_off_warns():
    with pytest.warns(ConvergenceWarning):
        make_model("gd", n_components=3, max_iter=2, random_state=0).fit(blobs())


def test_derived_gradients_are_scaled_by_what_comes_from_above():
    X = blobs(n_samples=50)
    samples, coordinates = at(random_mixture(np.random.default_rng(0), 2, 2), X, "full")
    _, once = loss_and_gradients(objective.in_closed_form, samples, coordinates)

    _, thrice = loss_and_gradients(
        lambda numbers, data: 3 * ClosedFormNLL.apply(*numbers, data),
        samples,
        coordinates,
    )

    for one, three in zip(once, thrice, strict=True):
        assert_allclose(3 * one, three, rtol=1e-12)
