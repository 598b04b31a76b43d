"""Densities p(Y|X): every conditional model is a regressor whose density the judge confirms."""

from __future__ import annotations

import inspect
import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from scipy.integrate import quad
from scipy.stats import multivariate_normal
from sklearn.base import clone
from sklearn.linear_model import LinearRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks
from strategies import COVARIANCE_TYPES, global_random_state, law, seeds

import embench
from embench import gaussian, make_dataset, make_model, registry
from embench.checks import check_model
from embench.datasets.conditional import inverse_sine_log_densities
from embench.measuring.plan import plan
from embench.measuring.suite import customised, load_suite
from embench.measuring.trial import run_trial
from embench.models.conditional import ConditionalDensity, JointMixture, LinearGaussian
from embench.types import (
    ConditionalMixture,
    ConditionalModel,
    Dataset,
    InputError,
    IterativeModel,
    Spec,
)

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")

NAMES = ("joint-gmm", "linear-gaussian", "mdn")
VARIANTS = {
    "linear-gaussian": ("linear-gaussian", {}),
    **{f"joint-gmm {f}": ("joint-gmm", {"covariance_type": f}) for f in COVARIANCE_TYPES},
    **{
        f"mdn {f}": ("mdn", {"covariance_type": f, "max_iter": 10})
        for f in (*COVARIANCE_TYPES, "tied_spherical", "constant")
    },
    "mdn float32": ("mdn", {"dtype": "float32", "max_iter": 10}),
}
EXPECTED_FAILURES = {
    "check_n_features_in_after_fitting": "calls score(X, y=y), and here it is score(X, Y)",
    "check_methods_sample_order_invariance": "calls score_samples(X), which here takes Y, too",
    "check_methods_subset_invariance": "calls score_samples(X), which here takes Y, too",
}


def make(variant, **params):
    name, own = VARIANTS[variant]
    model = make_model(name, **own)
    fixed = {"random_state": 0, **params}
    known = model.get_params()
    return model.set_params(**{key: value for key, value in fixed.items() if key in known})


def bent(seed, n_samples, n_targets=2):
    """X with three features and targets that bend with it and are correlated."""
    rng = np.random.default_rng(seed)
    X = rng.normal([0, 5, -2], [1, 2, 0.5], size=(n_samples, 3))
    signs = rng.choice([-1.0, 1.0], size=(n_samples, 1))
    noise = 0.3 * rng.standard_normal((n_samples, n_targets)) @ np.triu(np.ones((n_targets,) * 2))
    return X, signs * np.abs(X[:, [0]]) + X[:, 1:] @ np.ones((2, n_targets)) + noise


@pytest.fixture(scope="module")
def data():
    X, Y = bent(0, 150)
    return Dataset(X[:100], X[100:], 3, Y_train=Y[:100], Y_test=Y[100:])


@pytest.fixture(params=VARIANTS)
def variant(request):
    return request.param


# Estimators


@parametrize_with_checks(
    [make(v, max_iter=5) for v in ("linear-gaussian", "joint-gmm full", "mdn full")],
    expected_failed_checks=lambda estimator: EXPECTED_FAILURES,
)
def test_scikit_learns_own_checks(estimator, check):
    check(estimator)


def test_these_are_all_conditional_models_there_are():
    found = {
        name
        for name, line in embench.models().items()
        if not line.startswith("not ") and isinstance(make_model(name), ConditionalModel)
    }

    assert found == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_our_own_models_keep_every_law(name):
    params = {"max_iter": 20} if name == "mdn" else {}

    findings = list(check_model(Spec(name, params)))

    assert [finding for finding in findings if finding.broken] == []
    assert {finding.skipped for finding in findings} <= {
        "",
        "it predicts targets",
        "it groups no pixels",
        "it has no iter_fit",
        "it has no start_from and iter_fit",
    }


@pytest.mark.parametrize("name", NAMES)
def test_a_models_first_line_fits_into_a_list_and_it_has_a_version(name):
    line = embench.models()[name]

    assert 20 < len(line) < 100
    assert line.endswith(".")
    assert line == inspect.getdoc(registry.load("model", name)).splitlines()[0]
    assert registry.version("model", Spec(name))


def test_a_clone_has_the_parameters_and_a_pickle_the_scores(variant, data):
    model = make(variant).fit(*data.train)

    unfitted, copy = clone(model), pickle.loads(pickle.dumps(model))

    assert unfitted.get_params() == model.get_params()
    assert not hasattr(unfitted, "n_targets_")
    assert_array_equal(copy.score_samples(*data.test), model.score_samples(*data.test))


