"""The best known held-out NLL of each dataset and seed: one finishing line for all models.

It is the lowest held-out NLL at which any finished fit ended, of the runs compared or of the
references in ``results/reference``: with any family, number of components, start, track or device.

What it is not: an estimate of how well a mixture can do. The lowest of many values on the same
held-out samples is a little below what the same fit has on new ones, the more so the fewer are held
out and the more fits there were. As a line that is the same for all who race to it, it does no
harm: whoever is judged against it is judged against the same number. But where many values are
equal, a component that has shrunk onto them is dense on held-out samples, too, and draws a line as
low as ``reg_covar`` lets it be.

Only ends count, no point on the way to one: a model must be able to rest there. A fit that the
judge could not judge, since the model is no Gaussian mixture and has the word on its own NLL, does
not move the line for others, unless no other fit to the same data finished; it may end below it.
Groupers have no line: their likelihoods cannot be held against each other.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pandas as pd

from embench.comparing.frames import is_grouping
from embench.types import OWN_SCORE, Reference

SAME_DATA = ["dataset", "dataset_version", "seed", "n_samples", "n_test"]
"""Columns of `store.frame` that tell the data; the sizes see a change that no version told."""

DECIMALS = 6
"""Of a reference [nat], a thousandth of the closest target: beyond it processors disagree, and a
store that followed them would change with every run."""


def with_best_known(frame: pd.DataFrame, references: Iterable[Reference] = ()) -> pd.DataFrame:
    """A frame with the finishing line of each fit.

    Args:
        frame: One row per trial, as `store.frame` makes it.
        references: Ends of fits in earlier runs.

    Returns:
        The frame with two more columns: ``best_known`` [nat], NaN for groupers and for trials that
        did not finish, and ``has_reference``, whether one of the references is of the same data.
        Adding c to all NLL, those of the references too, adds c to the line.
    """
    if frame.empty:
        return frame
    finished, keys = _finished(frame), _keys(frame)
    judged = finished.where(~_by_own_score(frame))
    known = {entry.data: entry.nll for entry in references}
    stored = pd.Series(
        [known.get(key, np.nan) for key in zip(*keys, strict=True)], frame.index, dtype=float
    )
    line = pd.concat([_lowest(judged, keys), stored], axis=1).min(axis=1)
    line = line.fillna(_lowest(finished, keys)).where(finished.notna())
    return frame.assign(best_known=line, has_reference=stored.notna())


def ends(frame: pd.DataFrame) -> list[Reference]:
    """Every fit of a frame that may set the line, as a reference, in the order of the rows."""
    if frame.empty:
        return []
    finished, keys = _finished(frame), _keys(frame)
    sized = pd.concat(keys, axis=1).notna().all(axis=1)
    rows = frame[finished.notna() & ~_by_own_score(frame) & sized]
    return [_reference(row) for row in rows.to_dict("records")]


def _reference(row: dict) -> Reference:
    return Reference(
        dataset=row["dataset"],
        version=str(row["dataset_version"]),
        seed=int(row["seed"]),
        n_samples=int(row["n_samples"]),
        n_test=int(row["n_test"]),
        nll=round(float(row["nll"]), DECIMALS),
        model=row["model"],
        trial=row["id"],
        ended=row.get("ended") or "",
        commit=(row.get("environment") or {}).get("commit", ""),
    )


def _finished(frame: pd.DataFrame) -> pd.Series:
    """The NLL [nat] of the fits that have one to be held against others', else NaN."""
    if "nll" not in frame:
        return pd.Series(np.nan, index=frame.index)
    return frame["nll"].where((frame["status"] == "ok") & ~is_grouping(frame))


def _by_own_score(frame: pd.DataFrame) -> pd.Series:
    return frame["message"].str.contains(OWN_SCORE, regex=False, na=False)


def _keys(frame: pd.DataFrame) -> list[pd.Series]:
    """The columns of SAME_DATA; what a frame does not tell is NaN."""
    unknown = pd.Series(np.nan, index=frame.index)
    return [frame[name] if name in frame else unknown.rename(name) for name in SAME_DATA]


def _lowest(values: pd.Series, keys: list[pd.Series]) -> pd.Series:
    """The lowest value among the rows of the same data, for each row."""
    return values.groupby(keys, dropna=False).transform("min")
