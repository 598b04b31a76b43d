"""Does a trial that was run again agree with its record?"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from embench.comparing.change import allowed
from embench.comparing.words import quantity, significant
from embench.metrics import METRICS, Metric
from embench.types import Record

Agreement = Literal["agrees", "differs", "not compared"]

EXIT_CODES = {"reproduced": 0, "costs differ": 1, "not reproduced": 2}
"""As those of the gate: 1 for costs, 2 for quality."""

MACHINE = ("host", "cpu", "gpu")
"""What must be the same for seconds and bytes to be compared."""


@dataclass(frozen=True)
class Line:
    """One metric then and now, as text, and whether the two agree."""

    metric: str
    before: str
    now: str
    agreement: Agreement
    remark: str = ""


@dataclass(frozen=True)
class Reproduction:
    """What became of a trial that was run again: its lines, and in a word whether it agrees."""

    lines: tuple[Line, ...]
    verdict: str

    @property
    def exit_code(self) -> int:
        return EXIT_CODES[self.verdict]


def reproduction(before: Record, now: Record) -> Reproduction:
    """Hold a new record of a trial against the earlier one.

    Qualities agree within the tolerance of a tie, costs within that of the gate, since a single
    pair of fits has no interval. Seconds and bytes are compared on one machine only.

    Example:
        >>> from embench.types import Spec, Trial
        >>> trial = Trial(dataset=Spec("iris"), model=Spec("em"), track="default", seed=0)
        >>> record = Record(trial=trial, status="ok", metrics={"nll": 1.5})
        >>> reproduction(record, record).verdict
        'reproduced'
    """
    if before.status != now.status:
        line = Line("status", before.status, now.status, "differs", now.message)
        return Reproduction((line,), "not reproduced")
    lines = tuple(_lines(before, now))
    differing = {line.metric for line in lines if line.agreement == "differs"}
    if any(METRICS[name].kind == "quality" for name in differing):
        return Reproduction(lines, "not reproduced")
    return Reproduction(lines, "costs differ" if differing else "reproduced")


def _lines(before: Record, now: Record) -> Iterator[Line]:
    for name in METRICS:
        old, new = before.metrics.get(name), now.metrics.get(name)
        if old is None and new is None:
            continue
        agreement, remark = _agreement(METRICS[name], old, new, before, now)
        unit = METRICS[name].unit
        yield Line(name, quantity(old, unit), quantity(new, unit), agreement, remark)


def _agreement(
    metric: Metric, old: float | None, new: float | None, before: Record, now: Record
) -> tuple[Agreement, str]:
    if old is None or new is None:
        return "not compared", "measured only once"
    if metric.unit in ("s", "B"):
        if _machine(before) != _machine(now):
            return "not compared", "on another machine"
        if metric.unit == "s" and "quality" in (before.grade, now.grade):
            return "not compared", "shared its cores"
    if old == new:
        return "agrees", "to the last digit"
    tolerance = metric.tie if metric.kind == "quality" else metric.gate
    old, new = (max(value, metric.resolution) for value in (old, new))
    limit = allowed(metric, tolerance, (old, new))
    if metric.kind == "quality":
        change, unit, name = abs(new - old), metric.unit, "apart"
    else:
        change, unit, name = max(new / old, old / new), "", "times"
    words = " ".join(filter(None, (significant(change, 3), unit, name)))
    if change <= limit:
        return "agrees", words
    return "differs", f"{words}, allowed {significant(limit)} {unit}".rstrip()


def _machine(record: Record) -> tuple[object, ...]:
    return tuple(record.environment.get(key) for key in MACHINE)
