"""The mixture density network: its likelihood, its families, its training, and what it learns."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.base import clone
from strategies import ALL_COVARIANCE_TYPES, global_random_state
from torch import nn
from torch.distributions import Categorical, MixtureSameFamily, MultivariateNormal

from embench import make_dataset
from embench.models import mdn
from embench.models.base import DivergenceWarning
from embench.models.conditional import LinearGaussian
from embench.models.gradient.likelihood import Coordinates, components, log_joint
from embench.models.mdn import MixtureDensityNetwork
from embench.types import COVARIANCE_ALIASES


def network(**params):
    """A small one that is trained for a moment."""
    fixed = {"hidden_sizes": 8, "max_iter": 5, "batch_size": 16, "random_state": 0}
    return MixtureDensityNetwork(**{**fixed, **params})


def samples(n_samples=60, n_targets=2, seed=0):
    """Targets of different sizes, correlated, that depend on X and do not always."""
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n_samples, 2))
    noise = rng.standard_normal((n_samples, n_targets)) @ np.triu(np.ones((n_targets,) * 2))
    Y = np.sin(2 * X[:, [0]]) + rng.choice([-2, 2], size=(n_samples, 1)) + 0.3 * noise
    return X, Y * np.geomspace(1, 10, n_targets) + 5


X, Y = samples()


# The likelihood


@pytest.mark.parametrize("n_samples", [1, 7])
@pytest.mark.parametrize("shared", [False, True])
def test_a_mixture_for_each_sample_has_torchs_density(n_samples, shared):
    K, D = 3, 3
    generator = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(*shape, n_samples, generator=generator, dtype=torch.float64)

    C = 1 if shared else K
    free = Coordinates(draw(K), draw(K, D), draw(C, D), draw(C, D * (D - 1) // 2))
    targets = torch.vstack([draw(D), torch.ones(1, n_samples, dtype=torch.float64)])

    found = log_joint(targets, components(free)).logsumexp(0)

    for i in range(n_samples):
        T = torch.eye(D, dtype=torch.float64).repeat(C, 1, 1)
        for p, (row, column) in enumerate([(0, 1), (0, 2), (1, 2)]):
            T[:, row, column] = free.coefficients[:, p, i]
        P = T * torch.exp(-free.log_stddevs[..., i])[:, None]
        precisions = (P @ P.mT).expand(K, D, D)
        own = MultivariateNormal(free.means[..., i], precision_matrix=precisions)
        known = MixtureSameFamily(Categorical(logits=free.logits[:, i]), own)
        assert found[i].item() == pytest.approx(known.log_prob(targets[:D, i]).item(), abs=1e-9)


@pytest.mark.parametrize("family", ALL_COVARIANCE_TYPES)
def test_the_trained_density_is_that_of_torch_distributions(family):
    model = network(covariance_type=family).fit(X, Y)

    mixtures = model.conditional_mixture(X)

    weights, means, covariances = (torch.tensor(part) for part in vars(mixtures).values())
    known = MixtureSameFamily(Categorical(weights), MultivariateNormal(means, covariances))
    expected = known.log_prob(torch.tensor(Y)).numpy()
    trained_on = model.network_.log_likelihoods(*model.network_.taken(X, Y)).detach().numpy()
    assert_allclose(trained_on, expected, rtol=1e-9)
    assert_allclose(model.score_samples(X, Y), expected, rtol=1e-9)


# The families


@pytest.mark.parametrize("family", ALL_COVARIANCE_TYPES)
def test_covariances_are_of_their_family_in_the_units_of_the_targets(family):
    covariances = network(covariance_type=family).fit(X, Y).conditional_mixture(X).covariances

    variances = np.diagonal(covariances, axis1=2, axis2=3)
    shared, correlated = family in {"tied", "tied_spherical", "constant"}, family in {
        "full",
        "tied",
    }  # fmt: skip
    assert np.allclose(covariances, covariances[:, :1]) == shared
    assert np.allclose(covariances[:, :, 0, 1], 0) == (not correlated)
    one_scale = family in {"spherical", "tied_spherical", "constant"}
    assert np.allclose(variances[..., 0], variances[..., 1]) == one_scale
    assert np.allclose(covariances, np.eye(2)) == (family == "constant")
    assert np.allclose(covariances, covariances[:1]) == (family == "constant")


@pytest.mark.parametrize(("alias", "family"), COVARIANCE_ALIASES.items())
def test_an_alias_is_its_family(alias, family):
    one, other = (network(covariance_type=name).fit(X, Y) for name in (alias, family))

    assert one.score(X, Y) == other.score(X, Y)


def test_no_deviation_is_below_the_smallest():
    Y = np.repeat([[0.0], [1.0], [4.0]], 20, axis=0)
    model = network(covariance_type="full", min_stddev=0.2, max_iter=200, lr=0.05)

    variances = model.fit(X, Y).conditional_mixture(X).covariances.ravel()

    smallest = (0.2 * Y.std()) ** 2
    assert smallest <= variances.min() < 1.1 * smallest


def test_targets_on_few_points_leave_every_number_finite():
    Y = np.repeat([[0.0], [1.0]], 30, axis=0)

    model = network(n_components=5, max_iter=100).fit(X, Y)

    assert np.isfinite(model.score(X, Y))


# The training


@pytest.mark.parametrize("validation_share", [0.0, 0.25])
def test_the_loss_is_that_of_the_returned_parameters(validation_share):
    seen = Recorder()
    model = network(backbone=seen, validation_share=validation_share, lr=0.05).fit(X, Y)

    rows = trained_rows(model)

    assert len(rows) == round((1 - validation_share) * len(X))
    assert model.loss_ == pytest.approx(-model.score(X[rows], Y[rows]), rel=1e-9)
    assert model.loss_ != model.losses_[-1]


def trained_rows(model):
    """The rows of X that a model with a `Recorder` has seen as it was trained."""
    seen = model.network_.backbone.passes[-1]
    standardised = (X - X.mean(axis=0)) / X.std(axis=0)
    return [i for i, x in enumerate(standardised) if np.isclose(seen, x).all(axis=1).any()]


class Recorder(nn.Module):
    """A linear layer that remembers what it was trained on, pass by pass."""

    def __init__(self, n_features=2):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.linear = nn.Linear(n_features, 4, dtype=torch.float64)
        self.passes = [np.empty((0, n_features))]

    def forward(self, inputs):
        if self.training:
            self.passes[-1] = np.vstack([self.passes[-1], inputs.detach().numpy()])
        return self.linear(inputs)


@pytest.mark.parametrize("batch_size", [1, 7, 16, 60, 1000])
def test_every_pass_uses_every_sample_once(batch_size):
    model = network(backbone=Recorder(), batch_size=batch_size, max_iter=1).fit(X, Y)

    seen = model.network_.backbone.passes[-1]

    standardised = (X - X.mean(axis=0)) / X.std(axis=0)
    assert_allclose(np.sort(seen, axis=0), np.sort(standardised, axis=0), atol=1e-12)


@pytest.mark.parametrize("batch_size", [7, 25, 59])
def test_a_sample_of_a_smaller_batch_counts_like_any_other(batch_size, monkeypatch):
    # With plain steps so small that nothing moves, a pass is the sum of the samples' gradients.
    monkeypatch.setitem(
        mdn.OPTIMIZERS, "adam", lambda params, lr, weight_decay: torch.optim.SGD(params, lr)
    )

    def change(batch_size):
        stream = network(lr=1e-7, max_iter=1, batch_size=batch_size)
        begun = iter(stream.iter_fit(X, Y))
        next(begun)
        before = [part.detach().clone() for part in stream.network_.parameters()]
        next(begun)
        after = stream.network_.parameters()
        moved = [new - old for new, old in zip(after, before, strict=True)]
        return torch.cat([part.detach().ravel() for part in moved]) * min(batch_size, len(X))

    assert_allclose(change(batch_size), change(len(X)), rtol=1e-4, atol=1e-11)


@pytest.mark.parametrize("batch_size", [7, 60])
def test_the_losses_are_means_over_all_samples(batch_size):
    still = network(lr=1e-12, max_iter=2, batch_size=batch_size).fit(X, Y)

    assert_allclose(still.losses_, -still.score(X, Y), rtol=1e-6)


def test_permuting_the_samples_changes_nothing_but_the_order_of_sums():
    order = np.random.default_rng(1).permutation(len(X))
    one = network(n_components=1, batch_size=len(X), max_iter=30).fit(X, Y)

    other = network(n_components=1, batch_size=len(X), max_iter=30).fit(X[order], Y[order])

    assert_allclose(other.score_samples(X, Y), one.score_samples(X, Y), rtol=1e-6)


def test_looking_at_the_model_does_not_change_its_way_nor_leave_a_trace():
    unseen, seen = network(backbone=dropping()).fit(X, Y), network(backbone=dropping())

    for _ in seen.iter_fit(X, Y):
        before = global_random_state()
        torch.rand(1), torch.manual_seed(5)
        seen.sample(X), seen.predict(X, kind="mode")
    before = global_random_state()

    assert_array_equal(seen.score_samples(X, Y), unseen.score_samples(X, Y))
    network(backbone=dropping()).fit(X, Y)
    assert global_random_state() == before


def test_what_was_set_apart_is_explained_better_and_better_by_what_is_kept():
    params = {"validation_share": 0.3, "lr": 0.01, "max_iter": 30, "random_state": 2}
    model = network(backbone=Recorder(), **params)

    log_densities = [model.score_samples(X, Y) for _ in model.iter_fit(X, Y)]

    apart = np.setdiff1d(np.arange(len(X)), trained_rows(model))
    kept = [found[apart].mean() for found in log_densities[1:]]
    assert len(apart) == 18
    assert np.all(np.diff(kept) >= -1e-12)
    assert 1 < len(np.unique(kept)) < len(kept), "some passes are kept, and some are not"


def test_a_share_set_apart_helps_where_samples_are_few():
    data = make_dataset("diabetes", seed=0)
    params = {"hidden_sizes": 32, "max_iter": 60, "lr": 0.01, "batch_size": 64}

    stopped, ended = (
        network(validation_share=share, **params).fit(*data.train) for share in (0.25, 0)
    )

    assert stopped.score(*data.test) > ended.score(*data.test) + 0.1
    assert stopped.n_iter_ == ended.n_iter_ == 60


@pytest.mark.parametrize(
    "params",
    [
        {"schedule": "constant"},
        {"optimizer": "adamw", "weight_decay": 0.1},
        {"activation": "relu"},
        {"hidden_sizes": ()},
        {"hidden_sizes": [4, 3, 2]},
        {"dtype": "float32"},
    ],
    ids=str,
)
def test_every_choice_trains(params):
    model = network(max_iter=30, **params)
    stream = model.iter_fit(X, Y)
    next(stream)
    before = model.score(X, Y)

    for _ in stream:
        pass

    assert model.score(X, Y) > before + 0.1


def test_float32_is_float64_but_for_rounding():
    single, double = (network(dtype=dtype).fit(X, Y) for dtype in ("float32", "float64"))

    # Each of the twenty steps divides rounding by rounding.
    assert single.score(X, Y) == pytest.approx(double.score(X, Y), abs=0.01)
    assert single.score(X, Y) != double.score(X, Y)
    assert network().fit(X.astype("f4"), Y).score(X, Y) == single.score(X, Y)


# A backbone of one's own


def dropping():
    """A backbone that draws as it is trained; the same parameters at every call."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(2, 8), nn.Dropout(0.5), nn.Tanh())


