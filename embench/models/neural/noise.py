"""Corruptions of images: what the network sees, while it is judged on the clean ones."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from embench.models.neural.recipes import NoiseType


def corrupted(
    images: Tensor, noise_type: NoiseType, probability: float, generator: torch.Generator
) -> Tensor:
    """Copies of images in which each pixel is hit with a probability, apart from all others.

    Args:
        images: Any shape, brightnesses in [0, 1].
        noise_type: What becomes of a pixel that is hit: "bitflip" makes 1 - x of it,
            "masked_uniform" a draw from [0, 1); with "none" no pixel is.
        probability: In [0, 1).
        generator: Of draws.

    Example:
        >>> generator = torch.Generator().manual_seed(0)
        >>> noisy = corrupted(torch.zeros(1000, 100), "bitflip", 0.02, generator)
        >>> round(noisy.mean().item(), 3), noisy.unique().tolist()
        (0.02, [0.0, 1.0])
    """
    noisy = images.clone(memory_format=torch.contiguous_format)
    if noise_type == "none" or probability == 0:
        return noisy
    flat = noisy.view(-1)
    hit = _hits(flat.numel(), probability, generator)
    if noise_type == "bitflip":
        flat[hit] = 1 - flat[hit]
    else:
        flat[hit] = torch.rand(len(hit), generator=generator, dtype=flat.dtype)
    return noisy


def _hits(n_pixels: int, probability: float, generator: torch.Generator) -> Tensor:
    """Indices of pixels that are hit.

    Gaps between them are geometric, so that the draws are as many as the hits, not as the pixels.
    """
    expected = n_pixels * probability
    n_draws = math.ceil(expected + 6 * math.sqrt(expected) + 10)
    places = torch.empty(n_draws, dtype=torch.int64).geometric_(probability, generator=generator)
    places = places.cumsum(0) - 1
    if places[-1] < n_pixels - 1:  # once in 10^9 calls
        rest = _hits(n_pixels - int(places[-1]) - 1, probability, generator)
        return torch.cat([places, places[-1] + 1 + rest])
    return places[places < n_pixels]
