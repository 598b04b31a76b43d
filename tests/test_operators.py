"""Operators that are learned once: EM before, invariant always, better than EM after."""

from __future__ import annotations

import itertools
import json
import re
import warnings

import numpy as np
import pytest
import torch
from batches import alone, assert_same_clustering, disturbed, many, mixture
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose
from scipy.spatial.distance import cdist
from sklearn.exceptions import ConvergenceWarning
from strategies import assert_same, law, model_at, permuted, problems

from embench import gaussian, make_dataset, make_model, registry
from embench.cli import main
from embench.measuring.suite import customised, load_suite
from embench.measuring.training import STATE, train, weights_file
from embench.models.base import DivergenceWarning
from embench.models.starts import starting_mixture
from embench.models.unrolled.bridge import stacked
from embench.models.unrolled.checkpoint import Checkpoint, pretrained
from embench.models.unrolled.em_map import Mixtures, framed
from embench.models.unrolled.operators import EMOperator, shrunk
from embench.models.unrolled.training import Task, Trainer, nlls
from embench.types import InputError, Mixture, Spec

CORES = ("feed-forward", "recurrent")
MODELS = ("amortised-em", "recurrent-em")

SMALL = customised(
    load_suite("training"),
    datasets="blobs:n_samples=60,n_components=2,blobs:n_samples=40,n_features=3",
)
"""A training of moments."""


def trained_briefly(model, folder, **how):
    return train(Spec(model), SMALL, folder, **{"n_updates": 50, "batch_size": 4, **how})


def operator(core, **params):
    return EMOperator(core, **{"random_state": 0, **params}).double()


def as_trained(core, size=0.2, **params):
    return disturbed(operator(core, **params), size=size)


# Most fits here stop after a given number of steps on purpose.
pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")


# An operator is EM before it has learned anything


@law
@given(problems(), st.integers(1, 6), st.sampled_from(CORES))
def test_an_untrained_operator_is_em(problem, n_steps, core):
    start, X = problem
    em = model_at("em", start, max_iter=n_steps).fit(X)

    found = operator(core, n_steps=3)(torch.tensor(X)[None], stacked([start]), n_steps=n_steps)

    assert_same(mixture(found.parameters), em.mixture_, rtol=1e-9, atol=1e-9)
    assert_allclose(found.responsibilities[0].detach(), em.predict_proba(X), atol=1e-9)


@pytest.mark.parametrize("core", CORES)
def test_steps_beyond_the_learned_ones_never_fall(core):
    X, starts = many(8)
    samples = framed(X)

    steps = as_trained(core, n_steps=2).steps(samples, samples.inward(starts))
    with torch.no_grad():
        path = torch.stack([log_likelihood for log_likelihood, _ in itertools.islice(steps, 30)])

    assert (path[3:] >= path[2:-1] - 1e-9).all()
    assert (path[-1] > path[2]).all()


# Symmetries


@law
@given(problems(), st.sampled_from(CORES))
def test_any_affine_map_of_the_data_is_that_of_the_mixture(problem, core):
    start, X = problem
    D = X.shape[1]
    rng = np.random.default_rng(0)
    A = 10 * (rng.standard_normal((D, D)) + 2 * np.eye(D))
    shift = 10 * rng.standard_normal(D)
    there = Mixture(start.weights, start.means @ A.T + shift, A @ start.covariances @ A.T)
    learned = as_trained(core, reg_covar=0.0)
    found = mixture(learned(torch.tensor(X)[None], stacked([start])).parameters)

    mapped = mixture(learned(torch.tensor(X @ A.T + shift)[None], stacked([there])).parameters)

    assert_allclose(mapped.weights, found.weights, atol=1e-6)
    assert_allclose(mapped.means, found.means @ A.T + shift, rtol=1e-5, atol=1e-4)
    assert_allclose(mapped.covariances, A @ found.covariances @ A.T, rtol=1e-4, atol=1e-4)


