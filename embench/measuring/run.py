"""Run a suite: plan, measure, write every record at once. The public ``embench.run``."""

from __future__ import annotations

import datetime
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from embench import store
from embench.measuring.execution import DEFAULT, Execution
from embench.measuring.executors import pool
from embench.measuring.plan import plan
from embench.measuring.suite import Specs, customised, load_suite
from embench.measuring.sweep import disturbed_once, sweep
from embench.types import Record, Trial

if TYPE_CHECKING:
    import pandas as pd


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
    order_seed: int | None = None,
    out: str | Path | None = None,
    **how: Any,
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
        order_seed: Of the order of the trials, which is random.
        out: Folder of the run; results/<date>-<suite> if None.
        **how: Fields of `embench.measuring.execution.Execution`. ``isolation`` is "trial" (each in
            a process of its own), "model" (one for each model) or "none" (here: for debugging, and
            for models that exist in this process only; then nothing can be cut off). As many
            ``workers`` run side by side; ``executor="dask"`` with a ``scheduler`` is a cluster.
            Then there are ``memory_limit`` [bytes], ``prune`` and ``remeasure``.

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
        order_seed=order_seed,
    )
    execution = Execution(**how)
    folder = Path(out) if out else default_folder(suite)
    planned = plan(chosen, elsewhere=execution.executor == "dask")
    for sentence in planned.left_out:
        warnings.warn(sentence, stacklevel=2)
    for _ in execute(planned.trials, folder, execution):
        pass
    asked = {trial.id for trial in planned.trials}
    records = [r for r in store.latest(store.read(folder)) if r.trial.id in asked]
    return store.frame(records, run=folder.name)


def default_folder(*names: str | Path) -> Path:
    """results/<date>-<names>, below the folder we stand in: of the suite, and of own files."""
    words = (Path(name).stem for name in names)
    return store.RESULTS / "-".join([str(datetime.date.today()), *words])


def remaining(trials: Sequence[Trial], folder: Path, *, remeasure: bool = True) -> list[Trial]:
    """The trials that the folder has no good record of; failed ones are tried again, and so are, if
    asked to, those whose only record others disturbed."""
    known = _known(trials, folder)
    return [*_unfinished(trials, known), *(disturbed_once(known) if remeasure else ())]


def execute(trials: Sequence[Trial], folder: Path, how: Execution = DEFAULT) -> Iterator[Record]:
    """Run those of the trials that remain; each record is on the disk before it is yielded.

    Raises:
        InputError: The folder cannot be written or is being written by another run, or the cluster
            does not answer.
        WorkersLost: The cluster is gone.
    """
    # First the pool: one that cannot be had leaves no folder behind.
    expected = remaining(trials, folder, remeasure=how.remeasure)
    with pool(expected, how) as workers, store.writing(folder) as writer:
        known = _known(trials, folder)
        for record in sweep(_unfinished(trials, known), known, workers, how):
            writer.append(record)
            yield record


def _known(trials: Sequence[Trial], folder: Path) -> list[Record]:
    """What the folder has of these trials."""
    if not (folder / store.RECORDS).exists():
        return []
    asked = {trial.id for trial in trials}
    return [record for record in store.read(folder) if record.trial.id in asked]


def _unfinished(trials: Sequence[Trial], known: Sequence[Record]) -> list[Trial]:
    done = {record.trial.id for record in store.latest(known) if record.status == "ok"}
    return [trial for trial in trials if trial.id not in done]
