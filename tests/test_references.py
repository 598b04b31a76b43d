"""The store of references only improves; the line that it draws is one line for all."""

from __future__ import annotations

import json
import random
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from embench import references
from embench.comparing.bestknown import DECIMALS, ends, with_best_known
from embench.comparing.compare import compare
from embench.comparing.frames import BEST
from embench.measuring.plan import plan
from embench.measuring.suite import load_suite
from embench.measuring.trial import run_trial
from embench.types import OWN_SCORE, InputError, Record, Reference

from .strategies import law
from .synthetic_records import changed, failed, frame, make_records

entries = st.builds(
    Reference,
    dataset=st.sampled_from(["iris", "blobs:n_features=2"]),
    version=st.sampled_from(["1", "2"]),
    seed=st.integers(0, 1),
    n_samples=st.just(100),
    n_test=st.just(50),
    nll=st.integers(-3, 3).map(float),
    model=st.sampled_from(["em", "sklearn-em"]),
    trial=st.sampled_from(["a", "b"]),
    ended=st.sampled_from(["", "2025-01-01T00:00:00", "2025-01-02T00:00:00"]),
    commit=st.sampled_from(["abc", "def"]),
)
runs = st.lists(st.lists(entries, max_size=6), max_size=4)


def sized(records: list[Record]) -> list[Record]:
    """The records with all that tells the data."""
    return [replace(r, sizes={**r.sizes, "n_test": 50}) for r in records]


def iris(**options) -> list[Record]:
    return sized(make_records(datasets=["iris"], tracks=["default"], **options))


def line_of(frame) -> dict[int, float]:
    """The best known NLL of each seed."""
    rows = frame.dropna(subset="best_known").drop_duplicates(["seed", "best_known"])
    assert rows["seed"].is_unique, "one line for all models"
    return dict(zip(rows["seed"], rows["best_known"], strict=True))


def entered(folder, entries) -> bytes:
    references.enter(entries, folder)
    return (folder / references.FILE).read_bytes() if entries else b""


@law
@given(runs=runs)
def test_a_store_only_improves_and_keeps_the_lowest_of_each_data(tmp_path_factory, runs) -> None:
    folder = tmp_path_factory.mktemp("store")
    lowest: dict[tuple, float] = {}

    for run in runs:
        before = {entry.data: entry.nll for entry in references.read(folder)}
        told = references.enter(run, folder)
        after = {entry.data: entry.nll for entry in references.read(folder)}
        for entry in run:
            lowest[entry.data] = min(entry.nll, lowest.get(entry.data, entry.nll))
        gains = [before[data] - after[data] for data in before]

        assert after == lowest
        assert told.new == len(after) - len(before)
        assert told.better == sum(gain > 0 for gain in gains)
        assert told.unchanged == len(before) - told.better
        assert told.largest == max(gains, default=0.0)


@law
@given(runs=runs, seed=st.integers(0, 100))
def test_no_order_of_entering_changes_the_store(tmp_path_factory, runs, seed) -> None:
    one, other = (tmp_path_factory.mktemp("store") for _ in range(2))
    shuffled = random.Random(seed).sample(runs, len(runs))

    for run in runs:
        references.enter(run, one)
    for run in shuffled:
        references.enter(run[::-1], other)

    assert references.read(one) == references.read(other)


@law
@given(run=st.lists(entries, min_size=1))
def test_entering_a_run_twice_changes_nothing(tmp_path_factory, run) -> None:
    folder = tmp_path_factory.mktemp("store")

    once, twice = entered(folder, run), entered(folder, run)

    assert once == twice
    assert str(references.enter(run, folder)).startswith("0 new, 0 better, ")


def test_a_store_is_sorted_with_one_line_for_each_data(tmp_path) -> None:
    records = iris(n_seeds=3)

    references.enter(ends(frame(records))[::-1], tmp_path)

    lines = [json.loads(line) for line in (tmp_path / references.FILE).read_text().splitlines()]
    assert [line["seed"] for line in lines] == [0, 1, 2]
    assert list(lines[0]) == list(Reference.__dataclass_fields__)


def test_an_older_version_of_the_data_stays_beside_the_new_one(tmp_path) -> None:
    [old] = ends(frame(iris(models=["em"], n_seeds=1)))
    new = replace(old, version="2", nll=old.nll + 1)

    references.enter([old], tmp_path)
    told = references.enter([new], tmp_path)

    assert references.read(tmp_path) == [old, new]
    assert str(told) == "1 new, 0 better, 1 unchanged"


def test_how_much_better_it_got_is_said(tmp_path) -> None:
    [old] = ends(frame(iris(models=["em"], n_seeds=1)))

    references.enter([old], tmp_path)
    told = references.enter([replace(old, nll=old.nll - 0.25)], tmp_path)

    assert str(told) == "0 new, 1 better (by 0.25 nat at most), 0 unchanged"


def test_no_store_holds_nothing(tmp_path) -> None:
    assert references.read(tmp_path / "nowhere") == []


@pytest.mark.parametrize("line", ["{not json", "[]", '{"dataset": "iris"}', '{"other": 1}'])
def test_an_unreadable_line_stops_with_file_and_line(tmp_path, line) -> None:
    references.enter(ends(frame(iris(models=["em"], n_seeds=1))), tmp_path)
    with (tmp_path / references.FILE).open("a") as file:
        file.write(line + "\n")

    for touch in (references.read, lambda folder: references.enter([], folder)):
        with pytest.raises(InputError, match=r"best-known\.jsonl:2: not a reference"):
            touch(tmp_path)


