"""Comparisons in words: quantities with units, sentences, and tables of text.

Every way of showing a comparison draws on this file, so that all of them say the same. A value
that does not exist is an empty text, never "nan".
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping

import pandas as pd

from embench.comparing.change import Change, change
from embench.comparing.findings import Failure, Overall, Payback
from embench.comparing.frames import by_label, leading, metric_values, natural, overlap
from embench.comparing.stats import Interval
from embench.comparing.summary import recommend, seconds, tied_with_best
from embench.comparing.targets import MIDDLE
from embench.metrics import METRICS, Metric

_VERDICTS = ("better", "same", "worse", "inconclusive")
_SCALES = {
    "s": [(60.0, "min"), (1.0, "s"), (1e-3, "ms"), (1e-6, "µs")],
    "B": [(2.0**30, "GiB"), (2.0**20, "MiB"), (2.0**10, "KiB"), (1.0, "B")],
}

TARGETS_LEGEND = (
    "the median over seeds, where a fit that never came so near counts as one that takes for ever; "
    "in brackets on how many seeds it came so near, where not on all"
)
"""What the cells of a table of times to quality are."""


def significant(value: float, digits: int = 3) -> str:
    """A number with so many significant digits, without an exponent where it can be read.

    >>> [significant(value) for value in (0.0, 0.012345, 1234.5, 2e-7, float("inf"))]
    ['0', '0.0123', '1234', '2e-07', 'inf']
    """
    if value == 0 or not math.isfinite(value):
        return f"{value:.0f}"
    if not 1e-5 <= abs(value) < 1e9:
        return f"{value:.{digits}g}"
    # The exponent of the rounded value: 9.99 may become 10.0 and gain a digit.
    exponent = int(f"{value:.{digits - 1}e}".partition("e")[2])
    return f"{value:.{max(0, digits - 1 - exponent)}f}"


def quantity(value: float | None, unit: str) -> str:
    """A value with its unit, scaled where people scale it; empty where there is none.

    >>> [quantity(value, "s") for value in (1.2e-5, 0.0123, 2.5, 150.0)]
    ['12.0 µs', '12.3 ms', '2.50 s', '2.50 min']
    >>> [quantity(3 * 2**20, "B"), quantity(1.5, "nat"), quantity(float("nan"), "nat")]
    ['3.00 MiB', '1.5000 nat', '']
    """
    if value is None or math.isnan(value):
        return ""
    scale, name = _scale(value, unit)
    return f"{_number(value / scale, unit)} {name}".rstrip()


def with_stddev(value: float, stddev: float | None, unit: str) -> str:
    """A mean and its standard deviation in one unit and to the same decimals.

    >>> with_stddev(0.0123, 0.00041, "s")
    '12.3 ± 0.4 ms'
    """
    if stddev is None or math.isnan(stddev) or math.isnan(value):
        return quantity(value, unit)
    scale, name = _scale(value, unit)
    number = _number(value / scale, unit)
    decimals = len(number.partition(".")[2])
    return f"{number} ± {stddev / scale:.{decimals}f} {name}".rstrip()


def change_text(change: Change) -> str:
    """The change with its interval: a ratio for a cost, a signed difference for a quality."""
    metric = METRICS[change.metric]
    if metric.kind == "cost":
        return f"{_ratio(change.interval.estimate)} times{_ends(change.interval, _ratio)}"
    difference = f"{_signed(change.interval.estimate)} {metric.unit}".rstrip()
    return difference + _ends(change.interval, _difference)


def sentence(changes: Iterable[Change]) -> str:
    """One candidate against its baseline on one dataset: how fast, and how good.

    ``em is 3.1 times faster than sklearn-em [2.8, 3.4], same NLL``
    """
    by_metric = {change.metric: change for change in changes}
    if not by_metric:
        return ""
    if "ami_max" in by_metric:
        return _grouping_sentence(by_metric)
    time, nll = by_metric.get("fit_seconds"), by_metric.get("nll")
    some = next(iter(by_metric.values()))
    pair = [item for item in (time, nll) if item]
    open_ = [item for item in pair if item.verdict == "inconclusive"]
    hint = "; more --seeds would tell" if open_ else ""
    if pair and all(item.n_pairs == 1 for item in pair):
        parts = [_once_words(item) for item in pair]
        return f"{some.candidate} against {some.baseline}, on one seed: {', '.join(parts)}{hint}"
    if time is not None:
        return ", ".join([_time_words(time), *([_quality_words(nll)] if nll else [])]) + hint
    parts = [_quality_words(nll)] if nll else [_other_words(item) for item in by_metric.values()]
    return f"{some.candidate} against {some.baseline}: {', '.join(parts)}{hint}"


def _grouping_sentence(by_metric: Mapping[str, Change]) -> str:
    """A grouper against its baseline: how good, and how fast where it is used.

    Fits are left to the table: some learn for minutes, others nothing at all.
    """
    ami, time = by_metric.get("ami", by_metric["ami_max"]), by_metric.get("predict_seconds")
    pair = [item for item in (ami, time) if item]
    if ami.n_pairs == 1:
        where, parts = ", on one seed", [f"{METRICS[ami.metric].title} {change_text(ami)}"]
    else:
        where, parts = "", [_quality_words(ami)]
    if time is not None:
        parts.append(f"prediction {_speed(time.interval)}{_speed_ends(time.interval)}")
    hint = "; more --seeds would tell" if any(i.verdict == "inconclusive" for i in pair) else ""
    return f"{ami.candidate} against {ami.baseline}{where}: {', '.join(parts)}{hint}"


def overall_sentence(overall: Overall) -> str:
    """One candidate against its baseline over the datasets of a track."""
    where = "on 1 dataset" if overall.n_datasets == 1 else f"over {overall.n_datasets} datasets"
    text = f"{overall.candidate} against {overall.baseline} {where}"
    if overall.time_ratio is not None:
        text += ": prediction " if overall.metric == "ami" else ": "
        text += f"{_speed(overall.time_ratio)}"
        # Two datasets give 13 standard errors each way: true, and of no use to anyone.
        text += _speed_ends(overall.time_ratio) if overall.n_datasets > 2 else ""
    return text + _counted(overall)


def payback_sentence(payback: Payback) -> str:
    """What a training took, after how many fits it has paid, and at what quality."""
    text = f"{payback.candidate} was trained for {quantity(payback.training_seconds, 's')} and "
    unit = "prediction" if payback.metric == "ami" else "fit"
    if payback.n_fits is None:
        text += f"saves no time against {payback.baseline}"
    else:
        saved = quantity(payback.saved_seconds, "s")
        text += (
            f"saves {saved} a {unit} against {payback.baseline}: it has paid after "
            f"{payback.n_fits:,} {unit}s"
        )
    text += "" if payback.is_settled else ", by times that are not settled"
    return text + _counted(payback)


def target_cells(rows: pd.DataFrame) -> list[str]:
    """When a model was within each target: the rows of `over_seeds` for one table and model.

    >>> columns = ["reached", "planned", "seconds"]
    >>> target_cells(pd.DataFrame([[5, 5, 0.0121], [4, 5, 0.03]], columns=columns))
    ['12.1 ms', '30.0 ms (4 of 5)']
    >>> target_cells(pd.DataFrame([[2, 5, math.inf], [0, 5, math.inf]], columns=columns))
    ['only 2 of 5', 'never']
    """
    return [
        _target_cell(reached, planned, seconds)
        for reached, planned, seconds in zip(
            rows["reached"], rows["planned"], rows["seconds"], strict=True
        )
    ]


def _target_cell(reached: int, planned: int, seconds: float) -> str:
    if reached == 0:
        return "never"
    if math.isinf(seconds):
        return f"only {reached} of {planned}"
    share = "" if reached == planned else f" ({reached} of {planned})"
    return quantity(seconds, "s") + share


def reached_sentence(rows: pd.DataFrame) -> str:
    """How often the models of a track came within the middle target, the most frequent first.

    ``fits that came within 0.01 nat of the best known: em 13 of 15, sklearn-em 12 of 15``
    """
    middle = rows[rows["target"] == MIDDLE]
    counts = middle.groupby("model", sort=False)[["reached", "planned"]].sum()
    order = (counts["reached"] / counts["planned"]).sort_values(ascending=False, kind="stable")
    found = [
        f"{model} {counts['reached'][model]} of {counts['planned'][model]}" for model in order.index
    ]
    return f"fits that came within {MIDDLE:g} nat of the best known: {_some(found, 8)}"


def _counted(found: Overall | Payback) -> str:
    """On how many datasets the quality is what, to end a sentence with."""
    counts = [f"{name} on {found.verdicts[name]}" for name in _VERDICTS if name in found.verdicts]
    return f"; {_short(found.metric)} {', '.join(counts)}" if counts else ""


def failure_sentence(failure: Failure) -> str:
    """Which trials did not finish, and the first message."""
    trials = "1 trial" if failure.count == 1 else f"{failure.count} trials"
    where = f"{failure.model} on {failure.dataset} ({failure.track})"
    return f"{where}: {trials} {failure.status}: {failure.message}".rstrip(": ")


def recommendation(table: pd.DataFrame, records: pd.DataFrame) -> str:
    """Which model to take on a dataset, why, and how certain that is; empty if none finished.

    Args:
        table: The rows of a summary for one track and dataset.
        records: The rows of the tidy table behind it.
    """
    best = recommend(table)
    if best is None:
        return ""
    spent, shown = _spent(best), _shown(table)
    text = f"Take {best['model']}: {shown.title} {quantity(best[shown.name], shown.unit)}"
    text += f" in {spent}, " if spent else ", "
    return text + ", ".join([_reason(table, best), _certainty(records, best)]) + "."


def _reason(table: pd.DataFrame, best: pd.Series) -> str:
    """Why this row of a summary and not another."""
    if len(table) == 1:
        return "the only model here"
    metric = leading(table)
    rivals = table[(table["ok"] == best["ok"]) & table[metric.name].notna()]
    values = rivals[metric.name]
    first = rivals.loc[values.idxmin() if metric.better == "lower" else values.idxmax()]
    extreme = "the lowest" if metric.better == "lower" else "the highest"
    n_tied = sum(tied_with_best(metric, values))
    within = f"{metric.tie.of(first[metric.name]):g} {metric.unit}".rstrip()
    if n_tied == 1:
        return extreme
    if first["model"] == best["model"]:
        return f"{extreme}, and the fastest of the {n_tied} within {within} of it"
    return f"within {within} of {extreme} ({first['model']} in {_spent(first)}) and faster"


def _shown(table: pd.DataFrame) -> Metric:
    """The metric that stands for the leading one in sentences: the NLL for its excess."""
    metric = leading(table)
    return METRICS["nll"] if metric.name == "excess_nll" else metric


def _spent(row: pd.Series) -> str:
    """Time of the fit, or of fit and prediction; empty where none was measured."""
    total = seconds(row)
    return quantity(total, "s") if math.isfinite(total) else ""


def _certainty(records: pd.DataFrame, best: pd.Series) -> str:
    """Over how many seeds, and which other models might be better for all we know."""
    if best["planned"] == 1:
        return "over 1 seed, which settles little: more --seeds would tell"
    seeds = f"over {best['ok']} of {best['planned']} seeds"
    metric = _shown(records)
    values = {label: metric_values(rows, metric.name) for label, rows in by_label(records).items()}
    mine = values.pop(best["model"])
    found = {
        label: change(metric, mine, other, overlap=overlap(records))
        for label, other in values.items()
    }
    open_ = [label for label, item in found.items() if item and item.verdict == "inconclusive"]
    if not open_:
        return seeds
    return f"{seeds}; not settled against {_some(sorted(open_, key=natural))}"


def _some(names: list[str], most: int = 3) -> str:
    """The first few of many names."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _time_words(change: Change) -> str:
    """Faster, slower, as fast, or not settled."""
    times = f"{_speed(change.interval)}{_speed_ends(change.interval)}"
    if change.verdict == "same":
        return f"{change.candidate} is as fast as {change.baseline} ({times})"
    low, high = change.interval.low, change.interval.high
    if change.verdict == "inconclusive" and not low <= 1 <= high:
        tie = METRICS["fit_seconds"].tie.relative
        return (
            f"{change.candidate} is {times.replace(' [', f' than {change.baseline} [')}, perhaps "
            f"within the {tie:.0%} that count as none"
        )
    if change.verdict == "inconclusive":
        return (
            f"{change.candidate} against {change.baseline}: fit time not settled, "
            f"{times} over {_seeds(change.n_pairs)}"
        )
    ends = _speed_ends(change.interval)
    return f"{change.candidate} is {_speed(change.interval)} than {change.baseline}{ends}"


