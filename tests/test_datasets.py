"""Datasets are what their parameters say, and depend on the seed alone."""

from __future__ import annotations

import dataclasses
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from sklearn import datasets as bundled
from strategies import COVARIANCE_TYPES, global_random_state, law, seeds

import embench
from embench import gaussian, make_dataset
from embench.datasets.splitting import data_rng, split
from embench.types import InputError, Mixture

NAMES = tuple(embench.datasets())
IMAGES = ("shapes", "flying-shapes", "continuous-shapes")  # their laws are in test_shapes.py
TABLES = {
    "iris": (bundled.load_iris, (150, 4), 3),
    "wine": (bundled.load_wine, (178, 13), 3),
    "breast-cancer": (bundled.load_breast_cancer, (569, 30), 2),
}


def arrays(data):
    """Every array of a dataset, the truth's included."""
    truth = [] if data.truth is None else list(vars(data.truth).values())
    return [*data.train, *data.test, data.y_train, data.y_test, *truth]


# Seeds


@pytest.mark.parametrize("name", NAMES)
def test_same_seed_gives_the_same_data(name):
    for one, other in zip(
        arrays(make_dataset(name, seed=3)), arrays(make_dataset(name, seed=3)), strict=True
    ):
        assert_array_equal(one, other)


@pytest.mark.parametrize("name", NAMES)
def test_another_seed_gives_other_data(name):
    one, other = make_dataset(name, seed=3), make_dataset(name, seed=4)

    assert not np.array_equal(one.X_train, other.X_train)
    assert not np.array_equal(one.X_test, other.X_test)


@pytest.mark.parametrize("name", [name for name in NAMES if name not in IMAGES])
def test_training_and_test_samples_are_not_the_same(name):
    data = make_dataset(name, seed=0)

    rows = np.concatenate([data.X_train, data.X_test])
    assert not np.array_equal(data.X_train[: len(data.X_test)], data.X_test[: len(data.X_train)])
    # The bundled tables have a row or two twice; drawn ones have none.
    assert len(np.unique(rows, axis=0)) >= len(rows) - 2


@pytest.mark.parametrize("name", NAMES)
def test_no_dataset_touches_the_global_random_state(name):
    before = global_random_state()

    make_dataset(name, seed=0)

    assert global_random_state() == before


@pytest.mark.parametrize("name", [name for name in NAMES if name not in IMAGES])
def test_arrays_are_finite_float64_and_labels_match_their_samples(name):
    data = make_dataset(name, seed=1)

    for samples, y in ((data.train, data.y_train), (data.test, data.y_test)):
        for part in samples:
            assert part.dtype == np.float64
            assert np.all(np.isfinite(part))
            assert (part.ndim, len(part)) == (2, len(samples[0]))
        assert (y is None) == (data.Y_train is not None), "labels or targets"
        assert y is None or y.dtype == np.int64
        assert y is None or y.shape == samples[0].shape[:1]


def test_a_seeds_data_are_not_the_stream_of_the_seed_itself():
    # A model seeded with the same number would otherwise draw its start from the data's noise.
    assert data_rng(3).random() != np.random.default_rng(3).random()


@pytest.mark.parametrize("seed", [-1, "four", 1.5])
def test_a_seed_that_is_none_is_refused(seed):
    with pytest.raises(InputError, match="seed"):
        make_dataset("blobs", seed=seed)


# Blobs


@law
@given(st.integers(2, 12), st.integers(1, 6), st.floats(0.1, 20), seeds)
def test_separation_is_the_mean_distance_to_the_nearest_mean(
    n_components, n_features, separation, seed
):
    data = make_dataset(
        "blobs",
        seed=seed,
        n_samples=10,
        n_features=n_features,
        n_components=n_components,
        separation=separation,
    )

    means = data.truth.means
    nearest = [
        min(np.linalg.norm(mean - other) for j, other in enumerate(means) if j != k)
        for k, mean in enumerate(means)
    ]
    assert np.mean(nearest) == pytest.approx(separation, rel=1e-9)


def test_no_separation_stacks_the_means():
    truth = make_dataset("blobs", separation=0, n_components=5, n_samples=10).truth

    assert_array_equal(truth.means, np.zeros((5, 2)))


@law
@given(st.sampled_from(["full", "tied", "diag"]), st.integers(2, 6), st.floats(1, 1e4), seeds)
def test_conditioning_is_the_ratio_of_eigenvalues(covariance_type, n_features, conditioning, seed):
    data = make_dataset(
        "blobs",
        seed=seed,
        n_samples=10,
        n_features=n_features,
        covariance_type=covariance_type,
        conditioning=conditioning,
    )

    eigenvalues = np.linalg.eigvalsh(data.truth.covariances)
    assert_allclose(eigenvalues[:, -1] / eigenvalues[:, 0], conditioning, rtol=1e-6)
    assert_allclose(eigenvalues.mean(axis=1), 1.0, rtol=1e-9)


