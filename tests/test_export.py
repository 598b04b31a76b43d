"""Records as a flat table: what other programs read is what was written."""

from __future__ import annotations

import io
import json
from dataclasses import replace

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow.parquet import read_schema
from record_strategies import records
from strategies import law

from embench import store
from embench.reporting.export import FORMATS, flat
from embench.types import Record, Spec

AS_WRITTEN = {"keep_default_na": False, "na_values": [""], "dtype": {"message": str}}
READERS = {
    "csv": lambda data: pd.read_csv(io.BytesIO(data), **AS_WRITTEN),
    "parquet": lambda data: pd.read_parquet(io.BytesIO(data)),
}


@pytest.fixture
def record(small_trial):
    def make(seed=0, model_params=None, **fields):
        trial = small_trial(seed=seed, params=model_params)
        return Record(trial=trial, **{"status": "ok", **fields})

    return make


def exported(style, records):
    return READERS[style](FORMATS[style](store.frame(records, "run")))


def near(values):
    """Some versions of pandas read the last digit of a number wrong."""
    return pytest.approx(values, rel=1e-14, abs=0.0)


def in_csv(text):
    """A text as CSV has it: none where it is empty, with one kind of line ends."""
    return "" if pd.isna(text) else text.replace("\r\n", "\n").replace("\r", "\n")


def lists(style, cell):
    """A curve, or fits, as lists of lists."""
    return json.loads(cell) if style == "csv" else [list(point) for point in cell]


@pytest.mark.parametrize("style", FORMATS)
@law
@given(st.lists(records, min_size=1, max_size=4))
def test_what_is_exported_is_read_back(style, drawn):
    table = exported(style, drawn)

    assert table["id"].tolist() == [one.trial.id for one in drawn]
    assert table["seed"].tolist() == [one.trial.seed for one in drawn]
    assert [*map(in_csv, table["message"])] == [in_csv(one.message) for one in drawn]
    for row, one in zip(table.to_dict("records"), drawn, strict=True):
        assert lists(style, row["curve"]) == [list(point) for point in one.curve]
        assert lists(style, row["fits"]) == [list(seconds) for seconds in one.fits]
        assert {name: row[name] for name in one.metrics} == near(one.metrics)
        assert {name: row[f"noise.{name}"] for name in one.noise} == near(one.noise)


@pytest.mark.parametrize("style", FORMATS)
def test_parameters_noise_and_environment_have_columns_of_their_own(style, record):
    one = record(
        model_params={"tol": 0.5, "covariance_type": "diag", "warm_start": True},
        environment={"cpu": "Synthetic 9000", "cores": 2},
        noise={"stolen_seconds": 0.25},
    )

    [row] = exported(style, [one]).to_dict("records")

    assert row["model"] == "em:tol=0.5,covariance_type=diag,warm_start=true"
    assert (row["model.tol"], row["model.covariance_type"], row["model.warm_start"]) == (
        *(0.5, "diag"),
        True,
    )
    assert (row["environment.cpu"], row["environment.cores"]) == ("Synthetic 9000", 2)
    assert row["noise.stolen_seconds"] == 0.25
    assert not {"model_params", "dataset_params", "noise", "environment"} & row.keys()


@pytest.mark.parametrize("style", FORMATS)
def test_what_is_absent_is_empty(style, record):
    table = exported(style, [
        record(0, {"tol": 0.1}, metrics={"nll": 1.0}, noise={"stolen_seconds": 1.0}),
        record(1, {"init_params": "random"}, metrics={"ami": 0.5}, environment={"gpu": "none"}),
    ])  # fmt: skip

    absent = table[["nll", "noise.stolen_seconds", "model.tol"]].iloc[1]
    assert absent.isna().all()
    assert table[["ami", "environment.gpu", "model.init_params"]].iloc[0].isna().all()
    assert table["trial_seconds"].isna().all()


@pytest.mark.parametrize("style", FORMATS)
def test_values_of_several_kinds_are_text_as_the_command_line_has_it(style, record):
    values = [0.5, "auto", True, [32, 16], None, 2**70]

    table = exported(style, [record(0, {"width": value}) for value in values])

    cells = table["model.width"].tolist()
    assert cells[:4] == ["0.5", "auto", "true", "[32, 16]"]
    assert pd.isna(cells[4])
    assert cells[5] == str(2**70)


@pytest.mark.parametrize("style", FORMATS)
def test_a_name_that_is_no_text_is_escaped(style, record):
    one = record(0, {"checkpoint": "caf\udce9.pt"}, message="no caf\udce9.csv")
    one = replace(one, trial=replace(one.trial, dataset=Spec("caf\udce9.csv")))

    [row] = exported(style, [one]).to_dict("records")

    assert row["dataset"] == "caf\\udce9.csv"
    assert row["message"] == "no caf\\udce9.csv"
    assert row["model.checkpoint"] == "caf\\udce9.pt"


def test_types_in_parquet_do_not_depend_on_what_the_records_have(record):
    records = [record(0), record(0, curve=((0.1, 1, 2.0),), fits=((1.0, 1.0),), trial_seconds=1.5)]

    bare, full = (
        read_schema(io.BytesIO(FORMATS["parquet"](store.frame([one])))) for one in records
    )

    assert bare.equals(full)


def test_a_carriage_return_ends_no_row(record):
    message = "10 %\r20 %\r\nkilled"

    table = exported("csv", [record(0, message=message), record(1)])

    assert table["message"].fillna("").tolist() == ["10 %\n20 %\nkilled", ""]


def test_columns_stand_in_the_order_of_the_frame(record):
    frame = store.frame([record(0, {"tol": 0.1}, metrics={"nll": 1.0}, environment={"cpu": "x"})])

    names = list(flat(frame))

    assert names[names.index("model") + 1] == "model.tol"
    spread = {"dataset_params", "model_params", "noise", "environment"}
    assert [name for name in names if "." not in name] == [n for n in frame if n not in spread]
