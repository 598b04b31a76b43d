"""What is not worth trying: what is larger, in all, than what failed under no tighter limit."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from embench.measuring.sizes import Hopeless, is_smaller
from embench.types import Record, Spec, Trial

counts = st.integers(1, 3)
sizes = st.dictionaries(st.sampled_from("abc"), counts, min_size=1)
cells = st.fixed_dictionaries({"n_samples": counts, "n_features": counts})


def trial(asked, *, model=None, seed=0, **fields):
    return Trial(
        dataset=Spec("blobs", {"separation": 2, **asked}),
        model=Spec("em", model or {}),
        **{"track": "default", "seed": seed, **fields},
    )


def failed(of, status="timeout"):
    return Record(trial=of, status=status)


@given(sizes, sizes, sizes)
def test_smaller_is_a_strict_partial_order(one, other, third):
    assert not is_smaller(one, one)
    assert not (is_smaller(one, other) and is_smaller(other, one))
    if is_smaller(one, other) and is_smaller(other, third):
        assert is_smaller(one, third)


@given(st.lists(cells, max_size=4), cells, st.sampled_from(["timeout", "out-of-memory"]))
def test_exactly_what_is_larger_than_one_that_failed_is_hopeless(failures, asked, status):
    hopeless = Hopeless(failed(trial(one), status) for one in failures)

    found = hopeless.why(trial(asked))

    larger = any(
        one != asked and all(one[name] <= asked[name] for name in asked) for one in failures
    )
    assert bool(found) == larger


@given(st.lists(st.tuples(cells, st.booleans()), max_size=6), cells)
def test_nothing_is_pruned_behind_a_cell_that_has_finished(outcomes, asked):
    """At any seed, before or after it failed at another."""
    hopeless = Hopeless()
    for seed, (one, is_ok) in enumerate(outcomes):
        hopeless.learn(failed(trial(one, seed=seed), "ok" if is_ok else "timeout"))

    found = hopeless.why(trial(asked))

    finished = [one for one, is_ok in outcomes if is_ok]
    blamed = [one for one, is_ok in outcomes if not is_ok and one not in finished]
    assert bool(found) == any(is_smaller(one, asked) for one in blamed)


@pytest.mark.parametrize(("status", "expected"), [("timeout", False), ("out-of-memory", True)])
def test_who_timed_out_in_less_time_says_nothing_of_more(status, expected):
    hopeless = Hopeless([failed(trial({"n_samples": 1}, time_limit=1.0), status)])

    assert bool(hopeless.why(trial({"n_samples": 2}, time_limit=2.0))) == expected
    assert hopeless.why(trial({"n_samples": 2}, time_limit=1.0))
    assert hopeless.why(trial({"n_samples": 2}, time_limit=0.5))


@pytest.mark.parametrize("status", ["error", "crashed", "diverged", "pruned"])
def test_only_what_grows_with_size_is_a_reason(status):
    hopeless = Hopeless([failed(trial({"n_samples": 1}), status)])

    assert hopeless.why(trial({"n_samples": 2})) == ""


@pytest.mark.parametrize(
    "other",
    [
        {"track": "budget"},
        {"device": "cuda"},
        {"dtype": "float32"},
        {"threads": 2},
        {"model": Spec("sklearn-em")},
        {"model": Spec("em", {"tol": 0})},
        {"model": Spec("em", version="newer")},
        {"dataset": Spec("blobs", {"n_samples": 2, "separation": 3})},
        {"dataset": Spec("rings", {"n_samples": 2, "separation": 2})},
    ],
    ids=str,
)
def test_another_family_has_its_own_chance(other):
    hopeless = Hopeless([failed(trial({"n_samples": 1}))])
    larger = trial({"n_samples": 2})

    assert hopeless.why(larger)
    assert hopeless.why(replace(larger, seed=7))
    assert hopeless.why(replace(larger, **other)) == ""


def test_sizes_of_the_model_count_and_truths_are_none():
    hopeless = Hopeless([failed(trial({}, model={"n_components": 2}))])

    assert hopeless.why(trial({}, model={"n_components": 3}))
    assert hopeless.why(trial({"n_components": 3}, model={"n_components": 2})) == ""
    truth = Hopeless([failed(trial({}, model={"n_components": True}))])
    assert truth.why(trial({}, model={"n_components": 2})) == ""


def test_the_reason_names_the_trial_that_failed_and_how():
    small = trial({"n_samples": 1})

    for status, words in (("timeout", "timed out"), ("out-of-memory", "ran out of memory")):
        found = Hopeless([failed(small, status)]).why(trial({"n_samples": 2}))
        assert found == f"not run: a smaller one {words} ({small.id})"