def _quality_words(change: Change) -> str:
    """Better, worse, the same, or not settled."""
    metric, name = METRICS[change.metric], _short(change.metric)
    if change.verdict == "same":
        return f"same {name}"
    interval = change.interval
    if change.verdict == "inconclusive":
        text = f"{change_text(change)} over {_seeds(change.n_pairs)}"
        return f"{name} difference not settled, {text}"
    if interval.estimate < 0:
        interval = Interval(-interval.estimate, -interval.high, -interval.low)
    size = f"{_difference(interval.estimate)} {metric.unit}".rstrip()
    return f"{metric.title} {change.verdict} by {size}{_ends(interval, _difference)}"


def _short(metric: str) -> str:
    """A metric's title where it is clear what it is judged on.

    >>> _short("nll"), _short("ami")
    ('NLL', 'AMI')
    """
    return METRICS[metric].title.removeprefix("held-out ")


def _once_words(change: Change) -> str:
    """What a single pair says, which is no verdict."""
    if change.metric == "fit_seconds":
        return _speed(change.interval)
    return f"NLL {change_text(change)}"


def _other_words(change: Change) -> str:
    return f"{METRICS[change.metric].title} {change.verdict}, {change_text(change)}"


def _speed(ratio: Interval) -> str:
    """A ratio of times as people say it: never below 1."""
    if ratio.estimate > 1:
        return f"{_ratio(ratio.estimate)} times slower"
    return f"{_ratio(1 / ratio.estimate)} times faster"


