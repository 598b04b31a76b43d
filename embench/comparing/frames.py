"""From runs on disk to one tidy table: one row per trial, labelled and ordered."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from embench import store
from embench.metrics import METRICS, TIMES, Metric
from embench.registry import unknown
from embench.types import TRACKS, Spec

CELL = ["track", "dataset", "label"]
"""What is compared over seeds: one labelled model on one dataset in one track."""

TRUTH, BEST = "the truth", "the best known"
"""What an excess NLL can be measured over."""

Runs = pd.DataFrame | str | Path | Iterable[pd.DataFrame | str | Path]


def load(runs: Runs) -> pd.DataFrame:
    """The rows of `store.frame` for a run's folder, a frame, or several of either, in this order.

    Raises:
        InputError: A folder holds no run, or an unreadable one.
    """
    many = [runs] if isinstance(runs, pd.DataFrame | str | Path) else list(runs)
    frames = [frame for frame in map(_load, many) if len(frame)]
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()


def tidy(
    frame: pd.DataFrame, tracks: Iterable[str] | None = None
) -> tuple[pd.DataFrame, list[str]]:
    """One row per trial, in an order that does not depend on that of the records.

    The frame has a column ``best_known`` already (see `bestknown`). Adds ``label`` (the model's
    text, with its version, device, dtype, threads and budget where the table has several),
    ``excess_nll`` where it is missing, and ``reference``: what the excess is measured over.

    Returns:
        The table, and notes on what was set aside.

    Raises:
        InputError: There is no such track.
    """
    for track in tracks or ():
        if track not in TRACKS:
            raise unknown("track", track, TRACKS)
    if frame.empty:
        return frame, []
    if tracks is not None:
        frame = frame[frame["track"].isin(list(tracks))]
    # By what a reader can tell apart: an old time limit must not count as another seed.
    frame, notes = _last_of_each(_with_labels(frame), [*CELL, "seed"])
    frame, more = _timed_alone(frame)
    return _with_excess(_in_order(frame)).reset_index(drop=True), [*notes, *more]


def same_cells(*frames: pd.DataFrame) -> list[pd.DataFrame]:
    """Several runs in tidy form, with one label for the same model and settings in all of them.

    A model's version is no part of these labels: a gate asks what a new version did.
    """
    both = [frame.assign(side=side) for side, frame in enumerate(frames) if len(frame)]
    if not both:
        return [pd.DataFrame() for _ in frames]
    table = pd.concat(both, ignore_index=True)
    table = table.assign(label=table["model"] + _settings(table))
    # Two files of one name in one run are two datasets.
    trial = table.groupby(["side", *CELL, "seed"])["dataset_version"].transform("nunique")
    clash = (trial > 1).groupby(table["dataset"]).transform("any")
    table["dataset"] = table["dataset"].where(~clash, _versioned(table, "dataset"))
    table = _in_order(table)
    table = table.drop_duplicates(["side", *CELL, "seed"], keep="last")
    return [table[table["side"] == side] for side in range(len(frames))]


def ok(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows of trials that finished and were judged."""
    return frame[frame["status"] == "ok"] if len(frame) else frame


def metric_values(frame: pd.DataFrame, metric: str) -> pd.Series:
    """A metric's values by seed, over the ok trials that have it."""
    if metric not in frame:
        return pd.Series(dtype=float)
    # Column by column: tables of all seeds and models are asked for every metric by itself.
    values, seeds = frame[metric].to_numpy(float), frame["seed"].to_numpy()
    there = (frame["status"] == "ok").to_numpy() & ~np.isnan(values)
    return pd.Series(values[there], index=pd.Index(seeds[there], name="seed"), name=metric)


def leading(table: pd.DataFrame) -> Metric:
    """What the models of a table are ranked by: AMI where pixels were grouped, else excess NLL.

    A grouper's likelihood is its own, and of another kind than the next one's.
    """
    return METRICS["ami" if is_grouping(table).any() else "excess_nll"]


def is_grouping(table: pd.DataFrame) -> pd.Series:
    """Of each row, whether it tells of groups of pixels."""
    if "ami_max" not in table:
        return pd.Series(False, index=table.index)
    return table["ami_max"].notna()


def overlap(rows: pd.DataFrame) -> float:
    """n_test / n_train where all seeds split one table, 0 where each draws data of its own."""
    if "n_table" not in rows or rows["n_table"].isna().all():
        return 0.0
    table, fitted = rows["n_table"].max(), rows["n_samples"].max()
    return float((table - fitted) / fitted)