def test_a_given_backbone_is_copied_and_not_trained():
    given = dropping()
    before = pickle.dumps(given.state_dict())
    model = network(backbone=given).fit(X, Y)

    assert model.get_params()["backbone"] is given
    assert pickle.dumps(given.state_dict()) == before
    assert {part.dtype for part in given.parameters()} == {torch.float32}
    again = clone(model).fit(X, Y)
    assert again.score(X, Y) == model.score(X, Y)
    assert pickle.loads(pickle.dumps(model)).score(X, Y) == model.score(X, Y)


def test_a_given_backbone_is_the_default_one_in_other_words():
    default = network(max_iter=40)
    next(default.iter_fit(X, Y))
    begun = default.network_.backbone

    own = network(max_iter=40, backbone=begun).fit(X, Y)

    # The draws that made the layers were not made here: another head, and the same model.
    assert own.score(X, Y) == pytest.approx(default.fit(X, Y).score(X, Y), abs=0.1)


def test_a_backbone_that_gives_no_features_per_sample_is_told_its_shapes():
    with pytest.raises(ValueError, match=r"shape \(2, 2\) to features \(2, n_hidden\).*\(4,\)"):
        network(backbone=nn.Flatten(0)).fit(X, Y)


# What it learns


def test_with_one_component_and_no_layer_it_is_a_linear_regression():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(500, 2))
    Y = X @ [[1.0, 2.0], [-1.0, 0.5]] + rng.standard_normal((500, 2)) @ [[1.0, 0.4], [0, 0.3]]
    linear = LinearGaussian(reg_covar=0).fit(X, Y)

    model = network(n_components=1, hidden_sizes=(), max_iter=150, lr=0.02, batch_size=100)

    # Spreads may depend on x, too: eight more numbers, worth about 4 / 500 nat on the samples.
    score = model.fit(X, Y).score(X, Y)
    assert linear.score(X, Y) - 0.002 < score < linear.score(X, Y) + 0.03
    assert_allclose(model.predict(X), linear.predict(X), atol=0.1)


