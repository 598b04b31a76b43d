"""Agreement over many images is scikit-learn's of each of them, and keeps the laws of agreement."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.metrics import adjusted_mutual_info_score, adjusted_rand_score
from strategies import law, seeds

from embench.agreement import adjusted_mutual_information, adjusted_rand, contingencies

SCORES = {
    "ami": (adjusted_mutual_information, adjusted_mutual_info_score),
    "ami_max": (
        lambda tables: adjusted_mutual_information(tables, "max"),
        lambda *both: adjusted_mutual_info_score(*both, average_method="max"),
    ),
    "ari": (adjusted_rand, adjusted_rand_score),
}


def groupings(seed, n_images=20, n_pixels=30, n_groups=3, n_labels=4):
    """Groups, of which some are -1, and labels that agree with them more often than not."""
    rng = np.random.default_rng(seed)
    truth = rng.integers(-1, n_groups, size=(n_images, n_pixels))
    truth[:, :2] = [0, 1]  # two groups at least
    drawn = rng.integers(n_labels, size=truth.shape)
    return truth, np.where(rng.random(truth.shape) < 0.5, np.maximum(truth, 0), drawn)


@pytest.fixture(params=SCORES)
def ours(request):
    return SCORES[request.param][0]


@law
@given(st.sampled_from(list(SCORES)), st.integers(2, 40), st.integers(1, 6), seeds)
def test_each_image_scores_as_scikit_learn_does(name, n_pixels, n_labels, seed):
    ours, theirs = SCORES[name]
    truth, labels = groupings(seed, n_pixels=n_pixels, n_labels=n_labels)

    found = ours(contingencies(truth, labels))

    expected = [theirs(t[t >= 0], x[t >= 0]) for t, x in zip(truth, labels, strict=True)]
    assert_allclose(found, expected, rtol=0, atol=1e-11)


def test_the_same_groups_agree_fully_whatever_their_numbers(ours):
    truth, _ = groupings(0)

    found = ours(contingencies(truth, np.array([2, 0, 1])[np.maximum(truth, 0)]))

    assert_allclose(found, 1, atol=1e-12)


@law
@given(seeds)
def test_neither_the_order_of_pixels_nor_the_numbers_of_labels_matter(seed):
    truth, labels = groupings(seed)
    rng = np.random.default_rng(seed)
    order, names = rng.permutation(30), rng.permutation(4)

    for ours, _ in SCORES.values():
        before = ours(contingencies(truth, labels))
        after = ours(contingencies(truth[:, order], names[labels][:, order]))

        assert_allclose(after, before, atol=1e-12)


def test_chance_agrees_not_at_all_in_the_mean(ours):
    truth, _ = groupings(1, n_images=5000)
    labels = np.random.default_rng(2).integers(4, size=truth.shape)

    found = ours(contingencies(truth, labels))

    assert abs(found.mean()) < 4 * found.std() / np.sqrt(len(found))


def test_one_label_for_all_agrees_not_at_all(ours):
    truth, _ = groupings(3)

    assert_allclose(ours(contingencies(truth, np.zeros_like(truth))), 0, atol=1e-12)


def test_pixels_without_a_group_do_not_count(ours):
    truth, labels = groupings(4)
    other = np.where(truth < 0, 3 - labels, labels)

    assert_array_equal(ours(contingencies(truth, labels)), ours(contingencies(truth, other)))


@pytest.mark.parametrize("image", [[0, 0, 0, -1], [-1, -1, -1, -1]])
def test_an_image_with_nothing_to_tell_apart_does_not_count(ours, image):
    truth = np.array([image, [0, 0, 1, 1]])
    labels = np.array([[0, 1, 0, 1], [1, 1, 0, 0]])

    assert_allclose(ours(contingencies(truth, labels)), [1.0])


def test_no_image_has_no_agreement(ours):
    truth = np.full((3, 5), -1)

    assert ours(contingencies(truth, np.zeros_like(truth))).shape == (0,)


def test_two_pixels_of_two_groups_can_be_told_apart(ours):
    truth = np.array([[0, 1], [0, 1]])

    assert_array_equal(ours(contingencies(truth, np.array([[1, 0], [0, 0]]))), [1.0, 0.0])