def test_same_random_state_gives_the_same_fit_and_no_global_state_is_touched(variant, data):
    before = global_random_state()

    one, other = (make(variant, random_state=5).fit(*data.train) for _ in range(2))
    draws = [model.sample(data.X_test, 3) for model in (one, other)]

    assert one.score(*data.test) == other.score(*data.test)
    if variant != "linear-gaussian":  # it has no random_state
        assert_array_equal(*draws)
        assert global_random_state() == before


def test_fitting_leaves_the_samples_alone(variant, data):
    X, Y = data.X_train.copy(), data.Y_train.copy()

    make(variant).fit(X, Y)

    assert_array_equal(X, data.X_train)
    assert_array_equal(Y, data.Y_train)


def test_the_stream_ends_where_fit_ends_and_can_be_used_on_its_way(variant, data):
    fitted, watched = make(variant).fit(*data.train), make(variant)
    if not isinstance(watched, IterativeModel):
        pytest.skip("takes one step")

    counts = []
    for n_iter in watched.iter_fit(*data.train):
        assert np.isfinite(watched.score(*data.test))
        assert np.isfinite(watched.sample(data.X_test)).all()
        counts.append(n_iter)

    assert counts == list(range(len(counts)))
    assert watched.n_iter_ == fitted.n_iter_ == counts[-1]
    assert watched.score(*data.test) == pytest.approx(fitted.score(*data.test), rel=1e-12)


def test_every_model_works_in_a_pipeline_and_a_grid_search(data):
    scaled = StandardScaler().fit(data.X_train)
    alone = make("mdn full").fit(scaled.transform(data.X_train), data.Y_train)
    grid = {"covariance_type": ["full", "diag"]}

    pipeline = make_pipeline(StandardScaler(), make("mdn full")).fit(*data.train)
    search = GridSearchCV(make("joint-gmm full"), grid, cv=2).fit(*data.train)

    expected = alone.score(scaled.transform(data.X_test), data.Y_test)
    assert pipeline.score(*data.test) == pytest.approx(expected, rel=1e-9)
    assert search.best_params_ == {"covariance_type": "full"}


# Densities


def test_score_is_the_judges_of_the_same_mixtures(variant, data):
    model = make(variant).fit(*data.train)
    mixtures = model.conditional_mixture(data.X_test)
    gaussian.check(mixtures)

    judged = gaussian.conditional_log_likelihoods(mixtures, data.Y_test)

    assert {part.dtype for part in vars(mixtures).values()} == {np.dtype("float64")}
    K = mixtures.weights.shape[1]
    assert mixtures.means.shape == (50, K, 2)
    assert mixtures.covariances.shape == (50, K, 2, 2)
    assert_allclose(model.score_samples(*data.test), judged, atol=1e-9)
    assert model.score(*data.test) == pytest.approx(judged.mean(), abs=1e-9)


def test_the_judge_says_what_scipy_says(data):
    mixtures = make("mdn full").fit(*data.train).conditional_mixture(data.X_test)

    judged = gaussian.conditional_log_likelihoods(mixtures, data.Y_test)

    densities = [
        sum(
            w * multivariate_normal(m, (S + S.T) / 2).pdf(y) for w, m, S in zip(*parts, strict=True)
        )
        for *parts, y in zip(*vars(mixtures).values(), data.Y_test, strict=True)
    ]
    assert_allclose(judged, np.log(densities), atol=1e-9)


def test_the_density_integrates_to_one(variant):
    X, Y = bent(1, 80, n_targets=1)
    model = make(variant).fit(X, Y)

    def density(y):
        return np.exp(model.score_samples(X[:1], np.array([[y]])))[0]

    low, high = Y.min() - 30, Y.max() + 30
    means = model.conditional_mixture(X[:1]).means.ravel()
    total = quad(density, low, high, points=np.sort(means), limit=200, epsabs=1e-9)[0]
    assert total == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("c", [1e-3, 50.0])
