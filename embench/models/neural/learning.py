"""The training of a grouper as a whole, for `embench train`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from embench.models.neural.checkpoint import Checkpoint
from embench.types import Draw, InputError, IntArray

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
        if "image_shape" in model.get_params():
            model.set_params(image_shape=data.image_shape)
        self.model, self._X, self._truth = model, data.X_test[:N_JUDGED], data.y_test[:N_JUDGED]
        self._trainer, self._n_images = model.trainer(data.X_train), len(data.X_train)

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
        return {"held-out loss": self._trainer.loss(self._X)}

    def facts(self) -> dict[str, int]:
        recipe = self.model.recipe_
        return {"n_updates": self.done, "batch_size": recipe.batch_size, "n_images": self._n_images}

    def predictions(self) -> tuple[IntArray, IntArray]:
        """Groups of the pixels of these images, as they are and as they are found."""
        return self._truth, self.model.predict(self._X)

    def save(self, path: Path, provenance: Mapping[str, Any]) -> None:
        Checkpoint(
            self.model.name,
            self.model.n_features_in_,
            self.model.recipe_,
            self.model.network_.state_dict(),
            provenance,
        ).save(path)
