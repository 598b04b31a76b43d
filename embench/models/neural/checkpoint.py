"""What neural EM has learned, in a file: weights, the recipe they come from, and how it went."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from embench.models.checkpoint import read, write
from embench.models.neural.networks import MStep
from embench.models.neural.recipes import Recipe
from embench.types import InputError

FORMAT = "neural-em 1"
"""Name and number of the file's format; changed when it changes."""


@dataclass(frozen=True)
class Checkpoint:
    """Trained weights of ``model``, and what `embench train` says of the training."""

    model: str
    n_pixels: int
    recipe: Recipe
    weights: Mapping[str, Tensor]
    provenance: Mapping[str, Any]

    def save(self, path: Path) -> None:
        """Write it, whole or not at all."""
        content = {"format": FORMAT, **vars(self), "recipe": asdict(self.recipe)}
        write({**content, "weights": dict(self.weights)}, path)

    @classmethod
    def load(cls, path: str | Path, model: str) -> Checkpoint:
        """Read one that `save` has written.

        Raises:
            InputError: There is no such file, or it is something else than weights of ``model``.
        """
        content = read(path)
        if not isinstance(content, dict) or content.pop("format", None) != FORMAT:
            raise InputError(f"{path}: expected weights written by `embench train {model}`")
        if content["model"] != model:
            raise InputError(
                f"{path}: expected weights of {model}, got those of {content['model']}"
            )
        return cls(**{**content, "recipe": Recipe(**content["recipe"])})

    def put_into(self, network: MStep) -> MStep:
        """The network with these weights.

        Raises:
            InputError: It is of another shape.
        """
        try:
            network.load_state_dict(dict(self.weights))
        except RuntimeError as error:
            raise InputError(f"weights of another network than asked for: {error}") from error
        return network
