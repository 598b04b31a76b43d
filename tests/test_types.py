"""The nouns read and write themselves without loss."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import asdict, replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from record_strategies import records, specs, trials
from strategies import law

import embench
from embench.types import SCHEMA, TASKS, Dataset, InputError, Record, Spec, Trial, task_of

TRIAL = Trial(
    dataset=Spec("blobs", {"n_samples": 100}, "1"),
    model=Spec("em", {"tol": 0.1}, "2"),
    track="default",
    seed=3,
)


# Specs


@law
@given(st.lists(specs, min_size=1, max_size=4))
def test_specs_survive_the_command_line(written):
    text = ",".join(map(str, written))

    assert Spec.parse(text) == written


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("em", [Spec("em")]),
        ("em,spec-em", [Spec("em"), Spec("spec-em")]),
        ("em:tol=0", [Spec("em", {"tol": 0})]),
        ("em:tol=1e-3,n_init=2", [Spec("em", {"tol": 1e-3, "n_init": 2})]),
        ("em:tol=0,spec-em", [Spec("em", {"tol": 0}), Spec("spec-em")]),
        ("em:a=1,em:a=2", [Spec("em", {"a": 1}), Spec("em", {"a": 2})]),
        ("em:a=true,b=null,c=word", [Spec("em", {"a": True, "b": None, "c": "word"})]),
        (" em:a=1 , spec-em ", [Spec("em", {"a": 1}), Spec("spec-em")]),
        ("a.b:C", [Spec("a.b:C")]),
        ("a.b:C:tol=0", [Spec("a.b:C", {"tol": 0})]),
        ("data/x.csv:label=kind", [Spec("data/x.csv", {"label": "kind"})]),
        ("x.csv:drop=a+b", [Spec("x.csv", {"drop": "a+b"})]),
        ("em:a=b=c", [Spec("em", {"a": "b=c"})]),
    ],
)
def test_specs_are_read_as_the_command_line_means_them(text, expected):
    assert Spec.parse(text) == expected


@pytest.mark.parametrize("text", ["", ",", "tol=0", ":tol=0", "em:=3", "em:tol=0,=3"])
def test_text_that_names_nothing_is_refused_and_repeated(text):
    with pytest.raises(InputError, match="expected") as refusal:
        Spec.parse(text)

    assert repr(text) in str(refusal.value)


def test_a_file_goes_by_its_name_without_its_folder():
    assert str(Spec("/home/me/data.csv", {"label": "kind"})) == "data.csv:label=kind"


# Trials


CHANGES = {
    "dataset": Spec("iris", {}, "1"),
    "model": Spec("spec-em", {}, "2"),
    "track": "budget",
    "seed": 4,
    "device": "cuda",
    "dtype": "float32",
    "threads": 2,
    "time_limit": 30.0,
}


def test_every_field_of_a_trial_is_tried_below():
    assert set(CHANGES) == {field.name for field in dataclasses.fields(Trial)}


@pytest.mark.parametrize("field", CHANGES)
def test_id_changes_with_every_field(field):
    assert replace(TRIAL, **{field: CHANGES[field]}).id != TRIAL.id


@pytest.mark.parametrize("part", ["dataset", "model"])
@pytest.mark.parametrize(
    "change", [{"params": {}}, {"params": {"tol": 0.2, "n_samples": 101}}, {"version": "9"}]
)
def test_id_changes_with_parameters_and_versions(part, change):
    changed = replace(TRIAL, **{part: replace(getattr(TRIAL, part), **change)})

    assert changed.id != TRIAL.id


@law
@given(trials, trials)
def test_id_tells_trials_apart_and_equal_ones_not(one, other):
    assert (one.id == other.id) == (one == other)
    assert Trial.from_json(asdict(one)).id == one.id


def test_id_does_not_depend_on_the_order_of_parameters():
    one = replace(TRIAL, model=Spec("em", {"a": 1, "b": 2}))
    other = replace(TRIAL, model=Spec("em", {"b": 2, "a": 1}))

    assert one.id == other.id


def test_id_is_readable_and_fit_for_a_file_name():
    trial = replace(TRIAL, dataset=Spec("/data/my file.csv"), model=Spec("a.b:C"))

    assert trial.id.startswith("a.b-C-my-file-default-s3-")
    assert "/" not in trial.id


@law
@given(trials)
def test_trials_survive_json(trial):
    assert Trial.from_json(json.loads(json.dumps(asdict(trial)))) == trial


# Records


@law
@given(records)
def test_records_survive_json(record):
    assert Record.from_json(json.loads(json.dumps(record.to_json()))) == record


def test_a_record_is_written_with_its_schema_and_id():
    written = Record(trial=TRIAL, status="ok").to_json()

    assert written["schema"] == SCHEMA
    assert written["id"] == TRIAL.id


@pytest.mark.parametrize("schema", [0, SCHEMA + 1, str(SCHEMA)])
def test_a_record_of_another_schema_is_refused_with_both_numbers(schema):
    written = {**Record(trial=TRIAL, status="ok").to_json(), "schema": schema}

    with pytest.raises(ValueError, match=f"expected schema {SCHEMA}, got schema {schema}"):
        Record.from_json(written)


@pytest.mark.parametrize("value", [Spec("em"), TRIAL, Record(trial=TRIAL, status="ok")])
def test_values_are_frozen(value):
    field = dataclasses.fields(value)[0].name

    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(value, field, None)


# Tasks


X = np.zeros((2, 4))


@pytest.mark.parametrize(
    ("data", "task"),
    [
        (Dataset(X, X, 2), "density"),
        (Dataset(X, X, 2, Y_train=X, Y_test=X), "conditional"),
        (Dataset(X, X, 2, image_shape=(2, 2)), "grouping"),
    ],
)
def test_what_a_dataset_holds_says_what_it_asks_for(data, task):
    assert data.task == task
    assert task in TASKS


def test_every_model_is_for_a_task_that_some_dataset_asks_for():
    models = (name for name, line in embench.models().items() if not line.startswith("not "))

    assert {task_of(embench.make_model(name)) for name in models} == set(TASKS)
