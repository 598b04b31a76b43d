"""Images of shapes have the statistics of the published data, and groups that follow the shapes."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_array_equal
from strategies import law, seeds

from embench import make_dataset
from embench.datasets.shapes import PICTURES, _drawn, _mask
from embench.types import InputError

NAMES = ("shapes", "flying-shapes", "continuous-shapes")
LARGE = [_mask(picture) for picture in PICTURES["large"]]
SPRITES = [*LARGE, LARGE[1][::-1]]


def images(name="shapes", seed=0, **params):
    """A small dataset."""
    return make_dataset(name, seed=seed, **{"n_train": 4, "n_test": 10, **params})


def coverage(size):
    """Probability that one shape covers a pixel, (size, size): every place is equally likely."""
    covered = np.zeros((size, size))
    for sprite in SPRITES:
        height, width = sprite.shape
        places = (size - height + 1) * (size - width + 1)
        for row in range(size - height + 1):
            for column in range(size - width + 1):
                covered[row : row + height, column : column + width] += sprite / places
    return covered / len(SPRITES)


# What is published


def test_the_sprites_are_the_published_ones():
    square, triangle = LARGE

    assert (square.shape, square.sum()) == ((7, 7), 40)
    assert not square[2:5, 2:5].any()
    assert (triangle.shape, triangle.sum()) == ((7, 12), 48)
    assert_array_equal(triangle, triangle[:, ::-1])


def test_the_share_of_lit_pixels_and_of_overlaps_is_that_of_independent_shapes():
    data = images(n_test=20_000)
    p = coverage(28)
    lit, single = 1 - (1 - p) ** 3, 3 * p * (1 - p) ** 2

    found = [data.X_test.mean(axis=1), data.overlap_test.mean(axis=1)]

    for per_image, expected in zip(found, [lit.mean(), (lit - single).mean()], strict=True):
        error = per_image.std() / math.sqrt(len(per_image))
        assert per_image.mean() == pytest.approx(expected, abs=4 * error)


def test_the_statistics_are_those_of_the_published_data():
    p = coverage(28)
    lit, single = 1 - (1 - p) ** 3, 3 * p * (1 - p) ** 2
    n_images = 20_000
    data = images(n_test=n_images)

    apart = np.mean(~data.overlap_test.any(axis=1))

    # Reported of many images, to the digits given: .160 of the pixels lit, .0905 as many under
    # several shapes as under one, 28.5 % of the images without any such pixel.
    assert lit.mean() == pytest.approx(0.160, abs=0.0005)
    assert (lit - single).sum() / single.sum() == pytest.approx(0.0905, abs=0.0005)
    # Four standard errors of this sample and as many of the reported one, if that had 10,000.
    errors = math.sqrt(0.285 * 0.715) * (n_images**-0.5 + 10_000**-0.5)
    assert apart == pytest.approx(0.285, abs=4 * errors)


# Groups


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("size", [20, 28])
def test_labels_and_masks_say_the_same(name, size):
    data = images(name, size=size)

    assert data.image_shape == (size, size)
    assert data.X_train.shape[1:] == data.X_test.shape[1:]
    for part in (data.y_test, data.y_top_test, data.overlap_test):
        assert part.shape == data.X_test.shape
    assert (data.X_test.dtype, data.y_test.dtype) == (np.float64, np.int64)
    assert data.y_top_test.max() == data.n_components - 1
    assert_array_equal(data.y_test[~data.overlap_test], data.y_top_test[~data.overlap_test])
    assert np.all(data.y_test[data.overlap_test] == -1)
    assert np.all(data.y_top_test[data.overlap_test] >= 1), "something lies below"


@pytest.mark.parametrize("name", ["shapes", "flying-shapes"])
def test_binary_images_are_lit_where_there_is_a_shape(name):
    data = images(name)

    assert_array_equal(data.X_test, (data.y_top_test >= 0).astype(float))


@law
@given(st.integers(1, 5), st.integers(12, 30), seeds)
def test_shapes_that_do_not_overlap_have_all_their_pixels(n_shapes, size, seed):
    data = images(seed=seed, n_shapes=n_shapes, size=size, sprites="large")

    whole = data.y_test[~data.overlap_test.any(axis=1)]
    counts = (whole[..., None] == np.arange(n_shapes)).sum(axis=1)

    assert np.isin(counts, [40, 48]).all()


@law
@given(st.integers(0, 3), st.integers(0, 3), seeds)
def test_an_image_moves_with_its_shapes(down, right, seed):
    rng = np.random.default_rng(seed)
    kinds = rng.integers(3, size=(5, 3))
    places = rng.integers(0, 13, size=(5, 3, 2))

    here = _drawn(kinds, places, SPRITES, 28)
    there = _drawn(kinds, places + np.array([down, right]), SPRITES, 28)

    for one, other in zip(here, there, strict=True):
        moved = np.roll(one.reshape(5, 28, 28), (down, right), axis=(1, 2))
        assert_array_equal(moved.reshape(5, -1), other)


def test_canvas_and_shapes_are_large_or_small_by_default():
    large, small = images(), images(size=20)

    assert (large.n_components, small.n_components) == (3, 2)
    assert images(size=20, sprites="large", n_shapes=3).X_test.sum() > small.X_test.sum()


def test_a_canvas_too_small_says_how_large_it_must_be():
    with pytest.raises(InputError, match=r"large sprites, at least 12 pixels wide, got size=11"):
        images(size=11, sprites="large")


# Seeds


@pytest.mark.parametrize("name", NAMES)
def test_the_images_held_out_do_not_depend_on_how_many_are_fitted(name):
    few, many = images(name, n_train=2), images(name, n_train=20)

    assert_array_equal(few.X_test, many.X_test)
    assert many.X_train.shape[0] == 20


# Shades


def test_brightness_is_that_of_the_shape_on_top_and_noise_is_everywhere():
    data = images("continuous-shapes", n_test=200, noise=0.01)

    ground = data.X_test[data.y_top_test == -1]
    lit = data.X_test[data.y_top_test >= 0]

    # Five standard errors of a standard deviation and of a mean.
    n = len(ground)
    assert ground.std() == pytest.approx(0.01, rel=5 / math.sqrt(2 * n))
    assert ground.mean() == pytest.approx(0, abs=0.05 / math.sqrt(n))
    assert lit.min() > 0.5 - 6 * 0.01
    assert lit.max() < 1.0 + 6 * 0.01


def test_without_noise_a_shape_has_one_brightness():
    data = images("continuous-shapes", noise=0)

    for image, top in zip(data.X_test, data.y_top_test, strict=True):
        assert all(len(np.unique(image[top == group])) <= 1 for group in range(-1, 3))


# Motion


def test_shapes_without_speed_stand_still():
    data = images("flying-shapes", speed=0)

    assert_array_equal(data.X_test, np.repeat(data.X_test[:, :1], 20, axis=1))


@law
@given(st.floats(0, 3), seeds)
def test_a_shape_moves_by_its_speed_at_most_and_stays_whole(speed, seed):
    data = images("flying-shapes", seed=seed, n_shapes=1, speed=speed)

    frames = data.X_test.reshape(10, 20, 28, 28)
    for axis in (2, 3):
        first = frames.any(axis=5 - axis).argmax(axis=2)  # the shape's first row, or column
        assert np.abs(np.diff(first, axis=1)).max() <= math.ceil(speed)
    assert np.isin(frames.sum(axis=(2, 3)), [40, 48]).all()


def test_every_frame_has_the_law_of_an_image():
    data = images("flying-shapes", n_test=2000, n_shapes=1, n_steps=13)
    p = coverage(28)

    last = data.X_test[:, -1].mean(axis=0).reshape(28, 28)

    # 784 pixels, each within five standard errors of a share of 2000.
    assert np.all(np.abs(last - p) <= 5 * np.sqrt(p * (1 - p) / 2000))
