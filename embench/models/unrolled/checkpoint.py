"""What was learned once, in a file: an operator's weights and where they come from."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import torch

from embench.models.unrolled.operators import EMOperator
from embench.types import InputError

FORMAT = 1
"""Number of the file's format; raised when it changes."""

SHIPPED = Path(str(resources.files("embench.models.unrolled"))) / "weights"
"""The folder of the weights that come with embench, a file for each model."""


@dataclass(frozen=True)
class Checkpoint:
    """A trained operator, and what it was trained on, by what and for how long.

    ``provenance`` is what `embench train` says of it: suite, seed, updates, n_datasets, CPU seconds
    of training, NLL on held-out datasets and the environment.
    """

    operator: EMOperator
    provenance: Mapping[str, Any]

    def save(self, path: Path) -> None:
        """Write it, whole or not at all."""
        weights = {name: part.float() for name, part in self.operator.state_dict().items()}
        content = {
            "format": FORMAT,
            "config": self.operator.config,
            "weights": weights,
            "provenance": dict(self.provenance),
        }
        write(content, path)

    @classmethod
    def load(cls, path: str | Path) -> Checkpoint:
        """Read one that `save` has written.

        Raises:
            InputError: There is no such file, or it is something else.
        """
        content = read(path)
        if not isinstance(content, dict) or content.get("format") != FORMAT:
            raise InputError(f"{path}: expected weights written by `embench train`")
        operator = EMOperator(**content["config"], random_state=0)
        operator.load_state_dict(content["weights"])
        return cls(operator, content["provenance"])


def pretrained(model: str) -> EMOperator:
    """The operator that comes with embench for "amortised-em" or "recurrent-em".

    Example:
        >>> pretrained("amortised-em").n_steps
        5
    """
    return Checkpoint.load(shipped(model)).operator


def shipped(model: str) -> Path:
    """The file of the weights that come with embench."""
    return SHIPPED / f"{model}.pt"


def digest(path: str | Path) -> str:
    """Of a file's content, eight digits.

    Raises:
        InputError: There is no such file.
    """
    try:
        return hashlib.sha256(Path(path).read_bytes()).hexdigest()[:8]
    except OSError as error:
        raise InputError(f"{path}: expected weights: {error.strerror}") from error


def changed_at(path: Path) -> int:
    """When a file was written last [ns].

    Raises:
        InputError: There is no such file.
    """
    try:
        return path.stat().st_mtime_ns
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
