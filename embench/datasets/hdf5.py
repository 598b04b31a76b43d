"""Images with groups from a file of HDF5, in the layout of those published for Neural EM."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from pydantic import PositiveInt, validate_call

from embench.datasets.splitting import Seed, data_rng
from embench.types import BoolArray, Dataset, FloatArray, InputError, IntArray

LAYOUT = (
    "groups training and test, each with arrays features and groups, and perhaps overlaps, of "
    "shape (n_steps, n_images, height, width, 1); in groups 0 belongs to none"
)
PUBLISHED = "the data of Neural EM are linked from github.com/sjoerdvansteenkiste/Neural-EM"


class Images(NamedTuple):
    """Pixels, groups and overlaps, (n_images, n_pixels), or (n_sequences, n_steps, n_pixels)."""

    X: FloatArray
    groups: IntArray
    overlap: BoolArray | None
    shape: tuple[int, int]


@dataclass(frozen=True)
class ImageFile:
    """Images in a .h5 or .hdf5 file; calling it with a seed gives some of them.

    Those to be fitted on come from the group "training", those to be judged on from "test".
    "validation" is not read: a model that needs to validate parts what it is given.
    """

    path: str

    @validate_call
    def __call__(
        self,
        seed: Seed,
        *,
        n_components: PositiveInt | None = None,
        n_train: PositiveInt = 10_000,
        n_test: PositiveInt = 1000,
    ) -> Dataset:
        """Read and check images, all of them with one step or sequences of several.

        Args:
            seed: Decides where in the file the images begin that are taken; they follow each
                other, so that no more is read.
            n_components: Groups to look for; None for the highest number of a group.
            n_train, n_test: How many to take, if there are as many.

        Raises:
            InputError: The file is not there or of another layout, or h5py is not installed.
        """
        rng = data_rng(seed)
        with self._opened() as file:
            test = self._images(file, "test", n_test, rng)
            train = self._images(file, "training", n_train, rng)
        if train.shape != test.shape or train.X.shape[1:] != test.X.shape[1:]:
            raise InputError(
                f"{self.path}: expected images of one size in training and test, got "
                f"{train.X.shape[1:]} and {test.X.shape[1:]}"
            )
        return Dataset(
            train.X,
            test.X,
            n_components=n_components or int(test.groups.max()) + 1 or None,
            y_test=test.groups,
            overlap_test=test.overlap,
            image_shape=test.shape,
        )

    def version(self, **params: Any) -> str:
        """Digest of the file's content: records of another content never answer for this one."""
        try:
            with Path(self.path).open("rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest()[:8]
        except OSError as error:
            raise self._missing(error) from error

    def _opened(self) -> Any:
        try:
            import h5py
        except ModuleNotFoundError as error:
            raise InputError(
                f"{self.path}: files of HDF5 need h5py: pip install 'embench[hdf5]'"
            ) from error
        try:
            with Path(self.path).open("rb"):
                return h5py.File(self.path)
        except OSError as error:
            if error.filename is not None:
                raise self._missing(error) from error
            raise InputError(f"{self.path}: not a readable file of HDF5: {error}") from error

    def _missing(self, error: OSError) -> InputError:
        return InputError(
            f"cannot read {self.path}: {error.strerror}; {PUBLISHED}, in the layout expected here: "
            f"{LAYOUT}"
        )

    def _images(self, file: Any, name: str, count: int, rng: np.random.Generator) -> Images:
        """As many of a group's images as there are, at most ``count``."""
        parts = {part: self._array(file, f"{name}/{part}") for part in ("features", "groups")}
        if f"{name}/overlaps" in file:
            parts["overlaps"] = self._array(file, f"{name}/overlaps")
        shapes = {part: array.shape for part, array in parts.items()}
        if len(set(shapes.values())) > 1:
            raise InputError(f"{self.path}: expected arrays of one shape in {name}, got {shapes}")
        _, n_images, height, width, _ = shapes["features"]
        begin = int(rng.integers(max(0, n_images - count) + 1))
        found = {part: _rows(array[:, begin : begin + count]) for part, array in parts.items()}
        groups = found["groups"].astype(np.int64) - 1
        overlap = found["overlaps"] > 0 if "overlaps" in found else None
        if overlap is not None:
            groups[overlap] = -1
        return Images(found["features"].astype(np.float64), groups, overlap, (height, width))

    def _array(self, file: Any, name: str) -> Any:
        if name not in file:
            raise InputError(f"{self.path}: there is no {name}; expected {LAYOUT}")
        shape: tuple[int, ...] = getattr(file[name], "shape", ())
        if len(shape) != 5 or shape[-1] != 1 or 0 in shape:
            raise InputError(f"{self.path}: {name} has shape {shape}; expected {LAYOUT}")
        return file[name]


def _rows(array: Any) -> Any:
    """From (n_steps, n_images, height, width, 1) to images, or sequences, with rows joined."""
    n_steps, n_images = array.shape[:2]
    sequences = array.reshape(n_steps, n_images, -1).swapaxes(0, 1)
    return sequences[:, 0] if n_steps == 1 else sequences
