"""EM as a layer: EM where nothing is learned, safe where something is, and right gradients."""

from __future__ import annotations

import re
from functools import partial

import numpy as np
import pytest
import torch
from batches import alone, assert_same_clustering, clusters, disturbed, many, mixture
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose
from sklearn.exceptions import ConvergenceWarning
from strategies import (
    assert_same,
    global_random_state,
    law,
    model_at,
    permuted,
    problems,
    random_mixture,
)
from torch import nn

from embench import gaussian, make_dataset, make_model
from embench.models.engine.family import IllDefinedCovariance, RegularisationWarning
from embench.models.unrolled.backbone import AffineCoupling, EMNet, Invertible
from embench.models.unrolled.bridge import stacked
from embench.models.unrolled.em_map import Mixtures, Samples, _cholesky, em_map, framed
from embench.models.unrolled.implicit import fit_em, gmres
from embench.models.unrolled.layer import EMLayer
from embench.types import Mixture

double = partial(EMLayer, dtype=torch.float64)
"""A layer whose numbers can be held against `em`'s."""

# Most fits here stop after a given number of steps on purpose.
pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")


# The layer is EM


@law
@given(problems(), st.integers(1, 6), st.booleans())
def test_an_untrained_layer_is_em(problem, n_steps, shared):
    start, X = problem
    em = model_at("em", start, max_iter=n_steps).fit(X)
    layer = double(X.shape[1], start.n_components, n_steps, shared=shared, correct_logits=True)

    found = layer(torch.tensor(X)[None], stacked([start]))

    assert_same(mixture(found.parameters), em.mixture_)
    assert_allclose(found.responsibilities[0].detach(), em.predict_proba(X), atol=1e-10)


@law
@given(problems())
def test_zero_corrections_change_no_digit(problem):
    start, X = problem
    corrected, plain = (
        double(X.shape[1], 1, 3, hidden=hidden, random_state=0)(
            torch.tensor(X)[None], stacked([start])
        )
        for hidden in (8, None)
    )

    assert torch.equal(corrected.log_likelihood, plain.log_likelihood)
    for one, other in zip(corrected.parameters, plain.parameters, strict=True):
        assert torch.equal(one, other)


@law
@given(problems(), st.booleans())
def test_the_log_likelihood_is_the_judges(problem, trained):
    start, X = problem
    layer = double(X.shape[1], start.n_components, 2, correct_logits=True, random_state=0)
    layer = disturbed(layer) if trained else layer

    found = layer(torch.tensor(X)[None], stacked([start]))

    judged = gaussian.log_likelihoods(mixture(found.parameters), X).sum()
    assert found.log_likelihood.item() == pytest.approx(judged, rel=1e-9)
    judged = gaussian.responsibilities(mixture(found.parameters), X)
    assert_allclose(found.responsibilities[0].detach(), judged, atol=1e-8)


def test_the_start_of_its_own_is_spread_and_leads_em_to_the_optimum():
    X = torch.tensor(make_dataset("three-gaussians", seed=7).X_train)[None]
    optimum = 4682.152574

    with torch.no_grad():
        soon, late = (
            [-double(2, 3, n, random_state=i)(X).log_likelihood.item() for i in range(10)]
            for n in (10, 40)
        )

    # With means that are equal but for 0.01, the best of ten is 200 nat away after ten steps.
    assert np.median(soon) < optimum + 100
    assert sum(nll < optimum + 0.5 for nll in late) >= 7
    assert min(late) >= optimum


@pytest.mark.parametrize(("n_components", "n_features"), [(1, 1), (1, 3), (4, 1)])
def test_one_component_or_one_feature_is_enough(n_components, n_features):
    X, _ = many(2, n_components=n_components, n_features=n_features)
    layer = disturbed(double(n_features, n_components, 3, random_state=0))

    found = layer(X)
    found.log_likelihood.sum().backward()

    assert found.parameters.covariances.shape == (2, n_components, n_features, n_features)
    assert_allclose(found.responsibilities.sum(-1).detach(), 1)
    assert all(torch.isfinite(part.grad).all() for part in layer.parameters())