@law
@given(st.integers(2, 6), st.floats(1, 1e4), seeds)
def test_conditioning_of_spherical_components_is_between_them(n_components, conditioning, seed):
    data = make_dataset(
        "blobs",
        seed=seed,
        n_samples=10,
        n_components=n_components,
        covariance_type="spherical",
        conditioning=conditioning,
    )

    variances = data.truth.covariances[:, 0, 0]
    assert variances.max() / variances.min() == pytest.approx(conditioning, rel=1e-9)
    assert variances.mean() == pytest.approx(1.0)


@law
@given(st.integers(2, 8), st.floats(1, 100), seeds)
def test_imbalance_is_the_ratio_of_weights(n_components, imbalance, seed):
    data = make_dataset(
        "blobs", seed=seed, n_samples=10, n_components=n_components, imbalance=imbalance
    )

    weights = data.truth.weights
    assert weights.max() / weights.min() == pytest.approx(imbalance, rel=1e-9)
    assert weights.sum() == pytest.approx(1.0, abs=1e-14)


def test_covariance_types_are_the_families():
    truths = {
        family: make_dataset(
            "blobs", seed=5, n_samples=10, n_features=3, covariance_type=family
        ).truth.covariances
        for family in COVARIANCE_TYPES
    }
    off_diagonal = ~np.eye(3, dtype=bool)

    for covariances in truths.values():
        assert np.all(np.linalg.eigvalsh(covariances) > 0)
        assert_array_equal(covariances, covariances.swapaxes(1, 2))
    assert np.all(np.abs(truths["full"][:, off_diagonal]).max(axis=1) > 0.01)
    assert not any(np.allclose(a, b) for a, b in pairwise(truths["full"]))
    assert np.ptp(truths["tied"], axis=0).max() == 0
    assert np.abs(truths["tied"][0][off_diagonal]).max() > 0.01
    assert np.all(truths["diag"][:, off_diagonal] == 0)
    assert np.all(np.ptp(np.diagonal(truths["diag"], axis1=1, axis2=2), axis=1) > 0.01)
    for covariance in truths["spherical"]:
        assert_array_equal(covariance, covariance[0, 0] * np.eye(3))
    assert np.ptp(truths["spherical"][:, 0, 0]) > 0.01


@pytest.mark.parametrize("covariance_type", COVARIANCE_TYPES)
def test_samples_and_labels_follow_the_truth(covariance_type):
    data = make_dataset(
        "blobs", seed=6, n_samples=20_000, covariance_type=covariance_type, imbalance=3
    )

    for X, y in ((data.X_train, data.y_train), (data.X_test, data.y_test)):
        for k, covariance in enumerate(data.truth.covariances):
            own, variances = X[y == k], np.diag(covariance)
            assert np.all(
                np.abs(own.mean(axis=0) - data.truth.means[k]) < 5 * np.sqrt(variances / len(own))
            )
            second = np.sqrt((np.outer(variances, variances) + covariance**2) / len(own))
            assert np.all(np.abs(np.cov(own.T) - covariance) < 5 * second)
        expected = len(y) * data.truth.weights
        assert np.all(np.abs(np.bincount(y) - expected) < 5 * np.sqrt(expected))


@pytest.mark.parametrize("name", ["blobs", "three-gaussians"])
def test_no_other_mixture_beats_the_truth(name):
    data = make_dataset(name, seed=7, n_samples=20_000)
    w, m, S = vars(data.truth).values()
    others = {
        "moved": Mixture(w, m + 0.2, S),
        "wider": Mixture(w, m, 1.3 * S),
        "narrower": Mixture(w, m, S / 1.3),
        "heavier": Mixture((w + np.array([0.3, 0.0, 0.0])) / 1.3, m, S),
        "permuted": Mixture(w, m, S[[1, 2, 0]]),
    }

    best = gaussian.log_likelihood(data.truth, data.X_test)

    for what, other in others.items():
        assert gaussian.log_likelihood(other, data.X_test) < best - 1e-3, what


def test_outliers_are_a_share_of_the_training_samples_labelled_minus_one():
    data = make_dataset("blobs", seed=8, n_samples=4000, outliers=0.2)

    out = data.y_train == -1

    assert abs(out.mean() - 0.2) < 5 * np.sqrt(0.2 * 0.8 / 4000)
    assert set(np.unique(data.y_train)) == {-1, 0, 1, 2}
    far, near = (gaussian.log_likelihood(data.truth, data.X_train[part]) for part in (out, ~out))
    assert far < near - 5


