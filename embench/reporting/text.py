"""A comparison for terminal, Markdown, CSV and JSON; the words are those of `embench.comparing`."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from itertools import groupby
from operator import itemgetter
from pathlib import PurePath
from typing import TYPE_CHECKING, Any, Literal

import pandas as pd

from embench.comparing import tables
from embench.comparing.tables import Comparison
from embench.comparing.words import quantity
from embench.metrics import METRICS
from embench.types import GRADES, OWN_SCORE, STATUSES, Record, Spec

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

MOST_SENTENCES = 8
"""On a terminal, below one table: the best models; nobody reads a screen of sentences."""

TEXT_COLUMNS = [
    *("model", "dataset", "track", "metric", "better", "status", "verdict", "message"),
    *("trial", "basis"),
]
"""Columns of words, which stand to the left; all others hold numbers."""


def terminal(comparison: Comparison) -> Iterator[RenderableType]:
    """What rich prints: per track and dataset a table, a sentence per candidate, what to take.

    Example:
        >>> from rich.console import Console
        >>> from embench.comparing.compare import compare
        >>> for part in terminal(compare([])):
        ...     Console().print(part)
        Nothing to compare: no trial finished.
    """
    from rich.text import Text

    if comparison.summary.empty:
        yield Text(tables.NOTHING)
    for track, datasets in by_track(comparison):
        yield Text(f"\n{tables.track_title(track)}", style="bold underline")
        for dataset in datasets:
            yield from _terminal_section(comparison, track, dataset)
    for title, lines in tables.closing_groups(comparison):
        yield Text(f"\n{title}", style="bold")
        yield from map(_indented, lines)


def _terminal_section(comparison: Comparison, track: str, dataset: str) -> Iterator[RenderableType]:
    """One dataset: title, table, advice, sentences. All as Text, since labels hold brackets."""
    from rich.text import Text

    yield Text(f"\n{tables.dataset_title(comparison, dataset)}", style="bold")
    yield rich_table(
        tables.summary_table(comparison, track, dataset, tables.MAIN_METRICS, stddevs=False)
    )
    if advice := tables.recommendation(comparison, track, dataset):
        yield _indented(advice, "bold green")
    lines = tables.sentences(comparison, track, dataset)
    yield from map(_indented, lines[:MOST_SENTENCES])
    if (left := len(lines) - MOST_SENTENCES) > 0:
        yield _indented(f"... and {left} more of lower rank, all of them in the report")
    if len(times := tables.targets_table(comparison, track, dataset)):
        yield Text("")
        yield _indented(tables.TARGETS_TITLE)
        yield rich_table(times[:MOST_SENTENCES])


def rich_table(table: pd.DataFrame) -> Table:
    """A table for a terminal: no lines but one below the head, numbers to the right."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    drawn = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    for name in map(str, table):
        # A head wraps at its words, so that the width goes to the names of the models.
        longest = max(len(word) for word in [*table[name], *name.split(" "), "[nat]\u00a0↓"])
        justify: Literal["left", "right"] = "left" if name in TEXT_COLUMNS else "right"
        drawn.add_column(
            Text(name),
            justify=justify,
            overflow="fold",
            no_wrap=name == "seeds",
            max_width=None if name == "model" else longest,
        )
    for row in table.itertuples(index=False):
        # The name of a model with many parameters wraps between them.
        drawn.add_row(*(Text(cell.replace(",", ", ")) for cell in row))
    return drawn


def _indented(line: str, style: str = "") -> RenderableType:
    """A sentence set off from the margin, also in the lines that it wraps to."""
    from rich.padding import Padding
    from rich.text import Text

    return Padding(Text(line, style=style), (0, 0, 0, 2), expand=False)


def by_track(comparison: Comparison) -> list[tuple[str, list[str]]]:
    """Each track with its datasets, in order."""
    groups = groupby(comparison.tables(), key=itemgetter(0))
    return [(track, [dataset for _, dataset in pairs]) for track, pairs in groups]


def markdown(comparison: Comparison, figures: Iterable[str] = ()) -> str:
    """The comparison as GitHub Markdown, with links to figures (paths of images)."""
    parts = ["# Comparison of models", ""]
    if comparison.summary.empty:
        parts += [tables.NOTHING, ""]
    else:
        parts += [tables.LEGEND, ""]
    groups = dict(tables.closing_groups(comparison))
    parts += _markdown_group(tables.OVERALL, groups.pop(tables.OVERALL, []))
    for track, datasets in by_track(comparison):
        parts += [f"## {_escaped(tables.track_title(track))}", ""]
        for dataset in datasets:
            parts += _markdown_section(comparison, track, dataset)
    for title, lines in groups.items():
        parts += _markdown_group(title, lines)
    for path in figures:
        parts += [f"![{PurePath(path).stem}]({path})", ""]
    return "\n".join(parts)


def _markdown_group(title: str, lines: list[str]) -> list[str]:
    return [f"## {title}", "", *(f"- {_escaped(line)}" for line in lines), ""] if lines else []


def csv(comparison: Comparison) -> str:
    """One line per change; what does not exist is an empty cell."""
    return comparison.to_frame().to_csv(index=False)


