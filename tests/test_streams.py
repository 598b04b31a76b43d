"""A fit to data that are read in chunks goes the way of a fit in memory."""

from __future__ import annotations

import pickle
import subprocess
import sys
import textwrap
from pathlib import Path

import dask
import dask.array as da
import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.base import clone
from strategies import COVARIANCE_TYPES, covariance_types, law, problems, random_mixture, seeds

from embench import gaussian, make_dataset, make_model
from embench.models import sources, streams
from embench.models.engine import FAMILIES, Samples, softmax
from embench.models.steps import MixtureByEM

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")


def saved(X, path):
    np.save(path, X)
    return path


def parquet(X, path):
    pd.DataFrame(X).rename(columns=str).to_parquet(path, row_group_size=150)
    return path


def dask_array(X):
    """In blocks of several chunks or less than one, cut along the features, too."""
    return da.from_array(X, chunks=(170, 2))


PLACES = {
    "memory map": lambda X, folder: np.load(saved(X, folder / "x.npy"), mmap_mode="r"),
    "memory map by columns": lambda X, folder: np.load(
        saved(np.asfortranarray(X), folder / "x.npy"), mmap_mode="r"
    ),
    "rows of a memory map": lambda X, folder: np.load(
        saved(np.vstack([X[:7], X]), folder / "x.npy"), mmap_mode="r"
    )[7:],
    "path": lambda X, folder: saved(X, folder / "x.npy"),
    "path as text": lambda X, folder: str(saved(X, folder / "x.npy")),
    "parquet": lambda X, folder: parquet(X, folder / "x.parquet"),
    "dask": lambda X, folder: dask_array(X),
}


N_TRAIN = 803


class Pieces(sources.Stream):
    """An array cut at given rows."""

    def __init__(self, X, cuts):
        super().__init__(X.shape, X.dtype, "auto")
        self.pieces = [piece for piece in np.split(X, sorted(cuts)) if len(piece)]

    def chunks(self):
        return iter(self.pieces)


@pytest.fixture(params=PLACES)
def place(request):
    return PLACES[request.param]


@pytest.fixture(scope="module")
def data():
    return make_dataset("blobs", seed=1, n_samples=N_TRAIN, n_features=3, n_components=4, n_test=9)


@pytest.fixture
def small_chunks(monkeypatch):
    """Chunks of 100 rows of three features, so that no count of rows is a multiple."""
    monkeypatch.setattr(sources, "CHUNK_BYTES", 2400)


def em(**params):
    return make_model("em", **{"n_components": 4, "tol": 0.0, "random_state": 0, **params})


def assert_same_fit(one, other, tolerance=1e-10):
    for name in ("weights_", "means_", "covariances_", "precisions_cholesky_"):
        ours, theirs = getattr(one, name), getattr(other, name)
        assert ours.dtype == theirs.dtype
        assert_allclose(ours, theirs, rtol=tolerance, atol=tolerance)
    assert_allclose(one.lower_bounds_, other.lower_bounds_, rtol=tolerance)
    assert one.n_features_in_ == other.n_features_in_


# The laws


@law
@given(
    covariance_types.flatmap(lambda family: st.tuples(st.just(family), problems(family))),
    st.lists(st.integers(1, 59), max_size=4),
    st.booleans(),
    st.booleans(),
    seeds,
)
def test_statistics_are_those_of_the_whole_wherever_it_is_cut(problem, cuts, weighted, hot, seed):
    covariance_type, (mixture, X) = problem
    rng = np.random.default_rng(seed)
    weights = rng.uniform(0, 2, len(X)) if weighted else None
    whole = Samples.of(X, FAMILIES[covariance_type], sample_weight=weights)
    model = make_model("em", covariance_type=covariance_type).start_from(mixture)
    model.set_params(n_components=mixture.n_components, max_iter=0).fit(X)
    posterior = half_hot if hot else softmax

    streamed, rows, own = streams.read(
        Pieces(X, cuts),
        FAMILIES[covariance_type],
        1e-6,
        np.random.RandomState(0),
        sample_weight=weights,
    )

    assert_array_equal(rows, X)
    assert (own is None) == (weights is None)
    assert_allclose(streamed.frame.centre, whole.frame.centre, rtol=1e-12, atol=1e-12)
    assert_allclose(streamed.frame.scale, whole.frame.scale, rtol=1e-11, atol=1e-11)
    assert streamed.radius_squared == pytest.approx(whole.radius_squared, rel=1e-10)
    start = whole.frame.inward(model._parameters())
    every_second = np.arange(mixture.n_components) % 2 == 1
    ours, theirs = (
        samples.e_step(start, posterior=posterior, exact=every_second)
        for samples in (streamed, whole)
    )
    for one, other in zip(ours, theirs, strict=True):
        assert_allclose(one, other, rtol=1e-9, atol=1e-9)


