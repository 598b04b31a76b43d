"""Groups of pixels on their way, step by step: `embench groups`."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from embench import registry
from embench.agreement import adjusted_mutual_information, contingencies
from embench.types import FloatArray, InputError, IntArray, Spec, SteppedGrouper

N_JUDGED = 200
"""Images that the agreement is a mean over."""


@dataclass(frozen=True)
class Steps:
    """One image on its way, and the agreement of many.

    Shapes: ``image`` (n_steps, n_pixels), the same in all steps but of a sequence; ``psi`` and
    ``gamma``, predictions and responsibilities, (n_steps, n_pixels, n_components); ``ami`` a mean
    over images after each step.
    """

    image: FloatArray
    psi: FloatArray
    gamma: FloatArray
    ami: list[float]
    image_shape: tuple[int, int]


def followed(
    model: Spec, dataset: Spec, *, seed: int = 0, image: int = 0, n_steps: int | None = None
) -> Steps:
    """Fit a model to a dataset, and look at the steps that it groups the held-out images in.

    Args:
        model: One with steps, such as "rnn-em:checkpoint=rnn-em.pt".
        dataset: Of images.
        seed: Of the dataset and the model.
        image: Number of the held-out image to look at.
        n_steps: None for as many as the model takes.

    Raises:
        InputError: The model has no steps, the dataset no images, or not so many.
    """
    data = registry.make_dataset(dataset.name, seed=seed, **dataset.params)
    made = registry.make_model(model.name, **model.params)
    if not isinstance(made, SteppedGrouper):
        raise InputError(f"{model.name} has no steps to look at; expected one like rnn-em")
    if data.image_shape is None or data.y_test is None:
        raise InputError(f"{dataset}: expected images with groups")
    X, truth = data.X_test[:N_JUDGED], data.y_test[:N_JUDGED]
    if image >= len(X):
        raise InputError(f"expected an image below {len(X)}, got {image}")
    if "random_state" not in model.params:
        made.set_params(random_state=seed)
    made.fit(data.X_train)
    psi, gamma, ami = [], [], []
    for step, (predicted, responsible) in enumerate(made.em_steps(X, n_steps)):
        psi.append(predicted[image])
        gamma.append(responsible[image])
        # Of a sequence the first step is the one that predicts the second frame.
        groups = truth if truth.ndim == 2 else truth[:, step + 1]
        ami.append(mean_ami(groups, responsible.argmax(axis=-1)))
    shown = X[image] if X.ndim == 2 else X[image, 1:]
    frames = np.broadcast_to(shown, (len(psi), X.shape[-1]))
    return Steps(frames, np.stack(psi), np.stack(gamma), ami, data.image_shape)


def mean_ami(truth: IntArray, labels: IntArray) -> float:
    """Mean over images of the agreement of groups, of pixels that have a true one.

    Args:
        truth: True groups, (..., n_pixels), below 0 where there is none.
        labels: Found ones, likewise.
    """
    images = (part.reshape(-1, part.shape[-1]) for part in (truth, labels))
    return float(adjusted_mutual_information(contingencies(*images)).mean())
