"""Compare models on the same data by the same seeds: what `embench.compare` returns."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from statistics import mean

import pandas as pd

from embench import references as reference_store
from embench.comparing.bestknown import with_best_known
from embench.comparing.change import Change, change
from embench.comparing.findings import Failure, Overall, Payback
from embench.comparing.frames import (
    CELL,
    Runs,
    by_label,
    has_shared_cores,
    load,
    metric_values,
    model_name,
    natural,
    ok,
    overlap,
    tidy,
)
from embench.comparing.stats import geometric_mean_interval
from embench.comparing.summary import summarise
from embench.comparing.tables import Comparison
from embench.comparing.targets import over_seeds, times_to_targets
from embench.metrics import METRICS
from embench.registry import unknown
from embench.types import Reference, Spec

DEFAULT_BASELINES = ("sklearn-em", "em", "linear-gaussian", "pixel-kmeans")
SAME_CHANGE = {"excess_nll": "nll"}
"""The excess differs from the NLL by what all models of a pair share: one comparison will do."""


def compare(
    runs: Runs,
    *,
    baseline: str | None = None,
    metrics: Iterable[str] | None = None,
    tracks: Iterable[str] | None = None,
    references: Iterable[Reference] | None = None,
) -> Comparison:
    """Compare every model with a baseline, by dataset and seed, each track by itself.

    Args:
        runs: A frame with one row per trial, a run's folder, or several of either.
        baseline: A model of these runs; by default ``sklearn-em`` where it was measured,
            otherwise ``em``, ``linear-gaussian`` or ``pixel-kmeans``, otherwise the first model
            by name. A name without parameters stands for all models of that name: each other
            model is compared with the one most like it in parameters.
        metrics: Names of METRICS to compare; by default all that were measured.
        tracks: Names of TRACKS to look at; by default all that were measured.
        references: Ends of earlier fits, which the best known NLL is found among beside those of
            the runs; by default what `embench reference` put into ``results/reference``.

    Returns:
        A comparison that prints itself. Without a single finished trial it has no changes and
        says so.

    Raises:
        InputError: The baseline, a metric or a track is unknown, or a folder holds no run.
    """
    earlier = reference_store.known() if references is None else references
    frame, notes = tidy(with_best_known(load(runs), earlier), tracks)
    chosen = _chosen(metrics)
    if baseline is not None and len(frame) and not _matching(frame, baseline):
        raise unknown("baseline", baseline, sorted(frame["label"].unique(), key=natural))
    changes: list[Change] = []
    for names, rows in frame.groupby(["track", "dataset"], sort=False) if len(frame) else ():
        against, note = _baselines(rows, baseline)
        notes += [f"{names[1]} ({names[0]}): {note}"] if note else []
        changes += _changes(rows, against, chosen) if against else []
    return Comparison(
        changes=tuple(changes),
        summary=summarise(frame),
        targets=over_seeds(times_to_targets(frame)),
        overall=tuple(_overall(changes)),
        paybacks=tuple(_paybacks(changes, frame)),
        failures=tuple(_failures(frame)),
        notes=(*notes, *_disturbances(frame), *_remarks(frame)),
        records=frame,
    )


def _chosen(metrics: Iterable[str] | None) -> list[str]:
    """The metrics to compare, in the order of their table."""
    if metrics is None:
        return [name for name in METRICS if name not in SAME_CHANGE]
    asked = list(metrics)
    for name in asked:
        if name not in METRICS:
            raise unknown("metric", name, METRICS)
    return [name for name in METRICS if name in asked]


def _matching(rows: pd.DataFrame, model: str) -> list[str]:
    """The labels that are this text, or whose model is this text, or else has this name."""
    known = rows[["label", "model"]].drop_duplicates()
    name = known["model"].map(model_name)
    for match in (known["label"] == model, known["model"] == model, name == model):
        if match.any():
            return list(known.loc[match, "label"].unique())
    return []


def _baselines(rows: pd.DataFrame, asked: str | None) -> tuple[list[str], str]:
    """The labels to compare with, and a note if they are not what a reader expects."""
    finished = ok(rows)
    if finished.empty:
        return [], "no trial finished"
    if asked:
        if found := _matching(finished, asked):
            return found, ""
        return [], f"no finished trial of the baseline {asked}, so nothing to compare with"
    wanted = [name for name in DEFAULT_BASELINES if _matching(rows, name)]
    done = [name for name in wanted if _matching(finished, name)]
    found = _matching(finished, done[0]) if done else [str(finished["label"].iloc[0])]
    unfinished = bool(wanted) and wanted[:1] != done[:1]
    return found, f"{wanted[0]} did not finish, so {found[0]} is the baseline" if unfinished else ""


def _changes(rows: pd.DataFrame, baselines: list[str], metrics: list[str]) -> list[Change]:
    """Each other model of one track and dataset against its baseline, in each metric."""
    labelled = by_label(rows)
    values = {
        label: {metric: metric_values(own, metric) for metric in metrics}
        for label, own in labelled.items()
    }
    against = {label: labelled.pop(label) for label in baselines}
    found = []
    for label, new in labelled.items():
        baseline = _most_like(new, against)
        for metric in metrics:
            found.append(
                change(
                    METRICS[metric],
                    values[baseline][metric],
                    values[label][metric],
                    baseline=baseline,
                    candidate=label,
                    overlap=overlap(new),
                    track=str(new["track"].iloc[0]),
                    dataset=str(new["dataset"].iloc[0]),
                )
            )
    return [item for item in found if item is not None]


def _most_like(candidate: pd.DataFrame, baselines: Mapping[str, pd.DataFrame]) -> str:
    """The baseline that shares most parameters and settings with a candidate, else the first."""
    own = _settings(candidate)
    return max(baselines, key=lambda label: len(own & _settings(baselines[label])))


def _settings(rows: pd.DataFrame) -> set[tuple[str, str]]:
    """Parameters, device, dtype and threads of a labelled model, as text."""
    first = rows.iloc[0]
    params = Spec.parse(first["model"])[0].params.items()
    run = ((name, first[name]) for name in ("device", "dtype", "threads"))
    return {(name, str(value)) for name, value in (*params, *run)}


def _overall(changes: Iterable[Change]) -> list[Overall]:
    """One line per track, baseline and candidate."""
    groups: dict[tuple[str, str, str], list[Change]] = {}
    for item in changes:
        groups.setdefault((item.track, item.baseline, item.candidate), []).append(item)
    return [_over_datasets(*names, items) for names, items in groups.items()]


def _over_datasets(track: str, baseline: str, candidate: str, items: list[Change]) -> Overall:
    quality, cost = _quality_and_cost(items)
    ratios = [item.interval.estimate for item in items if item.metric == cost]
    return Overall(
        track=track,
        baseline=baseline,
        candidate=candidate,
        n_datasets=len({item.dataset for item in items}),
        time_ratio=geometric_mean_interval(ratios) if ratios else None,
        metric=quality,
        verdicts=dict(Counter(item.verdict for item in items if item.metric == quality)),
    )


def _quality_and_cost(items: Iterable[Change]) -> tuple[str, str]:
    """The metrics that sum two models up: NLL and fit time, of groupers AMI and prediction time."""
    grouping = any(item.metric == "ami_max" for item in items)
    return ("ami", "predict_seconds") if grouping else ("nll", "fit_seconds")


def _paybacks(changes: Iterable[Change], frame: pd.DataFrame) -> list[Payback]:
    """One for each track, baseline, and candidate that learned before its fits."""
    if "training_seconds" not in frame:
        return []
    known = frame.dropna(subset="training_seconds").groupby("label")["training_seconds"].max()
    groups: dict[tuple[str, str, str], list[Change]] = {}
    for item in changes:
        if item.candidate in known:
            groups.setdefault((item.track, item.baseline, item.candidate), []).append(item)
    found = []
    for (track, baseline, candidate), items in groups.items():
        quality, cost = _quality_and_cost(items)
        times = [item for item in items if item.metric == cost]
        if times:
            payback = Payback(
                track=track,
                baseline=baseline,
                candidate=candidate,
                training_seconds=float(known[candidate]),
                saved_seconds=mean(item.baseline_value - item.candidate_value for item in times),
                is_settled=all(item.verdict != "inconclusive" for item in times),
                metric=quality,
                verdicts=dict(Counter(item.verdict for item in items if item.metric == quality)),
            )
            found.append(payback)
    return found


def _failures(frame: pd.DataFrame) -> list[Failure]:
    """Every trial that is not ok, counted by model, dataset and status."""
    if frame.empty:
        return []
    failed = frame[frame["status"] != "ok"].groupby([*CELL, "status"], sort=False)
    return [
        Failure(*map(str, names), count=len(rows), message=str(rows["message"].iloc[0]))
        for names, rows in failed
    ]


def _disturbances(frame: pd.DataFrame) -> list[str]:
    """How many trials others disturbed, all the same after a second time, and the first of them."""
    timed = ok(frame)
    if "disturbed" not in timed:
        return []
    rows = timed[(timed["disturbed"] != "") & ~has_shared_cores(timed)]
    if rows.empty:
        return []
    first = rows.iloc[0]
    return [
        f"{len(rows)} of {len(timed)} finished trials were disturbed, so that their times are "
        f"doubtful; the first, {first['label']} on {first['dataset']} ({first['track']}, seed "
        f"{first['seed']}): {first['disturbed']}"
    ]


def _remarks(frame: pd.DataFrame) -> list[str]:
    """What finished trials said, such as not to have converged: one line per model and track."""
    finished = ok(frame)
    if finished.empty:
        return []
    lines = []
    for (track, label), rows in finished.groupby(["track", "label"], sort=False):
        said = rows.loc[rows["message"] != "", "message"]
        if len(said):
            count = f"{len(said)} of {len(rows)} finished trials"
            lines.append(f"{label} ({track}): {count} left a message, the first: {said.iloc[0]}")
    return lines