@pytest.mark.parametrize("name", [v for v in VARIANTS if "constant" not in v and "32" not in v])
def test_scaling_and_shifting_the_targets_shifts_the_score_by_a_log_volume(name, c, data):
    # EM's clusters are those of X and Y together: the joint mixture is scaled as a whole.
    together = c if name.startswith("joint") else 1.0
    one, other = make(name, reg_covar=0), make(name, reg_covar=0)

    one.fit(*data.train)
    other.fit(together * data.X_train, c * data.Y_train + 7)

    score = other.score(together * data.X_test, c * data.Y_test + 7)
    assert score == pytest.approx(one.score(*data.test) - 2 * np.log(c), abs=1e-6)


def test_one_dimension_of_targets_is_one_target(variant, data):
    flat = make(variant).fit(data.X_train, data.Y_train[:, 0])
    column = make(variant).fit(data.X_train, data.Y_train[:, :1])

    assert flat.score(data.X_test, data.Y_test[:, 0]) == column.score(
        data.X_test, data.Y_test[:, :1]
    )
    for kind in ("mean", "mode"):
        assert flat.predict(data.X_test, kind=kind).shape == (50,)
        assert column.predict(data.X_test, kind=kind).shape == (50, 1)
    assert flat.sample(data.X_test, 4).shape == (50, 4)
    assert column.sample(data.X_test, 4).shape == (50, 4, 1)


def test_draws_follow_the_density(variant, data):
    model = make(variant).fit(*data.train)
    X, n_samples = data.X_test[:3], 20_000

    Y = model.sample(X, n_samples)

    mixtures = model.conditional_mixture(X)
    assert Y.shape == (3, n_samples, 2)
    for x in range(3):
        w, m, S = (part[x] for part in vars(mixtures).values())
        mean = w @ m
        covariance = np.einsum("k,kij->ij", w, S) + (w[:, None] * (m - mean)).T @ (m - mean)
        stddevs = np.sqrt(np.diag(covariance))
        assert np.all(np.abs(Y[x].mean(axis=0) - mean) < 5 * stddevs / np.sqrt(n_samples))
        fourth = ((Y[x] - mean) ** 4).mean(axis=0).max() / n_samples
        assert np.all(np.abs(np.cov(Y[x].T) - covariance) < 6 * np.sqrt(fourth))
    assert_allclose(model.predict(X), np.einsum("nk,nkd->nd", *list(vars(mixtures).values())[:2]))


# Modes


class Given(ConditionalDensity):
    """Mixtures that a test has made: the same for every x."""

    def __init__(self, mixture):
        self.mixture = mixture
        self.n_targets_, self._has_flat_targets = mixture.means.shape[-1], False

    def _seen(self, X):
        return X

    def _mixtures(self, X):
        return ConditionalMixture(*(np.repeat(p, len(X), 0) for p in vars(self.mixture).values()))


def random_conditional(seed, n_components, n_targets):
    rng = np.random.default_rng(seed)
    factors = rng.standard_normal((1, n_components, n_targets, n_targets))
    return ConditionalMixture(
        rng.dirichlet(np.ones(n_components), size=1),
        2 * rng.standard_normal((1, n_components, n_targets)),
        factors @ factors.swapaxes(-1, -2) + 0.1 * np.eye(n_targets),
    )


@law
@given(st.integers(1, 5), st.integers(1, 3), seeds)
def test_the_mode_is_a_maximum_and_above_every_component_mean(n_components, n_targets, seed):
    mixture = random_conditional(seed, n_components, n_targets)
    model, X = Given(mixture), np.zeros((1, 1))

    mode = model.predict(X, kind="mode")

    height = model.score(X, mode)
    assert all(height >= model.score(X, mixture.means[:, k]) - 1e-12 for k in range(n_components))
    steps = 1e-3 * np.vstack([np.eye(n_targets), -np.eye(n_targets)])
    assert all(model.score(X, mode + step) <= height for step in steps)


@law
@given(st.integers(1, 5), seeds)
def test_the_mode_is_the_highest_point_of_all(n_components, seed):
    mixture = random_conditional(seed, n_components, 1)
    model = Given(mixture)

    mode = model.predict(np.zeros((1, 1)), kind="mode")

    grid = np.linspace(-10, 10, 4001)[:, None]
    on_grid = model.score_samples(np.zeros((4001, 1)), grid).max()
    assert model.score(np.zeros((1, 1)), mode) >= on_grid - 1e-9


def test_the_heaviest_component_need_not_hold_the_mode():
    wide_and_heavy = ConditionalMixture(
        np.array([[0.6, 0.4]]), np.array([[[0.0], [5.0]]]), np.array([[[[4.0]], [[0.01]]]])
    )

    mode = Given(wide_and_heavy).predict(np.zeros((2, 1)), kind="mode")

    assert_allclose(mode, 5, atol=1e-2)


