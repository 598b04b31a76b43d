"""``student-t-em`` and ``noise-em`` are EM without outliers, and hold where there are some."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from scipy import integrate, stats
from scipy.special import logsumexp
from strategies import family_problems, law, random_mixture

from embench import gaussian, make_model
from embench.models import families
from embench.types import MixtureModel, StartableModel

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")

ROBUST = ("student-t-em", "noise-em")


def model(name, n_components=2, **params):
    return make_model(name, n_components=n_components, **{"random_state": 0, "tol": 0.0, **params})


def at(start, name, covariance_type="full", **params):
    """A model whose means, covariances and shares of the components begin at those of a mixture."""
    given = families.start_params(start, covariance_type)
    return model(name, start.n_components, covariance_type=covariance_type, **given, **params)


@law
@given(
    family_problems,
    st.sampled_from([("student-t-em", "dof", 1e8), ("noise-em", "noise_weight", 0)]),
)
def test_without_outliers_to_expect_it_is_em_step_by_step(problem, limit):
    covariance_type, (start, X) = problem
    name, parameter, value = limit
    em = at(start, "em", covariance_type, max_iter=5)
    robust = at(start, name, covariance_type, max_iter=5, **{parameter: value})

    for _ in zip(em.iter_fit(X), robust.iter_fit(X), strict=True):
        assert_allclose(robust.weights_, em.weights_, atol=1e-6)
        assert_allclose(robust.means_, em.means_, atol=1e-6)
        assert_allclose(robust.covariances_, em.covariances_, atol=1e-6)
        assert robust.score(X) == pytest.approx(em.score(X), abs=1e-6)


@law
@given(
    family_problems,
    st.sampled_from(
        [
            ("student-t-em", {"dof": 1.0}),
            ("student-t-em", {"dof": 5.0}),
            ("student-t-em", {"dof": 5.0, "estimate_dof": True}),
            ("noise-em", {"noise_weight": 0.05}),
            ("noise-em", {"noise_weight": 0.9}),
        ]
    ),
    st.booleans(),
)
def test_log_likelihood_never_falls(problem, kind, weighted):
    covariance_type, (start, X) = problem
    name, params = kind
    robust = at(start, name, covariance_type, reg_covar=0.0, max_iter=12, **params)
    counts = np.random.default_rng(len(X)).integers(1, 4, len(X)) if weighted else None

    scores = []
    for _ in robust.iter_fit(X, counts):
        scores.append(np.average(robust.score_samples(X), weights=counts))

    assert np.all(np.diff(scores) >= -1e-9)
    assert robust.lower_bounds_ == pytest.approx(scores[:-1], abs=1e-9)


@pytest.mark.parametrize("name", ROBUST)
@pytest.mark.parametrize("covariance_type", ["full", "tied", "diag", "spherical"])
def test_a_sample_weight_says_how_often_a_sample_counts(name, covariance_type):
    rng = np.random.default_rng(1)
    start = random_mixture(rng, 2, 2, covariance_type)
    X = np.vstack([gaussian.sample(start, 80, rng)[0], rng.uniform(-20, 20, size=(10, 2))])
    counts = rng.integers(1, 4, len(X))
    free = {"estimate_dof": True} if name == "student-t-em" else {}
    repeated = at(start, name, covariance_type, max_iter=6, **free).fit(
        np.repeat(X, counts, axis=0)
    )

    weighted = at(start, name, covariance_type, max_iter=6, **free).fit(X, sample_weight=counts)

    assert_allclose(weighted.means_, repeated.means_, rtol=1e-9, atol=1e-12)
    assert_allclose(weighted.covariances_, repeated.covariances_, rtol=1e-9)


@pytest.mark.parametrize("name", ROBUST)
def test_a_far_outlier_moves_the_mean_far_less_than_ems(name):
    rng = np.random.default_rng(0)
    X = rng.standard_normal((200, 2))
    with_outlier = np.vstack([X, [[300.0, 300.0]]])
    params = {"n_components": 1, "max_iter": 100}
    moved = {
        one: np.abs(
            model(one, **params).fit(with_outlier).means_ - model(one, **params).fit(X).means_
        ).max()
        for one in ("em", name)
    }

    assert moved["em"] == pytest.approx(300 / 201, rel=0.1)
    assert moved[name] < moved["em"] / 50


@pytest.mark.parametrize("name", ROBUST)
def test_a_robust_mixture_is_no_gaussian_mixture_and_begins_at_none(name):
    fitted = model(name).fit(np.random.default_rng(0).standard_normal((50, 2)))

    assert not isinstance(fitted, StartableModel)
    assert not isinstance(fitted, MixtureModel)


@pytest.mark.parametrize("name", ROBUST)
def test_float32_ends_close_to_float64(name):
    rng = np.random.default_rng(0)
    start = random_mixture(rng, 2, 2)
    X = np.vstack([gaussian.sample(start, 300, rng)[0], rng.uniform(-20, 20, size=(30, 2))])
    double = at(start, name, max_iter=10).fit(X)

    single = at(start, name, max_iter=10, dtype="float32").fit(X)

    assert single.means_.dtype == np.float32
    assert single.score(X) == pytest.approx(double.score(X), abs=1e-3)


@pytest.mark.parametrize("name", ROBUST)
def test_warm_start_continues(name):
    X = np.random.default_rng(0).standard_t(2, size=(200, 2))
    free = {"estimate_dof": True} if name == "student-t-em" else {}
    whole = model(name, max_iter=6, **free).fit(X)

    parts = model(name, max_iter=3, warm_start=True, **free).fit(X).fit(X)

    assert parts.score(X) == pytest.approx(whole.score(X), rel=1e-12)


# Student's t


@pytest.mark.parametrize("covariance_type", ["full", "tied", "diag", "spherical"])
def test_density_is_scipys(covariance_type):
    X = np.random.default_rng(0).standard_t(3, size=(120, 3))
    fitted = model("student-t-em", covariance_type=covariance_type, dof=2.5, max_iter=4).fit(X)
    scales = {
        "full": fitted.covariances_,
        "tied": [fitted.covariances_] * 2,
        "diag": [np.diag(v) for v in np.atleast_2d(fitted.covariances_)],
        "spherical": [v * np.eye(3) for v in np.ravel(fitted.covariances_)[:2]],
    }[covariance_type]

    log_density = fitted.score_samples(X)

    each = [
        np.log(weight) + stats.multivariate_t(mean, scale, df=2.5).logpdf(X)
        for weight, mean, scale in zip(fitted.weights_, fitted.means_, scales, strict=True)
    ]
    assert_allclose(log_density, logsumexp(each, axis=0), rtol=1e-10)
    assert np.array_equal(fitted.predict(X), np.argmax(each, axis=0))


def test_one_component_is_where_scipys_likelihood_is_stationary():
    X = stats.t(df=3, loc=2, scale=0.5).rvs(size=(400, 1), random_state=1)
    fitted = model("student-t-em", n_components=1, estimate_dof=True, reg_covar=0.0, max_iter=2000)
    fitted.set_params(tol=1e-13).fit(X)

    dof, loc, scale = stats.t.fit(X)

    best = stats.t(dof, loc, scale).logpdf(X).mean()
    assert fitted.score(X) == pytest.approx(best, abs=1e-7)
    assert fitted.dof_.item() == pytest.approx(dof, rel=2e-2)


def test_degrees_of_freedom_are_found():
    rng = np.random.default_rng(3)
    heavy, light = rng.standard_t(2, size=(1500, 1)), 40 + rng.standard_normal((1500, 1))

    fitted = model("student-t-em", estimate_dof=True, max_iter=200).fit(np.vstack([heavy, light]))

    heavy_dof, light_dof = fitted.dof_[np.argsort(fitted.means_[:, 0])]
    # The error of nu = 2 from 1500 samples is about 0.1.
    assert heavy_dof == pytest.approx(2, abs=0.4)
    assert light_dof > 15


def test_samples_follow_the_t_mixture():
    X = np.random.default_rng(0).standard_t(4, size=(400, 1))
    fitted = model("student-t-em", n_components=1, dof=3.0, max_iter=30).fit(X)

    drawn, labels = fitted.sample(4000)

    mean, scale = fitted.means_.item(), np.sqrt(fitted.covariances_.item())
    assert drawn.shape == (4000, 1)
    assert set(labels) == {0}
    assert stats.kstest(drawn[:, 0], stats.t(3, mean, scale).cdf).pvalue > 1e-3


# Noise


def noisy(seed, share=0.2, n_samples=600):
    """Two clusters, and a share of samples that is uniform over a wide box."""
    rng = np.random.default_rng(seed)
    truth = random_mixture(rng, 2, 2)
    X, _ = gaussian.sample(truth, n_samples, rng)
    outliers = rng.uniform(-30, 30, size=(int(n_samples * share / (1 - share)), 2))
    return truth, np.vstack([X, outliers])


def test_no_noise_stays_no_noise_however_far_a_sample_lies():
    rng = np.random.default_rng(0)
    X, weights = np.append(rng.standard_normal(99), 50.0)[:, None], rng.uniform(size=100)

    fitted = model("noise-em", n_components=3, noise_weight=0.0, max_iter=20)
    found = {float(fitted.noise_weight_) for _ in fitted.iter_fit(X, weights)}

    # Once above 0, even by rounding, it could grow.
    assert found == {0.0}


@pytest.mark.parametrize("seed", range(4))
def test_covariances_among_outliers_are_nearer_to_the_truth_than_ems(seed):
    truth, X = noisy(seed)

    em, robust = (at(truth, name, max_iter=200).fit(X) for name in ("em", "noise-em"))

    errors = [np.linalg.norm(one.covariances_ - truth.covariances) for one in (em, robust)]
    assert errors[1] < errors[0] / 10
    assert robust.noise_weight_ == pytest.approx(0.2, abs=0.05)
    assert robust.weights_.sum() + robust.noise_weight_ == pytest.approx(1, abs=1e-12)


def test_noise_is_told_from_clusters():
    truth, X = noisy(0)

    fitted = at(truth, "noise-em", max_iter=100).fit(X)

    corner = fitted.noise_box_[0]
    probabilities = fitted.predict_noise(np.vstack([truth.means, corner, corner - 1]))
    assert np.all(probabilities[:2] < 0.05)
    assert probabilities[2] == pytest.approx(1, abs=1e-6)
    assert probabilities[3] == 0, "outside the box there is none"
    assert set(fitted.predict(X)) == {0, 1}


@pytest.mark.parametrize("covariance_type", ["full", "diag"])
def test_density_integrates_to_one(covariance_type):
    rng = np.random.default_rng(0)
    X = np.vstack([rng.standard_normal((100, 2)), rng.uniform(-6, 6, size=(60, 2))]) * [1e-3, 50]
    fitted = model("noise-em", n_components=1, covariance_type=covariance_type).fit(X)
    (left, bottom), (right, top) = fitted.noise_box_

    def density(y, x):
        return np.exp(fitted.score_samples([[x, y]])).item()

    inside, _ = integrate.dblquad(density, left, right, bottom, top, epsabs=1e-4, epsrel=1e-4)

    # The Gaussian's own tails outside are all that is missing.
    assert inside == pytest.approx(1, abs=1e-3)
    assert fitted.noise_weight_ > 0.2


def test_samples_follow_the_mixture_and_its_noise():
    truth, X = noisy(1)
    fitted = at(truth, "noise-em", max_iter=100).fit(X)

    drawn, labels = fitted.sample(5000)

    noise = labels == -1
    error = np.sqrt(fitted.noise_weight_ * (1 - fitted.noise_weight_) / 5000)
    assert noise.mean() == pytest.approx(fitted.noise_weight_, abs=5 * error)
    low, high = fitted.noise_box_
    assert stats.kstest((drawn[noise, 0] - low[0]) / (high - low)[0], "uniform").pvalue > 1e-3
    for k in range(2):
        own = drawn[labels == k]
        assert_allclose(own.mean(axis=0), fitted.means_[k], atol=0.3)
        assert_allclose(np.cov(own.T), fitted.covariances_[k], atol=0.3)


@pytest.mark.parametrize("scale", [1e-6, 1e-9, 1e-12])
def test_where_all_is_noise_the_numbers_stay_finite(scale):
    # Regularisation that is large beside the data makes every component wider than the noise.
    X = scale * np.random.default_rng(20).standard_normal((200, 2))

    model = make_model("noise-em", n_components=2, random_state=0).fit(X)

    assert np.isfinite([model.noise_weight_, *model.means_.ravel(), model.score(X)]).all()
    assert model.noise_weight_ == pytest.approx(1.0)


def test_noise_bounds_the_samples_that_count():
    X = np.random.default_rng(21).standard_normal((200, 2))
    far = np.vstack([X, [[1e6, 1e6]]])
    weights = np.r_[np.ones(200), 0.0]

    model = make_model("noise-em", random_state=0).fit(far, sample_weight=weights)

    assert_array_equal(model.noise_box_, [X.min(axis=0), X.max(axis=0)])


def test_a_feature_that_does_not_vary_is_refused_by_its_number():
    X = np.column_stack([np.arange(9.0), np.full(9, 7.0)])

    with pytest.raises(ValueError, match="feature 1 is 7 in all 9 samples"):
        model("noise-em").fit(X)
