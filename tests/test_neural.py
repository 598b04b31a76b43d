"""Neural EM: the loss and its gradient, groups that are exchangeable, trainings that resume."""

from __future__ import annotations

import pickle
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.base import clone
from sklearn.exceptions import NotFittedError

from embench import make_dataset, make_model
from embench.cli import main
from embench.measuring.groups import followed, mean_ami
from embench.measuring.suite import load_suite
from embench.measuring.training import STATE, train
from embench.models.neural.adam import Adam
from embench.models.neural.fused import FusedSteps, has_bfloat16
from embench.models.neural.networks import GradientMStep, RecurrentMStep
from embench.models.neural.noise import corrupted
from embench.models.neural.pixels import LAWS, STDDEV
from embench.models.neural.recipes import PRESETS
from embench.models.neural.training import Trainer
from embench.models.neural.unroll import Film, first_responsibilities, frames, loss, moments, still
from embench.types import Grouper, InputError, IterativeModel, Spec, SteppedGrouper, TrainableModel

D, B = 12, 5

TINY = replace(
    PRESETS["quick"], n_components=3, hidden=4, n_steps=3, batch_size=B, max_updates=6, noise=0.1
)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def images(n=B, n_pixels=D, seed=0):
    drawn = torch.rand(n, n_pixels, generator=generator(seed), dtype=torch.float64)
    return (drawn < 0.4).double()