@pytest.mark.parametrize("seed", range(3))
def test_it_finds_the_branches_of_the_inverse_sine(seed):
    data = make_dataset("inverse-sine", seed=seed)
    linear = LinearGaussian().fit(*data.train).score(*data.test)

    model = MixtureDensityNetwork(random_state=seed).fit(*data.train)

    # Three Gaussians cannot end sharply at 0 and 1, and 1000 samples do not say all.
    assert data.true_log_likelihood - 0.08 < model.score(*data.test) < data.true_log_likelihood
    assert model.score(*data.test) > linear + 1
    # Modes lie on the curve that the data were drawn about; means lie between its branches.
    x = np.linspace(0.1, 0.9, 17)[:, None]
    mode, mean = (model.predict(x, kind=kind) for kind in ("mode", "mean"))
    assert np.abs(mode + 0.3 * np.sin(2 * np.pi * mode) - x).max() < 0.1
    assert np.abs(mean + 0.3 * np.sin(2 * np.pi * mean) - x).max() > 0.15


# Bad parameters


@pytest.mark.parametrize(
    ("params", "match"),
    [
        ({"covariance_type": "banana"}, "covariance_type"),
        ({"hidden_sizes": 0}, "hidden_sizes"),
        ({"hidden_sizes": (4, 0)}, r"hidden_sizes.*\(4, 0\)"),
        ({"optimizer": "lbfgs"}, "optimizer"),
        ({"lr": 0}, "lr"),
        ({"min_stddev": 0}, "min_stddev"),
        ({"validation_share": 1}, "validation_share"),
        ({"validation_share": 0.99}, "at least 2 samples to train on, got 60 samples"),
        ({"backbone": "resnet"}, "backbone"),
        ({"max_iter": 0}, "max_iter"),
    ],
)
def test_a_parameter_out_of_its_range_is_refused(params, match):
    with pytest.raises(ValueError, match=match):
        network(**params).fit(X, Y)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_missing_gpu_is_said():
    with pytest.raises(ValueError, match="no CUDA device"):
        network(device="cuda").fit(X, Y)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_the_gpu_gives_what_the_cpu_gives():
    # The same start and batches: dropout alone draws on the device.
    cpu, gpu = (network(device=device, max_iter=20).fit(X, Y) for device in ("cpu", "cuda"))
    before = torch.cuda.get_rng_state()

    again = network(device="cuda", max_iter=20).fit(X, Y)

    assert gpu.score(X, Y) == pytest.approx(cpu.score(X, Y), abs=1e-6)
    assert again.score(X, Y) == pytest.approx(gpu.score(X, Y), abs=1e-9)
    assert next(gpu.network_.parameters()).is_cuda
    assert torch.equal(torch.cuda.get_rng_state(), before)
    assert pickle.loads(pickle.dumps(gpu)).score(X, Y) == gpu.score(X, Y)


