"""What `speed.py` measured, in tables and words."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import geometric_mean, median
from typing import Any

from rich import box
from rich.table import Table
from speed_worker import Reading

from embench.comparing.words import significant

BASELINE = "sklearn-em"

TIE = 1.1
"""Speed-ups within this factor of 1 are a tie."""

WAITED = 1.1
"""A wall clock this many times ahead of the CPU's means waiting, the reverse several threads."""

TOO_SHORT = 0.01
"""Below these seconds the CPU's clock and the wall's are not compared."""

AGREEMENT = {"float64": 1e-8, "float32": 1e-3}
"""How far two log-likelihoods may lie apart, relative to their size, and be the same result."""

UNREGULARISED = {"onedal-em": 1e-5}
"""The same for models that add nothing to the covariances, where the baseline adds 1e-6."""


@dataclass(frozen=True)
class Job:
    """Something to fit, and by what the seconds are divided: iterations, datasets or restarts.

    ``n_iter`` is None where as many iterations are done as it takes for a fit to last long enough.
    """

    name: str
    n_samples: int
    n_features: int
    n_components: int
    n_datasets: int = 1
    n_iter: int | None = None
    params: Mapping[str, Any] = field(default_factory=dict, hash=False)
    per: str = "iteration"

    def __str__(self) -> str:
        return f"{self.name} {self.n_samples}x{self.n_features}x{self.n_components}".strip()

    def units(self, reading: Reading) -> int:
        """How many iterations, datasets or restarts a fit was made of."""
        if self.per == "iteration":
            return reading.n_iter
        return self.n_datasets if self.per == "dataset" else self.params["n_init"]


@dataclass(frozen=True)
class Result:
    """What a model in one dtype took for a job, round by round, and the judge's view of it [nat].

    ``log_likelihood`` is a mean per sample, of samples fitted on.
    """

    model: str
    dtype: str
    job: Job
    readings: Sequence[Reading]
    log_likelihood: float

    @property
    def milliseconds(self) -> list[float]:
        """CPU milliseconds per iteration, dataset or restart, round by round."""
        return [1e3 * one.cpu_seconds / self.job.units(one) for one in self.readings]

    @property
    def wall_milliseconds(self) -> list[float]:
        """The same by the clock on the wall."""
        return [1e3 * one.seconds / self.job.units(one) for one in self.readings]


@dataclass(frozen=True)
class Speedup:
    """How many times faster than another: median over rounds, lowest and highest."""

    middle: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{significant(self.middle)} ({significant(self.low)}-{significant(self.high)})"


def speedup(result: Result, baseline: Result) -> Speedup:
    """Paired within each round."""
    pairs = zip(baseline.milliseconds, result.milliseconds, strict=True)
    ratios = [theirs / ours for theirs, ours in pairs]
    return Speedup(median(ratios), min(ratios), max(ratios))


def verdict(ratio: float) -> str:
    """A speed-up in words.

    >>> verdict(3.14), verdict(1.05), verdict(0.7)
    ('3.1x faster', 'tie', '1.4x slower')
    """
    if 1 / TIE <= ratio <= TIE:
        return "tie"
    times = significant(max(ratio, 1 / ratio), 2)
    return f"{times}x faster" if ratio > 1 else f"{times}x slower"


def table(results: Sequence[Result], dtype: str) -> Table:
    """Jobs by models in one dtype, and below them the geometric means over the jobs."""
    drawn = empty_table("cell", "model", "CPU", "wall", "speed-up", "verdict")
    means: dict[str, list[float]] = {}
    shown = None
    for result, against in _held_against(results, dtype):
        took = [median(times) for times in (result.milliseconds, result.wall_milliseconds)]
        label = result.model
        words: list[str] = []
        if against:
            ratio = speedup(result, against)
            label += "" if against.dtype == dtype else f" vs {against.dtype}"
            means.setdefault(label, []).append(ratio.middle)
            words = [str(ratio), verdict(ratio.middle)]
        cell = "" if result.job == shown else str(result.job)
        drawn.add_row(cell, label, *map(significant, took), *words)
        shown = result.job
    drawn.add_section()
    for label, ratios in means.items():
        mean = geometric_mean(ratios)
        drawn.add_row(f"mean of {len(ratios)}", label, "", "", significant(mean), verdict(mean))
    return drawn


def remarks(results: Sequence[Result]) -> Iterator[str]:
    """What a reader must know before believing a number, one sentence each."""
    for result in results:
        who = f"{result.job}, {result.model} in {result.dtype}"
        for remark in (_on_clock(result), _on_threads(result), _on_result(result, results)):
            if remark:
                yield f"{who}: {remark}"


def empty_table(*names: str) -> Table:
    """No lines but one below the head, numbers to the right, within 80 columns."""
    drawn = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    for name in names:
        right = name in ("CPU", "wall", "peak MiB")
        drawn.add_column(name, justify="right" if right else "left", no_wrap=True)
    return drawn


def _held_against(results: Sequence[Result], dtype: str) -> Iterator[tuple[Result, Result | None]]:
    """The results of a dtype, each with the baseline's of its job; the baseline's own with None.

    embench's float32 stands a second time, against the baseline in float64: who may use float32
    wants to know what that alone gains.
    """
    baselines = {(one.job, one.dtype): one for one in results if one.model == BASELINE}
    for result in results:
        if result.dtype != dtype:
            continue
        baseline = baselines.get((result.job, dtype))
        yield result, None if result is baseline else baseline
        double = baselines.get((result.job, "float64"))
        if result.model == "em" and dtype == "float32" and double:
            yield result, double


def _on_clock(result: Result) -> str:
    """Whether wall and CPU tell different stories."""
    long = [one for one in result.readings if one.cpu_seconds > TOO_SHORT]
    ratio = median(one.seconds / one.cpu_seconds for one in long) if long else 1.0
    if ratio > WAITED:
        return f"wall / CPU {ratio:.2f}: something else wanted the core; close it and run again"
    if ratio < 1 / WAITED:
        return f"CPU / wall {1 / ratio:.2f}: it ran in more than one thread"
    return ""


def _on_threads(result: Result) -> str:
    threads = max(one.threads for one in result.readings)
    return f"{threads} threads instead of 1" if threads != 1 else ""


def _on_result(result: Result, results: Sequence[Result]) -> str:
    """Whether it did other work, or found something else, than the baseline in its dtype."""
    for other in results:
        if (other.job, other.dtype, other.model) != (result.job, result.dtype, BASELINE):
            continue
        found, expected = result.log_likelihood, other.log_likelihood
        done, asked = (max(one.n_iter for one in each.readings) for each in (result, other))
        apart = abs(found - expected) / abs(expected)
        if not apart <= max(AGREEMENT[result.dtype], UNREGULARISED.get(result.model, 0)):
            return (
                f"another result: log-likelihood {found:.10g} nat, {BASELINE}'s {expected:.10g} "
                f"(relative difference {apart:.1e})"
            )
        # Per iteration it does not matter that oneDAL ends where rounding stops the rise.
        if done != asked and result.job.per != "iteration":
            return f"{done} iterations, {BASELINE} did {asked}"
    return ""