def half_hot(log_joint, xp):
    """A posterior that is not the softmax: that of annealing at half the temperature."""
    return softmax(0.5 * log_joint, xp)


@pytest.mark.usefixtures("small_chunks")
def test_the_farthest_sample_is_known_wherever_it_is(place, data, tmp_path):
    X = data.X_train.copy()
    X[-1] += 50
    expected = Samples.of(X, FAMILIES["full"])

    samples, *_ = streams.read(place(X, tmp_path), FAMILIES["full"], 1e-6, np.random.RandomState(0))

    assert samples.radius_squared == pytest.approx(expected.radius_squared, rel=1e-10)


def test_negligible_responsibilities_are_left_out_as_in_memory():
    data = make_dataset("blobs", seed=0, n_samples=900, n_features=40, n_components=8, separation=9)
    start = em(n_components=8, max_iter=0).fit(data.X_train)._parameters()
    whole = Samples.of(data.X_train, FAMILIES["full"])
    streamed, *_ = streams.read(
        Pieces(data.X_train, [200, 500]), FAMILIES["full"], 1e-6, np.random.RandomState(0)
    )

    ours, theirs = (
        [(samples.e_step(samples.frame.inward(start)), samples.sparse)[::-1] for _ in range(2)]
        for samples in (streamed, whole)
    )

    for (our_sparse, our_sums), (sparse, sums) in zip(ours, theirs, strict=True):
        assert our_sparse
        assert sparse
        for one, other in zip(our_sums, sums, strict=True):
            assert_allclose(one, other, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("covariance_type", COVARIANCE_TYPES)
@pytest.mark.usefixtures("small_chunks")
def test_a_fit_is_that_in_memory(place, covariance_type, data, tmp_path):
    start = random_mixture(np.random.default_rng(0), 4, 3, covariance_type)
    params = {"covariance_type": covariance_type, "max_iter": 12}
    expected = em(**params).start_from(start).fit(data.X_train)

    model = em(**params).start_from(start).fit(place(data.X_train, tmp_path))

    assert_same_fit(model, expected)


@pytest.mark.parametrize(
    "name",
    [
        "squarem-em",
        "anderson-em",
        "over-relaxed-em",
        "natural-gradient-em",
        "annealed-em",
        "hard-em",
        "map-em",
    ],
)
def test_a_variant_that_needs_no_more_than_sums_reads_files_like_em(name, data, tmp_path):
    expected = make_model(name, n_components=4, random_state=0).fit(data.X_train)

    model = clone(expected).fit(saved(data.X_train, tmp_path / "x.npy"))

    assert_same_fit(model, expected, 1e-8)


@pytest.mark.parametrize("init_params", ["kmeans", "k-means++", "random", "random_from_data"])
@pytest.mark.parametrize("n_init", [1, 3])
@pytest.mark.usefixtures("small_chunks")
def test_few_samples_give_the_start_that_they_give_in_memory(n_init, init_params, data, tmp_path):
    params = {"init_params": init_params, "n_init": n_init, "max_iter": 5}
    expected = em(**params).fit(data.X_train)

    model = em(**params).fit(saved(data.X_train, tmp_path / "x.npy"))

    assert_same_fit(model, expected)


@pytest.mark.usefixtures("small_chunks")
def test_weights_count_as_in_memory(place, data, tmp_path):
    weights = np.random.default_rng(0).uniform(0, 2, len(data.X_train))
    weights[:300] = 0  # whole chunks that do not count
    expected = em(max_iter=5).fit(data.X_train, sample_weight=weights)

    model = em(max_iter=5).fit(place(data.X_train, tmp_path), sample_weight=weights)

    assert_same_fit(model, expected)


@pytest.mark.parametrize("chunk_rows", [1, 17, 400, 803, 10_000])
def test_the_size_of_chunks_changes_nothing(chunk_rows, data, tmp_path, monkeypatch):
    path = saved(data.X_train, tmp_path / "x.npy")
    expected = em(max_iter=10).fit(path)
    monkeypatch.setattr(sources, "CHUNK_BYTES", 24 * chunk_rows)

    model = em(max_iter=10).fit(path)

    assert_same_fit(model, expected, tolerance=1e-12)


@pytest.mark.usefixtures("small_chunks")
def test_float32_stays_float32(place, data, tmp_path):
    X = data.X_train.astype(np.float32)
    expected = em(max_iter=5).fit(X)
    source = place(X, tmp_path)
    dtypes = {chunk.dtype for chunk in sources.opened(source).chunks()}

    model = em(max_iter=5).fit(source)

    assert dtypes == {np.dtype("float32")}
    assert_same_fit(model, expected, tolerance=1e-3)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_dtype_asked_for_is_that_of_the_passes(place, dtype, data, tmp_path):
    model = em(max_iter=2, dtype=dtype).fit(place(data.X_train.astype(np.float32), tmp_path))

    assert model.means_.dtype == dtype


def test_integers_are_read_as_float64(place, tmp_path):
    X = np.random.default_rng(0).integers(100, size=(200, 3))
    expected = em(max_iter=3).fit(X)

    model = em(max_iter=3).fit(place(X, tmp_path))

    assert_same_fit(model, expected)


@pytest.mark.usefixtures("small_chunks")
def test_the_stream_of_iterations_ends_where_fit_ends(place, data, tmp_path):
    source = place(data.X_train, tmp_path)
    expected, model = em(max_iter=4).fit(source), em(max_iter=4)

    yields = [(done, model.mixture_) for done in model.iter_fit(source)]

    assert [done for done, _ in yields] == [0, 1, 2, 3, 4]
    assert_array_equal(yields[-1][1].means, expected.mixture_.means)
    likelihoods = [gaussian.log_likelihood(mixture, data.X_train) for _, mixture in yields]
    assert np.all(np.diff(likelihoods) > 0)


def test_a_warm_start_goes_on(data, tmp_path):
    path = saved(data.X_train, tmp_path / "x.npy")
    expected = em(max_iter=10).fit(path)
    model = em(max_iter=5, warm_start=True).fit(path)

    model.fit(path)

    assert_allclose(model.means_, expected.means_, rtol=1e-9)


@pytest.mark.filterwarnings("ignore:X does not have valid feature names")
def test_samples_far_from_the_origin_lose_no_digits(place, tmp_path):
    near = np.round(make_dataset("blobs", seed=0).X_train * 2**20) / 2**20
    params = {"n_components": 3, "max_iter": 10}
    expected = em(**params).fit(near).score(near)

    model = em(**params).fit(place(near + 2.0**26, tmp_path))

    assert model.score(near + 2.0**26) == pytest.approx(expected, rel=1e-6)


@pytest.mark.filterwarnings("ignore:X has feature names")
@pytest.mark.usefixtures("small_chunks")
def test_what_is_said_of_each_sample_is_that_in_memory(place, data, tmp_path):
    model = em(max_iter=5).fit(data.X_train)
    source = place(data.X_train, tmp_path)

    labels = streams.each_sample(model.predict, source)
    score = streams.mean_of(model.score_samples, source)

    assert_array_equal(labels, model.predict(data.X_train))
    assert score == pytest.approx(gaussian.log_likelihood(model.mixture_, data.X_train), rel=1e-12)


@pytest.mark.parametrize("name", ["em", "student-t-em", "noise-em", "missing-em"])
def test_who_was_fitted_in_memory_speaks_of_a_file_all_the_same(name, data, tmp_path):
    model = make_model(name, n_components=2, random_state=0).fit(data.X_train)
    path = saved(data.X_test, tmp_path / "x.npy")

    for method in (model.score, model.score_samples, model.predict, model.predict_proba, model.bic):
        assert_array_equal(method(path), method(data.X_test))


# The start


def rows_for_a_start(X, folder, seed):
    stream = PLACES["memory map"](X, folder)
    _, rows, weights = streams.read(
        stream,
        FAMILIES["full"],
        1e-6,
        np.random.RandomState(seed),
        sample_weight=np.arange(1.0, len(X) + 1),
    )
    return rows, weights


@pytest.mark.filterwarnings("ignore:X has feature names")
def test_information_criteria_are_those_in_memory(place, data, tmp_path):
    model = em(max_iter=3).fit(data.X_train)
    source = place(data.X_train, tmp_path)

    criteria = model.bic(source), model.aic(source)

    assert_allclose(criteria, (model.bic(data.X_train), model.aic(data.X_train)), rtol=1e-12)


def test_names_of_features_are_kept_and_their_order_is_checked(data, tmp_path):
    table = pd.DataFrame(data.X_train, columns=["depth", "width", "mass"])
    table.to_parquet(path := tmp_path / "x.parquet")
    table[["width", "depth", "mass"]].to_parquet(swapped := tmp_path / "y.parquet")

    model = em(max_iter=3).fit(path)

    assert list(model.feature_names_in_) == ["depth", "width", "mass"]
    assert model.score(path) == pytest.approx(model.score(table), rel=1e-12)
    for method in (model.score, model.predict):
        with pytest.raises(ValueError, match="must be in the same order"):
            method(swapped)


def test_many_samples_give_a_start_made_of_some_drawn_uniformly(tmp_path, monkeypatch):
    n_samples, most = 20_000, 500
    monkeypatch.setattr(streams, "START_ROWS", most)
    X = np.arange(2.0 * n_samples).reshape(n_samples, 2)

    rows, weights = rows_for_a_start(X, tmp_path, 0)
    same, _ = rows_for_a_start(X, tmp_path, 0)
    other, _ = rows_for_a_start(X, tmp_path, 1)

    numbers = rows[:, 0] / 2
    assert_array_equal(rows, X[numbers.astype(int)])
    assert_array_equal(weights, numbers + 1)
    assert len(np.unique(numbers)) == most
    in_tenths = np.histogram(numbers, bins=10, range=(0, n_samples))[0]
    assert np.all(np.abs(in_tenths - most / 10) < 5 * np.sqrt(most * 0.1 * 0.9))
    assert_array_equal(rows, same)
    assert not np.array_equal(rows, other)


def test_many_features_give_a_start_made_of_fewer_samples(tmp_path, monkeypatch):
    monkeypatch.setattr(streams, "START_BYTES", 8 * 40 * 25)

    rows, _ = rows_for_a_start(np.random.default_rng(0).normal(size=(90, 40)), tmp_path, 0)

    assert rows.shape == (25, 40)


# What a stream is, and what it is not


def test_what_lives_in_memory_is_no_stream(data, tmp_path):
    mapped = PLACES["memory map"](data.X_train, tmp_path)

    assert sources.is_stream(mapped)
    assert sources.is_stream(mapped[3:, :2])
    for X in (data.X_train, data.X_train.tolist(), mapped + 1, mapped.copy(), mapped[[1, 2]]):
        assert not sources.is_stream(X)


@pytest.mark.parametrize("mode", ["c", "r+"])
@pytest.mark.usefixtures("small_chunks")
def test_what_was_written_to_the_mapping_is_fitted_and_kept(mode, data, tmp_path):
    changed = data.X_train.copy()
    changed[:50] += 100
    mapped = np.load(saved(data.X_train, tmp_path / "x.npy"), mmap_mode=mode)
    mapped[:50] += 100

    model = em(max_iter=3).fit(mapped)

    assert_same_fit(model, em(max_iter=3).fit(changed))
    assert_array_equal(mapped, changed)


def test_the_index_that_pandas_adds_is_no_feature(data, tmp_path):
    index = np.arange(len(data.X_train))[::-1]
    pd.DataFrame(data.X_train, index=index).rename(columns=str).to_parquet(tmp_path / "x.parquet")

    model = em(max_iter=2).fit(tmp_path / "x.parquet")

    assert model.n_features_in_ == 3


@pytest.mark.usefixtures("small_chunks")
def test_a_named_index_is_no_feature_and_numbers_are_no_names(data, tmp_path):
    table = pd.DataFrame(data.X_train)
    table.assign(depth=table[0]).set_index("depth").rename(columns=str).to_parquet(
        path := tmp_path / "x.parquet"
    )

    model = em(max_iter=2).fit(path)

    assert model.n_features_in_ == 3
    assert not hasattr(model, "feature_names_in_")


def test_blocks_of_unknown_length_are_counted(data):
    X = dask_array(data.X_train)
    expected = em(max_iter=3).fit(data.X_train[data.X_train[:, 0] > 0])

    some = X[X[:, 0] > 0]
    model = em(max_iter=3).fit(some)

    assert_same_fit(model, expected)
    assert np.isnan(some.shape[0]), "the caller's array is as it was"


def test_empty_blocks_are_passed_over(data):
    expected = em(max_iter=3).fit(data.X_train)

    model = em(max_iter=3).fit(da.from_array(data.X_train, chunks=((0, 400, 0, 403), (3,))))

    assert_same_fit(model, expected)


@pytest.mark.usefixtures("small_chunks")
def test_no_samples_travel_from_the_workers(data, monkeypatch):
    monkeypatch.setattr(streams, "START_ROWS", 20)
    sizes = []

    def watched(graph, keys, **options):
        results = dask.threaded.get(graph, keys, **options)
        sizes.append(len(pickle.dumps(results)))
        return results

    with dask.config.set(scheduler=watched):
        em(max_iter=3).fit(dask_array(data.X_train))

    assert len(sizes) == 2 + 3, "two passes before the first iteration, one for each"
    assert max(sizes) < data.X_train.nbytes / 5


@pytest.mark.slow
@pytest.mark.parametrize("posterior", [softmax, half_hot])
def test_workers_can_be_other_processes(posterior, data):
    samples = []

    for scheduler in ("synchronous", "processes"):
        with dask.config.set(scheduler=scheduler, num_workers=2):
            read, *_ = streams.read(
                dask_array(data.X_train), FAMILIES["full"], 1e-6, np.random.RandomState(0)
            )
            start = em(max_iter=0).fit(data.X_train)._parameters()
            samples.append(read.e_step(read.frame.inward(start), posterior=posterior))

    for one, other in zip(*samples, strict=True):
        assert_array_equal(one, other)


class NeedsSamples(MixtureByEM):
    """A variant whose step looks at single samples."""

    def _steps(self, samples, parameters, random_state):
        while True:
            samples = samples.take(random_state.permutation(samples.n_samples))
            yield samples.em_step(parameters)


class NeedsLogJoints(MixtureByEM):
    """Another one."""

    def _steps(self, samples, parameters, random_state):
        while True:
            yield samples.log_joint(parameters).mean(), parameters


def test_lots_are_not_drawn_by_several_workers(data):
    with pytest.raises(ValueError, match="look at single samples or draw"):
        make_model("stochastic-em", n_components=2).fit(dask_array(data.X_train))


@pytest.mark.parametrize("variant", [NeedsSamples, NeedsLogJoints])
def test_a_step_that_needs_single_samples_says_so(variant, data, tmp_path):
    path = saved(data.X_train, tmp_path / "x.npy")

    with pytest.raises(ValueError, match=r"look at single samples or draw.*load X into memory"):
        variant(2).fit(path)


# Wrong input


@pytest.mark.parametrize(("value", "kind"), [(np.nan, "NaN"), (-np.inf, "infinity")])
@pytest.mark.parametrize("name", ["memory map", "memory map by columns", "dask"])
def test_the_first_row_that_is_not_finite_is_named(name, value, kind, tmp_path):
    X = np.zeros((150_000, 2))
    X[123_456, 1] = value
    X[123_457:, 0] = np.nan
    place = PLACES[name] if name != "dask" else lambda X, folder: da.from_array(X, chunks=1000)

    with pytest.raises(ValueError, match=f"{kind}: in row 123456, column 1, both counted from 0"):
        em().fit(place(X, tmp_path))


def test_a_missing_value_of_a_parquet_file_is_named(tmp_path):
    table = pd.DataFrame({"a": [1.0, 2.0, 3.0], "b": pd.array([1, None, 3], dtype="Int64")})
    table.to_parquet(tmp_path / "x.parquet")

    with pytest.raises(ValueError, match="NaN: in row 1, column 1"):
        em(n_components=1).fit(tmp_path / "x.parquet")


def text_column(folder):
    pd.DataFrame({"a": [1.0, 2.0], "name": ["x", "y"]}).to_parquet(folder / "x.parquet")
    return folder / "x.parquet"


def empty_file(name):
    def make(folder):
        (folder / name).touch()
        return folder / name

    return make


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (text_column, "expected numbers in every column, got .*string in column 'name'"),
        (lambda folder: saved(np.array([["a"]]), folder / "x.npy"), "real numbers, got .* <U1"),
        (lambda folder: saved(np.ones((3, 2)) * 1j, folder / "x.npy"), "got .* complex128"),
        (lambda folder: saved(np.ones(5), folder / "x.npy"), r"got shape \(5,\)"),
        (lambda folder: saved(np.ones((0, 2)), folder / "x.npy"), r"empty table of shape \(0, 2\)"),
        (lambda folder: parquet(np.ones((0, 2)), folder / "x.parquet"), "empty table"),
        (lambda folder: da.ones((0, 2)), "empty table"),
        (empty_file("x.npy"), "x.npy: expected an array of numbers as numpy.save writes it"),
        (empty_file("x.parquet"), "x.parquet: not a readable Parquet file"),
        (empty_file("x.csv"), "path of a .npy or .parquet file of them, got '.*x.csv'"),
        (lambda folder: saved(np.ones((1, 2)), folder / "x.npy"), "minimum of 2 is required"),
        (lambda folder: saved(np.ones((3, 2)), folder / "x.npy"), "n_components = 4, n_samples"),
    ],
)
def test_wrong_data_are_refused_with_a_sentence(make, sentence, tmp_path):
    X = make(tmp_path)

    with pytest.raises(ValueError, match=sentence):
        em().fit(X)


