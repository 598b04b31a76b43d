"""Every registered density is a scikit-learn estimator that agrees with the judge on itself.

Models of p(Y|X) and of groups of pixels have laws of their own in test_conditional.py and
test_grouping.py.
"""

from __future__ import annotations

import inspect
import pickle

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks
from strategies import ALL_COVARIANCE_TYPES, global_random_state, random_mixture

import embench
from embench import gaussian, make_dataset, make_model, registry
from embench.types import IterativeModel, MixtureModel, Spec, StartableModel, task_of

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")

NAMES = [
    name
    for name, line in embench.models().items()
    if not line.startswith("not ") and task_of(make_model(name)) == "density"
]
VARIANTS = {
    **{name: (name, {}) for name in NAMES},
    **{
        f"gd-closed-form {family}": ("gd-closed-form", {"covariance_type": family})
        for family in ALL_COVARIANCE_TYPES[1:]
    },
    **{f"em {family}": ("em", {"covariance_type": family}) for family in ALL_COVARIANCE_TYPES[1:]},
    "em float32": ("em", {"dtype": "float32"}),
}
WATCHED = [variant for variant in VARIANTS if variant != "onedal-em"]
"""Those with an `iter_fit`: every model but the libraries that offer nothing of the kind."""

DENSITIES = ("student-t-em", "noise-em")
"""Those that are no Gaussian mixtures: densities that the judge cannot compute."""

MIXTURES = [variant for variant in VARIANTS if variant not in DENSITIES]

FULL_ONLY = ("riemannian", "unrolled-em", "amortised-em", "recurrent-em")

OWN = [variant for variant in VARIANTS if not variant.startswith("sklearn-")]
"""Without scikit-learn's own, whose log-densities are cut to integers where X has integers."""

EXACT = 1e-9
"""How far a model's own float64 numbers may be from the judge's [nat]."""


def make(variant, **params):
    """A model whose randomness, where it has any, is fixed.

    The specification gets a start, where the tests ask for their three components in three
    dimensions: without one its components stay equal, and equal components prove little.
    """
    name, own = VARIANTS[variant]
    model = make_model(name, **own).set_params(**{"random_state": 0, **params})
    if name == "spec-em" and params.get("n_components") == 3:
        model.start_from(random_mixture(np.random.default_rng(3), 3, 3))
    return model


def tolerance(variant):
    return 1e-4 if "float32" in variant else EXACT


def parameters(model):
    fitted = (model.weights_, model.means_, model.covariances_)
    return [np.array(part, dtype=float) for part in fitted]


@pytest.fixture(scope="module")
def data():
    return make_dataset("blobs", seed=2, n_samples=300, n_features=3, n_components=3, n_test=200)


@pytest.fixture(params=VARIANTS)
def variant(request):
    return request.param


@parametrize_with_checks([make(variant) for variant in VARIANTS])
def test_scikit_learns_own_checks(estimator, check):
    check(estimator)


def test_every_model_is_cloned_with_its_parameters(variant):
    model = make(variant, n_components=7)

    copy = clone(model)

    assert copy is not model
    assert copy.get_params() == model.get_params()


def test_constructor_does_no_work(variant):
    params = dict.fromkeys(inspect.signature(type(make(variant))).parameters, "nonsense")

    model = type(make(variant))(**params)

    assert model.get_params() == params
    assert set(vars(model)) == set(params)


def test_a_pickled_model_gives_the_same_scores(variant, data):
    model = make(variant, n_components=3).fit(data.X_train)

    copy = pickle.loads(pickle.dumps(model))

    assert_array_equal(copy.score_samples(data.X_test), model.score_samples(data.X_test))
    assert_array_equal(copy.predict(data.X_test), model.predict(data.X_test))


@pytest.mark.parametrize("variant", MIXTURES)
def test_score_is_the_judges_of_the_same_mixture(variant, data):
    model = make(variant, n_components=3).fit(data.X_train)
    assert isinstance(model, MixtureModel)

    score = model.score(data.X_test)

    judged = gaussian.log_likelihoods(model.mixture_, data.X_test)
    assert score == pytest.approx(judged.mean(), abs=tolerance(variant))
    assert_allclose(model.score_samples(data.X_test), judged, atol=10 * tolerance(variant))