def network(recipe=TINY, n_pixels=D, seed=0):
    """One with weights like those of a training, also where it begins with zeros."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        made = RecurrentMStep(n_pixels, recipe, (3, 4)).double()
        for part in made.parameters():
            part.data += 0.5 * torch.randn(part.shape, dtype=part.dtype)
    return made


def seen(recipe=TINY, n_pixels=D, seed=0):
    """What the steps see of some images, and first responsibilities."""
    clean = still(images(n_pixels=n_pixels, seed=seed), recipe.n_steps)
    noisy = corrupted(clean, recipe.noise_type, recipe.noise, generator(seed))
    return Film(noisy, clean), first_responsibilities(recipe.n_components, clean[0], generator(1))


def gradient(net, recipe, film, gamma):
    net.zero_grad()
    loss(net, recipe, film, gamma).backward()
    return [part.grad.clone() for part in net.parameters()]


def bars(n, n_pixels=16, width=3, seed=0):
    """Images of two bars in one row, and the bar that each pixel belongs to."""
    rng = np.random.default_rng(seed)
    at = rng.integers(0, n_pixels - width + 1, size=(n, 2, 1))
    covered = (np.arange(n_pixels) >= at) & (np.arange(n_pixels) < at + width)
    labels = np.where(covered[:, 0], 0, np.where(covered[:, 1], 1, -1))
    return covered.any(axis=1).astype(float), np.where(covered.all(axis=1), -1, labels)


# The loss


@pytest.mark.parametrize("n_components", [1, 3, 4])
def test_the_loss_of_knowing_nothing_is_log_2_for_each_pixel_and_group(n_components):
    x = images(2, 784)
    gamma = first_responsibilities(n_components, x, generator())
    outputs = torch.zeros_like(gamma)

    value = LAWS["bernoulli"].loss(x, outputs, gamma, 1.0, 0.0)

    assert value.item() == pytest.approx(784 * np.log(2) * n_components)
    assert value.item() == pytest.approx(543.43 * n_components, abs=0.01 * n_components)


@pytest.mark.parametrize("prior", [0.0, 0.3])
@pytest.mark.parametrize("pixels", ["bernoulli", "gaussian"])
def test_a_group_that_predicts_the_prior_diverges_by_nothing_and_any_other_by_more(pixels, prior):
    law = LAWS[pixels]
    psi = torch.tensor([prior, 0.1, 0.9], dtype=torch.float64)
    outputs = psi.clamp(1e-12).logit() if pixels == "bernoulli" else psi

    found = law.divergence(outputs, prior)

    assert found[0].item() == pytest.approx(0, abs=1e-9)
    assert (found[1:] > 0).all()


def test_the_divergence_of_bernoulli_pixels_is_its_definition():
    psi = torch.tensor([0.1, 0.5, 0.8], dtype=torch.float64)
    prior = 0.3

    found = LAWS["bernoulli"].divergence(psi.logit(), prior)

    own, given = (
        torch.distributions.Bernoulli(p) for p in (torch.tensor(prior, dtype=psi.dtype), psi)
    )
    expected = torch.distributions.kl_divergence(own, given)
    assert_allclose(found, expected, atol=1e-12)


@pytest.mark.parametrize("pixels", ["bernoulli", "gaussian"])
def test_the_likelihood_of_a_mixture_of_equal_groups_is_that_of_one(pixels):
    x, psi = images(), torch.full((D,), 0.2, dtype=torch.float64)
    outputs = psi.logit() if pixels == "bernoulli" else psi

    found = LAWS[pixels].log_likelihood(x, outputs.expand(3, B, D))

    laws = torch.distributions
    one = laws.Bernoulli(psi) if pixels == "bernoulli" else laws.Normal(psi, STDDEV)
    assert_allclose(found, one.log_prob(x).sum(-1), rtol=1e-10)


@pytest.mark.parametrize("pixels", ["bernoulli", "gaussian"])
def test_responsibilities_are_those_of_bayes_rule(pixels):
    law, x = LAWS[pixels], images()
    outputs = torch.rand(3, B, D, generator=generator(), dtype=torch.float64)

    gamma = law.e_step(x, outputs)

    assert_allclose(gamma.sum(0), 1.0)
    # Probabilities are raised a little in the E-step, so that none is 0.
    assert_allclose(gamma, law.log_prob(x, outputs).softmax(0), atol=5e-3)


# Its gradient


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"loss_steps": "last"},
        {"loss_steps": "late"},
        {"loss_steps": [1.0, 0.0, 2.0]},
        {"gamma_gradient": False},
        {"gamma_gradient": False, "loss_steps": "last"},
        {"n_steps": 1},
        {"n_components": 1},
    ],
)
def test_the_gradient_by_hand_is_that_of_autograd(changes):
    recipe = replace(TINY, **changes)
    net, (film, gamma) = network(recipe), seen(recipe)
    expected = gradient(net, recipe, film, gamma)

    value = FusedSteps(net, recipe, B)(film.clean[0], film.noisy, gamma)

    assert value == pytest.approx(loss(net, recipe, film, gamma).item(), rel=1e-12)
    for part, grad in zip(net.parameters(), expected, strict=True):
        assert_allclose(part.grad, grad, atol=1e-10)


@pytest.mark.parametrize("by_hand", [True, False])
@pytest.mark.skipif(not has_bfloat16("float32"), reason="no products of bfloat16")
def test_products_of_bfloat16_are_exact_to_their_digits(by_hand):
    X = images(40).numpy()
    rough, exact = (
        Trainer(network(recipe).float(), recipe, X, seed=0)
        for recipe in (replace(TINY, products="bfloat16"), TINY)
    )
    batch = exact.batch()
    if not by_hand:
        rough.gradient = rough.gradient_by_autograd

    losses = [one.gradient(*batch) for one in (rough, exact)]

    grads = [
        torch.cat([part.grad.ravel() for part in one.network.parameters()])
        for one in (rough, exact)
    ]
    assert losses[0] == pytest.approx(losses[1], rel=0.02)
    assert losses[0] != losses[1]
    # Eight binary digits: errors of 2^-9 in a factor, a few of them in a row.
    assert (grads[0] - grads[1]).norm() < 0.05 * grads[1].norm()


def test_products_that_a_processor_has_not_are_refused():
    model = make_model("rnn-em", preset="quick", products="bfloat16", dtype="float64")

    with pytest.raises(ValueError, match=r"dtype='float32', got dtype='float64'.*exact"):
        model.fit(bars(10)[0])


def test_the_gradient_by_hand_of_a_second_batch_knows_nothing_of_the_first():
    net, (film, gamma), other = network(), seen(), seen(seed=3)
    steps, fresh = FusedSteps(net, TINY, B), FusedSteps(net, TINY, B)

    steps(other[0].clean[0], other[0].noisy, other[1])
    again = steps(film.clean[0], film.noisy, gamma)

    assert again == fresh(film.clean[0], film.noisy, gamma)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"cell": "gru"},
        {"cell": "lstm"},
        {"pixels": "gaussian", "kl_weight": 0.2, "prior": 0.1},
        {"kl_weight": 0.5, "prior": 0.3},
    ],
    ids=str,
)
def test_gradients_are_differences_of_the_loss(changes):
    recipe = replace(TINY, **changes)
    net, (film, gamma) = network(recipe), seen(recipe)

    grads = gradient(net, recipe, film, gamma)

    with torch.no_grad():
        for part, grad in zip(net.parameters(), grads, strict=True):
            direction = torch.randn(part.shape, generator=generator(), dtype=part.dtype)
            ends = []
            for step in (1e-5, -2e-5):
                part += step * direction
                ends.append(loss(net, recipe, film, gamma).item())
            part += 1e-5 * direction
            assert (grad * direction).sum().item() == pytest.approx(
                (ends[0] - ends[1]) / 2e-5, rel=1e-5, abs=1e-7
            )


# Symmetries


def test_groups_are_exchangeable():
    net, (film, gamma) = network(), seen()
    order = [2, 0, 1]

    found = list(moments(net, TINY, film, gamma))
    other = list(moments(net, TINY, film, gamma[order]))

    for one, two in zip(found, other, strict=True):
        assert_allclose(one.gamma.detach()[order], two.gamma.detach(), atol=1e-12)
        assert_allclose(one.outputs.detach()[order], two.outputs.detach(), atol=1e-12)


def test_groups_that_begin_alike_stay_alike():
    net, (film, gamma) = network(), seen()
    equal = torch.full_like(gamma, 1 / TINY.n_components)

    *_, last = moments(net, TINY, film, equal)

    assert_allclose(last.gamma.detach(), equal, atol=1e-12)


def test_the_order_of_pixels_does_not_matter_to_a_network_without_convolutions():
    net, other, (film, gamma) = network(), network(), seen()
    order = torch.randperm(D, generator=generator())
    with torch.no_grad():
        other.cell.input.weight.copy_(net.cell.input.weight[:, order])
        other.output.weight.copy_(net.output.weight[order])
        other.output.bias.copy_(net.output.bias[order])
    shuffled = Film(film.noisy[..., order], film.clean[..., order])

    grads = gradient(net, TINY, film, gamma)
    others = gradient(other, TINY, shuffled, gamma[..., order])

    # Adam looks at each weight by itself: what holds for gradients holds for all of a training.
    named = dict(zip((name for name, _ in net.named_parameters()), grads, strict=True))
    named["cell.input.weight"] = named["cell.input.weight"][:, order]
    for name in ("output.weight", "output.bias"):
        named[name] = named[name][order]
    for expected, found in zip(named.values(), others, strict=True):
        assert_allclose(found, expected, atol=1e-12)


def test_an_image_is_a_sequence_of_equal_frames():
    net, (film, gamma) = network(), seen(replace(TINY, noise_type="none"))
    sequences = film.clean.movedim(0, 1)
    longer = torch.cat([sequences, sequences[:, :1]], dim=1)

    found = loss(net, TINY, Film(*frames(longer)), gamma)

    assert found.item() == pytest.approx(loss(net, TINY, film, gamma).item(), rel=1e-12)


# N-EM


def test_the_m_step_of_n_em_climbs_the_expected_log_likelihood():
    net = GradientMStep(D, TINY).double()
    x, z = images(), torch.randn(B, TINY.hidden, generator=generator(), dtype=torch.float64)
    gamma = torch.rand(B, D, generator=generator(), dtype=torch.float64)
    z.requires_grad_()
    outputs = z.sigmoid() @ net.weight.T
    expected = -(gamma * LAWS["bernoulli"].cross_entropy(x, outputs)).sum()
    [slope] = torch.autograd.grad(expected, z)

    _, (moved,) = net(gamma * (x - outputs.sigmoid()), (z,))

    assert_allclose((moved - z).detach(), net.log_rate.exp().item() * slope, atol=1e-12)


def test_n_em_has_one_weight_for_both_ways_and_a_step_that_is_positive():
    model = make_model("n-em", n_components=2, hidden=4, max_updates=20, random_state=0)

    model.fit(bars(100)[0])

    shapes = {name: tuple(part.shape) for name, part in model.network_.named_parameters()}
    assert shapes == {"weight": (16, 4), "log_rate": ()}
    assert model.network_.log_rate.exp() > 0


def test_the_published_recipe_is_the_same_for_both_m_steps():
    names = ("published", "published-flying")

    found = [make_model("n-em", preset=name).recipe() for name in names]

    assert found == [make_model("rnn-em", preset=name).recipe() for name in names]


# Noise


@pytest.mark.parametrize("probability", [0.02, 0.3])
def test_noise_hits_its_share_of_the_pixels_anew_in_every_step(probability):
    x = torch.zeros(4, 200, 500)

    flipped = corrupted(x, "bitflip", probability, generator())
    masked = corrupted(x, "masked_uniform", probability, generator())

    n = x[0].numel()
    error = 5 * np.sqrt(probability * (1 - probability) / n)
    for step in flipped:
        assert step.mean().item() == pytest.approx(probability, abs=error)
    assert not torch.equal(flipped[0], flipped[1])
    assert torch.equal(masked != 0, flipped == 1)
    assert masked[masked != 0].mean().item() == pytest.approx(0.5, abs=0.02)


def test_without_noise_images_stay_as_they_are():
    x = images()

    assert torch.equal(corrupted(x, "none", 0.5, generator()), x)
    assert torch.equal(corrupted(x, "bitflip", 0.0, generator()), x)


# Training


def trainer(recipe=TINY, seed=0, **more):
    return Trainer(network(recipe), recipe, images(40).numpy(), seed, **more)


def test_a_training_that_is_resumed_is_one_that_was_never_interrupted():
    recipe = replace(TINY, noise_end=0.0)
    whole, first, second = (trainer(recipe) for _ in range(3))
    for _ in range(6):
        whole.update()
    for _ in range(2):
        first.update()

    second.resume(pickle.loads(pickle.dumps(first.state())))
    while second.progress < 1:
        second.update()

    for one, other in zip(whole.averaged.parameters(), second.averaged.parameters(), strict=True):
        assert torch.equal(one, other)


def test_steps_of_adam_are_those_of_torch():
    own, other = ([torch.ones(3, dtype=torch.float64), torch.ones(2, 2)] for _ in range(2))
    ours, theirs = Adam(own), torch.optim.Adam(other, lr=0.1)

    for seed in range(3):
        for one, two in zip(own, other, strict=True):
            one.grad = torch.randn(one.shape, generator=generator(seed), dtype=one.dtype)
            two.grad = one.grad.clone()
        ours.step(0.1)
        theirs.step()

    for one, two in zip(own, other, strict=True):
        assert_allclose(one, two, rtol=1e-6)


def test_every_image_is_learned_from_in_a_pass():
    shown = trainer(replace(TINY, batch_size=8))

    rows = []
    for first in range(0, 40, 8):
        rows += shown._rows(first, 8).tolist()

    assert sorted(rows) == list(range(40))


@pytest.mark.parametrize("name", ["rnn-em", "n-em"])
def test_the_same_seed_gives_the_same_groups(name):
    X, _ = bars(60)
    one, same, other = (
        make_model(name, preset="quick", hidden=4, max_updates=4, random_state=seed).fit(X)
        for seed in (0, 0, 1)
    )

    assert one.losses_ == same.losses_ != other.losses_
    assert_array_equal(one.group_proba(X), same.group_proba(X))


def test_training_by_hand_and_by_autograd_end_at_the_same_weights():
    by_hand, by_autograd = trainer(), trainer()
    by_autograd.gradient = by_autograd.gradient_by_autograd

    for _ in range(5):
        assert by_hand.update() == pytest.approx(by_autograd.update(), rel=1e-9)


def test_a_budget_of_cpu_seconds_ends_a_fit():
    model = make_model("rnn-em", preset="quick", hidden=4, cpu_seconds=0.05, random_state=0)

    model.fit(bars(60)[0])

    assert 1 <= model.n_iter_ < model.recipe_.max_updates


def test_two_bars_are_told_apart():
    X, _ = bars(2000)
    unseen, truth = bars(200, seed=1)
    model = make_model(
        "rnn-em", preset="quick", hidden=32, n_steps=4, batch_size=32, lr=0.02, max_updates=800
    )

    model.set_params(random_state=0).fit(X)

    assert mean_ami(truth, model.predict(unseen)) > 0.8
    assert np.mean(model.losses_[-50:]) < np.mean(model.losses_[:50])


def test_an_update_without_a_finite_loss_changes_nothing():
    broken = trainer()
    before = [part.clone() for part in broken.network.parameters()]
    broken.gradient = lambda film, gamma: float("nan")

    broken.update()

    assert broken.done == 1
    for one, other in zip(before, broken.network.parameters(), strict=True):
        assert torch.equal(one, other)


# The estimators


@pytest.fixture(scope="module")
def fitted():
    X, _ = bars(200)
    return make_model("rnn-em", preset="quick", hidden=8, max_updates=20, random_state=0).fit(X)


@pytest.mark.parametrize("name", ["rnn-em", "n-em"])
def test_they_are_estimators_that_group(name):
    model = make_model(name, preset="quick", max_updates=3, hidden=4, random_state=0)
    X, _ = bars(50)

    again = pickle.loads(pickle.dumps(clone(model).fit(X)))

    for ability in (Grouper, IterativeModel, SteppedGrouper, TrainableModel):
        assert isinstance(model, ability)
    assert clone(model).get_params() == model.get_params()
    assert again.predict(X).shape == X.shape
    assert_allclose(again.group_proba(X).sum(axis=-1), 1.0, atol=1e-6)
    assert_array_equal(again.predict(X), model.fit(X).predict(X))
    with pytest.raises(NotFittedError):
        clone(model).predict(X)


def test_more_steps_than_in_training_are_steps_too(fitted):
    X, _ = bars(10, seed=2)
    model = clone(fitted).set_params(n_init=1).fit(X)  # or each would choose by its last step

    found = list(model.em_steps(X, 25))

    assert len(found) == 25
    psi, gamma = found[model.recipe_.n_test_steps - 1]
    assert_allclose(gamma, model.group_proba(X))
    assert psi.shape == (10, 16, 2)
    assert ((psi >= 0) & (psi <= 1)).all()


def test_more_starts_never_explain_an_image_worse(fitted):
    X, _ = bars(50, seed=2)
    many = clone(fitted).set_params(n_init=5).fit(bars(200)[0])

    assert many.score(X) >= fitted.score(X)
    assert fitted.score(X) < 0


def test_a_network_groups_with_another_number_of_groups(fitted):
    fitted.recipe_, kept = replace(fitted.recipe_, n_components=4), fitted.recipe_

    found = fitted.group_proba(bars(10)[0])

    fitted.recipe_ = kept
    assert found.shape == (10, 16, 4)


def test_sequences_are_grouped_frame_by_frame():
    data = make_dataset("flying-shapes", seed=0, size=8, n_steps=4, n_train=6, n_test=3)
    model = make_model("rnn-em", encoder="conv", decoder="conv", hidden=5, batch_size=3)

    model.set_params(n_components=2, max_updates=2).fit(data.X_train)

    assert model.predict(data.X_test).shape == data.X_test.shape == (3, 4, 64)
    assert np.isfinite(model.score(data.X_test))
    assert len(list(model.em_steps(data.X_test))) == 3


@pytest.mark.parametrize(
    ("params", "X", "said"),
    [
        ({}, np.zeros(4), "expected images (n_images, n_pixels) or sequences"),
        ({}, np.full((3, 4), 1.5), "expected pixels in [0, 1] for pixels='bernoulli', got 1.5"),
        ({}, np.full((3, 4), np.nan), "expected finite numbers in X"),
        ({}, np.zeros((3, 1, 4)), "expected sequences of 2 frames or more, got X of shape (3, 1,"),
        ({"loss_steps": [1.0]}, np.eye(4), "'all', 'late', 'last' or n_steps=6 weights >= 0"),
        ({"encoder": "conv"}, np.eye(36), "both multiples of 4, for a convolutional encoder or"),
        ({"preset": "quik"}, np.eye(4), "The 'preset' parameter of RNNEM must be a str among"),
    ],
)
def test_an_error_says_what_was_expected_and_what_came(params, X, said):
    with pytest.raises(ValueError, match=re.escape(said)):
        make_model("rnn-em", **params).fit(X)


def test_a_second_fit_knows_nothing_of_the_first():
    model = make_model("rnn-em", preset="quick", hidden=4, max_updates=2, random_state=0)

    again = model.fit(bars(20, n_pixels=9)[0]).fit(bars(20)[0])

    fresh = clone(model).fit(bars(20)[0])
    assert_array_equal(again.predict(bars(20)[0]), fresh.predict(bars(20)[0]))
    assert again.losses_ == fresh.losses_


def test_images_of_another_size_are_refused(fitted):
    with pytest.raises(ValueError, match=r"expected images of 16 pixels, got X of shape \(2, 9\)"):
        fitted.predict(np.zeros((2, 9)))


# Trained once


SMALL = "rnn-em:preset=quick,hidden=8,n_test_steps=4"


@pytest.fixture
def images_suite(tmp_path):
    path = tmp_path / "images.toml"
    path.write_text(
        '[[datasets]]\nname = "shapes"\nsize = 12\nn_train = 50\nn_test = 20\n'
        '[[models]]\nname = "rnn-em"\n'
    )
    return load_suite(path)


def weights(folder, model="rnn-em"):
    return torch.load(folder / f"{model}.pt", weights_only=True)["weights"]


@pytest.mark.parametrize("name", ["rnn-em", "amortised-em"])
def test_a_training_that_is_killed_goes_on_to_the_same_weights(name, images_suite, tmp_path):
    [spec] = Spec.parse(SMALL if name == "rnn-em" else name)
    suite = images_suite if name == "rnn-em" else load_suite("training")
    how = {"n_updates": 4, "batch_size": 4, "seed": 3}
    whole = list(train(spec, suite, tmp_path / "whole", **how))
    broken = train(spec, suite, tmp_path / "broken", **how)
    next(broken)
    next(broken)
    broken.close()  # nothing is saved on the way out

    resumed = list(train(spec, suite, tmp_path / "broken", **how))

    assert [p.update for p in resumed] == [p.update for p in whole] == [1, 2, 3, 4]
    assert [p.findings for p in resumed] == [p.findings for p in whole]
    assert list(train(spec, suite, tmp_path / "broken", **how)) == resumed
    one, other = (weights(tmp_path / folder, name) for folder in ("whole", "broken"))
    assert all(torch.equal(one[key], other[key]) for key in one)


def test_another_training_is_not_resumed(images_suite, tmp_path):
    [spec] = Spec.parse(SMALL)
    list(train(spec, images_suite, tmp_path, n_updates=1, batch_size=4))

    with pytest.raises(InputError, match="another training, of another params, seed; choose"):
        list(train(Spec("rnn-em"), images_suite, tmp_path, n_updates=1, batch_size=4, seed=1))


def test_trained_weights_are_used_without_training(images_suite, tmp_path):
    [spec] = Spec.parse(SMALL)
    *_, last = train(spec, images_suite, tmp_path, n_updates=3, batch_size=4)
    data = make_dataset("shapes", seed=0, size=12, n_train=10, n_test=10)

    model = make_model("rnn-em", checkpoint=str(tmp_path / "rnn-em.pt"), random_state=0)
    model.set_params(n_components=3).fit(data.X_train)

    assert model.n_iter_ == 0
    assert model.training_seconds == last.seconds
    assert model.group_proba(data.X_test).shape == (10, 144, 3)
    assert torch.equal(model.network_.output.bias, weights(tmp_path)["output.bias"])
    with pytest.raises(InputError, match="expected weights of n-em, got those of rnn-em"):
        make_model("n-em", checkpoint=str(tmp_path / "rnn-em.pt")).fit(data.X_train)
    with pytest.raises(InputError, match="expected weights written by `embench train rnn-em`"):
        make_model("rnn-em", checkpoint=str(tmp_path / STATE)).fit(data.X_train)
    with pytest.raises(ValueError, match=r"expected images of 144 pixels, got X of shape \(2, 9\)"):
        make_model("rnn-em", checkpoint=str(tmp_path / "rnn-em.pt")).fit(np.zeros((2, 9)))


def test_the_command_line_trains_and_shows_groups(images_suite, tmp_path):
    out = tmp_path / "trained"
    how = ["--suite", str(tmp_path / "images.toml"), "--updates", "2", "--batch-size", "4"]
    asked = ["train", SMALL.replace("preset=quick,", ""), "--preset", "quick", *how]

    done = CliRunner().invoke(main, [*asked, "--out", str(out)])

    assert done.exit_code == 0, done.output
    assert "2/2  held-out loss" in done.output
    assert {path.name for path in out.iterdir()} >= {"rnn-em.pt", "progress.png", STATE}
    shown = CliRunner().invoke(
        main,
        [
            *["groups", f"rnn-em:checkpoint={out / 'rnn-em.pt'}", "--steps", "3"],
            *["--dataset", "shapes:size=12,n_train=5,n_test=5", "--out", str(tmp_path / "g.png")],
        ],
    )
    assert shown.exit_code == 0, shown.output
    assert "AMI after 3 steps" in shown.output
    assert (tmp_path / "g.png").stat().st_size > 0
    assert (tmp_path / "g-by-step.png").stat().st_size > 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["train", "em"], "em learns nothing before it fits; expected a model that does"),
        (["train", "rnn-em", "--suite", "training"], "cannot be learned from: it has no images"),
        (["train", "rnn-em,n-em"], "expected one model, got 'rnn-em,n-em'"),
        (["groups", "em"], "em has no steps to look at; expected one like rnn-em"),
        (["groups", "rnn-em", "--dataset", "iris"], "iris: expected images with groups"),
    ],
)
def test_the_command_line_says_what_cannot_be(arguments, said, tmp_path):
    place = tmp_path / ("out" if arguments[0] == "train" else "out.png")

    done = CliRunner().invoke(main, [*arguments, "--out", str(place)])

    assert done.exit_code == 2
    assert said in done.output


def test_steps_of_a_sequence_show_the_frames_that_are_predicted():
    model = Spec("rnn-em", {"hidden": 4, "max_updates": 1, "batch_size": 2, "n_steps": 3})
    dataset = Spec("flying-shapes", {"size": 8, "n_steps": 4, "n_train": 4, "n_test": 3})

    found = followed(model, dataset, image=1)

    data = make_dataset("flying-shapes", seed=0, **dataset.params)
    assert_array_equal(found.image, data.X_test[1, 1:])
    assert found.psi.shape == found.gamma.shape == (3, 64, 3)
    assert len(found.ami) == 3
