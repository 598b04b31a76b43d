"""Groupers find groups that move with the image, and score what published baselines score."""

from __future__ import annotations

import inspect
import pickle
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from scipy.special import logsumexp
from sklearn.base import clone
from sklearn.cluster import KMeans
from sklearn.mixture import GaussianMixture
from sklearn.utils.estimator_checks import parametrize_with_checks
from strategies import law, seeds

import embench
from embench import make_dataset, make_model, registry
from embench.checks import check_model
from embench.measuring.plan import plan
from embench.measuring.suite import customised, load_suite
from embench.measuring.trial import run_trial
from embench.metrics import Outcome, judge
from embench.models.families import start_params
from embench.models.grouping.bernoulli import BernoulliMixture
from embench.models.grouping.bounds import ConnectedComponents, RandomGroups
from embench.models.grouping.coordinates import PixelGMM, PixelKMeans
from embench.models.grouping.kmeans import k_means
from embench.reporting.plots import figures
from embench.types import InputError, Spec, task_of

NAMES = (
    "pixel-kmeans",
    "pixel-gmm",
    "connected-components",
    "random-groups",
    "bernoulli-mixture",
)
FAMILIES = ("spherical", "full", "diag", "tied", "tied_spherical")
VARIANTS = {
    **{name: (name, {}) for name in NAMES},
    **{f"pixel-gmm {f}": ("pixel-gmm", {"covariance_type": f}) for f in FAMILIES[1:]},
}
BY_PLACE = [v for v in VARIANTS if v.startswith("pixel")]
"""Those that look at where lit pixels are, and at nothing else."""


def make(variant, **params):
    """A model whose randomness, where it has any, is fixed."""
    name, own = VARIANTS[variant]
    model = make_model(name, **own)
    fixed = {"random_state": 0, "n_components": 2, **params}
    known = model.get_params()
    return model.set_params(**{key: value for key, value in fixed.items() if key in known})


def small(seed=0, **params):
    return make_dataset("shapes", seed=seed, **{"size": 20, "n_train": 30, "n_test": 30, **params})


def judged(data, labels):
    """The metrics of groups that somebody found."""
    nothing = {"nll": None, "n_iter": None, "fit_seconds": 1.0, "cpu_seconds": 1.0}
    nothing |= {"peak_memory": None, "gpu_peak_memory": None}
    return judge(Outcome(dataset=data, labels=labels, **nothing))


@pytest.fixture(params=VARIANTS)
def variant(request):
    return request.param


@pytest.fixture(scope="module")
def data():
    return small()


# Estimators


class Strips:
    """Images of one row: scikit-learn's checks know of no images."""

    def _canvas(self, n_pixels):
        return 1, n_pixels


class StripKMeans(Strips, PixelKMeans): ...


class StripGMM(Strips, PixelGMM): ...


class StripComponents(Strips, ConnectedComponents): ...


class StripRandom(Strips, RandomGroups): ...


class StripBernoulli(Strips, BernoulliMixture): ...


@parametrize_with_checks(
    [
        StripKMeans(2, random_state=0),
        StripGMM(2, random_state=0),
        StripComponents(),
        StripRandom(2, random_state=0),
        StripBernoulli(2, random_state=0),
    ],
)
def test_scikit_learns_own_checks(estimator, check):
    check(estimator)


def test_these_are_all_groupers_that_learn_nothing_or_next_to_nothing():
    found = {
        name
        for name, what in embench.models().items()
        if not what.startswith("not installed")
        and registry.load("model", name).__module__.startswith("embench.models.grouping")
    }

    assert found == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_our_own_models_keep_every_law(name):
    findings = list(check_model(Spec(name)))

    assert [finding for finding in findings if finding.broken] == []


@pytest.mark.parametrize("name", NAMES)
def test_a_models_first_line_fits_into_a_list_and_it_has_a_version(name):
    line = embench.models()[name]

    assert 20 < len(line) < 100
    assert line.endswith(".")
    assert line == inspect.getdoc(registry.load("model", name)).splitlines()[0]
    assert registry.version("model", Spec(name))


def test_a_clone_has_the_parameters_and_a_pickle_the_groups(variant, data):
    model = make(variant).fit(data.X_train)

    unfitted, copy = clone(model), pickle.loads(pickle.dumps(model))

    assert unfitted.get_params() == model.get_params()
    assert_array_equal(copy.group_proba(data.X_test), model.group_proba(data.X_test))


def test_groups_are_those_of_the_largest_probability(variant, data):
    model = make(variant).fit(data.X_train)

    proba, labels = model.group_proba(data.X_test), model.predict(data.X_test)

    assert labels.shape == data.X_test.shape
    assert proba.shape[:-1] == data.X_test.shape
    assert_allclose(proba.sum(axis=-1), 1, atol=1e-12)
    assert_array_equal(labels, proba.argmax(axis=-1))