@pytest.mark.parametrize("variant", MIXTURES)
def test_mixture_is_float64_with_full_covariances(variant, data):
    model = make(variant, n_components=4).fit(data.X_train)

    mixture = model.mixture_

    found = getattr(model, "n_components_", 4)  # by models that look for their number
    assert {part.dtype for part in vars(mixture).values()} == {np.dtype("float64")}
    assert mixture.means.shape == (found, 3)
    assert mixture.covariances.shape == (found, 3, 3)
    assert mixture.weights.sum() == pytest.approx(1.0, abs=1e-12)
    assert_allclose(mixture.covariances, mixture.covariances.swapaxes(1, 2), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("variant", MIXTURES)
def test_mixture_is_a_value_that_later_fits_leave_alone(variant, data):
    model = make(variant, n_components=3, max_iter=2).fit(data.X_train)
    mixture = model.mixture_
    before = [part.copy() for part in vars(mixture).values()]

    model.fit(5.0 * data.X_train)

    for part, copy in zip(vars(mixture).values(), before, strict=True):
        assert_array_equal(part, copy)


def test_predict_is_the_largest_responsibility(variant, data):
    model = make(variant, n_components=3).fit(data.X_train)

    resp = model.predict_proba(data.X_test)

    assert resp.shape == (200, 3)
    assert_allclose(resp.sum(axis=1), 1.0, atol=1e-5 if "float32" in variant else 1e-12)
    assert_array_equal(model.predict(data.X_test), resp.argmax(axis=1))


@pytest.mark.parametrize("dtype", ["int64", "float16", "bool"])
@pytest.mark.parametrize("variant", OWN)
def test_samples_of_any_dtype_score_as_the_numbers_that_they_are(variant, dtype, data):
    model = make(variant, n_components=2).fit(data.X_train)
    X = data.X_test.astype(dtype)

    assert model.score(X) == pytest.approx(model.score(X.astype(float)), abs=tolerance(variant))
    assert_array_equal(model.predict(X), model.predict(X.astype(float)))


@pytest.mark.parametrize("variant", MIXTURES)
def test_samples_follow_the_fitted_mixture(variant, data):
    model = make(variant, n_components=3).fit(data.X_train)
    n_samples = 20_000

    X, labels = model.sample(n_samples)

    mixture = model.mixture_
    assert X.shape == (n_samples, 3)
    counts = np.bincount(labels, minlength=3)
    errors = np.sqrt(n_samples * mixture.weights * (1 - mixture.weights))
    assert np.all(np.abs(counts - n_samples * mixture.weights) <= 5 * errors)
    for k in np.flatnonzero(counts > 100):
        own, variances = X[labels == k], np.diag(mixture.covariances[k])
        assert np.all(
            np.abs(own.mean(axis=0) - mixture.means[k]) < 5 * np.sqrt(variances / counts[k])
        )
        second = np.sqrt((np.outer(variances, variances) + mixture.covariances[k] ** 2) / counts[k])
        assert np.all(np.abs(np.cov(own.T) - mixture.covariances[k]) < 5 * second)


@pytest.mark.parametrize(
    "name", [name for name in MIXTURES if name in NAMES and name != "sklearn-vb"]
)
def test_information_criteria_count_the_free_parameters(name, data):
    K, D, n_samples = 3, 3, len(data.X_test)
    model = make_model(name, n_components=K).fit(data.X_train)
    n_parameters = (K - 1) + K * D + K * D * (D + 1) // 2

    bic, aic = model.bic(data.X_test), model.aic(data.X_test)

    deviance = -2 * n_samples * gaussian.log_likelihood(model.mixture_, data.X_test)
    assert bic == pytest.approx(deviance + n_parameters * np.log(n_samples), rel=1e-10)
    assert aic == pytest.approx(deviance + 2 * n_parameters, rel=1e-10)


@pytest.mark.parametrize("variant", WATCHED)
@pytest.mark.parametrize("n_init", [1, 3])
def test_the_stream_ends_where_fit_ends(variant, n_init, data):
    restarts = {"n_init": n_init} if "n_init" in make(variant).get_params() else {}
    params = {"n_components": 3, "max_iter": 8, **restarts}
    if restarts:
        known = make(variant).get_params()
        params["init_params" if "init_params" in known else "init"] = "random_from_data"
    fitted, watched = make(variant, **params).fit(data.X_train), make(variant, **params)
    assert isinstance(watched, IterativeModel)

    yields = list(watched.iter_fit(data.X_train))

    assert yields == list(range(len(yields))), "0, then one more at every yield"
    for ours, theirs in zip(parameters(watched), parameters(fitted), strict=True):
        assert_allclose(ours, theirs, rtol=1e-12, atol=1e-12)
    assert watched.score(data.X_test) == pytest.approx(fitted.score(data.X_test), rel=1e-12)


@pytest.mark.parametrize("variant", WATCHED)
def test_the_model_can_be_used_at_every_yield(variant, data):
    model = make(variant, n_components=3, max_iter=4)

    for _ in model.iter_fit(data.X_train):
        if variant in MIXTURES:
            judged = gaussian.log_likelihood(model.mixture_, data.X_test)
            assert model.score(data.X_test) == pytest.approx(judged, abs=tolerance(variant))
        assert np.isfinite(model.score(data.X_test))
        assert model.predict(data.X_test).shape == (200,)


@pytest.mark.parametrize("variant", WATCHED)
def test_looking_at_the_model_does_not_change_its_way(variant, data):
    unseen, seen = (make(variant, n_components=3, max_iter=5) for _ in range(2))
    for _ in unseen.iter_fit(data.X_train):
        pass

    for _ in seen.iter_fit(data.X_train):
        seen.score(data.X_test), seen.predict(data.X_test), seen.sample(3)

    for one, other in zip(parameters(seen), parameters(unseen), strict=True):
        assert_array_equal(one, other)


@pytest.mark.parametrize("variant", WATCHED)
def test_a_start_is_honoured_by_every_model_that_takes_one(variant, data):
    family = make(variant).get_params().get("covariance_type", "full")
    start = random_mixture(np.random.default_rng(4), 3, 3, family)
    model = make(variant, n_components=3)
    if not isinstance(model, StartableModel):
        pytest.skip("takes no start")

    stream = model.start_from(start).iter_fit(data.X_train)

    assert next(stream) == 0
    judged = gaussian.log_likelihood(start, data.X_train)
    assert model.score(data.X_train) == pytest.approx(judged, abs=tolerance(variant))


def test_same_random_state_gives_the_same_fit(variant, data):
    one = make(variant, n_components=3, random_state=5).fit(data.X_train)
    other = make(variant, n_components=3, random_state=5).fit(data.X_train)

    for ours, theirs in zip(parameters(one), parameters(other), strict=True):
        assert_array_equal(ours, theirs)


def test_fitting_touches_no_global_random_state(variant, data):
    before = global_random_state()

    make(variant, n_components=3, max_iter=2).fit(data.X_train).sample(5)

    assert global_random_state() == before


def test_fitting_leaves_the_samples_alone(variant, data):
    X = data.X_train.copy()

    make(variant, n_components=3, max_iter=3).fit(X)

    assert_array_equal(X, data.X_train)


def test_every_model_works_in_a_pipeline(variant, data):
    scaled = StandardScaler().fit(data.X_train)
    alone = make(variant, n_components=3).fit(scaled.transform(data.X_train))

    pipeline = make_pipeline(StandardScaler(), make(variant, n_components=3)).fit(data.X_train)

    expected = alone.score(scaled.transform(data.X_test))
    assert pipeline.score(data.X_test) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_a_grid_search_finds_the_number_of_components(name):
    data = make_dataset("blobs", seed=0, n_samples=200, n_components=2, separation=8)
    grid = {"n_components": [1, 2]}
    if "covariance_type" in make_model(name).get_params() and name not in FULL_ONLY:
        grid["covariance_type"] = ["full", "diag"]

    search = GridSearchCV(make_model(name).set_params(random_state=0), grid, cv=2)
    search.fit(data.X_train)

    assert search.cv_results_["mean_test_score"].shape == (len(search.cv_results_["params"]),)
    assert np.all(np.isfinite(search.cv_results_["mean_test_score"]))
    # The specification starts with equal components, which never separate.
    if name != "spec-em":
        assert search.best_params_["n_components"] == 2


@pytest.mark.parametrize("name", NAMES)
def test_first_line_of_a_models_docstring_fits_into_a_list(name):
    line = embench.models()[name]

    assert 20 < len(line) < 100
    assert line.endswith(".")
    assert line == inspect.getdoc(registry.load("model", name)).splitlines()[0]


@pytest.mark.parametrize("name", NAMES)
def test_every_model_has_a_version(name):
    version = registry.version("model", Spec(name))

    assert isinstance(version, str)
    assert version
