"""Is a run worse than an earlier one? A verdict with an exit code and a line per reason.

A metric regressed only if the favourable end of its interval is still worse than the tolerance
in METRICS, so noise alone raises no alarm; what was measured before and is missing now fails.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import pandas as pd

from embench.comparing.change import Change, allowed, bound, change, loss
from embench.comparing.compare import SAME_CHANGE
from embench.comparing.frames import CELL, has_shared_cores, metric_values, natural, ok, same_cells
from embench.comparing.words import change_text, quantity, significant
from embench.metrics import MACHINE_COSTS, METRICS, TIMES, Metric

EXIT_CODES = {
    "passed": 0,
    "cost regression": 1,
    "quality regression": 2,
    "inconclusive": 3,
    "nothing compared": 4,
}

MACHINE = ("cpu", "gpu")
"""Keys of a record's environment that must agree before seconds and bytes are compared."""

Outcome = Literal["passed", "regressed", "inconclusive"]


@dataclass(frozen=True)
class Finding:
    """One comparison of the gate; ``line`` says what was found where it did not pass."""

    kind: Literal["quality", "cost"]
    outcome: Outcome
    line: str = ""


@dataclass(frozen=True)
class Verdict:
    """What the gate found: an exit code of EXIT_CODES and the lines that give the reasons."""

    exit_code: int
    lines: tuple[str, ...]

    def __str__(self) -> str:
        return "\n".join(self.lines)


def gate(baseline: pd.DataFrame, candidate: pd.DataFrame) -> Verdict:
    """Judge a run against an earlier one, cell by cell, over the seeds that both have.

    A cell is a model on a dataset in a track, on one device, dtype and number of threads.

    Args:
        baseline: One row per trial, as `store.frame` makes it.
        candidate: Likewise.

    Returns:
        Exit code 0 if nothing regressed, 1 if a cost did, 2 if a quality did or something
        measured before is missing or failed now, 3 if the noise leaves it open, 4 if the two
        have no finished cell in common. Lines come worst first, the sum of all at the end.

    Notes:
        Seconds and bytes are left out, and a line says so, where the machines differ. Seeds that
        the whole candidate run was not asked for are no failure. Each interval is judged by
        itself: no correction for many comparisons is made beyond the wide tolerances.
    """
    old, new = same_cells(baseline, candidate)
    pairs = list(_pairs(old, new))
    findings = [finding for rows in pairs for finding in _missing_trials(*rows, _seeds_asked(new))]
    common = [(a, b) for a, b in pairs if _common_seeds(a, b)]
    sound = [(a, b) for a, b in common if _versions(a) == _versions(b)]
    notes = [*_new_cells(old, new), *_machine_notes(sound), *_grade_notes(sound)]
    findings += [_other_data(a, b) for a, b in common if _versions(a) != _versions(b)]
    compared = [finding for rows in sound for finding in _metrics(*rows)]
    return _verdict(findings, compared, len(sound), notes)


def _verdict(
    other: list[Finding], compared: list[Finding], n_cells: int, notes: list[str]
) -> Verdict:
    """The exit code and all lines, worst first."""
    findings = [*other, *compared]
    regressed = [item for item in findings if item.outcome == "regressed"]
    unsettled = [item for item in findings if item.outcome == "inconclusive"]
    if not compared:
        word = "nothing compared"
    elif any(item.kind == "quality" for item in regressed):
        word = "quality regression"
    elif regressed:
        word = "cost regression"
    else:
        word = "inconclusive" if unsettled else "passed"
    regressed.sort(key=lambda item: item.kind != "quality")
    total = (
        f"{word}: {_count(len(compared), 'comparison')} on {_count(n_cells, 'cell')}: "
        f"{_count(len(regressed), 'regression')}, {len(unsettled)} inconclusive"
    )
    lines = [item.line for item in [*regressed, *unsettled]] + notes + [total]
    return Verdict(EXIT_CODES[word], tuple(lines))


def _pairs(old: pd.DataFrame, new: pd.DataFrame) -> Iterator[tuple[pd.DataFrame, pd.DataFrame]]:
    """The rows of each cell that was ok in the baseline, beside the candidate's."""
    if old.empty:
        return
    candidates = dict(iter(new.groupby(CELL))) if len(new) else {}
    for names, rows in old.groupby(CELL, sort=False):
        if len(ok(rows)):
            yield rows, candidates.get(names, rows.iloc[:0])


def _missing_trials(
    old: pd.DataFrame, new: pd.DataFrame, asked: set[tuple[str, int]]
) -> list[Finding]:
    """Trials that were ok and now failed or, though the run was asked for the seed, are missing."""
    track, dataset, label = old[CELL].iloc[0]
    where = f"{label} on {dataset} ({track})"
    before = ok(old)["seed"]
    if new.empty:
        line = f"missing: {where}: {_count(len(before), 'trial')} ok before, not measured now"
        return [Finding("quality", "regressed", line)]
    failed = new[new["seed"].isin(before) & (new["status"] != "ok")]
    absent = [seed for seed in before if (track, seed) in asked and seed not in set(new["seed"])]
    found = [
        f"failed: {where}: ok before, now {len(rows)} of {len(before)} {status}: "
        + str(rows["message"].iloc[0])
        for status, rows in failed.groupby("status")
    ]
    if absent:
        found.append(f"missing: {where}: {len(absent)} of {len(before)} seeds not measured now")
    return [Finding("quality", "regressed", line.rstrip(": ")) for line in found]