def as_json(comparison: Comparison) -> str:
    """Changes, summary, times to quality, advice, failures ...; what does not exist is null.

    The ends of an interval that one pair leaves open are null too, and so is a time that is never:
    JSON knows no infinity.
    """
    advice = [
        {"track": track, "dataset": dataset, "text": text}
        for track, dataset in comparison.tables()
        if (text := tables.recommendation(comparison, track, dataset))
    ]
    value = {
        "changes": comparison.to_frame().to_dict("records"),
        "summary": comparison.summary.to_dict("records"),
        "targets": comparison.targets.to_dict("records"),
        "overall": [asdict(item) for item in comparison.overall],
        "paybacks": [{**asdict(item), "n_fits": item.n_fits} for item in comparison.paybacks],
        "recommendations": advice,
        "failures": [asdict(item) for item in comparison.failures],
        "notes": list(comparison.notes),
    }
    return json.dumps(_finite(value), indent=2, allow_nan=False, ensure_ascii=False)


def record_page(record: Record) -> str:
    """Everything known of one trial: what was asked, what came, how it went, and where.

    Example:
        >>> from embench.types import Trial
        >>> trial = Trial(dataset=Spec("iris"), model=Spec("em"), track="default", seed=0)
        >>> print(record_page(Record(trial=trial, status="ok", metrics={"fit_seconds": 0.012})))
        trial                em-iris-default-s0-...
        model                em
        dataset              iris
        track                default: every model as its own user would call it
        seed                 0
        device               cpu, float64, 1 thread
        time limit           60.0 s
        status               ok: finished and judged
        <BLANKLINE>
        fit time             12.0 ms      monotonic clock of the system
    """
    trial = record.trial
    threads = "1 thread" if trial.threads == 1 else f"{trial.threads} threads"
    asked = {
        "trial": trial.id,
        "model": _with_version(trial.model),
        "dataset": _with_version(trial.dataset),
        "track": tables.track_title(trial.track),
        "seed": str(trial.seed),
        "device": f"{trial.device}, {trial.dtype}, {threads}",
        "time limit": quantity(trial.time_limit, "s"),
        "status": f"{record.status}: {STATUSES[record.status]}",
    }
    said = {"message": record.message, "disturbed": record.disturbed, "ended": record.ended}
    said["grade"] = f"{record.grade}: {GRADES[record.grade]}" if record.grade != "timing" else ""
    asked |= {name: words for name, words in said.items() if words}
    fits = {
        f"fit {number}": f"{quantity(seconds, 's')}, CPU {quantity(cpu, 's')}"
        for number, (seconds, cpu) in enumerate(record.fits, start=1)
    }
    own = {"nll", "excess_nll"} if OWN_SCORE in record.message else set()
    metrics = {
        METRICS[name].title: f"{quantity(value, METRICS[name].unit):12} "
        + ("the model's own score" if name in own else METRICS[name].source)
        for name, value in record.metrics.items()
    }
    if record.trial_seconds is not None:
        fits["whole trial"] = quantity(record.trial_seconds, "s")
    noise = {
        name.removesuffix("_seconds"): quantity(value, "s" if name.endswith("_seconds") else "")
        for name, value in record.noise.items()
    }
    curve = {
        f"after {n_iter}": f"{quantity(nll, 'nat')} in {quantity(seconds, 's')}"
        for seconds, n_iter, nll in record.curve
    }
    sizes = {name: str(value) for name, value in record.sizes.items()}
    environment = {key: str(value) for key, value in record.environment.items()}
    groups = filter(None, [asked, sizes, metrics, fits, noise, curve, environment])
    return "\n\n".join("\n".join(f"{k:20} {v}" for k, v in group.items()) for group in groups)


def _with_version(spec: Spec) -> str:
    return f"{spec} (version {spec.version})" if spec.version else str(spec)


def _markdown_section(comparison: Comparison, track: str, dataset: str) -> list[str]:
    """One dataset: the models, what is said of them, and every change."""
    lines = tables.sentences(comparison, track, dataset)
    advice = tables.recommendation(comparison, track, dataset)
    parts = [f"### {_escaped(tables.dataset_title(comparison, dataset))}", ""]
    parts += [_markdown_table(tables.summary_table(comparison, track, dataset)), ""]
    parts += [f"**{_escaped(advice)}**", ""] if advice else []
    parts += [f"- {_escaped(line)}" for line in lines] + [""] * bool(lines)
    if len(times := tables.targets_table(comparison, track, dataset)):
        parts += [tables.TARGETS_TITLE, "", _markdown_table(times), ""]
    changes = tables.changes_table(comparison, track, dataset)
    return parts + ([_markdown_table(changes), ""] if len(changes) else [])


def _markdown_table(table: pd.DataFrame) -> str:
    """A table of text as Markdown; what is no word stands to the right."""
    right = [":--" if name in TEXT_COLUMNS else "--:" for name in table]
    rows = [
        list(map(str, table)),
        right,
        *([_escaped(cell) for cell in row] for row in table.to_numpy()),
    ]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _escaped(text: str) -> str:
    """Text that Markdown shows as it is, in one line."""
    return re.sub(r"([\\`*_|<>\[\]])", r"\\\1", " ".join(text.split()))


def _finite(value: Any) -> Any:
    """The value with None for every number that JSON cannot say."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
