"""Images of a few shapes on an empty ground: which pixels belong together?"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, FiniteFloat, PositiveInt, validate_call

from embench.datasets.splitting import Seed, data_rng
from embench.types import Dataset, FloatArray, InputError, IntArray

Sprites = Literal["large", "small"]
Side = Annotated[int, Field(ge=7)]

LARGE_FROM = 28
"""Side [pixel] from which a canvas has three large sprites where nobody says; below, two small."""

PICTURES: Mapping[Sprites, tuple[str, ...]] = {
    "large": (
        """
        #######
        #######
        ##...##
        ##...##
        ##...##
        #######
        #######
        """,
        """
        .....##.....
        ....####....
        ...######...
        ..###..###..
        .###....###.
        ############
        ############
        """,
    ),
    "small": (
        """
        #####
        #...#
        #...#
        #...#
        #####
        """,
        """
        ...#...
        ..###..
        .##.##.
        #######
        """,
    ),
}
"""A square and a triangle; the third sprite is the triangle upside down."""


class Scenes(NamedTuple):
    """What was drawn: ``top``, the number of the shape drawn last on each pixel, -1 where there is
    none, and ``n_covers``, how many lie there; both (n_images, n_pixels)."""

    top: NDArray[np.int8]
    n_covers: NDArray[np.int8]


@validate_call
def shapes(
    seed: Seed,
    *,
    size: Side = 28,
    n_shapes: PositiveInt | None = None,
    sprites: Sprites | None = None,
    n_train: PositiveInt = 10_000,
    n_test: PositiveInt = 1000,
) -> Dataset:
    """Binary images of squares and triangles, overlapping: which pixels are one shape?

    Every shape is one of three sprites, drawn with replacement, somewhere within the canvas; a
    pixel is 1 if any shape covers it. The published data are those of size 28.

    Args:
        seed: Any integer >= 0.
        size: Height and width of the canvas [pixel].
        n_shapes: Shapes in each image; None for 3 if ``size`` is 28 or more, else 2.
        sprites: "large" (7 x 7 and 7 x 12) or "small" (5 x 5 and 4 x 7); None for large if ``size``
            is 28 or more, else small.
        n_train: Images to fit on.
        n_test: Images to be judged on; they do not depend on ``n_train``.

    Returns:
        A `Dataset` whose rows are images of 0 and 1, (n_images, size * size), with groups.

    Raises:
        InputError: The sprites are larger than the canvas.

    Source:
        Greff, van Steenkiste and Schmidhuber (2017), Neural expectation maximization, section 4.1.

    Example:
        >>> data = shapes(0, size=20, n_train=5, n_test=5)
        >>> data.X_train.shape, data.n_components, np.unique(data.y_test).tolist()
        ((5, 400), 2, [-1, 0, 1])
    """
    pictures, n_shapes = _chosen(size, n_shapes, sprites)

    def images(rng: np.random.Generator, n_images: int) -> tuple[FloatArray, Scenes]:
        scenes = _still(rng, n_images, n_shapes, pictures, size)
        return (scenes.n_covers > 0).astype(np.float64), scenes

    return _dataset(seed, images, n_train, n_test, n_shapes, size)


@validate_call
def continuous_shapes(
    seed: Seed,
    *,
    size: Side = 28,
    n_shapes: PositiveInt | None = None,
    sprites: Sprites | None = None,
    noise: Annotated[FiniteFloat, Field(ge=0)] = 0.1,
    n_train: PositiveInt = 10_000,
    n_test: PositiveInt = 1000,
) -> Dataset:
    """Shapes of different brightness in noise: the images of ``shapes`` in shades of grey.

    The brightness of a shape is uniform in [0.5, 1], a shape hides what was drawn before, and
    every pixel, those of the ground of brightness 0 too, has Gaussian noise.

    Args:
        seed, size, n_shapes, sprites, n_train, n_test: As in `shapes`.
        noise: Standard deviation of the noise [of a brightness of 1].

    Example:
        >>> data = continuous_shapes(0, size=20, n_train=5, n_test=5)
        >>> data.X_train.shape, bool(data.X_test.min() < 0)
        ((5, 400), True)
    """
    pictures, n_shapes = _chosen(size, n_shapes, sprites)

    def images(rng: np.random.Generator, n_images: int) -> tuple[FloatArray, Scenes]:
        scenes = _still(rng, n_images, n_shapes, pictures, size)
        shades = rng.uniform(0.5, 1.0, (n_images, n_shapes))
        ground = np.zeros((n_images, 1))  # the last column is what index -1 finds
        X = np.take_along_axis(np.hstack([shades, ground]), scenes.top % (n_shapes + 1), axis=1)
        return X + noise * rng.standard_normal(X.shape), scenes

    return _dataset(seed, images, n_train, n_test, n_shapes, size)


@validate_call
def flying_shapes(
    seed: Seed,
    *,
    size: Side = 28,
    n_shapes: PositiveInt | None = None,
    sprites: Sprites | None = None,
    n_steps: PositiveInt = 20,
    speed: Annotated[FiniteFloat, Field(ge=0)] = 2.0,
    n_train: PositiveInt = 1000,
    n_test: PositiveInt = 50,
) -> Dataset:
    """Sequences of binary images: shapes that fly straight on and bounce off the border.

    Both parts of a shape's velocity are uniform in [-speed, speed]. Every single frame has the law
    of an image of ``shapes``.

    Args:
        seed, size, n_shapes, sprites: As in `shapes`.
        n_steps: Images in a sequence.
        speed: The largest part of a velocity along an axis [pixel per step].
        n_train, n_test: Sequences to fit on and to be judged on.

    Returns:
        A `Dataset` with X of shape (n_sequences, n_steps, size * size), groups likewise; a shape
        keeps its group all along.

    Example:
        >>> data = flying_shapes(0, size=20, n_steps=4, n_train=5, n_test=5)
        >>> data.X_train.shape, data.y_test.shape
        ((5, 4, 400), (5, 4, 400))
    """
    pictures, n_shapes = _chosen(size, n_shapes, sprites)

    def images(rng: np.random.Generator, n_sequences: int) -> tuple[FloatArray, Scenes]:
        scenes = _flying(rng, n_sequences, n_shapes, pictures, size, n_steps, speed)
        return (scenes.n_covers > 0).astype(np.float64), scenes

    return _dataset(seed, images, n_train, n_test, n_shapes, size)


def _chosen(
    size: int, n_shapes: int | None, sprites: Sprites | None
) -> tuple[list[NDArray[np.bool_]], int]:
    """The three sprites as masks, and how many shapes there are in an image."""
    sprites = sprites or ("large" if size >= LARGE_FROM else "small")
    square, triangle = map(_mask, PICTURES[sprites])
    widest = max(*square.shape, *triangle.shape)
    if widest > size:
        raise InputError(
            f"expected a canvas that holds the {sprites} sprites, at least {widest} pixels wide, "
            f"got size={size}"
        )
    return [square, triangle, triangle[::-1]], n_shapes or (3 if size >= LARGE_FROM else 2)


def _mask(picture: str) -> NDArray[np.bool_]:
    return np.array([[sign == "#" for sign in line] for line in picture.split()])


def _dataset(
    seed: int,
    images: Callable[[np.random.Generator, int], tuple[FloatArray, Scenes]],
    n_train: int,
    n_test: int,
    n_shapes: int,
    size: int,
) -> Dataset:
    """Images to fit on and to be judged on; the latter first, whatever the number of the former."""
    rng = data_rng(seed)
    X_test, scenes = images(rng, n_test)
    X_train, _ = images(rng, n_train)
    overlap = scenes.n_covers > 1
    top = scenes.top.astype(np.int64)
    return Dataset(
        X_train,
        X_test,
        n_components=n_shapes,
        y_test=np.where(overlap, -1, top),
        y_top_test=top,
        overlap_test=overlap,
        image_shape=(size, size),
    )


def _still(
    rng: np.random.Generator,
    n_images: int,
    n_shapes: int,
    pictures: list[NDArray[np.bool_]],
    size: int,
) -> Scenes:
    """Shapes at places of which all are equally likely."""
    kinds = rng.integers(len(pictures), size=(n_images, n_shapes))
    places = rng.random((n_images, n_shapes, 2)) * _n_places(pictures, size)[kinds]
    return _drawn(kinds, places.astype(np.int64), pictures, size)


def _flying(
    rng: np.random.Generator,
    n_sequences: int,
    n_shapes: int,
    pictures: list[NDArray[np.bool_]],
    size: int,
    n_steps: int,
    speed: float,
) -> Scenes:
    """Shapes on straight lines that the border folds back, (n_sequences, n_steps, n_pixels)."""
    kinds = rng.integers(len(pictures), size=(n_sequences, 1, n_shapes))
    n_places = _n_places(pictures, size)[kinds]
    start = rng.random(n_places.shape) * n_places
    velocity = rng.uniform(-speed, speed, n_places.shape)
    path = (start + np.arange(n_steps)[:, None, None] * velocity) % (2 * n_places)
    # On the way back a whole number of pixels belongs to the place before it: hence the ceiling.
    places = np.where(path < n_places, np.floor(path), np.ceil(2 * n_places - path) - 1)
    flat = places.astype(np.int64).reshape(-1, n_shapes, 2)
    every = np.broadcast_to(kinds, (n_sequences, n_steps, n_shapes)).reshape(-1, n_shapes)
    scenes = _drawn(every, flat, pictures, size)
    return Scenes(*(part.reshape(n_sequences, n_steps, -1) for part in scenes))


def _n_places(pictures: list[NDArray[np.bool_]], size: int) -> IntArray:
    """How many rows and columns the corner of each sprite can be in, (n_sprites, 2)."""
    return size + 1 - np.array([picture.shape for picture in pictures])


def _drawn(
    kinds: IntArray, places: IntArray, pictures: list[NDArray[np.bool_]], size: int
) -> Scenes:
    """Draw sprites ``kinds`` (n_images, n_shapes) with corners at ``places`` (..., 2), in order."""
    top = np.full((len(kinds), size * size), -1, dtype=np.int8)
    n_covers = np.zeros_like(top)
    for group in range(kinds.shape[1]):
        for kind, picture in enumerate(pictures):
            which = np.flatnonzero(kinds[:, group] == kind)
            offsets = np.ravel_multi_index(np.nonzero(picture), (size, size))
            corners = places[which, group] @ np.array([size, 1])
            at = which[:, None], corners[:, None] + offsets
            top[at] = group
            n_covers[at] += 1
    return Scenes(top, n_covers)