def _seeds_asked(new: pd.DataFrame) -> set[tuple[str, int]]:
    """The seeds that the candidate run has anywhere, by track."""
    return set(zip(new["track"], new["seed"], strict=True)) if len(new) else set()


def _common_seeds(old: pd.DataFrame, new: pd.DataFrame) -> set[int]:
    return set(ok(old)["seed"]) & set(ok(new)["seed"])


def _versions(rows: pd.DataFrame) -> set[str]:
    return set(rows["dataset_version"].astype(str))


def _other_data(old: pd.DataFrame, new: pd.DataFrame) -> Finding:
    """Numbers on other data answer nothing, neither way."""
    track, dataset, label = old[CELL].iloc[0]
    versions = " -> ".join(", ".join(sorted(_versions(rows))) for rows in (old, new))
    line = (
        f"not compared: {label} on {dataset} ({track}): the dataset's version changed "
        f"({versions}); measure the baseline again"
    )
    return Finding("quality", "inconclusive", line)


def _metrics(old: pd.DataFrame, new: pd.DataFrame) -> Iterator[Finding]:
    """Every metric of a cell over the seeds that are ok in both."""
    seeds = _common_seeds(old, new)
    old, new = (rows[rows["seed"].isin(seeds)] for rows in (old, new))
    left_out = set() if _machine(old) == _machine(new) else set(MACHINE_COSTS)
    left_out |= set(TIMES) if has_shared_cores(pd.concat([old, new])).any() else set()
    for metric in METRICS.values():
        before, now = metric_values(old, metric.name), metric_values(new, metric.name)
        if before.empty or metric.name in SAME_CHANGE or metric.name in left_out:
            continue
        yield _judge(metric, before, now, dict(zip(CELL, old[CELL].iloc[0], strict=True)))


def _judge(metric: Metric, before: pd.Series, now: pd.Series, cell: dict[str, Any]) -> Finding:
    """Passed, regressed, or beyond the tolerance without being certain."""
    label, dataset, track = cell["label"], cell["dataset"], cell["track"]
    gone = before.index.difference(now.index)
    if len(gone):
        line = f"{label} on {dataset} ({track}): absent on {len(gone)} of {len(before)} seeds"
        return Finding(metric.kind, "regressed", f"{metric.name} missing: {line}")
    found = change(
        metric, before, now, track=track, dataset=dataset, baseline=label, candidate=label
    )
    assert found is not None, "every seed of the baseline is there"
    shift = loss(metric, found.interval)
    limit = bound(metric, metric.gate, (found.baseline_value, found.candidate_value))
    if shift.low > limit:
        return Finding(metric.kind, "regressed", _line("worse", metric, found))
    if shift.estimate > limit:
        return Finding(metric.kind, "inconclusive", _line("perhaps worse", metric, found))
    return Finding(metric.kind, "passed")


def _line(verdict: str, metric: Metric, found: Change) -> str:
    """Metric, model, dataset, track, both values, the change with its interval, the tolerance."""
    values = found.baseline_value, found.candidate_value
    before, now = (quantity(value, metric.unit) for value in values)
    limit = f"{significant(allowed(metric, metric.gate, values))} "
    limit += "times" if metric.kind == "cost" else metric.unit
    return (
        f"{metric.name} {verdict}: {found.candidate} on {found.dataset} ({found.track}): "
        f"{before} -> {now}, {change_text(found)} over {_count(found.n_pairs, 'seed')}, "
        f"allowed {limit.rstrip()}"
    )


def _machine(rows: pd.DataFrame) -> set[str]:
    """What the rows were measured on, in words."""
    return {
        ", ".join(str(environment[key]) for key in MACHINE if environment.get(key))
        for environment in rows["environment"]
    }


def _machine_notes(pairs: Iterable[tuple[pd.DataFrame, pd.DataFrame]]) -> list[str]:
    """One line for all cells whose seconds and bytes were left out."""
    machines = [(_machine(ok(old)), _machine(ok(new))) for old, new in pairs]
    differing = [pair for pair in machines if pair[0] != pair[1]]
    if not differing:
        return []
    before, now = (
        " and ".join(sorted(set().union(*side))) for side in zip(*differing, strict=True)
    )
    return [
        f"note: time and memory left out on {_count(len(differing), 'cell')}: "
        f"measured on {before or 'an unnamed machine'}, now on {now or 'an unnamed machine'}"
    ]


def _grade_notes(pairs: Iterable[tuple[pd.DataFrame, pd.DataFrame]]) -> list[str]:
    """One line for all cells whose seconds were left out because trials shared their cores."""
    count = sum(bool(has_shared_cores(pd.concat(pair)).any()) for pair in pairs)
    if not count:
        return []
    return [f"note: time left out on {_count(count, 'cell')}: trials may have shared their cores"]


def _new_cells(old: pd.DataFrame, new: pd.DataFrame) -> list[str]:
    """Cells without a baseline."""
    known = set() if old.empty else set(ok(old)[CELL].itertuples(index=False, name=None))
    cells = set() if new.empty else set(ok(new)[CELL].itertuples(index=False, name=None))
    fresh = sorted(cells - known, key=lambda cell: [natural(text) for text in cell])
    return [
        f"note: new, without a baseline: {label} on {dataset} ({track})"
        for track, dataset, label in fresh
    ]


def _count(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
