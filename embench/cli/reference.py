"""`embench reference`: the best ends of runs, kept as the finishing line of later comparisons."""

from __future__ import annotations

from collections.abc import Sequence

import click

from embench import references
from embench.cli.common import latest_run, run_folder


@click.command()
@click.argument("runs", nargs=-1, metavar="[RUN]...")
def reference(runs: Sequence[str]) -> None:
    """Keep the best held-out NLL of RUNs (default: the latest) for all later comparisons.

    A RUN is a folder, or its name below results/. For each dataset, with its version and seed,
    results/reference/ holds the lowest NLL at which a judged fit ended; a higher one never
    replaces it. `embench run reference` looks for lower ones with many restarts.
    """
    from embench.comparing.bestknown import ends
    from embench.comparing.frames import load

    folders = [run_folder(run) for run in runs] or [latest_run()]
    entered = references.enter(ends(load(folders)))
    click.echo(f"{entered}: {references.FOLDER / references.FILE}")
