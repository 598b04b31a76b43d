"""The steps of neural EM, and their loss, by autograd: any network, any law, stills and films."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from embench.models.neural.networks import MStep
from embench.models.neural.pixels import LAWS
from embench.models.neural.recipes import Recipe


class Moment(NamedTuple):
    """After a step: the network's ``outputs`` and the responsibilities ``gamma``, [K, B, D]."""

    outputs: Tensor
    gamma: Tensor


class Film(NamedTuple):
    """What n_steps steps see: ``noisy`` frames, and the ``clean`` ones that they predict.

    Shapes: [n_steps, B, D] each, for B images of D pixels.
    """

    noisy: Tensor
    clean: Tensor


def first_responsibilities(n_components: int, images: Tensor, generator: torch.Generator) -> Tensor:
    """gamma before the first step, [K, B, D]: |N(0, 1)|, normalised.

    Nothing else tells the groups from one another.
    """
    size = (n_components, *images.shape)
    drawn = torch.randn(size, generator=generator, dtype=images.dtype).abs_()
    return drawn.div_(drawn.sum(0))


def moments(network: MStep, recipe: Recipe, film: Film, gamma: Tensor) -> Iterator[Moment]:
    """Steps of EM: errors of the groups' predictions, new predictions, new responsibilities.

    Args:
        network: Renews the predictions.
        recipe: Its ``pixels`` and ``gamma_gradient``.
        film: What the steps see.
        gamma: First responsibilities, [K, B, D].

    Yields:
        A `Moment` for each frame.

    Source:
        Greff, van Steenkiste and Schmidhuber (2017), Neural expectation maximization, section 3.
    """
    law, (K, B, D) = LAWS[recipe.pixels], gamma.shape
    state, psi = network.start(K * B), torch.zeros_like(gamma)
    for noisy, clean in zip(*film, strict=True):
        errors = gamma * (noisy - psi)
        flat, state = network(errors.reshape(K * B, D), state)
        outputs = flat.view(K, B, D)
        psi, gamma = law.predictions(outputs), law.e_step(clean, outputs)
        gamma = gamma if recipe.gamma_gradient else gamma.detach()
        yield Moment(outputs, gamma)


def loss(network: MStep, recipe: Recipe, film: Film, gamma: Tensor) -> Tensor:
    """Mean over images and, weighted by the recipe, over steps [nat]; a scalar."""
    law = LAWS[recipe.pixels]
    steps = zip(recipe.step_weights, film.clean, moments(network, recipe, film, gamma), strict=True)
    terms = [
        weight * law.loss(clean, *moment, recipe.kl_weight, recipe.prior)
        for weight, clean, moment in steps
        if weight > 0
    ]
    return torch.stack(terms).sum()


def still(images: Tensor, n_steps: int) -> Tensor:
    """Frames [n_steps, B, D] of images [B, D] that do not move; no copies."""
    return images.expand(n_steps, *images.shape)


def frames(sequences: Tensor) -> tuple[Tensor, Tensor]:
    """Frames to see and frames to predict, [n_frames - 1, B, D], of sequences [B, n_frames, D]."""
    films = sequences.movedim(1, 0)
    return films[:-1], films[1:]