def test_between_two_branches_the_mean_is_improbable_and_the_mode_is_not():
    two = ConditionalMixture(
        np.array([[0.5, 0.5]]), np.array([[[-3.0], [3.0]]]), np.full((1, 2, 1, 1), 0.1)
    )
    model, X = Given(two), np.zeros((1, 1))

    mean, mode = model.predict(X), model.predict(X, kind="mode")

    assert_allclose(mean, 0, atol=1e-12)
    assert_allclose(np.abs(mode), 3, atol=1e-6)


# The baselines


def test_linear_gaussian_is_least_squares_with_the_covariance_of_its_residuals(data):
    model = LinearGaussian(reg_covar=0).fit(*data.train)

    known = LinearRegression().fit(*data.train)

    residuals = data.Y_train - known.predict(data.X_train)
    covariance = residuals.T @ residuals / len(residuals)
    expected = multivariate_normal([0, 0], covariance).logpdf(
        data.Y_test - known.predict(data.X_test)
    )
    assert_allclose(model.predict(data.X_test), known.predict(data.X_test), rtol=1e-10)
    assert_allclose(model.covariance_, covariance, rtol=1e-10)
    assert_allclose(model.score_samples(*data.test), expected, rtol=1e-10)


@pytest.mark.parametrize("covariance_type", COVARIANCE_TYPES)
def test_the_joint_mixture_is_conditioned_by_bayes_rule(covariance_type, data):
    model = JointMixture(3, covariance_type=covariance_type, random_state=0).fit(*data.train)

    found = model.score_samples(*data.test)

    joint = model.joint_.mixture_
    of_x = [(m[:3], S[:3, :3]) for m, S in zip(joint.means, joint.covariances, strict=True)]
    marginal = sum(
        w * multivariate_normal(m, (S + S.T) / 2).pdf(data.X_test)
        for w, (m, S) in zip(joint.weights, of_x, strict=True)
    )
    both = gaussian.log_likelihoods(joint, np.hstack(data.test))
    assert_allclose(found, both - np.log(marginal), atol=1e-9)


def test_one_joint_gaussian_is_linear_regression(data):
    joint = JointMixture(1, reg_covar=0).fit(*data.train)
    linear = LinearGaussian(reg_covar=0).fit(*data.train)

    assert_allclose(joint.score_samples(*data.test), linear.score_samples(*data.test), atol=1e-9)


def test_targets_that_are_explained_without_a_rest_have_no_density():
    X = np.arange(10.0)[:, None]

    with pytest.raises(ValueError, match=r"X of shape \(10, 1\).*increase reg_covar"):
        LinearGaussian(reg_covar=0).fit(X, 0 * X + np.arange(2) * X + [[1, 0]] * X)


# Bad input


def broken(part, at, value):
    copy = part.copy()
    copy[at] = value
    return copy


X, Y = bent(2, 30)


@pytest.mark.parametrize(
    ("samples", "match"),
    {
        "NaN in X": ((broken(X, (1, 1), np.nan), Y), "X contains NaN"),
        "NaN in Y": ((X, broken(Y, (1, 1), np.nan)), "contains NaN"),
        "infinite Y": ((X, broken(Y, (1, 1), np.inf)), "infinity"),
        "flat X": ((X[:, 0], Y), "2D array"),
        "deep Y": ((X, Y[:, :, None]), "dim 3"),
        "fewer rows of Y": ((X, Y[1:]), r"\[30, 29\]"),
        "no Y": ((X, None), "y to be passed"),
        "a constant target": ((X, broken(Y, (slice(None), 1), 7.5)), "target 1 is 7.5 in all 30"),
        "one sample": ((X[:1], Y[:1]), "1 sample"),
    }.values(),
    ids=lambda item: item if isinstance(item, str) else "",
)
@pytest.mark.parametrize("name", NAMES)
def test_what_is_no_data_is_refused(name, samples, match):
    with pytest.raises(ValueError, match=match):
        make_model(name).fit(*samples)


@pytest.mark.parametrize("name", ["joint-gmm", "mdn"])
def test_fewer_samples_than_components_are_refused(name):
    with pytest.raises(ValueError, match=r"X of shape \(5, 3\) and n_components=6"):
        make_model(name, n_components=6).fit(X[:5], Y[:5])


