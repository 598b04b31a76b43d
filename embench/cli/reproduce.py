"""`embench reproduce`: run one trial again and say whether it agrees."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from embench.cli.common import find_record, print_table


@click.command()
@click.argument("trial")
@click.option(
    "--run", "folder", type=click.Path(path_type=Path), metavar="RUN", help="Look in this run only."
)
def reproduce(trial: str, folder: Path | None) -> None:
    """Run TRIAL again, as its record says (its id, or as much of it as makes it unique).

    Nothing is written. The exit code says whether it agrees:

    \b
    0  all metrics agree
    1  time, memory or iterations differ by more than the gate allows
    2  quality or status differs
    """
    from embench.comparing.reproduction import reproduction
    from embench.measuring.reproduce import again

    before = find_record(trial, folder)
    click.echo(f"running {before.trial.id} again", err=True)
    now, otherwise = again(before)
    found = reproduction(before, now)
    print_table(
        ("metric", "then", "now", "verdict", "message"),
        [(line.metric, line.before, line.now, line.agreement, line.remark) for line in found.lines],
    )
    for sentence in (*otherwise, now.disturbed):
        if sentence:
            click.echo(f"note: {sentence}")
    click.echo(f"{found.verdict}: {before.trial.id}")
    sys.exit(found.exit_code)