def test_one_gaussian_has_the_likelihood_that_is_known_in_closed_form():
    X, _ = many(1, n_components=1, n_features=3)

    found = double(3, 1, 1, reg_covar=0.0)(X)

    log_det = np.linalg.slogdet(np.cov(X[0].T, bias=True))[1]
    expected = -len(X[0]) * (1.5 * (1 + np.log(2 * np.pi)) + 0.5 * log_det)
    assert found.log_likelihood.item() == pytest.approx(expected, rel=1e-12)


def test_float32_is_float64_to_its_digits():
    X, start = many(3)
    layer = disturbed(double(2, 3, 5, random_state=0))
    fine = layer(X, start)

    coarse = layer.to(torch.float32)(X.float(), Mixtures(*(part.float() for part in start)))

    assert coarse.log_likelihood.dtype == torch.float32
    assert_same_clustering(coarse, fine, tol=2e-3)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("gradient", ["unroll", "implicit"])
def test_a_gpu_gives_the_same(gradient):
    X, start = many(4)
    layer = disturbed(double(2, 3, 80, shared=True, gradient=gradient, random_state=0), size=0.01)
    here = layer(X, start)
    here.log_likelihood.sum().backward()
    gradients = [part.grad.clone() for part in layer.corrections.parameters()]
    layer.zero_grad()
    start = Mixtures(*(part.cuda() for part in start))

    there = layer.cuda()(X.cuda(), start)
    there.log_likelihood.sum().backward()

    assert there.log_likelihood.is_cuda
    assert_allclose(there.log_likelihood.detach().cpu(), here.log_likelihood.detach(), rtol=1e-8)
    for one, other in zip(layer.corrections.parameters(), gradients, strict=True):
        assert_allclose(one.grad.cpu(), other, rtol=1e-5, atol=1e-6)


# Many datasets at once, and of unequal size


@pytest.mark.parametrize("start_given", [True, False])
def test_each_of_many_datasets_fares_as_alone(start_given):
    X, starts = many(64)
    layer = disturbed(double(2, 3, 3, correct_logits=True, random_state=0))

    together = layer(X, starts if start_given else None)

    for i in (0, 31, 63):
        own = layer(X[i : i + 1], alone(starts, i) if start_given else None)
        assert_allclose(together.log_likelihood[i].item(), own.log_likelihood.item(), rtol=1e-12)
        assert_same(mixture(together.parameters, i), mixture(own.parameters))


def test_a_mask_leaves_samples_out_whatever_stands_there():
    X, starts = many(3)
    sizes = (50, 20, 35)
    mask = torch.arange(50) < torch.tensor(sizes)[:, None]
    X = X.masked_fill(~mask[..., None], torch.nan)
    X.requires_grad_()
    layer = disturbed(double(2, 3, 3, random_state=0))

    masked = layer(X, starts, mask)
    masked.log_likelihood.sum().backward()

    assert torch.isfinite(X.grad).all()
    assert (X.grad[~mask] == 0).all()
    assert (masked.responsibilities[~mask] == 0).all()
    for i, size in enumerate(sizes):
        own = layer(X[i : i + 1, :size].detach(), alone(starts, i))
        assert_allclose(masked.log_likelihood[i].item(), own.log_likelihood.item(), rtol=1e-12)
        assert_same(mixture(masked.parameters, i), mixture(own.parameters))


# Symmetries


@law
@given(problems(), st.randoms(use_true_random=False))
def test_the_order_of_samples_and_components_plays_no_part(problem, random):
    start, X = problem
    rows, order = list(range(len(X))), list(range(start.n_components))
    random.shuffle(rows)
    random.shuffle(order)
    layer = disturbed(double(X.shape[1], 1, 3, correct_logits=True, random_state=0))
    found = layer(torch.tensor(X)[None], stacked([start]))

    shuffled = layer(torch.tensor(X[rows])[None], stacked([permuted(start, order)]))

    assert shuffled.log_likelihood.item() == pytest.approx(found.log_likelihood.item(), rel=1e-9)
    expected = permuted(mixture(found.parameters), order)
    assert_same(mixture(shuffled.parameters), expected, rtol=1e-8, atol=1e-8)
    expected = found.responsibilities[0][rows][:, order].detach()
    assert_allclose(shuffled.responsibilities[0].detach(), expected, atol=1e-8)


