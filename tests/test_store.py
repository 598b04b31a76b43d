"""Records on disk: nothing finished is lost, nothing unreadable is guessed at."""

from __future__ import annotations

import gc
import json
import os
import tempfile
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from record_strategies import moments, records
from strategies import law

from embench import store
from embench.types import InputError, Record, Spec


@pytest.fixture
def record(small_trial):
    def make(seed=0, **fields):
        return Record(trial=small_trial(seed=seed), **{"status": "ok", **fields})

    return make


def written(folder, records):
    """A run's folder with these records."""
    with store.writing(Path(folder)) as writer:
        for one in records:
            writer.append(one)
    return Path(folder)


def merged(folder):
    return store.merge([folder], folder / "merged")


every_reading = pytest.mark.parametrize("reading", [store.read, store.read_frame, merged])


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


@every_reading
@pytest.mark.parametrize("line", ["{not json", '{"schema": 1}', "[]", '{"schema": 99}', "\\xff"])
def test_an_unreadable_line_stops_with_file_and_line(tmp_path, record, line, reading):
    with store.writing(tmp_path) as writer:
        writer.append(record(0))
    with (tmp_path / store.RECORDS).open("a") as file:
        file.write(line + "\n")

    with pytest.raises(InputError, match=r"records\.jsonl:2: not a record"):
        reading(tmp_path)


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


@every_reading
def test_another_schema_stops_with_file_and_line_and_both_numbers(tmp_path, record, reading):
    line = {**record(0).to_json(), "schema": 99}
    (tmp_path / store.RECORDS).write_text(json.dumps(line) + "\n")

    with pytest.raises(InputError, match=r"records\.jsonl:1: .*expected schema 2, got schema 99"):
        reading(tmp_path)


@every_reading
def test_no_run_is_an_error_that_names_the_file(tmp_path, reading):
    with pytest.raises(InputError, match=r"no run in .*records\.jsonl"):
        reading(tmp_path)


def test_the_frame_has_a_row_per_record_and_absent_metrics_are_missing(record):
    frame = store.frame([record(0, metrics={"nll": 1.0, "ami": 0.5}), record(1)], run="mine")

    assert list(frame["run"]) == ["mine", "mine"]
    assert list(frame["seed"]) == [0, 1]
    assert frame["nll"].tolist()[0] == 1.0
    assert pd.isna(frame["nll"].tolist()[1])


def test_metrics_in_another_order_or_only_later_stand_in_their_columns(record):
    frame = store.frame([
        record(0, metrics={"nll": 1.0}),
        record(1, metrics={"nll": 2.0, "ami": 0.5}),
        record(2, metrics={"ami": 0.25, "nll": 3.0}),
    ])  # fmt: skip

    assert frame["nll"].tolist() == [1.0, 2.0, 3.0]
    assert pd.isna(frame["ami"][0])
    assert frame["ami"].tolist()[1:] == [0.5, 0.25]


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


@law
@given(st.lists(records, max_size=4))
def test_the_frame_of_a_run_is_that_of_its_records(drawn):
    with tempfile.TemporaryDirectory() as folder:
        run = written(folder, drawn)

        frame = store.read_frame(run)

        assert store.read(run) == drawn
        pd.testing.assert_frame_equal(frame, store.frame(drawn, run=run.name))
        for name in ("curve", "fits"):  # pandas takes a list for the same as a tuple
            assert [*frame.get(name, [])] == [getattr(one, name) for one in drawn]


@law
@given(records.filter(lambda one: one.trial_seconds is not None))
def test_a_row_of_the_frame_has_every_field_of_its_record(drawn):
    [row] = store.frame([drawn]).to_dict("records")

    asked = {f"{noun}_{part}": getattr(getattr(drawn.trial, noun), part)
             for noun in ("dataset", "model") for part in ("params", "version")}  # fmt: skip
    texts = {"dataset": str(drawn.trial.dataset), "model": str(drawn.trial.model)}
    nested = {"trial", "metrics", "sizes", "schema"}
    own = {name: value for name, value in vars(drawn).items() if name not in nested}
    expected = {**vars(drawn.trial), **asked, **texts, **drawn.sizes, **drawn.metrics, **own}
    assert row == {"run": "", **expected, "id": drawn.trial.id}


@law
@given(records)
def test_a_trial_that_is_read_has_the_id_that_it_was_written_with(drawn):
    with tempfile.TemporaryDirectory() as folder:
        [read] = store.read(written(folder, [drawn]))

    assert read.trial.id == drawn.trial.id == replace(read.trial).id


def test_what_an_older_schema_does_not_say_has_its_default_in_the_frame_too(tmp_path, record):
    one = record(0, metrics={"nll": 1.0})
    fields = one.to_json()
    new = ("fits", "trial_seconds", "grade", "noise", "disturbed", "ended")
    old = {key: value for key, value in fields.items() if key not in new} | {"schema": 1}
    (tmp_path / store.RECORDS).write_text(json.dumps(old) + "\n")

    frame = store.read_frame(tmp_path)

    pd.testing.assert_frame_equal(
        frame, store.frame([record(0, metrics={"nll": 1.0})], tmp_path.name)
    )


