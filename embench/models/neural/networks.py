"""What stands in for an M-step: a network, shared by all groups, that renews each one's prediction.

Groups are so many images to a network: shapes [n, n_pixels] with n = n_components * n_images.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from math import prod

import torch
from torch import Tensor, nn

from embench.models.neural.recipes import Coder, Recipe

State = tuple[Tensor, ...]
"""What a group remembers from step to step; each [n, hidden]."""

DENSE = 512
CHANNELS = (32, 64)
"""Units of the fully connected layers and channels of the convolutions, as those of the source have
for flying shapes."""


class MStep(nn.Module, ABC):
    """Renews what a group remembers from its share of the images' errors."""

    hidden: int

    n_states = 1

    def start(self, n: int) -> State:
        """The memory of n groups before the first step, 0."""
        zero = next(self.parameters()).new_zeros(n, self.hidden)
        return (zero,) * self.n_states

    @abstractmethod
    def forward(self, errors: Tensor, state: State) -> tuple[Tensor, State]:
        """Outputs, of which psi is read off, [n, n_pixels], and the new memory.

        Args:
            errors: gamma * (x - psi), [n, n_pixels].
            state: The memory.
        """


class RecurrentMStep(MStep):
    """A recurrent network, with an encoder before it and a decoder behind it if asked for."""

    def __init__(self, n_pixels: int, recipe: Recipe, image_shape: tuple[int, int]) -> None:
        super().__init__()
        self.hidden = recipe.hidden
        self.n_states = 2 if recipe.cell == "lstm" else 1
        self.encoder, n_features = _encoder(recipe.encoder, n_pixels, image_shape)
        self.cell = CELLS[recipe.cell](n_features, recipe.hidden)
        self.decoder, n_features = _decoder(recipe.decoder, recipe.hidden, n_pixels, image_shape)
        self.output = nn.Linear(n_features, n_pixels) if recipe.decoder != "conv" else nn.Identity()
        _glorot(self)

    def forward(self, errors: Tensor, state: State) -> tuple[Tensor, State]:
        state = self.cell(self.encoder(errors), state)
        return self.output(self.decoder(state[0])), state


class GradientMStep(MStep):
    """A step up the gradient of the expected log-likelihood, through weights that are tied.

    A group remembers z, and predicts sigmoid(W s(z)); z moves by ``rate`` times the gradient of
    sum of gamma * log p(x|psi), s'(z) W^T (gamma * (x - psi)). The rate begins positive: with the
    wrong sign all groups end alike.

    Source:
        Greff, van Steenkiste and Schmidhuber (2017), Neural expectation maximization, eq. 5.
    """

    def __init__(self, n_pixels: int, recipe: Recipe) -> None:
        super().__init__()
        self.hidden = recipe.hidden
        self.weight = nn.Parameter(torch.empty(n_pixels, recipe.hidden))
        nn.init.xavier_uniform_(self.weight)
        self.log_rate = nn.Parameter(torch.zeros(()))

    def forward(self, errors: Tensor, state: State) -> tuple[Tensor, State]:
        (z,) = state
        s = z.sigmoid()
        z = z + self.log_rate.exp() * s * (1 - s) * (errors @ self.weight)
        return z.sigmoid() @ self.weight.T, (z,)


class SigmoidCell(nn.Module):
    """h = sigmoid(u W_in + h W_hidden + bias)."""

    def __init__(self, n_inputs: int, hidden: int) -> None:
        super().__init__()
        self.input = nn.Linear(n_inputs, hidden)
        self.recurrent = nn.Linear(hidden, hidden, bias=False)

    def forward(self, inputs: Tensor, state: State) -> State:
        return ((self.input(inputs) + self.recurrent(state[0])).sigmoid(),)


class GRUCell(nn.GRUCell):
    """torch's, whose memory is a tuple."""

    def forward(self, inputs: Tensor, state: State) -> State:  # type: ignore[override]
        return (super().forward(inputs, state[0]),)


class LSTMCell(nn.LSTMCell):
    """torch's, whose memory is a tuple of any length."""

    def forward(self, inputs: Tensor, state: State) -> State:  # type: ignore[override]
        return super().forward(inputs, (state[0], state[1]))


CELLS = {"rnn": SigmoidCell, "gru": GRUCell, "lstm": LSTMCell}


def _encoder(coder: Coder, n_pixels: int, image_shape: tuple[int, int]) -> tuple[nn.Module, int]:
    """From errors to features, and the number of these."""
    if coder == "none":
        return nn.Identity(), n_pixels
    if coder == "dense":
        return nn.Sequential(*_dense(n_pixels, DENSE, nn.ELU())), DENSE
    few, many = CHANNELS
    whole, half, quarter = _sizes(n_pixels, image_shape)
    layers = [
        nn.Unflatten(1, (1, *whole)),
        *_convolved(nn.Conv2d(1, few, 4, stride=2, padding=1), half, nn.ELU()),
        *_convolved(nn.Conv2d(few, many, 4, stride=2, padding=1), quarter, nn.ELU()),
        nn.Flatten(),
        *_dense(many * prod(quarter), DENSE, nn.ELU()),
    ]
    return nn.Sequential(*layers), DENSE


def _decoder(
    coder: Coder, hidden: int, n_pixels: int, image_shape: tuple[int, int]
) -> tuple[nn.Module, int]:
    """From the memory to features, or to outputs if it is convolutional, and their number."""
    if coder == "none":
        return nn.Identity(), hidden
    if coder == "dense":
        return nn.Sequential(*_dense(hidden, DENSE, nn.ReLU())), DENSE
    few, many = CHANNELS
    _, half, quarter = _sizes(n_pixels, image_shape)
    layers = [
        nn.LayerNorm(hidden),
        *_dense(hidden, DENSE, nn.ReLU()),
        *_dense(DENSE, many * prod(quarter), nn.ReLU()),
        nn.Unflatten(1, (many, *quarter)),
        nn.Upsample(scale_factor=2),
        *_convolved(nn.Conv2d(many, few, 3, padding=1), half, nn.ReLU()),
        nn.Upsample(scale_factor=2),
        nn.Conv2d(few, 1, 3, padding=1),
        nn.Flatten(),
    ]
    return nn.Sequential(*layers), n_pixels


def _dense(n_inputs: int, n_outputs: int, activation: nn.Module) -> list[nn.Module]:
    return [nn.Linear(n_inputs, n_outputs), nn.LayerNorm(n_outputs), activation]


def _convolved(
    convolution: nn.Conv2d, size: tuple[int, int], activation: nn.Module
) -> list[nn.Module]:
    return [convolution, nn.LayerNorm([convolution.out_channels, *size]), activation]


def _sizes(n_pixels: int, image_shape: tuple[int, int]) -> list[tuple[int, int]]:
    """Height and width of an image, halved and halved again."""
    height, width = image_shape
    if height * width != n_pixels or height % 4 or width % 4:
        raise ValueError(
            "expected image_shape=(height, width), both multiples of 4, for a convolutional "
            f"encoder or decoder of {n_pixels} pixels, got ({height}, {width})"
        )
    return [(height // part, width // part) for part in (1, 2, 4)]


def _glorot(network: nn.Module) -> None:
    """Weights as in the source: uniform with the variance 2 / (inputs + outputs), biases 0."""
    for part in network.parameters():
        if part.ndim > 1:
            nn.init.xavier_uniform_(part)
    for name, part in network.named_parameters():
        if "bias" in name:
            nn.init.zeros_(part)