@law
@given(problems(), st.booleans())
def test_affine_maps_of_the_data_are_those_of_the_mixture(problem, trained):
    start, X = problem
    D = X.shape[1]
    rng = np.random.default_rng(0)
    A = rng.standard_normal((D, D)) + 2 * np.eye(D)
    if trained:  # the frame is turned by a Cholesky factor
        A = np.tril(A, -1) + np.diag(rng.uniform(0.01, 100, D))
    shift = 10 * rng.standard_normal(D)
    there = Mixture(start.weights, start.means @ A.T + shift, A @ start.covariances @ A.T)
    layer = double(D, 1, 3, reg_covar=0.0, correct_logits=True, random_state=0)
    layer = disturbed(layer) if trained else layer
    found = layer(torch.tensor(X)[None], stacked([start]))

    mapped = layer(torch.tensor(X @ A.T + shift)[None], stacked([there]))

    shifted = found.log_likelihood.item() - len(X) * np.linalg.slogdet(A)[1]
    assert mapped.log_likelihood.item() == pytest.approx(shifted, rel=1e-8, abs=1e-6)
    assert_allclose(
        mapped.parameters.means[0].detach(),
        found.parameters.means[0].detach().numpy() @ A.T + shift,
        rtol=1e-6,
        atol=1e-6,
    )


# What is learned


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", [0.3, 30.0])
@pytest.mark.filterwarnings("ignore::embench.models.engine.family.RegularisationWarning")
def test_whatever_is_learned_covariances_stay_positive_definite(dtype, size):
    X, starts = many(8, n_samples=200)
    layer = disturbed(EMLayer(2, 3, 4, correct_logits=True, random_state=0, dtype=dtype), size=size)

    found = layer(X.to(dtype), Mixtures(*(part.to(dtype) for part in starts)))

    assert torch.isfinite(found.log_likelihood).all()
    factors = found.parameters.scale_tril
    assert (factors.diagonal(0, -2, -1) > 0).all()
    assert (factors.triu(1) == 0).all()


def test_no_correction_narrows_a_component_below_the_regularisation():
    X, starts = many(1)
    layer = double(2, 3, 2, reg_covar=0.01, random_state=0)
    with torch.no_grad():
        for correction in layer.corrections:
            correction.leave.bias[2:4] = -1e3

    found = layer(X, starts)

    widths = found.parameters.scale_tril.diagonal(0, -2, -1)
    assert_allclose(widths.detach(), 0.1, rtol=1e-9)


def test_training_over_datasets_pays_on_others():
    generator = torch.Generator().manual_seed(0)
    X, starts = many(48, n_samples=100, seed=1)
    unseen, own_starts = many(32, n_samples=100, seed=2)
    layer = double(2, 3, 2, shared=True, random_state=generator)
    optimizer = torch.optim.Adam(layer.corrections.parameters(), lr=5e-3)
    with torch.no_grad():
        before = layer(unseen, own_starts).log_likelihood.mean()

    for _ in range(60):
        optimizer.zero_grad()
        (-layer(X, starts).log_likelihood.mean()).backward()
        optimizer.step()

    with torch.no_grad():
        after = layer(unseen, own_starts).log_likelihood.mean()
    assert after > before + 0.1


def test_a_seed_says_everything_and_the_global_state_is_left_alone():
    X, _ = many(1)
    before = global_random_state()
    one, other, third = (
        double(2, 3, correct_logits=True, random_state=seed)
        for seed in (1, 1, torch.Generator().manual_seed(1))
    )
    AffineCoupling(2)
    double(2, 3)

    assert global_random_state() == before
    for name, part in one.state_dict().items():
        assert torch.equal(part, other.state_dict()[name])
        assert torch.equal(part, third.state_dict()[name])
    assert one(X).log_likelihood != double(2, 3, random_state=2)(X).log_likelihood


