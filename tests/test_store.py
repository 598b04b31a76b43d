"""Records on disk: nothing finished is lost, nothing unreadable is guessed at."""

from __future__ import annotations

import json
import os

import pandas as pd
import pytest

from embench import store
from embench.types import InputError, Record


@pytest.fixture
def record(small_trial):
    def make(seed=0, **fields):
        return Record(trial=small_trial(seed=seed), **{"status": "ok", **fields})

    return make


def test_what_is_written_is_read_back_in_order(tmp_path, record):
    records = [
        record(0, metrics={"nll": 1.5}, curve=((0.1, 1, 2.0),), sizes={"n_samples": 10}),
        record(1, status="error", message="über\nzwei Zeilen"),
    ]

    with store.writing(tmp_path / "new" / "run") as writer:
        for one in records:
            writer.append(one)

    assert store.read(tmp_path / "new" / "run") == records


def test_a_record_is_on_the_disk_when_append_returns(tmp_path, record):
    with store.writing(tmp_path) as writer:
        writer.append(record(0))

        assert len((tmp_path / store.RECORDS).read_bytes().splitlines()) == 1


@pytest.mark.parametrize("cut", [1, 20, 200])
def test_a_torn_last_line_is_left_out_and_then_repaired(tmp_path, record, cut):
    with store.writing(tmp_path) as writer:
        writer.append(record(0))
        writer.append(record(1))
    path = tmp_path / store.RECORDS
    os.truncate(path, path.stat().st_size - cut)

    torn = store.read(tmp_path)
    with store.writing(tmp_path) as writer:
        writer.append(record(2))

    assert torn == [record(0)]
    assert store.read(tmp_path) == [record(0), record(2)]


@pytest.mark.parametrize("line", ["{not json", '{"schema": 1}', "[]", '{"schema": 99}', "\\xff"])
def test_an_unreadable_line_stops_with_file_and_line(tmp_path, record, line):
    with store.writing(tmp_path) as writer:
        writer.append(record(0))
    with (tmp_path / store.RECORDS).open("a") as file:
        file.write(line + "\n")

    with pytest.raises(InputError, match=r"records\.jsonl:2: not a record"):
        store.read(tmp_path)


def test_a_second_writer_is_refused(tmp_path):
    with (
        store.writing(tmp_path),
        pytest.raises(InputError, match="another run is writing"),
        store.writing(tmp_path),
    ):
        pass


def test_a_folder_that_cannot_be_written_is_said_first(tmp_path):
    (tmp_path / "file").write_text("")

    with pytest.raises(InputError, match="cannot write to"), store.writing(tmp_path / "file"):
        pass


def test_a_full_disk_is_said_first(tmp_path, monkeypatch):
    monkeypatch.setattr(store, "FREE_BYTES", 2**70)

    with pytest.raises(InputError, match="MiB free"), store.writing(tmp_path):
        pass


def test_a_metric_that_is_not_a_number_cannot_be_written(tmp_path, record):
    with (
        store.writing(tmp_path) as writer,
        pytest.raises(ValueError, match="not JSON compliant"),
    ):
        writer.append(record(0, metrics={"nll": float("nan")}))

    assert store.read(tmp_path) == []


def test_the_newest_record_of_a_trial_counts(record):
    failed, repeated, other = record(0, status="error"), record(0), record(1)

    assert store.latest([failed, other, repeated]) == [repeated, other]


def test_no_run_is_an_error_that_names_the_file(tmp_path):
    with pytest.raises(InputError, match=r"no run in .*records\.jsonl"):
        store.read(tmp_path)


def test_the_frame_has_a_row_per_record_and_absent_metrics_are_missing(record):
    frame = store.frame([record(0, metrics={"nll": 1.0, "ami": 0.5}), record(1)], run="mine")

    assert list(frame["run"]) == ["mine", "mine"]
    assert list(frame["seed"]) == [0, 1]
    assert frame["nll"].tolist()[0] == 1.0
    assert pd.isna(frame["nll"].tolist()[1])


def test_runs_are_listed_oldest_first(tmp_path, record):
    for name, age in (("b", 10), ("a", 20)):
        with store.writing(tmp_path / name):
            pass
        os.utime(tmp_path / name / store.RECORDS, (1e9 - age, 1e9 - age))

    assert [folder.name for folder in store.runs(tmp_path)] == ["a", "b"]


def test_a_line_holds_the_id_for_those_who_grep(tmp_path, record):
    with store.writing(tmp_path) as writer:
        writer.append(record(0))

    assert json.loads((tmp_path / store.RECORDS).read_text())["id"] == record(0).trial.id