def test_steps_that_are_too_long_keep_the_last_network_and_say_so():
    model = network(lr=1e30)

    with pytest.warns(DivergenceWarning, match="try a smaller lr"):
        model.fit(X, Y)

    assert np.isfinite(model.score(X, Y))
    assert np.isfinite(model.loss_)


def test_weight_decay_apart_from_the_gradient_is_another():
    one, other = (
        network(optimizer=name, weight_decay=0.3, max_iter=5).fit(X, Y)
        for name in ("adam", "adamw")
    )

    assert abs(one.score(X, Y) - other.score(X, Y)) > 1e-4


def test_a_cosine_ends_elsewhere_than_a_constant_rate():
    one, other = (network(schedule=name, max_iter=5).fit(X, Y) for name in ("cosine", "constant"))

    assert abs(one.score(X, Y) - other.score(X, Y)) > 1e-4


@pytest.mark.parametrize(
    ("params", "message"),
    [
        (
            {"backbone": nn.Linear(7, 4)},
            "expected a backbone from inputs of shape .* but it raised",
        ),
        ({"backbone": nn.LSTM(2, 4)}, "got a tuple"),
        ({"hidden_sizes": [[3, 4]]}, "integers of 1 or more"),
        ({"hidden_sizes": ["a"]}, "integers of 1 or more"),
        ({"hidden_sizes": (3.7,)}, "integers of 1 or more"),
    ],
)
def test_a_network_that_cannot_be_is_refused(params, message):
    with pytest.raises(ValueError, match=message):
        network(**params).fit(X, Y)
