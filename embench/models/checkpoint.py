"""Files of tensors and plain values: written whole or not at all, and never run when read."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from embench.types import InputError


def digest(path: str | Path) -> str:
    """Of a file's content, eight digits.

    Raises:
        InputError: There is no such file.
    """
    try:
        return hashlib.sha256(Path(path).read_bytes()).hexdigest()[:8]
    except OSError as error:
        raise InputError(f"{path}: expected weights: {error.strerror}") from error


def changed_at(path: Path) -> tuple[int, ...]:
    """What changes when a file is written or replaced, without reading it.

    Raises:
        InputError: There is no such file.
    """
    try:
        found = path.stat()
        return found.st_mtime_ns, found.st_size, found.st_ino
    except OSError as error:
        raise InputError(f"{path}: expected weights: {error.strerror}") from error


def write(content: Mapping[str, Any], path: Path) -> None:
    """Save tensors and plain values beside the place, and move them there when they are whole."""
    beside = path.with_name(path.name + ".part")
    torch.save(dict(content), beside)
    os.replace(beside, path)


def read(path: str | Path) -> Any:
    """Load tensors and plain values; a file that holds anything else is not run.

    Raises:
        InputError: There is no such file, or it is something else.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise InputError(f"{path}: expected weights: {error.strerror}") from error
    except Exception as error:  # what is no such file fails in many ways
        raise InputError(f"{path}: expected weights written by `embench train`") from error
