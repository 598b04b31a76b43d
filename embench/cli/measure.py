"""`embench run`: measure models on datasets."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Any

import click

from embench import store
from embench.cli.choosing import chooses_trials, chosen_trials
from embench.cli.common import AT_LEAST_ONE, bytes_of
from embench.cli.progress import follow


@click.command()
@chooses_trials
@click.option(
    "--isolation",
    type=click.Choice(["trial", "model", "none"]),
    default="trial",
    show_default=True,
    help="A process for each trial, or for each model, or this one.",
)
@click.option(
    "--memory-limit",
    metavar="SIZE",
    help="What a trial may ask for, such as 2GiB.  [what is available, divided by the workers]",
)
@click.option(
    "--executor", type=click.Choice(["local", "dask"]), default="local", show_default=True
)
@click.option(
    "--workers",
    type=AT_LEAST_ONE,
    default=1,
    show_default=True,
    help="Trials side by side, each on cores of its own while there are any.",
)
@click.option("--scheduler", metavar="ADDRESS", help="Of the Dask cluster: tcp://HOST:8786.")
@click.option(
    "--prune/--no-prune",
    default=True,
    show_default=True,
    help="Leave out what is larger than a trial that timed out or ran out of memory.",
)
@click.option(
    "--remeasure/--no-remeasure",
    default=True,
    show_default=True,
    help="Measure once more, at the end, what other processes disturbed.",
)
def run(
    isolation: Any,
    memory_limit: str | None,
    executor: Any,
    workers: int,
    scheduler: str | None,
    prune: bool,
    remeasure: bool,
    **chosen: Any,
) -> None:
    """Run SUITE (default: quick; with --data own-data, conditional or, of images, grouping).

    SUITE is the name of a shipped suite (see `embench suites`) or the path of a TOML file.
    Ctrl-C loses nothing that is finished; the same command again goes on where it stopped.
    Trials that fail are records, too; only if all fail is the exit code 1.
    """
    from embench.measuring.execution import Execution
    from embench.measuring.plan import plan
    from embench.measuring.run import execute, remaining

    how = Execution(
        isolation=isolation,
        executor=executor,
        workers=workers,
        scheduler=scheduler,
        memory_limit=bytes_of(memory_limit, "--memory-limit") if memory_limit else None,
        prune=prune,
        remeasure=remeasure,
    )
    suite, folder = chosen_trials(**chosen)
    planned = plan(suite, elsewhere=executor == "dask")
    left = remaining(planned.trials, folder, remeasure=remeasure)
    again = len(left) - len(remaining(planned.trials, folder, remeasure=False))
    for sentence in planned.left_out:
        click.echo(sentence, err=True)
    click.echo(_announcement(len(planned.trials), len(left), again, folder), err=True)
    if left and executor == "local" and (warning := _crowded(workers, suite.threads)):
        click.echo(warning, err=True)
    failed = 0
    if left:
        counts = follow(execute(planned.trials, folder, how), len(left), folder)
        failed = counts.failed
        click.echo(f"{counts}: {folder / store.RECORDS}")
    click.echo(f"next: embench compare {shlex.quote(str(folder))}")
    sys.exit(bool(left) and failed == len(left))


def _crowded(workers: int, threads: int) -> str:
    """A warning where there are not as many cores as side by side are asked for."""
    from embench.measuring.machine import cores

    there, asked = len(cores()), workers * threads
    if asked <= there:
        return ""
    side_by_side = "1 worker" if workers == 1 else f"{workers} workers"
    each = "1 thread" if threads == 1 else f"{threads} threads"
    return (
        f"{side_by_side} x {each} take {asked} cores, and here are {there}: trials share cores, "
        "are of the grade quality, and their times are not compared"
    )


def _announcement(planned: int, left: int, again: int, folder: Path) -> str:
    """How many trials there are, are done, and are done but were disturbed."""
    trials = "1 trial" if planned == 1 else f"{planned} trials"
    if left == 0:
        return f"{trials}, all done, in {folder}; another --out measures again"
    done = planned - left + again
    words = f" ({done} are done)" if done else ""
    if again:
        words = f" ({done} are done, {again} of them again because they were disturbed)"
    return f"{trials}{words} into {folder}"