# Gradients


def test_gradients_of_a_step_are_differences():
    X, starts = many(2, n_samples=6, n_components=2)
    mask = torch.ones(2, 6, dtype=torch.bool)
    mask[1, 4:] = False

    def step(X, *parts):
        samples = framed(X, mask)
        log_likelihood, fitted = em_map(samples, samples.inward(Mixtures(*parts)))
        return log_likelihood, *samples.outward(fitted)

    factors = starts.scale_tril
    inputs = [part.requires_grad_() for part in (X, starts.logits, starts.means, factors)]
    assert torch.autograd.gradcheck(lambda X, a, b, L: step(X, a, b, L.tril()), inputs)


@pytest.mark.parametrize("shared", [True, False])
def test_gradients_of_the_layer_are_differences(shared):
    X, _ = many(1, n_samples=7, n_components=2)
    layer = disturbed(double(2, 2, 2, hidden=2, shared=shared, correct_logits=True, random_state=0))
    names = [name for name, _ in layer.named_parameters()]

    def output(X, *parts):
        found = torch.func.functional_call(layer, dict(zip(names, parts, strict=True)), (X,))
        return found.log_likelihood, found.responsibilities, found.parameters.covariances

    assert torch.autograd.gradcheck(output, (X.requires_grad_(), *layer.parameters()))


def gradient_of(gradient, n_steps, X, starts, **how):
    """Of a function of the fitted means and covariances, by the data."""
    X = X.clone().requires_grad_()
    found = fit_em(X, starts, n_steps, gradient=gradient, **how)
    (torch.sin(found.means).sum() + found.covariances.square().sum()).backward()
    return X.grad


def relative(one, other):
    return float((one - other).norm() / other.norm())


@pytest.mark.parametrize(("n_components", "n_features"), [(3, 2), (2, 1), (1, 3), (2, 4)])
def test_the_implicit_gradient_is_that_of_a_long_unroll(n_components, n_features):
    X, starts = clusters(4, n_components, n_features)

    implicit, unrolled = (
        gradient_of(gradient, 300, X, starts) for gradient in ("implicit", "unroll")
    )

    for one, other in zip(implicit, unrolled, strict=True):
        assert relative(one, other) < 1e-6


def test_truncated_gradients_become_the_unrolled_one():
    X, starts = many(2, n_samples=100)
    unrolled = gradient_of("unroll", 12, X, starts)

    errors = [
        relative(gradient_of("truncated", 12, X, starts, n_last=n), unrolled) for n in (2, 6, 12)
    ]

    assert errors[0] > errors[1] > errors[2] == 0
    one = gradient_of("one-step", 12, X, starts)
    assert torch.equal(one, gradient_of("truncated", 12, X, starts, n_last=1))


def test_one_step_is_enough_where_components_lie_far_apart():
    rng = np.random.default_rng(0)
    X = torch.tensor(np.concatenate([rng.normal(c, 1, (40, 2)) for c in (0, 40)]))[None]
    starts = Mixtures(
        X.new_zeros(1, 2), X[:, [0, 40]], torch.eye(2, dtype=X.dtype).expand(1, 2, 2, 2)
    )
    unrolled, one, implicit = (
        gradient_of(gradient, 20, X, starts) for gradient in ("unroll", "one-step", "implicit")
    )

    assert relative(one, unrolled) < 1e-10
    assert relative(implicit, unrolled) < 1e-10


@pytest.mark.parametrize("correct_logits", [True, False])
def test_implicit_gradients_train_shared_corrections(correct_logits):
    X, starts = clusters(2)
    both = {}
    for gradient in ("implicit", "unroll"):
        layer = double(2, 3, 300, shared=True, correct_logits=correct_logits, gradient=gradient,
                       random_state=0)  # fmt: skip
        disturbed(layer, size=0.003)

        layer(X, starts).log_likelihood.mean().backward()

        both[gradient] = torch.cat([p.grad.flatten() for p in layer.corrections.parameters()])
    assert relative(both["implicit"], both["unroll"]) < 1e-6


