"""What a comparison finds beyond single changes: failures, and a candidate over all datasets."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from embench.comparing.stats import Interval


@dataclass(frozen=True)
class Failure:
    """Trials of one model on one dataset that ended in one status other than ok."""

    track: str
    dataset: str
    model: str
    status: str
    count: int = field(kw_only=True)
    message: str = field(kw_only=True)


@dataclass(frozen=True, kw_only=True)
class Payback:
    """When the training of a candidate has paid, in fits instead of a baseline's.

    ``training_seconds`` were spent once; ``saved_seconds`` is the mean over datasets of what a fit
    takes less than the baseline's, not above 0 if nothing is saved, and ``is_settled`` says that no
    dataset leaves open which is the faster; of groupers the time is that of prediction.
    ``verdicts`` counts the datasets by verdict on ``metric``, as in `Overall`: what is saved is no
    gain where that is worse.
    """

    track: str
    baseline: str
    candidate: str
    training_seconds: float
    saved_seconds: float
    is_settled: bool
    metric: str
    verdicts: Mapping[str, int]

    @property
    def n_fits(self) -> int | None:
        """The number of fits that save as much as the training took; None if none do."""
        if self.saved_seconds <= 0:
            return None
        return math.ceil(self.training_seconds / self.saved_seconds)


@dataclass(frozen=True, kw_only=True)
class Overall:
    """One candidate against one baseline over all datasets of a track.

    ``time_ratio`` is the geometric mean over datasets of candidate / baseline fit time, of
    groupers prediction time, with an interval over datasets, or None where no time was compared;
    ``verdicts`` counts the datasets by verdict on ``metric``, held-out NLL or, of groupers, AMI.
    """

    track: str
    baseline: str
    candidate: str
    n_datasets: int
    time_ratio: Interval | None
    metric: str
    verdicts: Mapping[str, int]
