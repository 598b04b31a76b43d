"""Files of images in the published layout become datasets of groups, or say what is wrong."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from embench import make_dataset, registry
from embench.measuring.plan import plan
from embench.measuring.suite import customised, load_suite
from embench.types import InputError, Spec

h5py = pytest.importorskip("h5py")

PARTS = ("features", "groups", "overlaps")


def published(n_steps=1, n_images=12, height=5, width=4, seed=0):
    """Arrays as they are published: group 0 where there is no object, or more than one."""
    rng = np.random.default_rng(seed)
    shape = (n_steps, n_images, height, width, 1)
    groups = rng.integers(0, 4, size=shape)
    overlaps = (rng.random(shape) < 0.1).astype(float)
    groups[overlaps > 0] = 0
    return {"features": (groups > 0).astype(np.float32), "groups": groups, "overlaps": overlaps}


@pytest.fixture
def write(tmp_path):
    """Write arrays of the three groups of a file and return its path."""

    def writer(name="shapes.h5", **groups):
        default = {group: published(seed=i) for i, group in enumerate(("training", "test"))}
        with h5py.File(tmp_path / name, "w") as file:
            for group, arrays in {**default, **groups}.items():
                for part, array in arrays.items():
                    file[f"{group}/{part}"] = array
        return str(tmp_path / name)

    return writer


@pytest.mark.parametrize("name", ["shapes.h5", "SHAPES.HDF5"])
def test_images_groups_and_overlaps_are_those_of_the_file(write, name):
    path = write(name)
    parts = {part: array[0].reshape(12, -1) for part, array in published(seed=1).items()}

    data = make_dataset(path)

    assert data.task == "grouping"
    assert data.image_shape == (5, 4)
    assert data.n_components == 3
    assert data.X_train.dtype == np.float64
    assert_array_equal(data.X_test, parts["features"])
    assert_array_equal(data.y_test, parts["groups"] - 1)
    assert_array_equal(data.overlap_test, parts["overlaps"] > 0)
    assert data.y_top_test is None


def test_several_steps_are_sequences(write):
    many = published(n_steps=3)
    path = write(training=many, test=many)

    data = make_dataset(path)

    assert data.X_test.shape == data.y_test.shape == (12, 3, 20)
    assert_array_equal(data.X_test[:, 2], many["features"][2].reshape(12, -1))


def test_a_seed_takes_other_images_where_there_are_more_than_asked_for(write):
    path = write(training=published(n_images=200), test=published(n_images=200))

    one, again, other = (make_dataset(path, seed=seed, n_test=7, n_train=9) for seed in (0, 0, 1))

    assert (len(one.X_test), len(one.X_train)) == (7, 9)
    assert_array_equal(one.X_test, again.X_test)
    assert not np.array_equal(one.X_test, other.X_test)


def test_pixels_under_several_objects_belong_to_none_whatever_their_group(write):
    arrays = published()
    arrays["groups"][...] = 2

    data = make_dataset(write(test=arrays))

    assert_array_equal(data.y_test, np.where(data.overlap_test, -1, 1))


def test_without_overlaps_nobody_knows_them(write):
    path = write(test={part: published()[part] for part in PARTS[:2]})

    assert make_dataset(path).overlap_test is None


def test_an_edited_file_has_another_version(write):
    before = registry.version("dataset", Spec(path := write()))
    again = registry.version("dataset", Spec(path))

    after = registry.version("dataset", Spec(write(test=published(seed=9))))

    assert before == again != after


def test_a_file_of_images_can_be_planned(write):
    planned = plan(customised(load_suite("grouping"), datasets=write(), seeds=1))

    assert {trial.model.name for trial in planned.trials} >= {"pixel-kmeans", "random-groups"}
    assert planned.left_out == ()


# What is wrong


def test_a_missing_file_says_where_the_data_are_and_what_is_expected():
    with pytest.raises(InputError, match=r"nowhere.h5: No such file.*Neural-EM.*n_steps, n_images"):
        make_dataset("nowhere.h5")


def test_version_of_a_missing_file_is_an_error():
    with pytest.raises(InputError, match="No such file"):
        registry.version("dataset", Spec("nowhere.h5"))


def test_without_h5py_the_remedy_is_said(write, monkeypatch):
    path = write()
    monkeypatch.setitem(sys.modules, "h5py", None)

    with pytest.raises(InputError, match=r"pip install 'embench\[hdf5\]'"):
        make_dataset(path)


def test_another_format_is_refused(tmp_path):
    path = tmp_path / "text.h5"
    path.write_text("no images")

    with pytest.raises(InputError, match=r"text.h5: not a readable file of HDF5"):
        make_dataset(str(path))


@pytest.mark.parametrize(
    ("test", "why"),
    [
        ({"features": published()["features"]}, "there is no test/groups"),
        ({**published(), "features": np.zeros((12, 20))}, r"test/features has shape \(12, 20\)"),
        ({**published(), "groups": published(n_images=3)["groups"]}, "arrays of one shape in test"),
        (published(width=7), r"images of one size in training and test, got \(20,\) and \(35,\)"),
    ],
)
def test_another_layout_is_refused(write, test, why):
    path = write(test=test)

    with pytest.raises(InputError, match=why):
        make_dataset(path)