def test_the_frames_of_sequences_are_images(variant, data):
    model = make(variant).fit(data.X_train)
    sequences = data.X_test.reshape(10, 3, -1)

    found = model.predict(sequences)

    assert found.shape == sequences.shape
    assert_array_equal(found.reshape(30, -1), model.predict(data.X_test))


def test_images_that_are_not_square_must_say_so(variant):
    X = np.random.default_rng(0).integers(2, size=(6, 12)).astype(float)

    with pytest.raises(ValueError, match=r"expected square images, got X with 12 pixels"):
        make(variant).fit(X)
    with pytest.raises(ValueError, match=r"expected 3 x 5 pixels, got X with 12 pixels"):
        make(variant, image_shape=(3, 5)).fit(X)
    assert make(variant, image_shape=(3, 4)).fit(X).predict(X).shape == (6, 12)


# Laws


@pytest.mark.parametrize("variant", [v for v in VARIANTS if v != "random-groups"])
def test_what_is_found_of_an_image_does_not_depend_on_the_others(variant, data):
    model = make(variant).fit(data.X_train)

    together = model.predict(data.X_test)
    alone = np.concatenate([model.predict(image[None]) for image in data.X_test])

    assert_array_equal(together, alone)


@pytest.mark.parametrize("variant", [*BY_PLACE, "connected-components"])
@law
@given(st.integers(-3, 3), st.integers(-3, 3), seeds)
def test_groups_move_with_the_image(variant, down, right, seed):
    inner = small(seed, size=14, n_test=5, sprites="small").X_test.reshape(-1, 14, 14)
    canvas = np.pad(inner, ((0, 0), (3, 3), (3, 3)))
    moved = np.roll(canvas, (down, right), axis=(1, 2))
    model = make(variant).fit(canvas.reshape(5, -1))

    here = model.predict(canvas.reshape(5, -1)).reshape(canvas.shape)
    there = model.predict(moved.reshape(5, -1)).reshape(canvas.shape)

    assert_array_equal(np.roll(here, (down, right), axis=(1, 2))[moved > 0], there[moved > 0])


@pytest.mark.parametrize("variant", BY_PLACE)
def test_shapes_far_apart_are_told_apart(variant):
    image = np.zeros((1, 20, 20))
    image[0, 1:6, 1:6] = image[0, 13:18, 12:19] = 1
    model = make(variant).fit(image.reshape(1, -1))

    found = model.predict(image.reshape(1, -1)).reshape(20, 20)

    first, second = np.unique(found[1:6, 1:6]), np.unique(found[13:18, 12:19])
    assert len(first) == len(second) == 1
    assert first != second


@pytest.mark.parametrize("variant", BY_PLACE)
def test_an_image_with_fewer_lit_pixels_than_groups_is_one_group(variant):
    images = np.zeros((3, 16))
    images[1, 5] = 1
    images[2, [0, 15]] = 1

    found = make(variant).fit(images).predict(images)

    assert np.all(found[:2] == 0)
    assert found[2, 0] != found[2, 15]


def test_brightness_does_not_matter_beyond_the_threshold(variant, data):
    dim = 0.3 * data.X_test + 0.1
    model = make(variant).fit(data.X_train)

    assert_array_equal(model.predict(dim), model.predict(data.X_test))


# k-means and mixtures


@law
@given(st.integers(1, 4), st.integers(1, 4), seeds)
def test_k_means_ends_where_every_centre_is_the_mean_of_its_points(n_components, n_init, seed):
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(3, 20, 2))

    found = k_means(X, rng.random((n_init, n_components)), 1000)

    for points, centres, labels, inertia in zip(X, *found, strict=True):
        squared = np.square(points[:, None] - centres).sum(axis=-1)
        assert_array_equal(labels, squared.argmin(axis=1))
        assert inertia == pytest.approx(squared.min(axis=1).sum())
        for k in np.unique(labels):
            assert_allclose(points[labels == k].mean(axis=0), centres[k], atol=1e-12)


def test_more_starts_never_end_worse():
    rng = np.random.default_rng(0)
    X, uniforms = rng.normal(size=(20, 30, 2)), rng.random((8, 4))

    inertias = [k_means(X, uniforms[:n], 100).inertia for n in (1, 2, 4, 8)]

    assert all(np.all(more <= fewer) for fewer, more in pairwise(inertias))