def _speed_ends(ratio: Interval) -> str:
    """The interval of the number that `_speed` says."""
    if ratio.estimate > 1:
        return _ends(ratio, _ratio)
    ends = (1 / end if end else math.inf for end in (ratio.estimate, ratio.high, ratio.low))
    return _ends(Interval(*ends), _ratio)


def _ends(interval: Interval, number: Callable[[float], str]) -> str:
    """The ends of an interval, with a space before; empty where one pair gives none."""
    if math.isinf(interval.high) or math.isinf(interval.low):
        return ""
    return f" [{number(interval.low)}, {number(interval.high)}]"


def _signed(value: float) -> str:
    text = _difference(value)
    return text if text.startswith("-") or text == "0" else f"+{text}"


def _difference(value: float) -> str:
    """Two significant digits; what is below a millionth counts as nothing."""
    return significant(round(value, 6) + 0.0, 2)  # plus nothing: no minus before a zero


def _ratio(value: float) -> str:
    """Two decimals around 1, else two significant digits."""
    return f"{value:.2f}" if 0.5 < value < 2 else significant(value, 2)


def _seeds(count: int) -> str:
    return "1 seed" if count == 1 else f"{count} seeds"


def _scale(value: float, unit: str) -> tuple[float, str]:
    """The factor and the name of the unit in which people write such a value."""
    scales = _SCALES.get(unit, [(1.0, unit)])
    # Seconds are read up to two minutes.
    # What three digits would round up to the next unit is written in that.
    size = abs(value) * 1.0005
    fits = (pair for pair in scales if size >= pair[0] * (2 if pair[1] == "min" else 1))
    return next(fits, scales[-1])


def _number(value: float, unit: str) -> str:
    """A scaled value: four decimals for nat, else three significant digits."""
    if unit == "nat" and (abs(value) >= 1e-3 or abs(value) < 1e-9):
        return f"{value:.4f}"
    return significant(value, 2 if unit == "nat" else 3)
