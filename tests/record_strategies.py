"""Trials and records as hypothesis draws them: any that can be written can be drawn."""

from __future__ import annotations

from datetime import UTC, datetime

from hypothesis import strategies as st

from embench.types import GRADES, Record, Spec, Trial

words = st.from_regex(r"[a-z][a-z0-9_.-]{0,8}", fullmatch=True)
values = st.one_of(
    st.integers(),
    st.floats(allow_nan=False, allow_infinity=False),
    st.booleans(),
    st.none(),
    words,
).filter(lambda value: value not in ("true", "false", "null"))
specs = st.builds(Spec, words, st.dictionaries(words, values, max_size=4))
trials = st.builds(
    Trial,
    dataset=st.builds(Spec, words, st.dictionaries(words, values, max_size=3), words),
    model=st.builds(Spec, words, st.dictionaries(words, values, max_size=3), words),
    track=st.sampled_from(["same-start", "budget", "default"]),
    seed=st.integers(0, 10**6),
    device=st.sampled_from(["cpu", "cuda"]),
    dtype=st.sampled_from(["float64", "float32"]),
    threads=st.integers(1, 64),
    time_limit=st.floats(0.1, 1e4),
)
finite = st.floats(allow_nan=False, allow_infinity=False)
seconds = st.floats(0.0, 1e6)
moments = st.datetimes(datetime(2026, 1, 1), datetime(2027, 1, 1)).map(
    lambda moment: moment.replace(tzinfo=UTC).isoformat(timespec="milliseconds")
)
records = st.builds(
    Record,
    trial=trials,
    status=st.sampled_from(["ok", "diverged", "timeout"]),
    metrics=st.dictionaries(words, finite, max_size=4),
    curve=st.lists(st.tuples(finite, st.integers(0, 1000), finite), max_size=4).map(tuple),
    sizes=st.dictionaries(words, st.integers(1, 10**6), max_size=3),
    message=st.text(max_size=20),
    fits=st.lists(st.tuples(seconds, seconds), max_size=3).map(tuple),
    trial_seconds=st.none() | seconds,
    grade=st.sampled_from(list(GRADES)),
    noise=st.dictionaries(words, seconds, max_size=3),
    disturbed=st.just("") | words,
    ended=st.just("") | moments,
    environment=st.dictionaries(words, st.one_of(words, st.integers()), max_size=3),
)
