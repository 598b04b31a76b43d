"""Run a suite: plan, measure, write every record at once. The public ``embench.run``."""

from __future__ import annotations

import datetime
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from embench import store
from embench.measuring.isolate import trial_server
from embench.measuring.plan import Specs, customised, load_suite, plan
from embench.measuring.trial import run_trial
from embench.types import Record, Trial

if TYPE_CHECKING:
    import pandas as pd

Isolation = Literal["trial", "none"]

CAN_ISOLATE = hasattr(os, "fork") and hasattr(os, "pidfd_open")


def run(
    suite: str | Path = "quick",
    *,
    models: Specs | None = None,
    datasets: Specs | None = None,
    n_components: Sequence[int] | None = None,
    seeds: int | None = None,
    tracks: str | Sequence[str] | None = None,
    device: str | None = None,
    dtype: str | None = None,
    threads: int | None = None,
    time_limit: float | None = None,
    out: str | Path | None = None,
    isolation: Isolation = "trial",
) -> pd.DataFrame:
    """Run a suite and return its records, one row per trial; they are also on the disk.

    Trials that the folder already holds are not run again: the same call resumes.

    Args:
        suite: Name of a shipped suite, or path of a TOML file of your own.
        models, datasets: In place of the suite's, as on the command line: "em,spec-em:max_iter=9";
            a dataset may be the path of a file.
        n_components: Counts that every model is to try, whatever the datasets say.
        seeds: Number of seeds, from 0.
        tracks: "same-start", "budget", "default": one or several.
        device: "cpu", "cuda" or "auto".
        dtype: "float64" or "float32", of the data handed to the models.
        threads: For every numerical library.
        time_limit: Of one fit [s].
        out: Folder of the run; results/<date>-<suite> if None.
        isolation: "trial" runs each in a process of its own, "none" here: for debugging, and for
            models that exist in this process only; then nothing can be cut off.

    Raises:
        InputError: What was asked for cannot be run, or the folder cannot be written.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     records = run("quick", models="em", datasets="iris", tracks=["default"], seeds=1,
        ...                   out=folder, isolation="none")
        >>> records[["model", "dataset", "status"]].values.tolist()
        [['em', 'iris', 'ok']]
    """
    chosen = customised(
        load_suite(suite),
        models=models,
        datasets=datasets,
        n_components=n_components,
        seeds=seeds,
        tracks=tracks,
        device=device,
        dtype=dtype,
        threads=threads,
        time_limit=time_limit,
    )
    folder = Path(out) if out else default_folder(suite)
    planned = plan(chosen)
    for sentence in planned.left_out:
        warnings.warn(sentence, stacklevel=2)
    for _ in execute(remaining(planned.trials, folder), folder, isolation):
        pass
    asked = {trial.id for trial in planned.trials}
    records = [r for r in store.latest(store.read(folder)) if r.trial.id in asked]
    return store.frame(records, run=folder.name)


def default_folder(*names: str | Path) -> Path:
    """results/<date>-<names>, below the folder we stand in: of the suite, and of own files."""
    words = (Path(name).stem for name in names)
    return store.RESULTS / "-".join([str(datetime.date.today()), *words])


def remaining(trials: Sequence[Trial], folder: Path) -> list[Trial]:
    """The trials that the folder has no good record of; failed ones are tried again."""
    if not (folder / store.RECORDS).exists():
        return list(trials)
    done = {trial for trial, status in store.statuses(folder).items() if status == "ok"}
    return [trial for trial in trials if trial.id not in done]


def execute(
    trials: Sequence[Trial], folder: Path, isolation: Isolation = "trial"
) -> Iterator[Record]:
    """Run trials in order; each record is on the disk before it is yielded.

    Raises:
        InputError: The folder cannot be written or is being written by another run.
    """
    with store.writing(folder) as writer, _runner(trials, isolation) as run_one:
        for trial in trials:
            record = run_one(trial)
            writer.append(record)
            yield record


@contextmanager
def _runner(trials: Sequence[Trial], isolation: Isolation) -> Iterator[Callable[[Trial], Record]]:
    """How one trial is run: in a process of its own where the system can, else here."""
    if not trials or isolation == "none" or not CAN_ISOLATE:
        yield run_trial
        return
    with trial_server(threads=max(trial.threads for trial in trials)) as server:
        yield server.run
