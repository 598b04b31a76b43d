"""The command line: arguments in, one function call, words out. Only this package prints.

A module for each group of commands; what several of them need is in `common`.
"""

from __future__ import annotations

import os
import sys
from typing import Any

import click

from embench import __version__
from embench.cli import (
    check,
    compare,
    demo,
    lists,
    measure,
    plan,
    records,
    reference,
    reproduce,
    train,
    watch,
)
from embench.cli.common import INTERRUPTED, UserMistake
from embench.types import InputError

COMMANDS = (
    measure.run,
    plan.plan,
    reproduce.reproduce,
    compare.compare,
    compare.gate,
    compare.show,
    records.merge,
    records.export,
    reference.reference,
    check.check,
    demo.demo,
    watch.watch,
    watch.groups,
    train.train,
    lists.models,
    lists.datasets,
    lists.suites,
)


class Commands(click.Group):
    """Sub-commands whose `InputError` becomes a `UserMistake`, and which know near misses."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except InputError as error:
            raise UserMistake(str(error)) from error
        except KeyboardInterrupt:
            click.echo("interrupted", err=True)
            sys.exit(INTERRUPTED)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="embench")
def main() -> None:
    """Which way of fitting a mixture is best for data like mine, and what does it cost?

    \b
    embench run                              a first comparison, under two minutes
    embench run --data measurements.csv      the same question on your own data
    embench compare                          tables, figures and a page of the latest run
    """
    sys.path.append(os.getcwd())  # so that --model module:Class finds a file of your own


for command in COMMANDS:
    main.add_command(command)
