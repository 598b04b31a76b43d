"""Records on disk: append-only JSON Lines, one writer, every line synced.

The only module that touches a run's ``records.jsonl``. Reading needs neither a model nor torch.
"""

from __future__ import annotations

import fcntl
import gc
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from math import nan
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic_core import from_json

from embench.types import InputError, Record, Spec, Trial, check_schema

if TYPE_CHECKING:
    import pandas as pd

T = TypeVar("T")

RESULTS = Path("results")
"""Where runs go and are looked for, below the folder that we stand in."""

RECORDS = "records.jsonl"
FREE_BYTES = 50 * 2**20
"""Space that a run needs before it starts: far more than its records and figures take."""


class Writer:
    """Appends records; a record is on the disk when `append` returns."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def append(self, record: Record) -> None:
        line = json.dumps(record.to_json(), allow_nan=False) + "\n"
        data = line.encode()
        while data:
            data = data[os.write(self._descriptor, data) :]
        os.fsync(self._descriptor)


@contextmanager
def writing(folder: Path) -> Iterator[Writer]:
    """Open a run's folder for appending, as its only writer, and repair a torn last line.

    Raises:
        InputError: The folder cannot be written, the disk is full, or another run writes there.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder / RECORDS, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
    except OSError as error:
        raise InputError(
            f"cannot write to {folder}: {error.strerror}; choose another --out"
        ) from error
    try:
        _lock(descriptor, folder)
        _check_space(folder)
        _cut_torn_line(descriptor)
        yield Writer(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _uncollected() -> Iterator[None]:
    """No search for cycles meanwhile: records have none, and it takes longer than reading them."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


@_uncollected()
def read(folder: Path) -> list[Record]:
    """All records of a run, oldest first; a torn last line (a killed writer) is left out.

    Raises:
        InputError: There is no such run, or a line is unreadable (said with file and line).
    """
    return list(_each(folder, Record.from_json))


@_uncollected()
def read_frame(folder: Path) -> pd.DataFrame:
    """The `frame` of all records of a run, without a `Record` on the way: it takes half the time.

    Raises:
        InputError: As `read` does.
    """
    return _frame(_each(folder, partial(_row, run=folder.name, texts={})))


@_uncollected()
def statuses(folder: Path) -> dict[str, str]:
    """The status of the newest record of each trial, by the trial's id.

    Raises:
        InputError: As `read` does.
    """
    return dict(_each(folder, lambda fields: (fields["id"], fields["status"])))


def latest(records: Iterable[Record]) -> list[Record]:
    """The newest record of each trial, in the order in which the trials first came."""
    return list({record.trial.id: record for record in records}.values())


def runs(root: Path) -> list[Path]:
    """The folders below ``root`` that hold a run, the one written last at the end."""
    found = root.glob(f"*/{RECORDS}")
    return [path.parent for path in sorted(found, key=lambda path: path.stat().st_mtime)]


def frame(records: Iterable[Record], run: str = "") -> pd.DataFrame:
    """One row per record: what was asked for, what the data were, what came, each metric.

    Metrics that do not exist are NaN here, and only here: a table has no other way to say it.
    """
    return _frame(_row(record.to_json(), run, texts={}) for record in records)


def _frame(rows: Iterable[Mapping[str, Any]]) -> pd.DataFrame:
    """Rows turned into columns; pandas takes ten times as long to do that."""
    import pandas as pd

    columns: dict[str, list[Any]] = {}
    for count, row in enumerate(rows):
        for name, value in row.items():
            if name not in columns:
                columns[name] = [nan] * count
            columns[name].append(value)
        for name in columns.keys() - row.keys():
            columns[name].append(nan)
    return pd.DataFrame(columns)


_NOTHING = Trial(dataset=Spec(""), model=Spec(""), track="", seed=0)
_UNSAID = vars(Record(trial=_NOTHING, status=""))
"""What a record means by a key that its schema did not have yet."""


def _row(fields: Mapping[str, Any], run: str, texts: dict[str, str]) -> dict[str, Any]:
    """A record as `Record.to_json` has it, flat; ``texts`` keeps those of specs: they repeat."""
    fields = {**_UNSAID, **fields}
    trial = fields["trial"]
    dataset, model = trial["dataset"], trial["model"]
    return {
        "run": run,
        "id": fields["id"],
        "track": trial["track"],
        "dataset": _text(dataset, texts),
        "dataset_params": dataset["params"],
        "dataset_version": dataset["version"],
        "model": _text(model, texts),
        "model_params": model["params"],
        "model_version": model["version"],
        "seed": trial["seed"],
        "device": trial["device"],
        "dtype": trial["dtype"],
        "threads": trial["threads"],
        "time_limit": trial["time_limit"],
        "status": fields["status"],
        "message": fields["message"],
        **fields["sizes"],
        **fields["metrics"],
        "curve": tuple(map(tuple, fields["curve"])),
        "fits": tuple(map(tuple, fields["fits"])),
        "trial_seconds": fields["trial_seconds"],
        "grade": fields["grade"],
        "noise": fields["noise"],
        "disturbed": fields["disturbed"],
        "ended": fields["ended"],
        "environment": fields["environment"],
    }


def _text(spec: Mapping[str, Any], texts: dict[str, str]) -> str:
    key = repr(spec)
    if key not in texts:
        texts[key] = str(Spec(**spec))
    return texts[key]


def _each(folder: Path, make: Callable[[dict[str, Any]], T]) -> Iterator[T]:
    """What ``make`` makes of the fields of each whole line of a run."""
    path = folder / RECORDS
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if line.endswith(b"\n"):
                    yield _made(make, line, path, number)
    except OSError as error:
        raise InputError(f"no run in {folder}: {error.strerror} ({path})") from error


def _made(make: Callable[[dict[str, Any]], T], line: bytes, path: Path, number: int) -> T:
    try:
        fields = _parsed(line)
        check_schema(fields)
        return make(fields)
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{path}:{number}: not a record ({error}); mend or delete this line"
        ) from error


def _parsed(line: bytes) -> dict[str, Any]:
    """A line of JSON; what the fast parser refuses, the other may read, or it says better why.

    It reads halves of surrogate pairs, as the names of files may have.
    """
    try:
        return from_json(line)
    except ValueError:
        return json.loads(line)


def _lock(descriptor: int, folder: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise InputError(
            f"another run is writing to {folder}; wait for it or choose another --out"
        ) from None


def _check_space(folder: Path) -> None:
    disk = os.statvfs(folder)
    if (free := disk.f_bavail * disk.f_frsize) < FREE_BYTES:
        raise InputError(
            f"the disk of {folder} has {free / 2**20:.0f} MiB free, a run needs "
            f"{FREE_BYTES / 2**20:.0f} MiB; free some or choose another --out"
        )


def _cut_torn_line(descriptor: int) -> None:
    """Drop what follows the last newline: a line that a killed writer never finished."""
    data = os.pread(descriptor, os.fstat(descriptor).st_size, 0)
    os.ftruncate(descriptor, data.rfind(b"\n") + 1)
