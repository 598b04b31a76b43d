"""A comparison and its tables of text: what terminal, Markdown, HTML and notebook draw alike."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from functools import cached_property
from html import escape

import pandas as pd

from embench.comparing import words
from embench.comparing.change import Change
from embench.comparing.findings import Failure, Overall, Payback
from embench.comparing.frames import BEST
from embench.comparing.targets import TARGETS
from embench.comparing.words import change_text, quantity
from embench.metrics import METRICS
from embench.types import TRACKS

MAIN_METRICS = ("nll", "excess_nll", "ami", "fit_seconds", "predict_seconds", "peak_memory")
"""What a narrow table shows."""

OVERALL = "Over all datasets"
"""The title of the lines that answer first, or last on a terminal, where the end is seen."""

NOTHING = "Nothing to compare: no trial finished."
TARGETS_TITLE = "Time until the held-out NLL was within this of the best known:"
LEGEND = "↓ lower is better, ↑ higher is better; ± is the standard deviation over seeds."


@dataclass(frozen=True, eq=False, kw_only=True)
class Comparison:
    """What runs say about their models; the tracks are never mixed.

    ``changes``: one per track, dataset, metric and candidate. ``summary``: one row per track,
    dataset and model, in order of rank (see `summarise`). ``targets``: seconds to so much of the
    best known NLL, one row per track, dataset, model and target (see `over_seeds`). ``records``:
    the tidy table behind it.
    """

    changes: tuple[Change, ...]
    summary: pd.DataFrame
    targets: pd.DataFrame
    overall: tuple[Overall, ...]
    paybacks: tuple[Payback, ...]
    failures: tuple[Failure, ...]
    notes: tuple[str, ...]
    records: pd.DataFrame

    def to_frame(self) -> pd.DataFrame:
        """One row per change: names, n_pairs, both values, estimate, low, high, verdict."""
        columns = [name for name in Change.__dataclass_fields__ if name != "interval"]
        at = columns.index("verdict")
        columns[at:at] = ["estimate", "low", "high"]
        rows = [{**asdict(item), **asdict(item.interval)} for item in self.changes]
        return pd.DataFrame(rows, columns=columns)

    def tables(self) -> list[tuple[str, str]]:
        """Every (track, dataset) that was measured, in order."""
        found = self.summary[["track", "dataset"]].drop_duplicates()
        return list(found.itertuples(index=False, name=None))

    @cached_property
    def models(self) -> pd.DataFrame:
        """Every model of a track, once, in the order of the records: track, label, model."""
        return self.records[["track", "label", "model"]].drop_duplicates()

    def __repr__(self) -> str:
        return str(self)

    def __str__(self) -> str:
        return plain(self)

    def _repr_html_(self) -> str:
        return html(self)


def summary_table(
    comparison: Comparison,
    track: str,
    dataset: str,
    metrics: Iterable[str] = tuple(METRICS),
    stddevs: bool = True,
) -> pd.DataFrame:
    """The models of a table in order of rank, as text; without empty columns."""
    rows = rows_of(comparison.summary, track, dataset)
    table = {
        "#": [str(rank) for rank in rows["rank"]],
        "model": list(rows["model"]),
        "seeds": [
            f"{ok} of {planned}" for ok, planned in zip(rows["ok"], rows["planned"], strict=True)
        ],
    }
    for name in metrics:
        if name in rows and rows[name].notna().any():
            metric = METRICS[name]
            known = stddevs and f"{name}_std" in rows
            deviations = rows[f"{name}_std"] if known else [None] * len(rows)
            pairs = zip(rows[name], deviations, strict=True)
            cells = [words.with_stddev(*pair, metric.unit) for pair in pairs]
            table[_heading(name)] = [cell.removesuffix(" nat") for cell in cells]
    return pd.DataFrame(table)


def targets_table(comparison: Comparison, track: str, dataset: str) -> pd.DataFrame:
    """When the models of a table were within each target, as text in order of rank, or nothing."""
    rows = rows_of(comparison.targets, track, dataset)
    cells = {model: words.target_cells(some) for model, some in rows.groupby("model", sort=False)}
    ranked = rows_of(comparison.summary, track, dataset)["model"]
    heads = ["model", *(f"{target:g}\u00a0nat" for target in TARGETS)]
    found = [[model, *cells[model]] for model in ranked if model in cells]
    return pd.DataFrame(found, columns=heads)


def changes_table(comparison: Comparison, track: str, dataset: str) -> pd.DataFrame:
    """Every change of a table against its baseline, all cells as text."""
    found = changes_of(comparison, track, dataset)
    return pd.DataFrame(
        [
            {
                "model": item.candidate,
                "metric": METRICS[item.metric].title,
                "better": METRICS[item.metric].better,
                "baseline": quantity(item.baseline_value, METRICS[item.metric].unit),
                "value": quantity(item.candidate_value, METRICS[item.metric].unit),
                "change [95 % interval]": change_text(item),
                "pairs": str(item.n_pairs),
                "verdict": item.verdict,
            }
            for item in found
        ]
    )


def sentences(comparison: Comparison, track: str, dataset: str) -> list[str]:
    """One sentence per candidate of a table, in order of rank."""
    groups: dict[str, list[Change]] = {}
    for item in changes_of(comparison, track, dataset):
        groups.setdefault(item.candidate, []).append(item)
    ranked = [str(model) for model in rows_of(comparison.summary, track, dataset)["model"]]
    return [words.sentence(groups[model]) for model in ranked if model in groups]


def recommendation(comparison: Comparison, track: str, dataset: str) -> str:
    """Which model to take, in one sentence; empty if none finished."""
    summary = rows_of(comparison.summary, track, dataset)
    return words.recommendation(summary, rows_of(comparison.records, track, dataset))


def changes_of(comparison: Comparison, track: str, dataset: str) -> list[Change]:
    """The changes of one table."""
    return [item for item in comparison.changes if (item.track, item.dataset) == (track, dataset)]


def rows_of(frame: pd.DataFrame, track: str, dataset: str) -> pd.DataFrame:
    """The rows of one table."""
    return frame[(frame["track"] == track) & (frame["dataset"] == dataset)]


def dataset_title(comparison: Comparison, dataset: str) -> str:
    """A dataset's name and sizes, where a trial came far enough to know them."""
    rows = comparison.records[comparison.records["dataset"] == dataset]
    known = {
        name: rows[name].dropna().iloc[0]
        for name in ("n_samples", "n_steps", "n_features", "n_targets", "n_components")
        if name in rows and rows[name].nunique() == 1
    }
    sizes = [f"{name}={value:.0f}" for name, value in known.items() if f"{name}=" not in dataset]
    return f"{dataset} ({', '.join(sizes)})" if sizes else dataset