def saved(gradient, n_steps):
    """How many numbers a graph keeps."""
    X, starts = many(1, n_samples=100)
    kept = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    X.requires_grad_()
    held = []
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        held.append(fit_em(X, starts, n_steps, gradient=gradient))
    return sum(kept.values())


@pytest.mark.filterwarnings("ignore:gradient='implicit'")
def test_only_an_unrolled_graph_grows_with_the_steps():
    for gradient in ("implicit", "one-step", "truncated"):
        assert saved(gradient, 200) == saved(gradient, 10)
    assert saved("unroll", 200) > 10 * saved("unroll", 10)


@law
@given(st.integers(1, 12), st.integers(1, 5), st.integers(0, 99))
def test_gmres_solves_each_system(n, n_systems, seed):
    rng = np.random.default_rng(seed)
    A = torch.tensor(rng.standard_normal((n_systems, n, n)) + 3 * np.eye(n))
    target = torch.tensor(rng.standard_normal((n_systems, n)))
    target[0] = 0
    A[-1] = torch.eye(n) + torch.outer(A[-1, 0], A[-1, 0])  # solved soon, while others go on

    x, residual = gmres(lambda x: (A @ x[..., None])[..., 0], target, tol=1e-12)

    assert_allclose(x, torch.linalg.solve(A, target), rtol=1e-6, atol=1e-6)
    assert residual.max() < 1e-9
    assert (x[0] == 0).all()


def test_gmres_keeps_its_digits_where_em_would_creep():
    rng = np.random.default_rng(0)
    axes = np.linalg.qr(rng.standard_normal((80, 80))).Q
    A = torch.tensor(axes * np.geomspace(1e-8, 1, 80) @ axes.T)
    target = torch.tensor(rng.standard_normal((1, 80)))

    x, residual = gmres(lambda x: x @ A.mT, target, tol=1e-13)

    # A single pass of Gram-Schmidt ends at 1e-6.
    assert residual.item() < 1e-8
    assert relative(x @ A.mT, target) < 1e-8


def test_an_implicit_gradient_away_from_a_fixed_point_is_warned_of():
    X, starts = many(1)

    with pytest.warns(RuntimeWarning, match=r"still moved .* take more steps"):
        fit_em(X, starts, 1, gradient="implicit")


# Backbones