def by_label(frame: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """The rows of each labelled model, in the order of the table."""
    return {str(label): rows for label, rows in frame.groupby("label", sort=False)}


def model_name(text: str) -> str:
    """The name of a model or dataset in the text of its spec.

    >>> model_name("em:tol=0"), model_name("mymodule:MyEM:tol=0")
    ('em', 'mymodule:MyEM')
    """
    return Spec.parse(text)[0].name


def natural(text: str) -> list[Any]:
    """A sorting key that reads numbers as numbers.

    >>> sorted(["n=16", "n=2", "m"], key=natural)
    ['m', 'n=2', 'n=16']
    """
    pieces = re.split(r"(\d+)", text)
    return [int(piece) if piece.isdigit() else piece for piece in pieces]


def _load(run: pd.DataFrame | str | Path) -> pd.DataFrame:
    if isinstance(run, pd.DataFrame):
        return run
    return store.read_frame(Path(run))


def _last_of_each(frame: pd.DataFrame, key: list[str]) -> tuple[pd.DataFrame, list[str]]:
    """Each trial once: the record that was written last counts, and a note says so."""
    again = frame.duplicated(key, keep="last")
    if not again.any():
        return frame, []
    count = len(frame.loc[again].drop_duplicates(key))
    trials = "1 trial" if count == 1 else f"{count} trials"
    return frame[~again], [f"{trials} measured more than once: the last record of each counts"]


def _timed_alone(frame: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    """Without the seconds of trials that shared their cores, and a note that says so."""
    shared = has_shared_cores(frame)
    if not shared.any():
        return frame, []
    times = [name for name in TIMES if name in frame]
    trials = "1 trial" if shared.sum() == 1 else f"{shared.sum()} trials"
    note = f"{trials} may have shared cores with others: their times are not compared"
    return frame.assign(**{name: frame[name].mask(shared) for name in times}), [note]


def has_shared_cores(frame: pd.DataFrame) -> pd.Series:
    """Of each row, whether it is of the grade "quality", one of GRADES: older frames know none."""
    return frame.get("grade", pd.Series("timing", index=frame.index)) == "quality"


def _with_labels(frame: pd.DataFrame) -> pd.DataFrame:
    """Labels that tell apart whatever must not be averaged over."""
    label = _versioned(frame, "model") + _settings(frame)
    return frame.assign(dataset=_versioned(frame, "dataset"), label=label)


def _settings(frame: pd.DataFrame) -> pd.Series:
    """The settings that the table has several of, in brackets."""
    texts = {
        "device": frame["device"],
        "dtype": frame["dtype"],
        "threads": frame["threads"].map("{} threads".format),
        "budget": frame["time_limit"].map("{:g} s".format).where(frame["track"] == "budget", ""),
    }
    suffix = pd.Series("", index=frame.index)
    for text in texts.values():
        if text[text != ""].nunique() > 1:
            suffix += " " + text
    return suffix.str.split().str.join(" ").map(lambda text: f" [{text}]" if text else "")


def _versioned(frame: pd.DataFrame, noun: str) -> pd.Series:
    """The text of a dataset or model, with its version where the table has several of it."""
    version = frame[f"{noun}_version"].astype(str)
    several = version.groupby(frame[noun]).transform("nunique") > 1
    return frame[noun].where(~several, frame[noun] + " (version " + version + ")")


def _in_order(frame: pd.DataFrame) -> pd.DataFrame:
    """By track, dataset, label and seed."""
    places = {"track": list(TRACKS)}
    places |= {name: sorted(frame[name].unique(), key=natural) for name in ("dataset", "label")}
    ranks = [frame[name].map(places[name].index) for name in CELL]
    return frame.iloc[np.lexsort([frame["seed"], *reversed(ranks)])]


def _with_excess(frame: pd.DataFrame) -> pd.DataFrame:
    """Excess NLL over the truth, or over the best known where no truth is.

    Of groupers there is none: their likelihoods cannot be held against each other.
    """
    if "nll" not in frame:
        return frame.assign(reference="")
    grouping = is_grouping(frame)
    finished = frame.where((frame["status"] == "ok") & ~grouping)
    known = finished["excess_nll"] if "excess_nll" in frame else finished["nll"] * float("nan")
    # One reference per dataset: a mean over two kinds of excess would mean nothing.
    missing = (finished["nll"].notna() & known.isna()).groupby(frame["dataset"]).transform("any")
    return frame.assign(
        excess_nll=known.where(~missing, finished["nll"] - finished["best_known"]),
        reference=pd.Series(TRUTH, index=frame.index).where(~missing, BEST).where(~grouping, ""),
    )
