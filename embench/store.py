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
from dataclasses import dataclass
from functools import partial
from math import nan
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from embench.types import InputError, Record, Spec, Trial, check_schema, printable

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


@dataclass(frozen=True)
class Merged:
    """What a merged run holds, how many lines it has once for several, and whose end was torn."""

    n_records: int
    n_trials: int
    n_same: int
    torn: tuple[Path, ...]


@_uncollected()
def merge(folders: Iterable[Path], out: Path) -> Merged:
    """Copy the records of several runs into a new one, those that are the same once.

    They are ordered by when they ended, so that the newest of a trial is still its last. Those
    that do not say when come first, in the order of the runs. Killed at any time, it leaves all of
    the records or a run without any; a torn last line is left out.

    Raises:
        InputError: As `read` and `writing` do, or ``out`` holds records already.
    """
    found: dict[bytes, tuple[str, str]] = {}
    torn, n_lines = [], 0
    for folder in folders:
        for number, line in enumerate(_lines(folder), start=1):
            if _is_whole(line):
                found[line] = found.get(line) or _made(_end, line, folder, number)
                n_lines += 1
            else:
                torn.append(folder)
    _write_whole(sorted(found, key=lambda line: found[line][0]), out)
    trials = {trial for _, trial in found.values()}
    return Merged(len(found), len(trials), n_lines - len(found), tuple(torn))


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


def _frame(rows: Iterable[dict[str, Any]]) -> pd.DataFrame:
    """Rows as a table, by way of tuples: of mappings pandas asks each for every name again."""
    import pandas as pd

    names: dict[str, None] = {}
    table = []
    for row in rows:
        if [*row] != [*names]:
            names |= dict.fromkeys(row)
            row = {name: row.get(name, nan) for name in names}
        table.append(tuple(row.values()))
    # The first rows lack the metrics that only later ones have.
    table = [row + (nan,) * (len(names) - len(row)) for row in table]
    return pd.DataFrame.from_records(table, columns=[*names])


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
        "message": printable(fields["message"]),
        **fields["sizes"],
        **fields["metrics"],
        "curve": tuple(map(tuple, fields["curve"])),
        "fits": tuple(map(tuple, fields["fits"])),
        "trial_seconds": nan if fields["trial_seconds"] is None else fields["trial_seconds"],
        "grade": fields["grade"],
        "noise": fields["noise"],
        "disturbed": fields["disturbed"],
        "ended": fields["ended"],
        "environment": fields["environment"],
    }


def _end(fields: dict[str, Any]) -> tuple[str, str]:
    """When a record ended, and the id of its trial."""
    return Record.from_json(fields).ended, fields["id"]


def _write_whole(lines: Iterable[bytes], folder: Path) -> None:
    """A new run with these lines: under another name until all of them are on the disk."""
    path, part = folder / RECORDS, folder / f"{RECORDS}.part"
    with writing(folder):
        if path.stat().st_size:
            raise InputError(f"{folder} holds records already; choose another --out")
        try:
            with part.open("wb") as file:
                file.writelines(lines)
                file.flush()
                os.fsync(file.fileno())
            part.replace(path)
        except OSError as error:
            raise InputError(
                f"cannot write to {folder}: {error.strerror}; choose another --out"
            ) from error
        finally:
            part.unlink(missing_ok=True)


def _text(spec: Mapping[str, Any], texts: dict[str, str]) -> str:
    key = repr(spec)
    if key not in texts:
        texts[key] = printable(str(Spec(**spec)))
    return texts[key]


def _each(folder: Path, make: Callable[[dict[str, Any]], T]) -> Iterator[T]:
    """What ``make`` makes of the fields of each whole line of a run."""
    for number, line in enumerate(_lines(folder), start=1):
        if _is_whole(line):
            yield _made(make, line, folder, number)


def _lines(folder: Path) -> Iterator[bytes]:
    """All lines of a run; the last one may be torn."""
    path = folder / RECORDS
    try:
        with path.open("rb") as file:
            yield from file
    except OSError as error:
        raise InputError(f"no run in {folder}: {error.strerror} ({path})") from error


def _is_whole(line: bytes) -> bool:
    return line.endswith(b"\n")


def _made(make: Callable[[dict[str, Any]], T], line: bytes, folder: Path, number: int) -> T:
    try:
        fields = _parsed(line)
        check_schema(fields)
        return make(fields)
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{folder / RECORDS}:{number}: not a record ({error}); mend or delete this line"
        ) from error


def _parsed(line: bytes) -> dict[str, Any]:
    """A line of JSON; what the fast parser refuses, the other may read, or it says better why.

    It reads halves of surrogate pairs, as the names of files may have.
    """
    from pydantic_core import from_json  # `embench --help` does without

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
