"""The training of a grouper as a whole, for `embench train`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from embench.models.neural.checkpoint import Checkpoint
from embench.types import Dataset, Draw, InputError, IntArray

if TYPE_CHECKING:
    from embench.models.neural.groupers import NeuralGrouper

N_JUDGED = 200
"""Images that tell how good a training is so far; none is ever learned from."""


class GrouperTraining:
    """Learns from the images of one dataset, and predicts others of it.

    Args:
        model: What to train, in place, by its recipe.
        draw: Draws the dataset.
        seed: Of the dataset.
    """

    def __init__(self, model: NeuralGrouper, draw: Draw, seed: int) -> None:
        [(spec, _, data)] = draw(np.random.SeedSequence(seed), 1)
        if data.image_shape is None or data.y_test is None:
            raise InputError(f"{spec}: cannot be learned from: it has no images with groups")
        few = slice(N_JUDGED)
        self.model, self.data = (
            model,
            replace(data, X_test=data.X_test[few], y_test=data.y_test[few]),
        )
        self._trainer = model.trainer(data.X_train)

    @property
    def done(self) -> int:
        return self._trainer.done

    @property
    def n_updates(self) -> int:
        return self.model.recipe_.max_updates

    @property
    def is_finished(self) -> bool:
        return self._trainer.progress >= 1

    def update(self) -> None:
        self._trainer.update()

    def state(self) -> dict[str, Any]:
        return self._trainer.state()

    def resume(self, state: Mapping[str, Any]) -> None:
        self._trainer.resume(state)

    def findings(self) -> dict[str, float]:
        """The loss of images that it does not learn from [nat]."""
        return {"held_out_loss": self._trainer.loss(self.data.X_test)}

    def predictions(self) -> tuple[Dataset, IntArray]:
        """Some images that it does not learn from, and the groups of their pixels."""
        return self.data, self.model.predict(self.data.X_test)

    def save(self, path: Path, provenance: Mapping[str, Any]) -> None:
        Checkpoint(
            self.model.name,
            self.model.n_features_in_,
            self.model.recipe_,
            self.model.network_.state_dict(),
            provenance,
        ).save(path)
