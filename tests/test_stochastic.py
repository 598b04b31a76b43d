"""Steps by parts or by lot are EM where a part is the whole and a lot is certain."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose
from strategies import (
    COVARIANCE_TYPES,
    assert_same,
    covariance_types,
    family_problems,
    law,
    model_at,
    path,
    random_mixture,
    random_samples,
)

from embench import gaussian, make_dataset, make_model
from embench.types import Mixture

# Most fits here stop after a given number of steps on purpose.
pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")

AS_EM = {
    "incremental-em": {"n_blocks": 1},
    "mini-batch-em": {"batch_size": 10_000, "step": 1.0},
    "variance-reduced-em": {"batch_size": 10_000, "step": 1.0},
}
"""With all samples in one part and whole steps, these are EM."""

NAMES = (*AS_EM, "online-em", "stochastic-em")

families = pytest.mark.parametrize("covariance_type", COVARIANCE_TYPES)
models = pytest.mark.parametrize("name", NAMES)


def distance(one, other):
    return max(
        np.abs(a - b).max() for a, b in zip(vars(one).values(), vars(other).values(), strict=True)
    )


@pytest.fixture(scope="module")
def blobs():
    return make_dataset("blobs", seed=1, n_samples=600, n_features=2, n_components=3, separation=4)


@pytest.fixture(scope="module")
def optimum(blobs):
    """A fixed point of EM on the blobs."""
    return model_at("em", blobs.truth, max_iter=1000).fit(blobs.X_train).mixture_


# Where they are EM


@pytest.mark.parametrize("name", AS_EM)
@law
@given(problem=family_problems)
def test_the_whole_in_one_part_is_em_step_by_step(name, problem):
    covariance_type, (start, X) = problem
    params = {"covariance_type": covariance_type, "max_iter": 5}
    em, model = model_at("em", start, **params), model_at(name, start, **params, **AS_EM[name])
    expected = path(em, X)

    found = path(model, X)

    for ours, theirs in zip(found, expected, strict=True):
        assert_same(ours, theirs, rtol=1e-8, atol=1e-8)
    assert_allclose(model.lower_bounds_, em.lower_bounds_, rtol=1e-10)


@families
def test_lots_are_em_steps_where_components_are_far_apart(covariance_type):
    data = make_dataset("blobs", seed=1, n_samples=300, n_components=3, separation=100)
    spread = Mixture(data.truth.weights, data.truth.means, np.stack([9 * np.eye(2)] * 3))
    params = {"covariance_type": covariance_type, "max_iter": 3}
    expected = path(model_at("em", spread, **params), data.X_train)

    found = path(model_at("stochastic-em", spread, **params), data.X_train)

    for ours, theirs in zip(found, expected, strict=True):
        assert_same(ours, theirs)


# All of them


@models
@families
def test_they_end_near_the_optimum(name, covariance_type, blobs):
    params = {"covariance_type": covariance_type, "random_state": 0, "n_components": 3}
    em = make_model("em", **params, tol=1e-9, max_iter=500).fit(blobs.X_train)

    model = make_model(name, **params, tol=0.0, max_iter=30).fit(blobs.X_train)

    # A mixture of p parameters drawn near the optimum is p / (2 n_samples) below it on average.
    assert em.score(blobs.X_train) - model.score(blobs.X_train) < 3 * 17 / (2 * 600)


@models
def test_samples_of_no_weight_are_not_there(name, blobs):
    X = np.vstack([blobs.X_train, np.full((200, 2), 50.0)])
    weights = np.repeat([1.0, 0.0], [len(blobs.X_train), 200])

    model = model_at(name, blobs.truth, max_iter=20).fit(X, sample_weight=weights)

    expected = gaussian.log_likelihood(blobs.truth, blobs.X_train)
    assert gaussian.log_likelihood(model.mixture_, blobs.X_train) > expected - 0.03
    assert np.all(model.means_ < 40)


@models
@families
def test_float32_ends_close_to_float64(name, covariance_type, blobs):
    params = {"n_components": 3, "covariance_type": covariance_type, "random_state": 0}
    double = make_model(name, **params, max_iter=10).fit(blobs.X_train)

    single = make_model(name, **params, max_iter=10, dtype="float32").fit(blobs.X_train)

    assert single.means_.dtype == np.float32
    assert single.score(blobs.X_test) == pytest.approx(double.score(blobs.X_test), abs=0.01)


@models
def test_another_seed_goes_another_way(name, blobs):
    params = {"max_iter": 3, "n_blocks": 7} if name == "incremental-em" else {"max_iter": 3}
    one = model_at(name, blobs.truth, **params).fit(blobs.X_train).mixture_

    other = model_at(name, blobs.truth, **params, random_state=1).fit(blobs.X_train).mixture_

    assert distance(one, other) > 1e-9


@pytest.mark.parametrize(
    ("name", "params"),
    [
        ("incremental-em", {"n_blocks": 0}),
        ("online-em", {"exponent": 0.5}),
        ("online-em", {"batch_size": 0}),
        ("mini-batch-em", {"step": 0.0}),
        ("mini-batch-em", {"batch_size": 0.5}),
        ("variance-reduced-em", {"step": 1.5}),
        ("variance-reduced-em", {"batch_size": -1}),
    ],
)
def test_a_bad_parameter_is_an_error(name, params):
    model = make_model(name, **params)

    with pytest.raises(ValueError, match=f"'{next(iter(params))}' parameter"):
        model.fit(np.eye(4))


# By lot


@law
@given(family_problems)
def test_every_sample_is_drawn_for_one_component(problem):
    covariance_type, (start, X) = problem

    mixtures = path(
        model_at("stochastic-em", start, covariance_type=covariance_type, max_iter=3), X
    )

    for mixture in mixtures[1:]:
        counts = len(X) * mixture.weights
        assert_allclose(counts, counts.round(), atol=1e-9)


@pytest.mark.filterwarnings("ignore")  # a lot of six samples can be a component without any
def test_a_lot_does_not_depend_on_what_follows_from_it():
    # Six samples between two equal components: in 12 of 64 lots one of them gets a single sample,
    # and the covariance of that is no reason to draw once more.
    X = np.arange(6.0)[:, None]
    start = Mixture(np.full(2, 0.5), np.full((2, 1), 2.5), np.ones((2, 1, 1)))
    model = model_at("stochastic-em", start, max_iter=1, reg_covar=1e-20)

    shares = [model.set_params(random_state=s).fit(X).weights_[0] for s in range(1000)]

    alone = np.isclose(shares, 1 / 6) | np.isclose(shares, 5 / 6)
    assert alone.mean() == pytest.approx(12 / 64, abs=0.06)


def test_lots_are_drawn_by_the_responsibilities():
    rng = np.random.default_rng(5)
    start = random_mixture(rng, 3, 2)
    X = random_samples(rng, start, 200)
    resp = gaussian.responsibilities(start, X)
    n_draws = 200

    draws = [
        model_at("stochastic-em", start, max_iter=1, random_state=seed).fit(X).mixture_.weights
        for seed in range(n_draws)
    ]

    errors = np.sqrt((resp * (1 - resp)).sum(axis=0) / n_draws) / len(X)
    assert np.all(np.abs(np.mean(draws, axis=0) - resp.mean(axis=0)) < 4 * errors)
    spread = np.sqrt((resp * (1 - resp)).sum(axis=0)) / len(X)
    assert_allclose(np.std(draws, axis=0), spread, rtol=0.25)


# Block by block


@families
def test_incremental_em_rests_where_em_rests(covariance_type, blobs):
    params = {"n_components": 3, "covariance_type": covariance_type, "random_state": 0}
    model = make_model("incremental-em", **params, tol=0.0, max_iter=200).fit(blobs.X_train)

    after = model_at("em", model.mixture_, covariance_type=covariance_type, max_iter=1)
    after.fit(blobs.X_train)

    assert_same(after.mixture_, model.mixture_, rtol=1e-7, atol=1e-7)
    assert model.lower_bound_ == pytest.approx(model.score(blobs.X_train), abs=1e-9)


def test_incremental_em_needs_fewer_passes_than_em():
    means = np.array([[0.0, 0.0], [2.0, 0.0], [0.0, 2.0]])
    rng = np.random.default_rng(0)
    X = means[rng.integers(3, size=1000)] + rng.standard_normal((1000, 2))
    start = Mixture(np.full(3, 1 / 3), means + 0.3, np.stack([np.cov(X.T)] * 3))
    passes = {}

    for name in ("em", "incremental-em"):
        model = model_at(name, start, tol=1e-8, max_iter=3000).fit(X)
        passes[name] = model.n_iter_

    assert passes["incremental-em"] < 0.75 * passes["em"]


def test_a_block_may_be_a_single_sample(blobs):
    X = blobs.X_train[:50]
    em = model_at("em", blobs.truth, max_iter=200).fit(X)

    model = model_at("incremental-em", blobs.truth, n_blocks=1000, max_iter=100).fit(X)

    assert_same(model.mixture_, em.mixture_, rtol=1e-4, atol=1e-4)


# Batch by batch


@law
@given(covariance_types, st.sampled_from([0.6, 0.8, 1.0]), st.integers(1, 8))
def test_online_em_forgets_its_start_as_its_step_sizes_say(covariance_type, exponent, n_steps):
    rng = np.random.default_rng(0)
    start = random_mixture(rng, 1, 2, covariance_type)
    X = random_samples(rng, start, 40)
    params = {"covariance_type": covariance_type, "exponent": exponent, "max_iter": n_steps}

    mixture = model_at("online-em", start, **params).fit(X).mixture_

    kept = np.prod(1 - (np.arange(n_steps) + 2.0) ** -exponent)
    expected = kept * start.means[0] + (1 - kept) * X.mean(axis=0)
    assert_allclose(mixture.means[0], expected, rtol=1e-9, atol=1e-9)


@law
@given(covariance_types, st.sampled_from([0.1, 0.5, 1.0]), st.integers(1, 8))
def test_mini_batch_em_forgets_its_start_at_an_even_pace(covariance_type, step, n_steps):
    rng = np.random.default_rng(0)
    start = random_mixture(rng, 1, 2, covariance_type)
    X = random_samples(rng, start, 40)
    params = {"covariance_type": covariance_type, "step": step, "max_iter": n_steps}

    mixture = model_at("mini-batch-em", start, **params).fit(X).mixture_

    kept = (1 - step) ** n_steps
    expected = kept * start.means[0] + (1 - kept) * X.mean(axis=0)
    assert_allclose(mixture.means[0], expected, rtol=1e-9, atol=1e-9)


@families
def test_the_running_average_begins_at_the_start(covariance_type, blobs):
    start = random_mixture(np.random.default_rng(0), 3, 2, covariance_type)
    params = {"covariance_type": covariance_type, "reg_covar": 0.0, "max_iter": 1}

    mixture = model_at("mini-batch-em", start, **params, step=1e-9).fit(blobs.X_train).mixture_

    assert_same(mixture, start, rtol=1e-6, atol=1e-6)


@families
def test_a_small_batch_makes_no_component_collapse(covariance_type, blobs):
    params = {"covariance_type": covariance_type, "reg_covar": 0.0, "max_iter": 3}

    for name in ("online-em", "mini-batch-em", "variance-reduced-em"):
        model = make_model(name, n_components=3, batch_size=2, random_state=0, **params)
        model.fit(blobs.X_train)

        assert np.isfinite(model.score(blobs.X_test)), name


@pytest.mark.parametrize("batch_size", [1, 10, 100])
def test_corrected_batches_leave_a_fixed_point_of_em_where_it_is(batch_size, blobs, optimum):
    params = {"batch_size": batch_size, "max_iter": 1}
    plain = model_at("mini-batch-em", optimum, **params).fit(blobs.X_train).mixture_

    mixture = model_at("variance-reduced-em", optimum, **params).fit(blobs.X_train).mixture_

    assert distance(plain, optimum) > 1e-3
    assert_same(mixture, optimum, rtol=1e-8, atol=1e-8)


def test_corrected_batches_converge_at_equal_steps(blobs, optimum):
    params = {"batch_size": 60, "step": 0.2, "max_iter": 60}

    model = model_at("variance-reduced-em", blobs.truth, **params).fit(blobs.X_train)

    assert_same(model.mixture_, optimum, rtol=1e-6, atol=1e-6)


@families
@pytest.mark.parametrize("batch_size", [1, 4])
def test_a_correction_that_leaves_no_mixture_is_left_out(batch_size, covariance_type):
    data = make_dataset("blobs", seed=1, n_samples=200, n_components=4, separation=1)
    params = {"covariance_type": covariance_type, "batch_size": batch_size, "random_state": 0}
    model = make_model("variance-reduced-em", n_components=4, max_iter=3, **params)

    # The logarithm of a negative count would be a warning, and so would a mended covariance.
    mixtures = path(model.set_params(init_params="random_from_data"), data.X_train)

    for mixture in mixtures:
        gaussian.check(mixture)
        assert np.isfinite(gaussian.log_likelihood(mixture, data.X_test))


def test_bound_of_a_full_pass_is_the_likelihood_before_it(blobs):
    model = model_at("variance-reduced-em", blobs.truth, batch_size=50, max_iter=4)
    likelihoods = [
        gaussian.log_likelihood(one, blobs.X_train) for one in path(model, blobs.X_train)
    ]

    assert_allclose(model.lower_bounds_, likelihoods[:-1], rtol=1e-10)
