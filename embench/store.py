"""Records on disk: append-only JSON Lines, one writer, every line synced.

The only module that touches a run's ``records.jsonl``. Reading needs neither a model nor torch.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from embench.types import InputError, Record

if TYPE_CHECKING:
    import pandas as pd

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


def read(folder: Path) -> list[Record]:
    """All records of a run, oldest first; a torn last line (a killed writer) is left out.

    Raises:
        InputError: There is no such run, or a line is unreadable (said with file and line).
    """
    path = folder / RECORDS
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"no run in {folder}: {error.strerror} ({path})") from error
    whole = data[: data.rfind(b"\n") + 1]
    return [_parse(line, path, number) for number, line in enumerate(whole.splitlines(), start=1)]


def latest(records: Iterable[Record]) -> list[Record]:
    """The newest record of each trial, in the order in which the trials first came."""
    return list({record.trial.id: record for record in records}.values())


def runs(root: Path) -> list[Path]:
    """The folders below ``root`` that hold a run, the one written last at the end."""
    found = root.glob(f"*/{RECORDS}")
    return [path.parent for path in sorted(found, key=lambda path: path.stat().st_mtime)]


def frame(records: Iterable[Record], run: str = "") -> pd.DataFrame:
    """One row per trial: what was asked for, what the data were, what came, each metric.

    Metrics that do not exist are NaN here, and only here: a table has no other way to say it.
    """
    import pandas as pd

    return pd.DataFrame([{"run": run, **_row(record)} for record in records])


def _row(record: Record) -> dict[str, Any]:
    trial = record.trial
    return {
        "id": trial.id,
        "track": trial.track,
        "dataset": str(trial.dataset),
        "dataset_version": trial.dataset.version,
        "model": str(trial.model),
        "model_version": trial.model.version,
        "seed": trial.seed,
        "device": trial.device,
        "dtype": trial.dtype,
        "threads": trial.threads,
        "time_limit": trial.time_limit,
        "status": record.status,
        "message": record.message,
        **record.sizes,
        **record.metrics,
        "curve": record.curve,
        "fits": record.fits,
        "trial_seconds": record.trial_seconds,
        "grade": record.grade,
        "noise": record.noise,
        "disturbed": record.disturbed,
        "ended": record.ended,
        "environment": record.environment,
    }


def _parse(line: bytes, path: Path, number: int) -> Record:
    try:
        return Record.from_json(json.loads(line))
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{path}:{number}: not a record ({error}); mend or delete this line"
        ) from error


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