def test_a_file_that_is_not_there_is_said(tmp_path):
    for name in ("x.npy", "x.parquet"):
        with pytest.raises(FileNotFoundError, match=name):
            em().fit(tmp_path / name)


@pytest.mark.parametrize(
    ("weights", "sentence"),
    [
        (np.ones(5), r"shape == \(5,\)"),
        (1.0 - 2.0 * (np.arange(N_TRAIN) == 400), "Negative"),
        (np.zeros(N_TRAIN), "non-zero"),
    ],
)
def test_wrong_weights_are_refused(weights, sentence, data, tmp_path, monkeypatch):
    monkeypatch.setattr(streams, "START_ROWS", 20)
    path = saved(data.X_train, tmp_path / "x.npy")

    with pytest.raises(ValueError, match=sentence):
        em().fit(path, sample_weight=weights)


def test_parameters_are_looked_at_before_the_data():
    with pytest.raises(ValueError, match="'dtype' parameter"):
        em(dtype="float16").fit("not-there.npy")


# Memory

GROWTH = """
    import re, sys, warnings
    import numpy as np
    from embench import make_model
    from embench.models import sources, streams

    def kibibytes(name):
        with open("/proc/self/status") as status:
            return int(re.search(name + r":\\s+(\\d+)", status.read())[1])

    def growth(X):
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")
        before = kibibytes("VmRSS")
        model = make_model("em", n_components=4, max_iter=3, tol=0, random_state=0)
        model.fit(X, **fit_params)
        streams.mean_of(model.score_samples, X)
        return kibibytes("VmHWM") - before

    fit_params = {}
    warnings.simplefilter("ignore")
    small, large = map(eval, sys.argv[1:])
    growth(small)  # libraries grow at the first use
    print(growth(small), growth(large))
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux")
@pytest.mark.parametrize(
    "name",
    [
        "memory map",
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in ("memory map by columns", "parquet", "dask")
        ),
    ],
)
def test_peak_memory_does_not_grow_with_the_samples(name, tmp_path):
    n_samples = 1_500_000
    sources = []
    for n in (n_samples // 10, n_samples):
        X = np.random.default_rng(0).standard_normal((n, 8))
        (tmp_path / str(n)).mkdir()
        if name == "parquet":
            sources.append(repr(str(tmp_path / str(n) / "x.parquet")))
            pd.DataFrame(X).rename(columns=str).to_parquet(tmp_path / str(n) / "x.parquet")
            continue
        saved(np.asfortranarray(X) if "columns" in name else X, tmp_path / str(n) / "x.npy")
        mapped = f"np.load({str(tmp_path / str(n) / 'x.npy')!r}, mmap_mode='r')"
        in_blocks = f"__import__('dask.array').array.from_array({mapped}, chunks=(2**16, 8))"
        sources.append(in_blocks if name == "dask" else mapped)

    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(GROWTH), *sources],
        capture_output=True, text=True, check=True,
    )  # fmt: skip

    small, large = (1024 * int(growth) for growth in done.stdout.split())
    assert large - small < X.nbytes / 4, "a quarter of the samples would have shown"