@pytest.mark.parametrize("name", NAMES)
def test_what_is_asked_of_a_fitted_model_must_fit_to_the_fit(name):
    model = make_model(name)
    model.set_params(**{"max_iter": 2} if name == "mdn" else {})
    model.fit(X, Y)

    with pytest.raises(ValueError, match=r"= \(30, 2\).*got shape \(30, 1\)"):
        model.score(X, Y[:, :1])
    with pytest.raises(ValueError, match=r"= \(30, 2\).*got shape \(29, 2\)"):
        model.score(X, Y[1:])
    with pytest.raises(ValueError, match="X has 2 features"):
        model.predict(X[:, :2])
    with pytest.raises(ValueError, match="mean, mode, got 'median'"):
        model.predict(X, kind="median")
    with pytest.raises(ValueError, match="n_samples >= 1, got 0"):
        model.sample(X, 0)


def test_the_judge_refuses_targets_of_another_shape():
    mixtures = random_conditional(0, 2, 2)

    with pytest.raises(ValueError, match=r"= \(1, 2\).*got shape \(2,\)"):
        gaussian.conditional_log_likelihoods(mixtures, np.zeros(2))


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"weights": np.array([[0.5, 0.5], [0.5, 0.7]])}, "sum to 1.2"),
        ({"weights": np.array([[0.5, 0.5], [1.5, -0.5]])}, "a weight is -0.5"),
        ({"means": np.full((2, 2, 1), np.nan)}, "the means are not finite"),
    ],
)
def test_the_judge_looks_at_the_mixture_of_every_sample(change, match):
    good = {
        "weights": np.full((2, 2), 0.5),
        "means": np.zeros((2, 2, 1)),
        "covariances": np.ones((2, 2, 1, 1)),
    }
    gaussian.check(ConditionalMixture(**good))

    with pytest.raises(ValueError, match=match):
        gaussian.check(ConditionalMixture(**{**good, **change}))


# Datasets


@pytest.mark.parametrize(
    ("x", "noise"), [(-0.06, 0.012), (0.3, 0.02), (0.5, 0.05), (0.99, 0.05), (1.3, 0.3)]
)
def test_the_truth_of_the_inverse_sine_integrates_to_one(x, noise):
    def density(y):
        return np.exp(inverse_sine_log_densities(np.array([[x]]), np.array([[y]]), noise)[0])

    total = quad(density, 0, 1, points=np.linspace(0.05, 0.95, 19), limit=500)[0]

    assert total == pytest.approx(1, abs=1e-6)


def test_the_inverse_sine_is_what_it_says():
    data = make_dataset("inverse-sine", seed=3, n_samples=5000, noise=0.1, n_test=50)

    noise = data.X_train - data.Y_train - 0.3 * np.sin(2 * np.pi * data.Y_train)

    assert data.Y_train.min() >= 0
    assert data.Y_train.max() <= 1
    assert noise.std() == pytest.approx(0.1, rel=0.05)
    assert data.X_test.shape == data.Y_test.shape == (50, 1)
    densities = inverse_sine_log_densities(data.X_test, data.Y_test, 0.1)
    assert data.true_log_likelihood == densities.mean()


def test_the_truth_is_better_than_every_model_on_many_samples():
    data = make_dataset("inverse-sine", seed=1, n_samples=4000)

    scores = [make_model(name).fit(*data.train).score(*data.test) for name in NAMES[:2]]

    assert max(scores) < data.true_log_likelihood - 0.1


def test_diabetes_is_scaled_by_its_training_rows():
    data = make_dataset("diabetes", seed=2)
    own_units = make_dataset("diabetes", seed=2, standardize=False)

    for part in data.train:
        assert_allclose(part.mean(axis=0), 0, atol=1e-12)
        assert_allclose(part.std(axis=0), 1)
    Y = np.vstack([own_units.Y_train, own_units.Y_test])
    assert (Y.min(), Y.max(), len(Y)) == (25, 346, 442)
    scaled = (own_units.Y_test - own_units.Y_train.mean()) / own_units.Y_train.std()
    assert_allclose(data.Y_test, scaled)


# Runs