def test_outliers_leave_the_truth_the_held_out_and_the_other_samples_alone():
    plain = make_dataset("blobs", seed=8)

    data = make_dataset("blobs", seed=8, outliers=0.2)

    for own, other in zip(vars(plain.truth).values(), vars(data.truth).values(), strict=True):
        assert_array_equal(own, other)
    assert_array_equal(data.X_test, plain.X_test)
    assert_array_equal(data.y_test, plain.y_test)
    kept = data.y_train >= 0
    assert_array_equal(data.X_train[kept], plain.X_train[kept])


def test_outliers_fill_a_box_twice_as_wide_as_the_samples():
    plain = make_dataset("blobs", seed=9, n_samples=5000)
    data = make_dataset("blobs", seed=9, n_samples=5000, outliers=0.5)

    out = data.X_train[data.y_train == -1]

    # The range of n uniform values is the interval's width but for a share of about 2 / n.
    ratios = np.ptp(out, axis=0) / np.ptp(plain.X_train, axis=0)
    assert_allclose(ratios, 2.0, rtol=0.01)


def test_without_outliers_every_sample_has_a_component():
    assert make_dataset("blobs", seed=8).y_train.min() == 0


def test_offset_moves_everything_and_nothing_else():
    here = make_dataset("blobs", seed=10)

    there = make_dataset("blobs", seed=10, offset=1e6)

    assert_allclose(there.X_train - 1e6, here.X_train, atol=1e-9)
    assert_allclose(there.X_test - 1e6, here.X_test, atol=1e-9)
    assert_allclose(there.truth.means - 1e6, here.truth.means, atol=1e-9)
    assert_array_equal(there.truth.covariances, here.truth.covariances)
    assert_array_equal(there.y_train, here.y_train)


@pytest.mark.parametrize(("n_test", "expected"), [(None, 50), (1, 1), (70, 70)])
def test_sizes_are_those_asked_for(n_test, expected):
    data = make_dataset("blobs", n_samples=50, n_features=5, n_components=4, n_test=n_test, seed=0)

    assert data.X_train.shape == (50, 5)
    assert data.X_test.shape == (expected, 5)
    assert data.n_components == data.truth.n_components == 4


def test_more_test_samples_leave_the_training_samples_alone():
    few = make_dataset("blobs", seed=11, n_test=10)
    many = make_dataset("blobs", seed=11, n_test=1000)

    assert_array_equal(few.X_train, many.X_train)


def test_one_component_is_a_mixture_too():
    data = make_dataset("blobs", n_components=1, seed=0)

    assert data.truth.weights.tolist() == [1.0]
    assert set(data.y_train) == {0}


@pytest.mark.parametrize(
    ("param", "value"),
    [
        ("n_samples", 0),
        ("n_features", -1),
        ("n_components", 0),
        ("separation", -1.0),
        ("separation", float("nan")),
        ("covariance_type", "round"),
        ("conditioning", 0.5),
        ("imbalance", 0.0),
        ("outliers", 1.0),
        ("outliers", -0.1),
        ("offset", float("inf")),
        ("n_test", 0),
        ("n_samples", "many"),
    ],
)
def test_a_parameter_out_of_range_is_refused_by_name_and_value(param, value):
    with pytest.raises(InputError, match=rf"blobs: {param}") as refusal:
        make_dataset("blobs", **{param: value})

    assert repr(value) in str(refusal.value)


# Three Gaussians


def test_three_gaussians_seed_7_is_the_demonstrations_own_sample():
    # Class counts of the demonstration's default_rng(7), N = 1200.
    data = make_dataset("three-gaussians", seed=7)

    assert np.bincount(data.y_train).tolist() == [484, 410, 306]
    assert data.X_train.shape == data.X_test.shape == (1200, 2)
    assert data.n_components == 3


# Tables


@pytest.mark.parametrize("name", TABLES)
def test_tables_have_their_published_shapes_and_classes(name):
    _, (n_samples, n_features), n_classes = TABLES[name]

    data = make_dataset(name, seed=0)

    assert len(data.X_train) + len(data.X_test) == n_samples
    assert data.X_train.shape[1] == data.X_test.shape[1] == n_features
    assert len(data.X_test) == round(n_samples / 4)
    assert data.n_components == n_classes == len(np.unique(data.y_train))
    assert data.truth is None


