"""Your own file: every format gives the same data, and every bad one a sentence."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from embench import make_dataset, registry
from embench.types import InputError, Spec

N_SAMPLES = 24


@pytest.fixture(scope="module")
def table():
    """Two columns of numbers, three kinds, and a number for each row."""
    rng = np.random.default_rng(0)
    return pd.DataFrame(
        {
            "width": rng.standard_normal(N_SAMPLES),
            "height": 100 + rng.standard_normal(N_SAMPLES),
            "kind": np.tile(["b", "a", "c"], N_SAMPLES // 3),
            "id": np.arange(N_SAMPLES),
        }
    )


def write_csv(path, table, **params):
    table.to_csv(path, index=False, **params)


WRITERS = {
    "comma.csv": write_csv,
    "semicolon.csv": lambda path, table: write_csv(path, table, sep=";"),
    "tab.csv": lambda path, table: write_csv(path, table, sep="\t"),
    "bom.csv": lambda path, table: write_csv(path, table, encoding="utf-8-sig"),
    "crlf.csv": lambda path, table: write_csv(path, table, lineterminator="\r\n"),
    "UPPER.CSV": write_csv,
    "no-header.csv": lambda path, table: write_csv(path, table, header=False),
    "bom-no-header.csv": lambda path, table: write_csv(
        path, table, header=False, encoding="utf-8-sig"
    ),
    "array.npy": lambda path, table: np.save(path, table.to_numpy()),
    "fortran.npy": lambda path, table: np.save(path, np.asfortranarray(table.to_numpy())),
    "one.npz": lambda path, table: np.savez(path, table.to_numpy()),
    "named.npz": lambda path, table: np.savez_compressed(path, anything=table.to_numpy()),
    "table.parquet": lambda path, table: table.to_parquet(path),
}


@pytest.mark.parametrize("name", WRITERS)
def test_every_format_gives_the_same_data(name, table, tmp_path):
    numbers = table[["width", "height"]]
    np.save(tmp_path / "reference.npy", numbers.to_numpy())
    expected = make_dataset(str(tmp_path / "reference.npy"), seed=5)
    path = tmp_path / name
    WRITERS[name](path, numbers)

    data = make_dataset(str(path), seed=5)

    # pandas reads decimals to the last bit but one.
    assert_allclose(data.X_train, expected.X_train, rtol=1e-12, atol=1e-13)
    assert_allclose(data.X_test, expected.X_test, rtol=1e-12, atol=1e-13)
    assert data.X_train.shape == (18, 2)
    assert data.y_test is None
    assert data.n_components is None


@pytest.mark.parametrize(
    "name", ["comma.csv", "semicolon.csv", "tab.csv", "bom.csv", "table.parquet"]
)
def test_a_column_of_labels_is_agreed_with_and_not_fitted_on(name, table, tmp_path):
    path = tmp_path / name
    WRITERS[name](path, table)

    data = make_dataset(str(path), seed=0, label="kind", drop="id", standardize=False)

    assert data.X_train.shape == (18, 2)
    assert data.n_components == 3
    for X, y in ((data.X_train, data.y_train), (data.X_test, data.y_test)):
        rows = [int(np.argmin(np.abs(table["width"] - x))) for x in X[:, 0]]
        assert [sorted("abc")[label] for label in y] == table["kind"].iloc[rows].tolist()


def test_labels_of_an_npz_are_a_column_beside_the_table(table, tmp_path):
    X, y = table[["width", "height"]].to_numpy(), np.repeat([5, 9], N_SAMPLES // 2)
    np.savez(tmp_path / "data.npz", X=X, y=y, other=np.eye(3))

    data = make_dataset(str(tmp_path / "data.npz"), seed=0, label="y", standardize=False)

    assert data.n_components == 2
    assert data.X_train.shape == (18, 2)
    for x, label in zip(data.X_train, data.y_train, strict=True):
        assert y[np.flatnonzero(X[:, 0] == x[0])] == [5, 9][label]


@pytest.mark.parametrize("label", [1, "1"])
def test_a_column_without_a_name_goes_by_its_number(label, tmp_path):
    X = np.column_stack([np.arange(20.0), np.tile([3.0, 4.0], 10)])
    np.save(tmp_path / "data.npy", X)

    data = make_dataset(str(tmp_path / "data.npy"), label=label)

    assert data.n_components == 2
    assert data.X_train.shape == (15, 1)


def test_several_columns_can_be_left_out(table, tmp_path):
    write_csv(tmp_path / "data.csv", table)

    data = make_dataset(str(tmp_path / "data.csv"), drop="id+kind+width")

    assert data.X_train.shape == (18, 1)


@pytest.mark.parametrize("standardize", [True, False])
def test_columns_can_be_targets(table, tmp_path, standardize):
    write_csv(tmp_path / "data.csv", table)
    options = {"drop": "id+kind", "standardize": standardize}
    features = make_dataset(str(tmp_path / "data.csv"), **options)

    data = make_dataset(str(tmp_path / "data.csv"), target="height", **options)

    joined = [np.hstack(data.train), np.hstack(data.test)]
    assert data.X_train.shape == data.Y_train.shape == (18, 1)
    assert_allclose(joined[0], features.X_train[:, [0, 1]])
    assert_allclose(joined[1], features.X_test[:, [0, 1]])


def test_a_missing_label_belongs_to_no_component(table, tmp_path):
    gaps = table.assign(kind=table["kind"].where(table["id"] % 4 > 0))
    write_csv(tmp_path / "data.csv", gaps)

    data = make_dataset(str(tmp_path / "data.csv"), label="kind", drop="id")

    assert np.sum(np.concatenate([data.y_train, data.y_test]) == -1) == N_SAMPLES // 4
    assert data.n_components == 3


def test_number_of_components_can_be_given(table, tmp_path):
    write_csv(tmp_path / "data.csv", table)

    data = make_dataset(str(tmp_path / "data.csv"), label="kind", drop="id", n_components=5)

    assert data.n_components == 5


def test_booleans_are_zeros_and_ones(tmp_path):
    flags = pd.DataFrame({"flag": np.tile([True, False], 10), "x": np.arange(20.0)})
    write_csv(tmp_path / "data.csv", flags)
    flags.to_parquet(tmp_path / "data.parquet")
    np.save(tmp_path / "data.npy", flags[["flag"]].to_numpy())

    for name in ("data.csv", "data.parquet", "data.npy"):
        data = make_dataset(str(tmp_path / name), standardize=False)

        assert set(np.concatenate([data.X_train, data.X_test])[:, 0]) == {0.0, 1.0}


@pytest.mark.parametrize("dtype", ["int8", "uint64", "float16", "float32", ">f8"])
def test_numbers_of_every_type_become_float64(dtype, tmp_path):
    X = np.arange(40).reshape(20, 2).astype(dtype)
    np.save(tmp_path / "data.npy", X)

    data = make_dataset(str(tmp_path / "data.npy"), standardize=False)

    assert data.X_train.dtype == np.float64
    assert_array_equal(np.sort(np.concatenate([data.X_train, data.X_test])[:, 0]), X[:, 0])


def text(content):
    return lambda path: path.write_text(content)


def saved(array, **params):
    return lambda path: np.save(path, array, **params)


def zipped(**arrays):
    return lambda path: np.savez(path, **arrays)


def cut(writer, share=0.5):
    """What another writer wrote, without its end."""

    def write(path):
        writer(path)
        content = path.read_bytes()
        path.write_bytes(content[: int(share * len(content))])

    return write


def scrambled(writer):
    """What another writer wrote, with zeros in its middle."""

    def write(path):
        writer(path)
        content = bytearray(path.read_bytes())
        content[20:-20] = bytes(len(content) - 40)
        path.write_bytes(bytes(content))

    return write


GOOD = "width,height\n" + "1.5,2\n2.5,7\n3.5,4\n" * 5
NUMBERS = np.random.default_rng(0).standard_normal((20, 2))
PARQUET = pd.DataFrame(NUMBERS, columns=["a", "b"]).to_parquet

# Each: file name, what writes it (None: nothing), parameters, words of the message.
BAD = {
    "missing file": ("data.csv", None, {}, "No such file"),
    "missing npy": ("data.npy", None, {}, "No such file"),
    "missing parquet": ("data.parquet", None, {}, "No such file"),
    "folder": ("data.csv", lambda path: path.mkdir(), {}, "directory"),
    "folder of arrays": ("data.npy", lambda path: path.mkdir(), {}, "directory"),
    "folder of tables": ("data.parquet", lambda path: path.mkdir(), {}, "directory"),
    "empty file": ("data.csv", text(""), {}, "empty"),
    "blank lines": ("data.csv", text("\n\n\n"), {}, "empty"),
    "empty npy": ("data.npy", text(""), {}, "data.npy"),
    "empty npz": ("data.npz", text(""), {}, "data.npz"),
    "empty parquet": ("data.parquet", text(""), {}, "data.parquet"),
    "header only": ("data.csv", text("width,height\n"), {}, "empty table"),
    "no rows": ("data.npy", saved(np.empty((0, 3))), {}, "empty table"),
    "no columns": ("data.npy", saved(np.empty((5, 0))), {}, "empty"),
    "one sample": ("data.npy", saved(np.ones((1, 2))), {}, "1 samples"),
    "text column": ("data.csv", text(GOOD.replace("1.5", "red")), {}, "'width' holds 'red'"),
    "dates": ("data.csv", text(GOOD.replace("1.5", "2020-01-01")), {}, "--drop width"),
    "nan": ("data.csv", text(GOOD + "nan,1\n"), {}, "nan in column 'width' of sample 16"),
    "gap": ("data.csv", text(GOOD + "1,\n"), {}, "nan in column 'height' of sample 16"),
    "inf": ("data.csv", text(GOOD + "1,-inf\n"), {}, "-inf in column 'height' of sample 16"),
    "nan in npy": ("data.npy", saved(np.full((9, 2), np.nan)), {}, "18 such values"),
    "one dimension": ("data.npy", saved(np.arange(9.0)), {}, "got shape (9,)"),
    "three dimensions": ("data.npy", saved(np.zeros((3, 2, 2))), {}, "got shape (3, 2, 2)"),
    "no dimension": ("data.npy", saved(np.float64(3)), {}, "got shape ()"),
    "wrong label": ("data.csv", text(GOOD), {"label": "hight"}, "did you mean 'height'?"),
    "wrong drop": ("data.csv", text(GOOD), {"drop": "height+widht"}, "did you mean 'width'?"),
    "label is a number": ("data.csv", text(GOOD), {"label": 7}, "'7'"),
    "all dropped": ("data.csv", text(GOOD), {"drop": "width+height"}, "at least one column"),
    "label is all": ("data.csv", text("x\n1\n2\n3\n4\n"), {"label": "x"}, "at least one column"),
    "ragged": ("data.csv", text(GOOD + "1,2,3\n"), {}, "line 17"),
    "latin-1": ("data.csv", lambda p: p.write_bytes("größe\n1\n2\n".encode("latin-1")), {}, ".csv"),
    "binary csv": ("data.csv", lambda p: p.write_bytes(bytes(range(256))), {}, ".csv"),
    "null bytes": ("data.csv", lambda p: p.write_bytes(bytes(300)), {}, ".csv"),
    "text in npy": ("data.npy", text("hello"), {}, "numpy.save"),
    "cut npy": ("data.npy", cut(saved(NUMBERS)), {}, "data.npy"),
    "cut head of npy": ("data.npy", cut(saved(NUMBERS), 0.05), {}, "data.npy"),
    "scrambled npy": ("data.npy", scrambled(saved(NUMBERS)), {}, "data.npy"),
    "objects": (
        "data.npy",
        saved(np.array([[1, "a"], [2, None]], dtype=object), allow_pickle=True),
        {},
        "plain arrays",
    ),
    "strings": ("data.npy", saved(np.array([["a", "b"]] * 5)), {}, "expected numbers"),
    "records": ("data.npy", saved(np.zeros(5, dtype=[("a", float)])), {}, "got shape (5,)"),
    "complex": ("data.npy", saved(NUMBERS + 1j), {}, "expected numbers"),
    "complex csv": ("data.csv", text("x\n1+2j\n2+1j\n3\n4\n"), {}, "expected numbers"),
    "text in npz": ("data.npz", text("hello"), {}, "data.npz"),
    "cut npz": ("data.npz", cut(zipped(X=NUMBERS)), {}, "data.npz"),
    "scrambled npz": ("data.npz", scrambled(zipped(X=NUMBERS)), {}, "data.npz"),
    "npy called npz": (
        "data.npz",
        lambda path: path.write_bytes(_npy_bytes(path)),
        {},
        "data.npz",
    ),
    "npz called npy": (
        "data.npy",
        lambda path: path.write_bytes(_npz_bytes(path)),
        {},
        "numpy.save",
    ),
    "object npz": ("data.npz", zipped(X=np.array([[None]])), {}, "data.npz"),
    "two tables": ("data.npz", zipped(a=NUMBERS, b=NUMBERS), {}, "['a', 'b']"),
    "no table": ("data.npz", zipped(y=np.arange(9)), {}, "['y']"),
    "vector named X": ("data.npz", zipped(X=np.arange(9)), {}, "['X']"),
    "no arrays": ("data.npz", zipped(), {}, "[]"),
    "text in parquet": ("data.parquet", text("hello"), {}, "data.parquet"),
    "cut parquet": ("data.parquet", cut(PARQUET), {}, "data.parquet"),
    "scrambled parquet": ("data.parquet", scrambled(PARQUET), {}, "data.parquet"),
    "parquet without rows": (
        "data.parquet",
        pd.DataFrame({"a": [0.0][:0]}).to_parquet,
        {},
        "empty table",
    ),
    "dates in parquet": (
        "data.parquet",
        pd.DataFrame({"when": pd.to_datetime(["2020-01-01"] * 5)}).to_parquet,
        {},
        "'when' holds",
    ),
    "huge integer": ("data.csv", text(f"x\n{10**25}\n1\n2\n3\n"), {}, "expected numbers"),
    "beyond float64": ("data.csv", text(f"x\n1.0\n{10**400}\n2\n3\n"), {}, "data.csv"),
    "share": ("data.csv", text(GOOD), {"test_share": 1.5}, "test_share"),
    "components": ("data.csv", text(GOOD), {"n_components": 0}, "n_components"),
    "unknown parameter": ("data.csv", text(GOOD), {"labels": "x"}, "did you mean 'label'?"),
}


def _npy_bytes(path):
    np.save(path.with_suffix(".npy"), NUMBERS)
    return path.with_suffix(".npy").read_bytes()


def _npz_bytes(path):
    np.savez(path.with_suffix(".npz"), NUMBERS)
    return path.with_suffix(".npz").read_bytes()


@pytest.mark.parametrize("case", BAD)
def test_a_file_that_cannot_be_used_is_refused_in_one_line_that_names_it(case, tmp_path):
    name, write, params, words = BAD[case]
    path = tmp_path / name
    if write:
        write(path)

    with pytest.raises(InputError) as refusal:
        make_dataset(str(path), **params)

    message = str(refusal.value)
    assert "\n" not in message
    assert name in message
    assert words in message


def test_the_table_that_the_bad_ones_are_made_from_is_good(tmp_path):
    text(GOOD)(tmp_path / "data.csv")

    assert make_dataset(str(tmp_path / "data.csv")).X_train.shape == (11, 2)


def test_version_changes_with_the_content_and_not_with_the_name(tmp_path):
    for name, content in (("a.csv", GOOD), ("b.csv", GOOD), ("c.csv", GOOD + "1,1\n")):
        text(content)(tmp_path / name)

    a, b, c = (
        registry.version("dataset", Spec(str(tmp_path / name)))
        for name in ("a.csv", "b.csv", "c.csv")
    )

    assert a == b
    assert a != c


def test_version_of_a_missing_file_is_an_error(tmp_path):
    with pytest.raises(InputError, match=r"nothing\.csv"):
        registry.version("dataset", Spec(str(tmp_path / "nothing.csv")))


def test_decimal_commas_are_read_where_semicolons_part_the_columns(tmp_path):
    (tmp_path / "x.csv").write_text("a;b;kind\n" + "1,5;2,25;k\n2,5;3,5;l\n" * 4)

    data = make_dataset(str(tmp_path / "x.csv"), label="kind", standardize=False)

    assert {1.5, 2.25, 2.5, 3.5} == set(np.unique(data.X_train))
