"""What records cost to be read: a run's as values, the newest, as a frame, and compared.

The records are those of `results/baseline` over and over, with other seeds; seconds by the wall
clock, the lowest of the rounds. ``python benchmarks/reading.py --help`` says more.
"""

from __future__ import annotations

import copy
import json
import tempfile
import timeit
from collections.abc import Callable, Iterator
from itertools import count, islice
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.text import Text
from speed_table import empty_table

from embench import store
from embench.comparing.compare import compare
from embench.comparing.words import significant
from embench.types import Trial

BASELINE = Path(__file__).parents[1] / "results" / "baseline" / store.RECORDS
SIZES = (1_000, 10_000, 100_000)


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--rounds", type=click.IntRange(min=1), default=3, show_default=True)
@click.option("--quick", is_flag=True, help="Only the smallest number of records: seconds.")
def main(rounds: int, quick: bool) -> None:
    """Seconds to read a run, to find the newest records, to make a frame, and to compare."""
    table = empty_table("records", "read", "latest", "frame", "compare")
    for n_records in SIZES[: 1 if quick else None]:
        with tempfile.TemporaryDirectory() as folder:
            run = Path(folder)
            (run / store.RECORDS).write_text("".join(islice(_lines(), n_records)))
            seconds = [_best(step, rounds) for step in _steps(run)]
        table.add_row(f"{n_records:,}", *map(significant, seconds))
    console = Console(highlight=False)
    n_bytes = BASELINE.stat().st_size / len(_baseline())
    console.print(Text(f"{n_bytes:,.0f} bytes per record [s]", style="bold"))
    console.print(table)


def _steps(run: Path) -> list[Callable[[], object]]:
    records, frame = store.read(run), store.read_frame(run)
    return [
        lambda: store.read(run),
        lambda: store.latest(records),
        lambda: store.read_frame(run),
        lambda: compare(frame, references=()),
    ]


def _lines() -> Iterator[str]:
    """Lines of records without an end: no two are of one trial."""
    baseline = _baseline()
    for repetition in count():
        for fields in copy.deepcopy(baseline):
            fields["trial"]["seed"] += 1000 * repetition
            fields["id"] = Trial.from_json(fields["trial"]).id
            yield json.dumps(fields) + "\n"


def _baseline() -> list[dict[str, Any]]:
    return [json.loads(line) for line in BASELINE.read_text().splitlines()]


def _best(step: Callable[[], object], rounds: int) -> float:
    """Seconds of the quickest of several rounds."""
    return min(timeit.repeat(step, number=1, repeat=rounds))


if __name__ == "__main__":
    main()