def test_a_folder_that_cannot_be_written_is_said(tmp_path) -> None:
    (tmp_path / "file").write_text("")

    with pytest.raises(InputError, match="cannot write to"):
        references.enter([], tmp_path / "file" / "below")


def test_where_it_comes_from_is_told() -> None:
    [record] = iris(models=["em"], n_seeds=1)
    record = replace(
        record,
        ended="2025-01-01T00:00:00",
        environment={"commit": "abc"},
        trial=replace(record.trial, dataset=replace(record.trial.dataset, version="7")),
    )

    [found] = ends(frame([record]))

    assert found == Reference(
        dataset="iris",
        version="7",
        seed=0,
        n_samples=100,
        n_test=50,
        nll=round(record.metrics["nll"], DECIMALS),
        model="em",
        trial=record.trial.id,
        ended="2025-01-01T00:00:00",
        commit="abc",
    )


def test_only_fits_that_finished_and_were_judged_are_ends() -> None:
    em, failure, own, unsized, grouper = iris(models=["em"])
    records = [
        em,
        failed(failure),
        replace(own, message=f"not converged; {OWN_SCORE}: it has no mixture_"),
        replace(unsized, sizes={}),
        changed(grouper, ami_max=0.5),
    ]

    assert [found.trial for found in ends(frame(records))] == [em.trial.id]


@pytest.mark.parametrize(("model", "count"), [("em", 1), ("student-t-em", 0)])
def test_the_judge_says_which_fits_he_could_not_judge(small_trial, model, count) -> None:
    record = run_trial(small_trial(model))

    assert record.status == "ok"
    assert len(ends(frame([record]))) == count


def test_the_line_is_the_lowest_end_of_all_tracks() -> None:
    records = sized(make_records(datasets=["iris"], n_seeds=2))
    records[0] = changed(records[0], nll=-7.0)  # same-start

    every = with_best_known(frame(records))
    default = compare(frame(records), tracks=["default"], references=[]).records

    assert line_of(every)[0] == -7.0
    assert line_of(default) == line_of(every)


def test_a_reference_lowers_the_line_and_the_excess_is_over_it() -> None:
    records = iris(n_seeds=2)
    [first, *_] = ends(frame(records))
    lower = replace(first, nll=first.nll - 0.5)

    alone = compare(frame(records), references=[]).records
    with_it = compare(frame(records), references=[lower]).records

    assert set(with_it["reference"]) == {BEST}
    change = (with_it["excess_nll"] - alone["excess_nll"]).groupby(with_it["seed"]).first()
    assert list(change) == pytest.approx([0.5, 0.0], abs=10**-DECIMALS)
    assert list(with_it.groupby("seed")["has_reference"].first()) == [True, False]


def test_a_higher_reference_changes_nothing() -> None:
    records = iris(n_seeds=2)
    higher = [replace(end, nll=end.nll + 1.0) for end in ends(frame(records))]

    assert line_of(with_best_known(frame(records), higher)) == line_of(
        with_best_known(frame(records))
    )


@pytest.mark.parametrize(
    "other",
    [{"version": "2"}, {"seed": 1}, {"dataset": "wine"}, {"n_samples": 101}, {"n_test": 51}],
)
def test_a_reference_of_other_data_draws_no_line(other) -> None:
    records = iris(n_seeds=1)
    [reference, *_] = ends(frame(records))

    found = with_best_known(frame(records), [replace(reference, nll=-9.0, **other)])

    assert line_of(found) == line_of(with_best_known(frame(records)))
    assert not found["has_reference"].any()


def test_a_fit_by_its_own_score_does_not_move_the_line_and_may_end_below_it() -> None:
    records = iris(models=["em", "sklearn-em"], n_seeds=1)
    own = replace(changed(records[0], nll=-9.0), message=f"{OWN_SCORE}: it has no mixture_")

    beside = compare(frame([own, records[1]]), references=[])
    alone = compare(frame([own]), references=[])

    assert line_of(beside.records) == {0: records[1].metrics["nll"]}
    assert beside.records["excess_nll"].min() < 0
    assert beside.summary["model"].iloc[0] == "em"
    assert line_of(alone.records) == {0: -9.0}


def test_nobody_who_is_judged_ends_below_the_line_and_somebody_ends_at_it() -> None:
    rng = np.random.default_rng(0)
    records = [changed(r, nll=rng.normal()) for r in iris()]

    found = with_best_known(frame(records))

    over = found["nll"] - found["best_known"]
    assert over.min() == 0
    assert (over.groupby(found["seed"]).min() == 0).all()


def test_compare_takes_the_references_of_the_folder_we_stand_in(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    records = iris(n_seeds=1)
    references.enter([replace(end, nll=-9.0) for end in ends(frame(records))])

    assert line_of(compare(frame(records)).records) == {0: -9.0}
    assert (tmp_path / "results" / "reference" / references.FILE).exists()


def test_the_reference_suite_has_the_data_of_the_suites_that_people_begin_with() -> None:
    def datasets(name):
        return {(str(t.dataset), t.dataset.version, t.seed) for t in plan(load_suite(name)).trials}

    assert datasets("quick") | datasets("real") == datasets("reference")


def test_what_comes_with_embench_is_known_in_every_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    shipped = references.known()

    assert {"iris", "three-gaussians"} <= {entry.dataset for entry in shipped}
    better = replace(shipped[0], nll=shipped[0].nll - 1)
    references.enter([better, replace(shipped[1], nll=shipped[1].nll + 1)])
    assert references.known() == [better, *shipped[1:]]
