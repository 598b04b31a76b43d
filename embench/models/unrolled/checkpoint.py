"""What was learned once, in a file: an operator's weights and where they come from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from embench.models.checkpoint import read, write
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
        try:
            operator = EMOperator(**content["config"], random_state=0)
            operator.load_state_dict(content["weights"])
            return cls(operator, content["provenance"])
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise InputError(f"{path}: weights of another version of embench") from error


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
