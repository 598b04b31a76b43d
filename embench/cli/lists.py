"""`embench models`, `datasets` and `suites`: what there is."""

from __future__ import annotations

import click

from embench import registry
from embench.cli.common import print_aligned


@click.command()
def models() -> None:
    """List the models: those of embench and those of installed plug-ins."""
    print_aligned(registry.models())


@click.command()
def datasets() -> None:
    """List the datasets; a file of your own is one, too (`embench run --data FILE`)."""
    print_aligned(registry.datasets())


@click.command()
def suites() -> None:
    """List the suites that come with embench."""
    from embench.measuring.suite import suites

    print_aligned(suites())
