"""`embench plan`: what a run would do, and what that would take."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from embench import store
from embench.cli.choosing import chooses_trials, chosen_trials
from embench.cli.common import AT_LEAST_ONE, print_table

if TYPE_CHECKING:
    from embench.measuring.forecast import Forecast
    from embench.types import Record


@click.command()
@chooses_trials
@click.option(
    "--workers", type=AT_LEAST_ONE, default=1, show_default=True, help="To divide the time by."
)
@click.option("--trials", "each", is_flag=True, help="A line for every trial, in their order.")
def plan(workers: int, each: bool, **chosen: Any) -> None:
    """Show what `embench run` would run with the same options, and what it would take.

    Times and memory are those of earlier runs in results/, of the same trial or scaled from one of
    other sizes; what nothing is known of is said.
    """
    from embench.comparing.words import quantity
    from embench.measuring import plan as planning
    from embench.measuring.forecast import forecasts
    from embench.measuring.run import remaining

    suite, folder = chosen_trials(**chosen)
    planned = planning.plan(suite)
    left = remaining(planned.trials, folder)
    found = forecasts(left, _earlier(folder))
    if each:
        rows = [(one.trial.id, *_sums([one])[1:]) for one in found]
        print_table(("trial", "time", "memory", "basis"), rows)
    else:
        for title, many in _sections(found):
            click.echo(title)
            print_table(("model", "trials", "time", "memory", "basis"), many)
    for sentence in planned.left_out:
        click.echo(sentence)
    todo = [one for one in found if one.basis != "pruned"]
    total = sum(one.seconds for one in todo if one.seconds is not None) / workers
    unknown = sum(one.seconds is None for one in todo)
    done = len(planned.trials) - len(left)
    words = [f"{len(todo)} trials to run" + (f" ({done} are done)" if done else "")]
    if len(found) > len(todo):
        words.append(f"{len(found) - len(todo)} left out behind smaller ones that failed")
    if total:
        side_by_side = f" with {workers} workers" if workers > 1 else ""
        words.append(f"about {quantity(total, 's')}{side_by_side}")
    if unknown:
        words.append(
            f"{unknown} of unknown length, whose fits take {suite.time_limit:g} s each at most"
        )
    click.echo(", ".join(words))


def _earlier(folder: Path) -> list[Record]:
    """The records of all runs in results/, and of the folder that is going on."""
    folders = dict.fromkeys([*store.runs(store.RESULTS), folder])
    return [record for one in folders for record in _records(one)]


def _records(folder: Path) -> list[Record]:
    return store.read(folder) if (folder / store.RECORDS).exists() else []


def _sections(found: Iterable[Forecast]) -> Iterator[tuple[str, list[tuple[str, ...]]]]:
    """For each dataset and track a line for every model."""

    from embench.comparing.frames import natural

    def title(one: Forecast) -> str:
        return f"{one.trial.dataset}, {one.trial.track}"

    def model(one: Forecast) -> str:
        return str(one.trial.model)

    def in_order(text: Callable[[Forecast], str]) -> Callable[[Forecast], list[Any]]:
        return lambda one: natural(text(one))

    for name, here in groupby(sorted(found, key=in_order(title)), key=title):
        models = groupby(sorted(here, key=in_order(model)), key=model)
        yield name, [(text, *_sums(list(many))) for text, many in models]


def _sums(many: Sequence[Forecast]) -> tuple[str, str, str, str]:
    """Number, seconds of all, memory of the largest, and how they are known."""
    from embench.comparing.words import quantity

    seconds = [one.seconds for one in many if one.seconds is not None]
    memory = [one.memory for one in many if one.memory is not None]
    bases = dict.fromkeys(", ".join(filter(None, (one.basis, one.remark))) for one in many)
    return (
        str(len(many)),
        quantity(sum(seconds), "s") if seconds else "?",
        quantity(max(memory), "B") if memory else "?",
        "; ".join(bases),
    )