def test_a_name_that_is_no_text_is_read_back_and_escaped_in_the_frame(tmp_path, record):
    """As a file's may be: bytes that are not UTF-8 are halves of surrogate pairs in Python."""
    one = replace(record(0), trial=replace(record(0).trial, dataset=Spec("caf\udce9.csv")))

    run = written(tmp_path, [one])

    assert store.read(run) == [one]
    assert store.read_frame(run)["dataset"].tolist() == ["caf\\udce9.csv"]


@pytest.mark.parametrize("is_enabled", [True, False])
def test_reading_leaves_the_collector_as_it_was(tmp_path, record, is_enabled):
    run, before = written(tmp_path, [record(0)]), gc.isenabled()
    try:
        (gc.enable if is_enabled else gc.disable)()

        store.read_frame(run)

        assert gc.isenabled() == is_enabled
    finally:
        (gc.enable if before else gc.disable)()


# Merging


def lines(run):
    return (run / store.RECORDS).read_bytes()


histories = st.lists(records, max_size=6).flatmap(
    lambda drawn: st.lists(moments, min_size=len(drawn), max_size=len(drawn), unique=True).map(
        lambda ends: [replace(r, ended=end) for r, end in zip(drawn, sorted(ends), strict=True)]
    )
)
"""Records in the order in which one run left them."""


@law
@given(histories, st.lists(st.integers(0, 2), min_size=6, max_size=6))
def test_a_split_run_merges_to_the_run(drawn, parts):
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        whole = written(root / "whole", drawn)
        split = [
            written(
                root / str(part), [one for one, at in zip(drawn, parts, strict=False) if at == part]
            )
            for part in range(3)
        ]

        merged = store.merge(split, root / "merged")
        store.merge([*split, root / "merged", whole], root / "again")

        assert lines(root / "merged") == lines(root / "again") == lines(whole)
        assert merged == store.Merged(len(drawn), len({one.trial.id for one in drawn}), 0, ())


def test_the_newest_record_of_a_trial_is_the_last_after_a_merge(tmp_path, record):
    failed = record(0, status="error", ended="2026-05-01T10:00:00.000+00:00")
    mended = record(0, status="ok", ended="2026-05-02T09:00:00.000+00:00")
    runs = [written(tmp_path / "b", [mended]), written(tmp_path / "a", [failed, record(1)])]

    merged = store.merge(runs, tmp_path / "merged")

    assert store.read(tmp_path / "merged") == [record(1), failed, mended]
    assert mended in store.latest(store.read(tmp_path / "merged"))
    assert (merged.n_records, merged.n_trials) == (3, 2)


def test_records_that_do_not_say_when_they_ended_stay_in_the_order_of_the_runs(tmp_path, record):
    older, newer = record(0, status="error"), record(0, status="ok")
    runs = [written(tmp_path / "b", [older]), written(tmp_path / "a", [record(1), newer])]

    store.merge(runs, tmp_path / "merged")

    assert store.read(tmp_path / "merged") == [older, record(1), newer]


def test_the_same_record_is_there_once(tmp_path, record):
    run = written(tmp_path / "run", [record(0), record(1)])

    merged = store.merge([run, run], tmp_path / "merged")

    assert store.read(tmp_path / "merged") == [record(0), record(1)]
    assert merged.n_same == 2


def test_a_run_that_is_being_written_can_be_merged_without_its_torn_line(tmp_path, record):
    with store.writing(tmp_path / "run") as writer:
        writer.append(record(0))
        with (tmp_path / "run" / store.RECORDS).open("ab") as file:
            file.write(b'{"schema": 2, "id"')

        merged = store.merge([tmp_path / "run"], tmp_path / "merged")

    assert store.read(tmp_path / "merged") == [record(0)]
    assert merged.torn == (tmp_path / "run",)
    assert lines(tmp_path / "run").endswith(b'"id"'), "the source stays as it is"


def test_a_merge_goes_into_a_run_without_records_only(tmp_path, record):
    run, empty = written(tmp_path / "run", [record(0)]), written(tmp_path / "empty", [])
    before = lines(run)

    store.merge([run], empty)
    with pytest.raises(InputError, match="run holds records already; choose another --out"):
        store.merge([empty], run)

    assert lines(empty) == lines(run) == before


def test_a_merge_waits_for_no_writer(tmp_path, record):
    run = written(tmp_path / "run", [record(0)])

    with (
        store.writing(tmp_path / "out"),
        pytest.raises(InputError, match="another run is writing"),
    ):
        store.merge([run], tmp_path / "out")


@pytest.mark.parametrize("killed_in", ["fsync", "replace"])
def test_a_merge_that_is_killed_leaves_no_records(tmp_path, record, monkeypatch, killed_in):
    run = written(tmp_path / "run", [record(seed) for seed in range(3)])

    def kill(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr({"fsync": os, "replace": Path}[killed_in], killed_in, kill)
        with pytest.raises(KeyboardInterrupt):
            store.merge([run], tmp_path / "out")

    assert store.read(tmp_path / "out") == []
    assert [path.name for path in (tmp_path / "out").iterdir()] == [store.RECORDS]


def test_a_merge_for_which_there_is_no_space_says_so(tmp_path, record, monkeypatch):
    run = written(tmp_path / "run", [record(0)])

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)

    with pytest.raises(InputError, match=r"cannot write to .*: No space left on device"):
        store.merge([run], tmp_path / "out")