def test_k_means_is_as_good_as_scikit_learns():
    data = make_dataset("shapes", seed=0, n_train=1, n_test=40)
    pixels = np.indices((28, 28)).reshape(2, -1).T.astype(float)
    points = [pixels[image > 0] for image in data.X_test]
    uniforms = np.random.default_rng(0).random((10, 3))

    ours = [k_means(X[None], uniforms, 300).inertia[0] for X in points]
    theirs = [KMeans(3, n_init=10, random_state=0).fit(X).inertia_ for X in points]

    # Ten starts miss the optimum of an image now and then, on either side, for one nearly as good.
    assert_allclose(ours, theirs, rtol=0.02)
    assert np.mean(ours) == pytest.approx(np.mean(theirs), rel=0.002)


@pytest.mark.parametrize("family", FAMILIES[:4])
def test_the_mixture_of_an_image_is_scikit_learns_from_the_same_start(family):
    data = small(3, n_test=6)
    pixels = np.indices((20, 20)).reshape(2, -1).T.astype(float)
    model = make("pixel-gmm", covariance_type=family).fit(data.X_test)
    uniforms = np.random.RandomState(0).uniform(size=(model.n_init, 2))

    proba = model.group_proba(data.X_test)

    for image, found in zip(data.X_test, proba, strict=True):
        X = pixels[image > 0]
        [start] = model._starts(X[None], k_means(X[None], uniforms, model.max_iter))
        rival = GaussianMixture(
            2, covariance_type=family, reg_covar=1 / 12, **start_params(start, family)
        )
        assert_allclose(rival.fit(X).predict_proba(pixels), found, atol=1e-9)


# Bounds


def test_touching_pixels_are_one_group_and_images_do_not_touch():
    images = np.array([[[1, 0, 1], [0, 0, 1], [1, 0, 0]], [[0, 1, 0], [1, 0, 0], [0, 0, 1]]])
    flat = images.reshape(2, -1).astype(float)

    groups = ConnectedComponents().fit(flat).predict(flat).reshape(2, 3, 3)

    assert_array_equal(groups[0], [[0, 0, 1], [0, 0, 1], [2, 0, 0]])
    assert_array_equal(groups[1], [[0, 0, 0], [0, 0, 0], [0, 0, 1]])


def test_whole_shapes_that_do_not_touch_are_found_by_touch():
    data = small(1, n_test=200)
    groups = make("connected-components").fit(data.X_train).predict(data.X_test)
    apart = groups.max(axis=1) == 1

    found = judged(replace(data, y_test=np.where(apart[:, None], data.y_test, -1)), groups)

    assert apart.mean() > 0.3
    assert found["ami"] == pytest.approx(1)


def test_another_random_state_draws_other_groups(data):
    one, same, other = (
        make("random-groups", random_state=seed).fit(data.X_train).predict(data.X_test)
        for seed in (0, 0, 1)
    )

    assert_array_equal(one, same)
    assert not np.array_equal(one, other)


# Bernoulli


def test_the_posterior_of_a_bernoulli_mixture_never_falls():
    data = small(n_train=200)
    model = BernoulliMixture(3, random_state=0, prior=0.5, tol=0)
    stream = model.iter_fit(data.X_train)
    next(stream)

    values = []
    for _ in stream:
        prior = 0.25 * (np.log(model.means_) + np.log1p(-model.means_)).sum()
        values.append(200 * model.score(data.X_train) + prior)

    assert all(after >= before - 1e-8 for before, after in pairwise(values))


def test_the_probabilities_of_all_images_sum_to_one():
    every = np.array(np.meshgrid(*[[0.0, 1.0]] * 4)).reshape(4, -1).T
    model = BernoulliMixture(3, random_state=0).fit(every[::2])

    total = logsumexp(model.score_samples(every))

    assert total == pytest.approx(0, abs=1e-12)


def test_one_component_is_the_mean_image_and_one_group(data):
    model = BernoulliMixture(1, prior=1e-9, random_state=0).fit(data.X_train)

    assert_allclose(model.means_[0], data.X_train.mean(axis=0), atol=1e-9)
    assert np.all(model.predict(data.X_test) == 0)


def test_groups_of_a_bernoulli_mixture_are_parts_of_the_canvas(data):
    model = make("bernoulli-mixture").fit(data.X_train)

    lit = model.predict(np.ones_like(data.X_test))

    assert_array_equal(lit, np.broadcast_to(lit[0], lit.shape))


# The judge


def test_the_true_groups_are_perfect_and_their_numbers_do_not_matter(data):
    found = judged(data, np.where(data.y_top_test >= 0, 1 - data.y_top_test, 7))

    assert found == {
        **{name: pytest.approx(1) for name in ("ami", "ami_max", "ami_overlaps", "ari")},
        "fit_seconds": 1.0,
        "cpu_seconds": 1.0,
    }


def test_objects_against_ground_are_no_groups(data):
    found = judged(data, (data.X_test > 0).astype(int))

    for name in ("ami", "ami_max", "ami_overlaps", "ari"):
        assert found[name] == pytest.approx(0, abs=1e-12)