class Affine(nn.Module):
    """A learnable affine map that hides how much it shrinks."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(2, 2, dtype=torch.float64)
        with torch.no_grad():
            self.linear.weight.copy_(torch.eye(2))
            self.linear.bias.zero_()

    def forward(self, X):
        return self.linear(X)


class OpenAffine(Affine):
    """The same, and it tells."""

    def features_and_log_det(self, X):
        log_det = torch.linalg.slogdet(self.linear.weight).logabsdet
        return self(X), log_det.expand(X.shape[:2])


def trained_through(net, X, n_steps=60):
    """Best log-likelihood per sample while the backbone alone is trained on it, and how flat the
    features then are: the condition of its matrix."""
    optimizer = torch.optim.Adam(net.backbone.parameters(), lr=0.02)
    seen = []
    for _ in range(n_steps):
        optimizer.zero_grad()
        log_likelihood = net(X).log_likelihood.mean()
        flatness = torch.linalg.cond(net.backbone.linear.weight.detach()).item()
        seen.append((log_likelihood.item() / X.shape[1], flatness))
        (-log_likelihood).backward()
        optimizer.step()
    return max(seen)


def test_a_backbone_under_its_own_likelihood_collapses_and_one_that_tells_does_not(monkeypatch):
    X = torch.tensor(make_dataset("three-gaussians", seed=7).X_train[:300])[None]
    best = EMNet(double(2, 3, 40, random_state=0))(X).log_likelihood.item() / 300
    told, _ = trained_through(EMNet(double(2, 3, 3, random_state=0), OpenAffine()), X)
    monkeypatch.setattr("embench.models.unrolled.backbone._refuse_collapse", lambda backbone: None)

    collapsed, flatness = trained_through(EMNet(double(2, 3, 3, random_state=0), Affine()), X)

    assert collapsed > best + 4
    assert flatness > 100, "all but on a line"
    assert told < best + 0.1


def test_a_trainable_backbone_that_does_not_tell_is_refused_with_a_way_out():
    said = r"Affine has 6 trainable parameters: .*requires_grad_\(False\).*AffineCoupling"
    with pytest.raises(ValueError, match=said):
        EMNet(double(2, 3), Affine())
    frozen = Affine().requires_grad_(False)
    net = EMNet(double(2, 3), frozen)
    X, _ = many(1)
    assert torch.isfinite(net(X).log_likelihood)

    frozen.requires_grad_(True)

    with pytest.raises(ValueError, match=said):
        net(X)


def test_no_backbone_is_the_layer_and_a_frozen_one_is_data():
    X, starts = many(2)
    layer = double(2, 3, random_state=0)
    frozen = nn.Linear(2, 4, dtype=torch.float64).requires_grad_(False)
    wide = double(4, 3, random_state=0)

    assert_same_clustering(EMNet(layer)(X, starts), layer(X, starts), tol=0)
    assert_same_clustering(EMNet(wide, frozen)(X), wide(frozen(X)), tol=0)


def test_a_change_of_coordinates_changes_no_density():
    X, _ = many(2)
    layer, backbone = double(2, 3, random_state=0, reg_covar=0.0), OpenAffine()
    with torch.no_grad():
        backbone.linear.weight.copy_(torch.tensor([[2.0, 0.0], [0.3, 0.5]]))

    mapped = EMNet(layer, backbone)(X)

    expected = layer(X).log_likelihood.detach()
    assert_allclose(mapped.log_likelihood.detach(), expected, rtol=1e-10)


@pytest.mark.parametrize("n_layers", [1, 2, 3])
@pytest.mark.parametrize("n_features", [2, 3, 5])
def test_a_coupling_tells_its_determinant(n_features, n_layers):
    coupling = AffineCoupling(n_features, n_layers, dtype=torch.float64, random_state=0)
    X = torch.randn(1, 4, n_features, generator=torch.Generator().manual_seed(0)).double()
    assert isinstance(coupling, Invertible)
    assert torch.equal(coupling(X), X)
    disturbed(coupling, size=0.5)

    features, log_det = coupling.features_and_log_det(X)

    for i in range(4):
        jacobian = torch.autograd.functional.jacobian(
            lambda x: coupling(x[None, None])[0, 0], X[0, i]
        )
        assert log_det[0, i].item() == pytest.approx(torch.linalg.slogdet(jacobian)[1].item())
    assert features.shape == X.shape


def test_a_coupling_counts_no_sample_that_is_masked():
    X, _ = many(2)
    net = EMNet(double(2, 3, random_state=0), AffineCoupling(2, dtype=torch.float64))
    disturbed(net.backbone)
    mask = torch.ones(2, 50, dtype=torch.bool)
    mask[:, 30:] = False

    masked = net(X.masked_fill(~mask[..., None], torch.nan), mask=mask)
    masked.log_likelihood.sum().backward()

    assert all(torch.isfinite(part.grad).all() for part in net.parameters())
    expected = net(X[:, :30]).log_likelihood.detach()
    assert_allclose(masked.log_likelihood.detach(), expected, rtol=1e-10)


# The estimator


def total_nll(model, X):
    return -gaussian.log_likelihoods(model.mixture_, X).sum()


def test_on_the_published_sample_training_reaches_the_optimum_and_nothing_below_it():
    X = make_dataset("three-gaussians", seed=7).X_train

    model = make_model("unrolled-em", n_components=3, random_state=0, shared=True).fit(X)

    # The smallest there is, by an independent program.
    assert 4682.152574 <= total_nll(model, X) <= 4682.1526


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("lr", [1e-2, 10.0])
def test_training_never_ends_below_em(seed, lr):
    X = make_dataset("blobs", seed=seed, separation=2.0, n_samples=300).X_train
    start = random_mixture(np.random.default_rng(seed), 3, 2)
    em = model_at("em", start, max_iter=80, tol=0).fit(X)

    model = model_at("unrolled-em", start, n_steps=4, max_iter=20, lr=lr).fit(X)

    assert model.score(X) >= em.score(X) - 1e-12
    assert model.score(X) == pytest.approx(model.lower_bound_, abs=1e-9)
    assert model.lower_bound_ >= max(model.lower_bounds_)


@pytest.mark.parametrize("seed", range(4))
def test_training_gets_beyond_the_steps_that_it_begins_with(seed):
    X = make_dataset("blobs", seed=seed, separation=2.0, n_samples=300).X_train
    start = random_mixture(np.random.default_rng(seed), 3, 2)

    model = model_at("unrolled-em", start, n_steps=4, max_iter=20, lr=1e-2).fit(X)

    assert max(model.lower_bounds_) > model.lower_bounds_[0]
    assert model.lower_bounds_[0] == pytest.approx(
        model_at("em", start, max_iter=4).fit(X).score(X), abs=1e-9
    )


def test_one_step_of_training_is_em_with_sample_weights_too():
    X = make_dataset("blobs", seed=0, n_samples=200).X_train
    weight = np.random.default_rng(0).integers(0, 4, len(X))
    start = random_mixture(np.random.default_rng(1), 3, 2)
    unrolled = model_at("unrolled-em", start, n_steps=6, max_iter=1)

    unrolled.fit(X, sample_weight=weight)

    em = model_at("em", start, max_iter=6)
    assert_same(unrolled.mixture_, em.fit(X, sample_weight=weight).mixture_)
    assert_same(unrolled.mixture_, em.fit(np.repeat(X, weight, axis=0)).mixture_, 1e-8, 1e-8)
    assert_same(unrolled.fit(X, sample_weight=1e-12 * weight).mixture_, em.mixture_, 1e-8, 1e-8)


def test_the_estimator_in_float32_is_that_in_float64_to_its_digits():
    X = make_dataset("blobs", seed=0, n_samples=200).X_train
    fine, coarse = (
        make_model("unrolled-em", n_components=3, random_state=0, max_iter=20, dtype=dtype).fit(X)
        for dtype in ("float64", "float32")
    )

    assert coarse.means_.dtype == np.float32
    assert coarse.score(X) == pytest.approx(fine.score(X), abs=1e-3)


def test_a_fit_that_rests_says_so():
    X = make_dataset("blobs", seed=0, separation=12.0, n_samples=200).X_train

    model = make_model("unrolled-em", n_components=3, random_state=0, n_steps=10).fit(X)

    assert model.converged_
    assert model.n_iter_ < 20
    with pytest.warns(ConvergenceWarning):
        model.set_params(max_iter=1, n_steps=1, tol=0.0).fit(X)


def test_only_full_covariances():
    model = make_model("unrolled-em").set_params(covariance_type="diag")

    with pytest.raises(ValueError, match=r"covariance_type.*full"):
        model.fit(np.eye(3))


# What is said where something is wrong


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: double(0, 3), "expected n_features >= 1, got 0"),
        (lambda: double(2, 3, 0), "expected n_steps >= 1, got 0"),
        (lambda: double(2, 3, hidden=0), "expected hidden >= 1, got 0"),
        (lambda: double(2, 3, gradient="exact"), "expected gradient to be one of ('unroll',"),
        (lambda: double(2, 3, gradient="implicit"), "which only equal steps have: use shared=True"),
        (
            lambda: double(2, 3)(many(1)[0][0]),
            "expected X of shape [B, n_samples, n_features], got (50, 2)",
        ),
        (
            lambda: double(3, 3)(many(2)[0]),
            "expected X of shape [B, n_samples, n_features = 3], got (2, 50, 2)",
        ),
        (
            lambda: EMLayer(2, 3)(many(1)[0]),
            "expected X of the module's torch.float32, got torch.float64",
        ),
        (
            lambda: double(2, 3)(many(2)[0], many(3)[1]),
            "expected logits of shape (2, 3) in the start, for X of shape (2, 50, 2), got (3, 3)",
        ),
        (
            lambda: double(2, 3)(many(2)[0], mask=torch.ones(2, 50)),
            "expected a boolean mask of shape (2, 50), got torch.float32 of shape (2, 50)",
        ),
        (
            lambda: double(2, 3)(many(2)[0], mask=torch.zeros(2, 50, dtype=torch.bool)),
            "expected at least one sample in every dataset",
        ),
        (
            lambda: double(2, 3)(many(2)[0] / 0),
            "expected finite numbers in X; leave samples out with a mask",
        ),
        (
            lambda: fit_em(*many(1), 5, gradient="exact"),
            "expected gradient to be one of ('unroll', 'truncated', 'one-step', 'implicit')",
        ),
        (lambda: fit_em(*many(1), 0), "expected n_steps >= 1 and n_last >= 1, got 0 and 1"),
        (lambda: AffineCoupling(1), "expected n_features >= 2 and n_layers >= 1, got 1 and 2"),
    ],
)
def test_an_error_says_what_was_expected_and_what_came(call, said):
    with pytest.raises(ValueError, match=re.escape(said)):
        call()


def test_a_singular_covariance_says_where_it_is():
    X, starts = many(3, n_features=1, n_components=2)
    X[2] = 0.0
    with pytest.raises(IllDefinedCovariance, match=r"of dataset 2 is not .* reg_covar > 0"):
        framed(X, reg_covar=0.0)
    X[2, 0] = 1e3
    starts.means[2], starts.scale_tril[2] = torch.tensor([[0.0], [1e3]]), 1e-3

    with pytest.raises(IllDefinedCovariance, match=r"component 0 in dataset 2 is not .* float64"):
        fit_em(X, starts, 1, reg_covar=0.0)


def test_what_no_regularisation_mends_is_an_error_and_no_endless_loop():
    singular = torch.diag(torch.tensor([1.0, 0.0]))[None]

    with pytest.raises(IllDefinedCovariance, match="dataset 0"):
        _cholesky(-torch.eye(2)[None], singular)


def test_what_regularisation_mends_is_warned_of():
    with pytest.warns(RegularisationWarning, match="added 100 times reg_covar"):
        factors = _cholesky(-torch.eye(2)[None], 0.1 * torch.eye(2)[None])

    assert_allclose(factors[0], 3 * torch.eye(2), rtol=1e-6)


def test_training_without_regularisation_keeps_gradients_finite():
    X, starts = many(2)
    layer = disturbed(double(2, 3, 3, reg_covar=0.0, random_state=0))

    layer(X.requires_grad_(), starts).log_likelihood.sum().backward()

    assert torch.isfinite(X.grad).all()


def test_a_component_that_has_lost_its_samples_stays_where_it_is():
    X, _ = many(1, n_components=1)
    far = Mixture(np.full(2, 0.5), np.array([[0.0, 0], [1e6, 0]]), np.stack([np.eye(2)] * 2))

    fitted = fit_em(X, stacked([far]), 3, gradient="unroll", reg_covar=0.0)

    assert_allclose(fitted.means[0, 1], [1e6, 0], rtol=1e-9, atol=1e-9)
    assert_allclose(fitted.covariances[0, 1], np.eye(2), rtol=1e-9, atol=1e-9)


def test_counts_may_be_any_numbers():
    X, starts = many(1)
    counted = torch.tensor(np.random.default_rng(0).integers(1, 4, (1, 50)), dtype=X.dtype)
    samples = framed(X)
    weighted = Samples(samples.products, counted, samples.centre, samples.scale)
    repeated = X[0].repeat_interleave(counted[0].long(), 0)[None]

    total, fitted = em_map(weighted, weighted.inward(starts))

    own = framed(repeated)
    expected, other = em_map(own, own.inward(starts))
    assert total.item() == pytest.approx(expected.item(), rel=1e-12)
    assert_same(mixture(samples.outward(fitted)), mixture(own.outward(other)))