@pytest.mark.parametrize("track", ["default", "budget"])
def test_a_trial_has_every_metric_that_exists(small_trial, track):
    small = ("inverse-sine", {"n_samples": 200})
    trial = small_trial("mdn", dataset=small, track=track, params={"max_iter": 8}, time_limit=2.0)

    record = run_trial(trial)

    data = make_dataset("inverse-sine", seed=0, n_samples=200)
    assert record.status == "ok", record.message
    assert record.message == ""
    assert set(record.metrics) >= {"nll", "excess_nll", "fit_seconds", "n_iter", "peak_memory"}
    assert not {"ami", "ari"} & set(record.metrics)
    assert record.metrics["excess_nll"] == record.metrics["nll"] + data.true_log_likelihood
    assert record.sizes["n_targets"] == 1
    assert [point[1] for point in record.curve] == [0, 1, 2, 3, 5, 8]
    assert record.curve[-1][2] == pytest.approx(record.metrics["nll"], rel=1e-12)


def test_a_real_table_has_no_truth_to_be_in_excess_of(small_trial):
    record = run_trial(small_trial("linear-gaussian", dataset=("diabetes", {})))

    assert record.status == "ok", record.message
    assert "excess_nll" not in record.metrics
    assert record.sizes["n_table"] == 442


def test_the_nll_is_the_judges(small_trial):
    record = run_trial(small_trial("linear-gaussian", dataset=("diabetes", {})))

    data = make_dataset("diabetes", seed=0)
    mixtures = LinearGaussian().fit(*data.train).conditional_mixture(data.X_test)
    judged = gaussian.conditional_log_likelihood(mixtures, data.Y_test)
    assert record.metrics["nll"] == -judged


class Boaster(LinearGaussian):
    """Hands the judge a density that integrates to 2."""

    def conditional_mixture(self, X):
        mixtures = super().conditional_mixture(X)
        return ConditionalMixture(2 * mixtures.weights, mixtures.means, mixtures.covariances)


def test_mixtures_that_are_none_are_found_out(small_trial, monkeypatch):
    load = registry.load
    monkeypatch.setattr(
        registry, "load", lambda kind, name: Boaster if kind == "model" else load(kind, name)
    )

    record = run_trial(small_trial("theirs", dataset=("diabetes", {})))
    findings = list(check_model(Spec("theirs")))

    assert record.status == "diverged"
    assert "the weights sum to 2" in record.message
    assert [f.law for f in findings if f.broken and "judge" in f.law]


def test_what_does_not_go_together_is_left_out_in_a_sentence():
    mixed = customised(
        load_suite("quick"), models="em,mdn", datasets="iris,wine,diabetes", tracks="default"
    )

    planned = plan(mixed)

    pairs = {(t.model.name, t.dataset.name) for t in planned.trials}
    assert pairs == {("em", "iris"), ("em", "wine"), ("mdn", "diabetes")}
    assert planned.left_out == (
        "em is left out on diabetes: "
        "it is for a density of X, and the task is a density of Y given X",
        "mdn is left out on iris, wine: "
        "it is for a density of Y given X, and the task is a density of X",
    )


def test_a_conditional_model_cannot_begin_at_a_mixture():
    both = customised(load_suite("conditional"), models="mdn", tracks=["same-start", "budget"])

    planned = plan(both)

    assert {t.track for t in planned.trials} == {"budget"}
    assert planned.left_out == (
        "mdn is left out of same-start: it cannot begin at a given mixture",
    )


@pytest.mark.parametrize(
    ("suite", "models", "why"),
    [
        ("conditional", "em", "em is left out on inverse-sine, diabetes: it is for a density of X"),
        ("real", "mdn", "mdn is left out on iris.*the task is a density of X"),
    ],
)
def test_nothing_left_to_run_is_said_with_the_reason(suite, models, why):
    with pytest.raises(InputError, match=f"nothing to run in default: {why}"):
        plan(customised(load_suite(suite), models=models))


def test_component_counts_are_for_models_that_have_components():
    trials = plan(customised(load_suite("conditional"), n_components=[2, 4])).trials

    counts = {(t.model.name, t.model.params.get("n_components")) for t in trials}
    assert counts == {
        ("linear-gaussian", None),
        *((name, count) for name in ("joint-gmm", "mdn") for count in (2, 4)),
    }


def test_a_comparison_takes_the_simplest_model_as_its_baseline(tmp_path):
    records = embench.run(
        "conditional",
        models="joint-gmm,linear-gaussian",
        seeds=2,
        out=tmp_path / "run",
        isolation="none",
    )

    found = embench.compare(records)

    assert {change.baseline for change in found.changes} == {"linear-gaussian"}
    assert "n_targets=1" in str(found)
    assert set(records["status"]) == {"ok"}
