"""The table of metrics: unit, direction, tolerances and function of each on one line.

Compare, gate and report read everything about a metric here. Functions take an `Outcome` and
return None where the metric does not exist.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np

from embench.agreement import adjusted_mutual_information, adjusted_rand, contingencies
from embench.types import Dataset, FloatArray, IntArray


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a finished fit left to be judged.

    ``nll`` is the judge's mean negative log-likelihood of ``dataset.test`` per sample, or image
    [nat], None of a grouper that has none; ``labels`` are predicted for ``X_test``, None by a
    conditional model, and ``predict_seconds`` is what that took, None of all but groupers;
    ``cold_seconds`` are those of a short fit, the first in a process; memory is in bytes, of the
    GPU None on the CPU. ``training_seconds`` were spent once, before any fit.
    """

    dataset: Dataset
    nll: float | None
    labels: IntArray | None
    n_iter: int | None
    fit_seconds: float
    cpu_seconds: float
    peak_memory: int | None
    gpu_peak_memory: int | None
    gpu_reserved_memory: int | None = None
    gpu_device_memory: int | None = None
    cold_seconds: float | None = None
    predict_seconds: float | None = None
    training_seconds: float | None = None


@dataclass(frozen=True)
class Tolerance:
    """How large a difference still counts as none: the larger of the two bounds."""

    absolute: float = 0.0
    relative: float = 0.0

    def of(self, baseline: float) -> float:
        """The bound at a baseline's value, in the metric's unit."""
        return max(self.absolute, self.relative * abs(baseline))


@dataclass(frozen=True, kw_only=True)
class Metric:
    """One column of the results.

    ``tie``: two models whose difference stays within it count as equal in a comparison.
    ``gate``: a candidate may be this much worse than the baseline before the gate alarms; wider
    for costs, because two runs on one machine differ by more than two trials in one run.
    ``kind``: qualities are compared by difference, costs by ratio.
    ``source``: who says so. ``resolution``: a cost below what its meter can tell apart counts as
    this much in a ratio.
    """

    name: str
    title: str
    unit: str
    better: Literal["lower", "higher"]
    kind: Literal["quality", "cost"]
    tie: Tolerance
    gate: Tolerance
    function: Callable[[Outcome], float | None]
    source: str
    resolution: float = 0.0


def nll(outcome: Outcome) -> float | None:
    return outcome.nll


def excess_nll(outcome: Outcome) -> float | None:
    """NLL beyond that of the distribution the data were drawn from."""
    from embench import gaussian

    data = outcome.dataset
    if outcome.nll is None:
        return None
    if data.truth is not None:
        return outcome.nll + gaussian.log_likelihood(data.truth, data.X_test)
    return None if data.true_log_likelihood is None else outcome.nll + data.true_log_likelihood


def ami(outcome: Outcome) -> float | None:
    """Adjusted mutual information, arithmetic norm (Vinh, Epps and Bailey, JMLR 2010)."""
    if outcome.dataset.task == "grouping":
        return _mean_over_images(adjusted_mutual_information, outcome.dataset.y_test, outcome)
    from sklearn.metrics import adjusted_mutual_info_score

    return _agreement(adjusted_mutual_info_score, outcome)


def ami_max(outcome: Outcome) -> float | None:
    """AMI of groups of pixels by the larger entropy, as published results of Neural EM have it."""
    score = partial(adjusted_mutual_information, norm="max")
    return _mean_over_images(score, outcome.dataset.y_test, outcome)


def ami_overlaps(outcome: Outcome) -> float | None:
    """AMI of groups of pixels where those under several objects belong to the one drawn last."""
    return _mean_over_images(adjusted_mutual_information, outcome.dataset.y_top_test, outcome)


def ari(outcome: Outcome) -> float | None:
    """Adjusted Rand index (Hubert and Arabie, 1985)."""
    if outcome.dataset.task == "grouping":
        return _mean_over_images(adjusted_rand, outcome.dataset.y_test, outcome)
    from sklearn.metrics import adjusted_rand_score

    return _agreement(adjusted_rand_score, outcome)


def _agreement(score: Callable[..., float], outcome: Outcome) -> float | None:
    """Agreement of predicted and true labels, over the samples that have a true one."""
    truth, labels = outcome.dataset.y_test, outcome.labels
    if truth is None or labels is None or not np.any(truth >= 0):
        return None
    return float(score(truth[truth >= 0], labels[truth >= 0]))


def _mean_over_images(
    score: Callable[[IntArray], FloatArray], truth: IntArray | None, outcome: Outcome
) -> float | None:
    """Mean agreement of the groups of pixels in an image, over the pixels that have a true one.

    Every frame of a sequence is an image. One with a single true group, or none, does not count.
    """
    if outcome.dataset.task != "grouping" or truth is None or outcome.labels is None:
        return None
    images = (part.reshape(-1, part.shape[-1]) for part in (truth, outcome.labels))
    values = score(contingencies(*images))
    return float(values.mean()) if len(values) else None


def _table(*metrics: Metric) -> Mapping[str, Metric]:
    return {metric.name: metric for metric in metrics}