@pytest.mark.parametrize("name", TABLES)
def test_split_parts_every_row_with_its_label_exactly_once(name):
    X, y = TABLES[name][0](return_X_y=True)

    data = make_dataset(name, seed=3, standardize=False)

    own = np.column_stack(
        [np.concatenate([data.X_train, data.X_test]), np.concatenate([data.y_train, data.y_test])]
    )
    table = np.column_stack([X, y])
    assert_array_equal(own[np.lexsort(own.T)], table[np.lexsort(table.T)])
    assert not np.array_equal(own, table), "the rows are shuffled"


@pytest.mark.parametrize("name", TABLES)
def test_standardising_uses_the_training_samples_alone(name):
    raw = make_dataset(name, seed=4, standardize=False)
    mean, stddev = raw.X_train.mean(axis=0), raw.X_train.std(axis=0)

    data = make_dataset(name, seed=4)

    assert_allclose(data.X_train.mean(axis=0), 0.0, atol=1e-12)
    assert_allclose(data.X_train.std(axis=0), 1.0, rtol=1e-12)
    assert_allclose(data.X_test, (raw.X_test - mean) / stddev, rtol=1e-9, atol=1e-12)
    assert np.abs(data.X_test.mean(axis=0)).max() > 1e-3


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_share_of_test_samples_is_the_one_asked_for(share):
    data = make_dataset("iris", seed=0, test_share=share)

    assert len(data.X_test) == round(150 * share)


@pytest.mark.parametrize("share", [0.0, 1.0, -0.5, 2.0])
def test_a_share_that_leaves_nothing_is_refused(share):
    with pytest.raises(InputError, match="test_share"):
        make_dataset("iris", test_share=share)


def test_digits_are_uncorrelated_axes_of_falling_variance():
    data = make_dataset("digits", seed=0, n_features=20)

    X = np.concatenate([data.X_train, data.X_test])
    covariance = np.cov(X.T)
    assert X.shape == (1797, 20)
    assert_allclose(covariance - np.diag(np.diag(covariance)), 0.0, atol=1e-8)
    assert np.all(np.diff(np.diag(covariance)) < 0)
    assert data.n_components == len(np.unique(data.y_train)) == 10


def test_digits_have_no_more_axes_than_vary():
    data = make_dataset("digits", seed=0, n_features=61)

    assert data.X_train.std(axis=0).min() > 1e-6
    with pytest.raises(InputError, match="n_features"):
        make_dataset("digits", n_features=62)


def test_components_to_look_for_can_be_chosen():
    assert make_dataset("wine", n_components=7).n_components == 7


# Splitting


def part(X, seed=0, *, labels=None, test_share=0.25, standardize=True, n_components=None):
    return split(
        X, labels, seed, n_components=n_components, test_share=test_share, standardize=standardize
    )


# The mean of seventeen times 0.1 is not 0.1, and their standard deviation not 0.
@pytest.mark.parametrize("constant", [7.0, 0.1, 1e9 / 3])
@pytest.mark.parametrize("n_samples", [20, 23, 40])
def test_a_constant_feature_is_only_shifted(n_samples, constant):
    X = np.column_stack([np.full(n_samples, constant), np.arange(float(n_samples))])

    data = part(X)

    assert_allclose(data.X_train[:, 0], 0.0, atol=1e-15 * constant)
    assert_allclose(data.X_test[:, 0], 0.0, atol=1e-15 * constant)
    assert data.X_train[:, 1].std() == pytest.approx(1.0)


def test_a_table_without_labels_has_none():
    data = part(np.arange(20.0)[:, None])

    assert data.y_train is None
    assert data.y_test is None
    assert data.n_components is None


@pytest.mark.parametrize(
    ("n_samples", "share"), [(0, 0.5), (1, 0.5), (2, 0.5), (4, 0.9), (5, 0.01)]
)
def test_too_few_samples_to_part_are_refused_with_their_number(n_samples, share):
    with pytest.raises(InputError, match=f"got {n_samples} samples and test_share={share}"):
        part(np.zeros((n_samples, 2)), test_share=share)


def test_split_leaves_the_table_alone():
    X = np.arange(20.0).reshape(10, 2)
    copy = X.copy()

    part(X)

    assert_array_equal(X, copy)


def test_datasets_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        make_dataset("iris").X_train = None


@pytest.mark.parametrize(("name", "rows"), [("iris", 150), ("wine", 178), ("digits", 1797)])
def test_tables_tell_how_many_rows_every_seed_splits(name, rows):
    data = make_dataset(name, seed=1)

    assert data.n_table == rows == len(data.X_train) + len(data.X_test)


def test_drawn_data_are_new_for_every_seed():
    assert make_dataset("blobs").n_table is None
    assert make_dataset("three-gaussians").n_table is None
