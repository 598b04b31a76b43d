"""`embench check`: whether a model plays fair."""

from __future__ import annotations

import sys

import click


@click.command()
@click.argument("model")
def check(model: str) -> None:
    """Hold MODEL, perhaps your own module:Class, against the laws of a fair player.

    Exit code 1 if one is broken. scikit-learn's check_estimator is worth a look, too.
    """
    from embench.checks import checked_apart

    broken = 0
    for finding in checked_apart(model):
        broken += bool(finding.broken)
        mark = "BROKEN" if finding.broken else "-" if finding.skipped else "ok"
        reason = finding.broken or finding.skipped
        click.echo(f"{mark:6} {finding.law}" + (f": {reason}" if reason else ""))
    sys.exit(bool(broken))