@law
@given(problems(), st.randoms(use_true_random=False), st.sampled_from(CORES))
def test_the_order_of_samples_and_components_plays_no_part(problem, random, core):
    start, X = problem
    rows, order = list(range(len(X))), list(range(start.n_components))
    random.shuffle(rows)
    random.shuffle(order)
    learned = as_trained(core)
    found = learned(torch.tensor(X)[None], stacked([start]))

    shuffled = learned(torch.tensor(X[rows])[None], stacked([permuted(start, order)]))

    expected = permuted(mixture(found.parameters), order)
    assert_same(mixture(shuffled.parameters), expected, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("core", CORES)
def test_each_of_many_datasets_fares_as_alone_with_a_mask_for_sets_of_unequal_size(core):
    X, starts = many(3)
    sizes = (50, 20, 35)
    mask = torch.arange(50) < torch.tensor(sizes)[:, None]
    learned = as_trained(core)

    together = learned(X.masked_fill(~mask[..., None], torch.nan), starts, mask)

    for i, size in enumerate(sizes):
        own = learned(X[i : i + 1, :size], alone(starts, i))
        assert_same(mixture(together.parameters, i), mixture(own.parameters), 1e-9, 1e-9)


@pytest.mark.parametrize("core", CORES)
def test_blocks_that_fit_into_the_cache_change_nothing(core, monkeypatch):
    X, starts = many(7)
    mask = torch.arange(50) < torch.tensor([50, 20, 35, 50, 41, 50, 9])[:, None]
    learned = as_trained(core)
    with torch.no_grad():
        together = learned(X, starts, mask)
        monkeypatch.setattr("embench.models.unrolled.operators.IN_CACHE", 2 * 50 * 6)

        in_blocks = learned(X, starts, mask)

    assert_same_clustering(in_blocks, together, tol=1e-12)


@pytest.mark.parametrize("core", CORES)
@pytest.mark.parametrize("size", [0.3, 30.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.filterwarnings("ignore::embench.models.engine.family.RegularisationWarning")
def test_whatever_is_learned_it_is_a_mixture(core, size, dtype):
    X, starts = many(8, n_samples=200)
    learned = disturbed(operator(core), size=size).to(dtype)

    found = learned(X.to(dtype), Mixtures(*(part.to(dtype) for part in starts)))

    assert torch.isfinite(found.log_likelihood).all()
    assert (found.parameters.scale_tril.diagonal(0, -2, -1) > 0).all()


@pytest.mark.parametrize("core", CORES)
def test_float32_is_float64_to_its_digits(core):
    X, starts = many(4)
    learned = as_trained(core, size=0.05)
    fine = learned(X, starts)

    coarse = learned.float()(X.float(), Mixtures(*(part.float() for part in starts)))

    assert_same_clustering(coarse, fine, tol=2e-3)


def test_shrinkage_goes_from_nothing_to_one_covariance_for_all():
    _, mixtures = many(1)
    pooled = (mixtures.weights[..., None, None] * mixtures.covariances).sum(1, keepdim=True)

    none, some, all_ = (
        shrunk(mixtures, torch.full((1, 3), amount, dtype=torch.float64)).covariances
        for amount in (-1.0, 0.5, 50.0)
    )

    assert_allclose(none, mixtures.covariances, rtol=1e-12)
    assert_allclose(all_, pooled.expand_as(all_), rtol=1e-12)
    share = np.tanh(0.5)
    assert_allclose(some, (1 - share) * mixtures.covariances + share * pooled, rtol=1e-12)


# What was learned


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("n_features", [2, 8])
def test_five_learned_steps_beat_twenty_of_em_on_datasets_never_seen(model, n_features):
    data = [
        make_dataset(
            "blobs",
            seed=seed,
            n_samples=500,
            n_features=n_features,
            n_components=4,
            separation=2.0 + seed % 5,
        )
        for seed in range(60)
    ]
    starts = [
        starting_mixture(one.X_train, 4, np.random.SeedSequence(seed))
        for seed, one in enumerate(data)
    ]
    task = Task(
        *(torch.tensor(np.stack([getattr(one, part) for one in data]))
          for part in ("X_train", "X_test")),
        stacked(starts),
    )  # fmt: skip
    em, learned = EMOperator("recurrent", random_state=0).double(), pretrained(model).double()

    with torch.no_grad():
        of_em, of_learned = nlls(em, task, 20)[-1], nlls(learned, task, 5)[-1]

    assert of_learned < of_em


@pytest.mark.parametrize("model", MODELS)
def test_shipped_weights_say_where_they_come_from(model):
    found = registry.load("model", model)()._trained()

    assert found.provenance["model"] == model
    assert found.provenance["cpu_seconds"] == make_model(model).training_seconds > 0
    assert found.provenance["suite"]["datasets"] == load_suite("training").model_dump(
        mode="json", include={"datasets"}
    )["datasets"]  # fmt: skip


# Estimators


@pytest.mark.parametrize("model", MODELS)
def test_a_pass_is_whole_after_its_steps_and_warns_of_nothing(model):
    X = make_dataset("blobs", seed=0, n_samples=200).X_train
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        passed = make_model(model, n_components=3, random_state=0).fit(X)

    with pytest.warns(ConvergenceWarning):
        cut = make_model(model, n_components=3, random_state=0, max_iter=2).fit(X)

    assert passed.converged_
    assert passed.n_iter_ == 5
    assert not cut.converged_


@pytest.mark.parametrize("model", MODELS)
def test_iterations_beyond_the_pass_are_ems_and_end_where_it_rests(model):
    X = make_dataset("blobs", seed=0, n_samples=200).X_train
    params = {"n_components": 3, "random_state": 0}
    passed = make_model(model, **params).fit(X)

    polished = make_model(model, max_iter=1000, tol=1e-9, **params).fit(X)

    assert polished.converged_
    assert polished.n_iter_ > 5
    assert polished.score(X) > passed.score(X)
    at_rest = model_at("em", polished.mixture_, max_iter=1).fit(X)
    assert at_rest.score(X) == pytest.approx(polished.score(X), abs=1e-7)


@pytest.mark.parametrize("model", MODELS)
def test_the_estimator_is_the_operator(model):
    X, starts = many(1, n_samples=120)
    start = mixture(starts)

    fitted = model_at(model, start).fit(X[0].numpy())

    found = pretrained(model).double()(X, starts)
    assert_same(fitted.mixture_, mixture(found.parameters), rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize(
    ("model", "covariance_type"),
    [("em", "full"), ("em", "diag"), ("em", "tied_spherical"), ("amortised-em", "full")],
)
def test_the_spherical_start_has_samples_as_means_and_the_variance_of_the_data(
    model, covariance_type
):
    X = make_dataset("blobs", seed=0, n_samples=100).X_train
    fitting = make_model(
        model, n_components=3, covariance_type=covariance_type, init_params="spherical",
        random_state=0,
    )  # fmt: skip

    next(fitting.iter_fit(X))

    covariances = np.stack([np.eye(2) * X.var(0).mean()] * 3)
    assert_allclose(fitting.mixture_.covariances, covariances, atol=1e-12)
    assert cdist(fitting.mixture_.means, X).min(axis=1).max() < 1e-12


@pytest.mark.parametrize("model", MODELS)
def test_sample_weights_are_repeats(model):
    X, starts = many(1, n_samples=80)
    X, weight = X[0].numpy(), np.random.default_rng(0).integers(1, 4, 80)

    weighted = model_at(model, mixture(starts)).fit(X, sample_weight=weight)

    repeated = model_at(model, mixture(starts)).fit(np.repeat(X, weight, axis=0))
    assert_same(weighted.mixture_, repeated.mixture_, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("model", MODELS)
def test_restarts_are_judged_by_what_a_pass_ends_at(model):
    X = make_dataset("blobs", seed=0, n_samples=150, n_components=5).X_train
    params = {"n_components": 5, "random_state": 0}

    best = make_model(model, n_init=6, **params).fit(X)

    assert best.lower_bound_ == pytest.approx(best.score(X), abs=1e-9)
    assert best.score(X) >= make_model(model, **params).fit(X).score(X)


def test_a_pass_that_ends_below_its_start_warns():
    X = np.repeat([[0.0, 0.0], [0.0, 1e3], [1e3, 0.0]], 20, axis=0)
    X += 1e-3 * np.random.default_rng(0).standard_normal(X.shape)
    model = make_model("recurrent-em", n_components=3, random_state=0)

    with pytest.warns(DivergenceWarning, match="below its start"):
        model.fit(X)

    assert not model.converged_


@pytest.mark.parametrize("model", MODELS)
def test_fits_under_way_in_other_dtypes_leave_each_other_alone(model):
    X = make_dataset("blobs", seed=0, n_samples=100).X_train
    params = {"n_components": 3, "random_state": 0}
    alone_ = make_model(model, **params).fit(X)
    under_way = make_model(model, **params)
    steps = under_way.iter_fit(X)
    next(steps), next(steps)

    make_model(model, dtype="float32", **params).fit(X)
    list(steps)

    assert under_way.score(X) == alone_.score(X)


# Training


@pytest.mark.parametrize("model", MODELS)
def test_a_training_that_was_broken_off_ends_at_the_same_weights(model, tmp_path):
    *_, whole = trained_briefly(model, folder=tmp_path / "whole")
    broken = trained_briefly(model, folder=tmp_path / "broken")
    next(broken)
    broken.close()

    *_, end = trained_briefly(model, folder=tmp_path / "broken")

    assert end.findings == whole.findings
    one, other = (
        Checkpoint.load(weights_file(tmp_path / name, model)).operator.state_dict()
        for name in ("whole", "broken")
    )
    for name, part in one.items():
        assert torch.equal(part, other[name])


def test_a_training_learns_and_its_seed_matters(tmp_path):
    first, *_, last = trained_briefly("recurrent-em", folder=tmp_path / "0")

    *_, other = trained_briefly("recurrent-em", folder=tmp_path / "1", seed=1)

    first, last, other = (one.findings["held-out NLL"] for one in (first, last, other))
    assert last < first
    assert other != last


def test_weights_are_a_model_with_what_is_known_of_them(tmp_path):
    list(trained_briefly("amortised-em", folder=tmp_path))
    path = weights_file(tmp_path, "amortised-em")
    X = make_dataset("blobs", seed=0, n_samples=100).X_train

    own = make_model("amortised-em", n_components=3, random_state=0, checkpoint=str(path)).fit(X)

    shipped = make_model("amortised-em", n_components=3, random_state=0).fit(X)
    assert own.score(X) != shipped.score(X)
    told = json.loads((tmp_path / "provenance.json").read_text())
    assert told["n_datasets"] == 200
    assert own.training_seconds == told["cpu_seconds"]
    versions = {
        registry.version("model", Spec("amortised-em", params))
        for params in ({}, {"checkpoint": str(path)})
    }
    assert len(versions) == 2


def test_an_update_without_a_finite_gradient_changes_nothing():
    X, starts = many(2)
    learned = operator("feed-forward", n_steps=2)
    trainer = Trainer(learned, n_updates=3)
    before = {name: part.clone() for name, part in learned.state_dict().items()}

    trainer.update(Task(X, X.new_full(X.shape, torch.inf), starts))

    assert trainer.done == 1
    for name, part in learned.state_dict().items():
        assert torch.equal(part, before[name])


# What is said where something is wrong


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["em"], "em learns nothing before it fits"),
        (["amortisd-em"], "did you mean 'amortised-em'?"),
        (["amortised-em", "--suite", "conditional"], "cannot be learned from"),
        (["amortised-em", "--suite", "own-data"], "names no datasets"),
        (["amortised-em", "--suite", "grouping"], "its task is grouping"),
        (["amortised-em", "--suite", "real"], "rows, those that runs are judged on"),
        (["amortised-em", "--updates", "0"], "0 is not in the range x>=1"),
    ],
)
def test_a_mistake_is_one_line(arguments, said, tmp_path):
    result = CliRunner().invoke(main, ["train", *arguments, "--out", str(tmp_path)])

    assert result.exit_code == 2
    assert said in result.stderr
    assert "Traceback" not in result.output


def test_the_command_trains_and_says_what_comes_next(tmp_path):
    suite = tmp_path / "small.toml"
    suite.write_text(
        '[[datasets]]\nname = "blobs"\nn_samples = 50\n[[models]]\nname = "amortised-em"\n'
    )
    arguments = ["train", "amortised-em", "--suite", str(suite), "--updates", "3", "--out"]

    result = CliRunner().invoke(main, [*arguments, str(tmp_path / "out")])
    again = CliRunner().invoke(main, [*arguments, str(tmp_path / "out")])

    assert result.exit_code == again.exit_code == 0
    assert "3/3  held-out NLL" in result.output
    assert f"amortised-em:checkpoint={tmp_path}" in result.output
    assert again.output == result.output


def test_a_folder_of_another_training_is_refused(tmp_path):
    list(trained_briefly("recurrent-em", folder=tmp_path))

    with pytest.raises(InputError, match="another seed; choose another --out"):
        next(trained_briefly("recurrent-em", folder=tmp_path, seed=1))


@pytest.mark.parametrize(
    "content", [None, b"not weights", {"format": 99}, {"other": 1}, {"format": 1}]
)
def test_what_is_no_checkpoint_is_said(content, tmp_path):
    path = tmp_path / "some.pt"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        torch.save(content, path)

    with pytest.raises(InputError, match=r"some\.pt.*weights"):
        make_model("amortised-em", checkpoint=str(path)).fit(np.eye(3))


def test_weights_of_the_other_model_are_refused(tmp_path):
    path = tmp_path / "weights.pt"
    Checkpoint(operator("recurrent"), {"cpu_seconds": 1.0}).save(path)

    with pytest.raises(InputError, match="which is feed-forward, got weights that are recurrent"):
        make_model("amortised-em", checkpoint=path).fit(np.eye(3))


def test_a_torn_state_is_said(tmp_path):
    (tmp_path / STATE).write_bytes(b"torn")

    with pytest.raises(InputError, match=r"training\.pt"):
        next(trained_briefly("amortised-em", folder=tmp_path))


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: EMOperator("rnn"), "expected core to be one of ('feed-forward', 'recurrent')"),
        (lambda: EMOperator("recurrent", 0), "expected n_steps >= 1 and hidden >= 1, got 0"),
        (lambda: operator("recurrent")(*many(3), n_steps=-1), "expected n_steps >= 0, got -1"),
        (
            lambda: operator("recurrent")(many(3)[0], many(2)[1]),
            "expected logits of shape (3, 3) in the start, for X of shape (3, 50, 2), got (2, 3)",
        ),
        (
            lambda: operator("recurrent").float()(*many(3)),
            "expected X of the module's torch.float32, got torch.float64",
        ),
    ],
)
def test_an_error_says_what_was_expected_and_what_came(call, said):
    with pytest.raises(ValueError, match=re.escape(said)):
        call()


def test_only_full_covariances_and_the_judge_agrees():
    X = make_dataset("blobs", seed=0, n_samples=100).X_train
    model = make_model("amortised-em", n_components=3, random_state=0)

    with pytest.raises(ValueError, match=r"covariance_type.*full"):
        model.set_params(covariance_type="tied").fit(X)

    model.set_params(covariance_type="full").fit(X)
    assert model.score(X) == pytest.approx(gaussian.log_likelihood(model.mixture_, X), abs=1e-9)