JUDGE = "embench.gaussian, float64, on held-out data"
LABELS = "predicted and true labels of held-out data"
CLOCK = "monotonic clock of the system"

RESIDENT = 2**18
"""Bytes: kernels count resident pages on each core by itself and add them up by 32 or more."""

# fmt: off
METRICS = _table(
    Metric(name="nll", title="held-out NLL", unit="nat", better="lower", kind="quality",
           tie=Tolerance(0.01), gate=Tolerance(0.01), source=JUDGE,
           function=nll),
    Metric(name="excess_nll", title="excess NLL", unit="nat", better="lower", kind="quality",
           tie=Tolerance(0.01), gate=Tolerance(0.01), source=JUDGE,
           function=excess_nll),
    Metric(name="ami", title="AMI", unit="", better="higher", kind="quality",
           tie=Tolerance(0.01), gate=Tolerance(0.02), source=LABELS,
           function=ami),
    Metric(name="ami_max", title="AMI (max norm)", unit="", better="higher", kind="quality",
           tie=Tolerance(0.01), gate=Tolerance(0.02), source=LABELS,
           function=ami_max),
    Metric(name="ami_overlaps", title="AMI with overlaps", unit="", better="higher",
           kind="quality", tie=Tolerance(0.01), gate=Tolerance(0.02), source=LABELS,
           function=ami_overlaps),
    Metric(name="ari", title="ARI", unit="", better="higher", kind="quality",
           tie=Tolerance(0.01), gate=Tolerance(0.02), source=LABELS,
           function=ari),
    Metric(name="fit_seconds", title="fit time", unit="s", better="lower", kind="cost",
           tie=Tolerance(relative=0.1), gate=Tolerance(0.0005, 0.3),
           source=CLOCK,
           function=lambda outcome: outcome.fit_seconds, resolution=1e-6),
    Metric(name="cold_seconds", title="first call", unit="s", better="lower", kind="cost",
           tie=Tolerance(0.001, 0.2), gate=Tolerance(0.01, 1.0), source=CLOCK,
           function=lambda outcome: outcome.cold_seconds, resolution=1e-6),
    Metric(name="predict_seconds", title="prediction time", unit="s", better="lower", kind="cost",
           tie=Tolerance(relative=0.1), gate=Tolerance(0.0005, 0.3),
           source=CLOCK,
           function=lambda outcome: outcome.predict_seconds, resolution=1e-6),
    Metric(name="cpu_seconds", title="CPU time", unit="s", better="lower", kind="cost",
           tie=Tolerance(relative=0.1), gate=Tolerance(0.0005, 0.3),
           source="CPU clock of the process",
           function=lambda outcome: outcome.cpu_seconds, resolution=1e-6),
    Metric(name="n_iter", title="iterations", unit="", better="lower", kind="cost",
           tie=Tolerance(relative=0.1), gate=Tolerance(2, 0.3),
           source="the model's own count",
           function=lambda outcome: outcome.n_iter, resolution=1),
    Metric(name="peak_memory", title="peak memory", unit="B", better="lower", kind="cost",
           tie=Tolerance(2**20, 0.1), gate=Tolerance(2**22, 0.3),
           source="VmHWM of the kernel, reset before the fit",
           function=lambda outcome: outcome.peak_memory, resolution=RESIDENT),
    Metric(name="gpu_peak_memory", title="GPU peak memory", unit="B", better="lower", kind="cost",
           tie=Tolerance(2**20, 0.1), gate=Tolerance(2**22, 0.3),
           source="torch: max_memory_allocated",
           function=lambda outcome: outcome.gpu_peak_memory, resolution=2**9),
    Metric(name="gpu_reserved_memory", title="GPU reserved", unit="B", better="lower", kind="cost",
           tie=Tolerance(2**21, 0.1), gate=Tolerance(2**22, 0.3),
           source="torch: max_memory_reserved",
           function=lambda outcome: outcome.gpu_reserved_memory, resolution=2**21),
    Metric(name="gpu_device_memory", title="GPU in use", unit="B", better="lower", kind="cost",
           tie=Tolerance(2**22, 0.1), gate=Tolerance(2**24, 0.3),
           source="NVML: growth of what is in use on the device",
           function=lambda outcome: outcome.gpu_device_memory, resolution=2**21),
    Metric(name="training_seconds", title="training, once", unit="s", better="lower", kind="cost",
           tie=Tolerance(relative=0.1), gate=Tolerance(relative=0.3),
           source="the trained weights' provenance",
           function=lambda outcome: outcome.training_seconds, resolution=1e-6),
)
# fmt: on

TIMES = tuple(m.name for m in METRICS.values() if m.unit == "s" and m.name != "training_seconds")
"""What a trial's own clocks say: nothing, if it shared its cores."""

MACHINE_COSTS = (*TIMES, *(metric.name for metric in METRICS.values() if metric.unit == "B"))
"""What is not the same on another machine."""


def judge(outcome: Outcome) -> dict[str, float]:
    """Every metric that exists for an outcome, as plain floats."""
    values = {name: metric.function(outcome) for name, metric in METRICS.items()}
    return {name: float(value) for name, value in values.items() if value is not None}