def track_title(track: str) -> str:
    return f"{track}: {TRACKS[track]}"


def closing_groups(comparison: Comparison) -> list[tuple[str, list[str]]]:
    """What is said once below all tables: titles, each with its lines; empty groups left out."""
    overall = [
        f"{item.track}: {words.overall_sentence(item)}"
        for item in comparison.overall
        if item.n_datasets > 1  # of a single dataset the sentences below its table say the same
    ]
    failures = [words.failure_sentence(item) for item in comparison.failures]
    groups = {
        OVERALL: overall,
        "Training, once": [
            f"{item.track}: {words.payback_sentence(item)}" for item in comparison.paybacks
        ],
        "Excess NLL": _reference_lines(comparison),
        "Time to quality": _target_lines(comparison),
        "Failed trials": failures,
        "Notes": list(comparison.notes),
    }
    return [(title, lines) for title, lines in groups.items() if lines]


def plain(comparison: Comparison) -> str:
    """The whole comparison as plain text, for print."""
    parts = [NOTHING] if comparison.summary.empty else []
    for track, dataset in comparison.tables():
        table = summary_table(comparison, track, dataset, MAIN_METRICS, stddevs=False)
        parts += [_title(comparison, track, dataset), table.to_string(index=False)]
        parts += [*_below(comparison, track, dataset), ""]
        if len(times := targets_table(comparison, track, dataset)):
            parts += [TARGETS_TITLE, times.to_string(index=False), ""]
    for title, lines in closing_groups(comparison):
        parts += [title, *(f"  {line}" for line in lines), ""]
    return "\n".join(parts).rstrip()


def html(comparison: Comparison) -> str:
    """The whole comparison as HTML, for a notebook."""
    parts = [_paragraph(NOTHING)] if comparison.summary.empty else []
    for track, dataset in comparison.tables():
        table = summary_table(comparison, track, dataset, MAIN_METRICS)
        parts.append(f"<h4>{escape(_title(comparison, track, dataset))}</h4>")
        parts.append(table.to_html(index=False, border=0))
        parts += map(_paragraph, _below(comparison, track, dataset))
        if len(times := targets_table(comparison, track, dataset)):
            parts += [_paragraph(TARGETS_TITLE), times.to_html(index=False, border=0)]
    for title, lines in closing_groups(comparison):
        parts += [f"<h4>{escape(title)}</h4>", *map(_paragraph, lines)]
    return "\n".join(parts)


def _title(comparison: Comparison, track: str, dataset: str) -> str:
    return f"{dataset_title(comparison, dataset)}, {track_title(track)}"


def _below(comparison: Comparison, track: str, dataset: str) -> list[str]:
    """The sentences below one table."""
    advice = recommendation(comparison, track, dataset)
    return [*([advice] if advice else []), *sentences(comparison, track, dataset)]


def _reference_lines(comparison: Comparison) -> list[str]:
    """What the excess NLL of each dataset is measured over."""
    records = comparison.records
    if "reference" not in records or not records["reference"].any():
        return []
    lines = []
    for reference, rows in records[records["reference"] != ""].groupby("reference", sort=False):
        why = " at the same seed, for want of a truth" if reference == BEST else ""
        lines.append(f"over {reference}{why}: {', '.join(rows['dataset'].unique())}")
    return lines


def _target_lines(comparison: Comparison) -> list[str]:
    """What the times to quality are, and where the line is drawn by the runs themselves."""
    if comparison.targets.empty:
        return []
    lines = [words.TARGETS_LEGEND]
    for track, rows in comparison.targets.groupby("track", sort=False):
        if rows["dataset"].nunique() > 1:  # of a single dataset its table says the same
            lines.append(f"{track}: {words.reached_sentence(rows)}")
    records = comparison.records[comparison.records["best_known"].notna()]
    without = records[~records["has_reference"]]["dataset"].unique()
    if len(without):
        every = len(without) == records["dataset"].nunique()
        where = "" if every else f": {', '.join(without)}"
        lines.append(f"the best known is that of these runs, for want of a reference{where}")
    return lines


def _heading(metric: str) -> str:
    """A metric's title, its unit where no cell scales it, and where it is better."""
    unit = " [nat]" if METRICS[metric].unit == "nat" else ""
    arrow = "↓" if METRICS[metric].better == "lower" else "↑"
    # The arrow stays with the word before it.
    return f"{METRICS[metric].title}{unit}\u00a0{arrow}"


def _paragraph(text: str) -> str:
    return f"<p>{escape(text)}</p>"