def test_pixels_under_several_shapes_count_only_where_they_are_asked_for(data):
    wrong = np.where(data.overlap_test, 1 - data.y_top_test, data.y_top_test).clip(min=0)

    found = judged(data, wrong)

    assert found["ami"] == pytest.approx(1)
    assert found["ami_overlaps"] < 1


def test_what_nobody_knows_is_absent(data):
    labels = np.zeros_like(data.y_test)

    assert "ami_overlaps" not in judged(replace(data, y_top_test=None), labels)
    assert "ami" not in judged(replace(data, y_test=None), labels)


# What is reported


@pytest.mark.parametrize(
    ("size", "n_components", "norm", "expected"),
    [(28, 3, "ami_max", 0.794), (28, 4, "ami_max", 0.622), (20, 2, "ami", 0.889)],
)
def test_k_means_scores_what_is_reported_of_it(size, n_components, norm, expected):
    data = make_dataset("shapes", seed=0, size=size, n_train=1, n_test=1000)
    model = PixelKMeans(n_components, n_init=1, random_state=0).fit(data.X_train)

    found = judged(data, model.predict(data.X_test))[norm]

    # An image's AMI has a standard deviation of .26 at most here: four standard errors of this
    # sample and of one as large.
    assert found == pytest.approx(expected, abs=4 * 0.26 * np.sqrt(2 / 1000))


# Suites


def test_groupers_run_on_images_and_nothing_else_does():
    mixed = customised(
        load_suite("grouping"),
        models="em,pixel-kmeans",
        datasets="iris,shapes:n_train=9",
        tracks=["same-start", "default", "budget"],
        seeds=1,
    )

    planned = plan(mixed)

    assert {(t.model.name, t.dataset.name, t.track) for t in planned.trials} == {
        ("em", "iris", "same-start"),
        *((m, d, t) for m, d in [("em", "iris"), ("pixel-kmeans", "shapes")]
          for t in ("default", "budget")),
    }  # fmt: skip
    assert planned.left_out == (
        "em is left out on shapes:n_train=9: "
        "it is for a density of X, and the task is groups of the pixels of images",
        "pixel-kmeans is left out of same-start: it cannot begin at a given mixture",
        "pixel-kmeans is left out on iris: "
        "it is for groups of the pixels of images, and the task is a density of X",
    )


@pytest.mark.parametrize("name", NAMES)
def test_a_trial_of_a_grouper_is_judged_by_its_groups(name, small_trial):
    params = {"size": 20, "n_train": 20, "n_test": 10}

    record = run_trial(small_trial(name, dataset=("shapes", params), time_limit=60.0))

    assert (record.status, task_of(make_model(name))) == ("ok", "grouping")
    assert {"ami", "ami_max", "ami_overlaps", "ari", "predict_seconds"} <= record.metrics.keys()
    assert ("nll" in record.metrics) == (name == "bernoulli-mixture")
    assert bool(record.curve) == (name == "bernoulli-mixture")
    assert record.sizes["n_features"] == 400


def test_sequences_are_run_too(small_trial):
    params = {"size": 20, "n_train": 2, "n_test": 2, "n_steps": 3}

    record = run_trial(small_trial("pixel-kmeans", dataset=("flying-shapes", params)))

    assert record.status == "ok"
    assert record.sizes["n_steps"] == 3


def test_a_comparison_of_groupers_goes_by_their_groups(tmp_path):
    records = embench.run(
        "grouping",
        models="pixel-kmeans,random-groups,bernoulli-mixture:max_iter=3",
        datasets="shapes:size=20,n_train=50,n_test=50",
        seeds=3,
        out=tmp_path / "run",
        isolation="none",
    )

    found = embench.compare(records)

    assert list(found.summary["model"])[::2] == ["pixel-kmeans", "random-groups"]
    assert {change.baseline for change in found.changes} == {"pixel-kmeans"}
    text = str(found)
    assert "Take pixel-kmeans: AMI 0." in text
    assert "random-groups against pixel-kmeans: AMI worse by" in text
    assert "excess" not in text
    drawn = figures(found)
    assert {"default-groups-against-time", "default-agreement"} <= drawn.keys()
    assert "default-quality-against-time" not in drawn
    for figure in drawn.values():
        figure.draw_without_rendering()


def test_component_counts_must_be_known_or_said():
    suite = customised(
        load_suite("grouping"), models="pixel-kmeans", datasets="shapes:n_train=2", seeds=1
    )

    assert plan(suite).trials, "fewer images than groups are no mistake"
    with pytest.raises(InputError, match="n_components"):
        plan(customised(suite, models="pixel-kmeans:n_components=0"))
