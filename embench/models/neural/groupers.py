"""``rnn-em`` and ``n-em``: neural EM as estimators that group the pixels of images."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import fields, replace
from math import isqrt
from numbers import Integral, Real
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import numpy as np
import torch
from sklearn.base import BaseEstimator, clone
from sklearn.utils import check_random_state
from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from embench.models.base import complete_signature
from embench.models.checkpoint import digest
from embench.models.neural import unroll
from embench.models.neural.checkpoint import Checkpoint
from embench.models.neural.fused import has_bfloat16
from embench.models.neural.learning import GrouperTraining
from embench.models.neural.networks import CELLS, GradientMStep, MStep, RecurrentMStep
from embench.models.neural.pixels import LAWS
from embench.models.neural.recipes import (
    N_EM_PRESETS,
    PRESETS,
    Cell,
    Coder,
    LossSteps,
    NoiseType,
    Pixels,
    Products,
    Recipe,
    Schedule,
)
from embench.models.neural.training import Trainer
from embench.models.neural.unroll import Film, Moment
from embench.types import Draw, FloatArray, IntArray

CHUNK = 256
"""Images that are looked at together, so that memory does not grow with their number."""


class NeuralGrouper(BaseEstimator, ABC):
    """Groups of pixels by copies of one network: all of neural EM but the network."""

    name: ClassVar[str]
    """The model's."""

    presets: ClassVar[Mapping[str, Recipe]] = PRESETS

    losses_: list[float]

    _parameter_constraints: ClassVar[dict[str, Any]] = {
        "n_components": [Interval(Integral, 1, None, closed="left"), None],
        "preset": [StrOptions(set(PRESETS))],
        "pixels": [StrOptions(set(LAWS)), None],
        "hidden": [Interval(Integral, 1, None, closed="left"), None],
        "n_steps": [Interval(Integral, 1, None, closed="left"), None],
        "n_test_steps": [Interval(Integral, 1, None, closed="left"), None],
        "n_init": [Interval(Integral, 1, None, closed="left"), None],
        "noise": [Interval(Real, 0, 1, closed="left"), None],
        "noise_end": [Interval(Real, 0, 1, closed="left"), None],
        "noise_type": [StrOptions({"bitflip", "masked_uniform", "none"}), None],
        "kl_weight": [Interval(Real, 0, None, closed="left"), None],
        "prior": [Interval(Real, 0, 1, closed="left"), None],
        "loss_steps": [StrOptions({"all", "late", "last"}), "array-like", None],
        "gamma_gradient": ["boolean", None],
        "lr": [Interval(Real, 0, None, closed="neither"), None],
        "schedule": [StrOptions({"constant", "cosine"}), None],
        "averaging": [Interval(Real, 0, 1, closed="left"), None],
        "max_gradient": [Interval(Real, 0, None, closed="neither"), None],
        "products": [StrOptions({"exact", "bfloat16"}), None],
        "batch_size": [Interval(Integral, 1, None, closed="left"), None],
        "max_updates": [Interval(Integral, 1, None, closed="left"), None],
        "cpu_seconds": [Interval(Real, 0, None, closed="neither"), None],
        "checkpoint": [str, Path, None],
        "random_state": ["random_state"],
        "dtype": [StrOptions({"float64", "float32"})],
    }

    def __init__(
        self,
        n_components: int | None = None,
        *,
        preset: str = "standard",
        pixels: Pixels | None = None,
        hidden: int | None = None,
        n_steps: int | None = None,
        n_test_steps: int | None = None,
        n_init: int | None = None,
        noise: float | None = None,
        noise_end: float | None = None,
        noise_type: NoiseType | None = None,
        kl_weight: float | None = None,
        prior: float | None = None,
        loss_steps: LossSteps | None = None,
        gamma_gradient: bool | None = None,
        lr: float | None = None,
        schedule: Schedule | None = None,
        averaging: float | None = None,
        max_gradient: float | None = None,
        products: Products | None = None,
        batch_size: int | None = None,
        max_updates: int | None = None,
        cpu_seconds: float | None = None,
        checkpoint: str | Path | None = None,
        random_state: int | np.random.RandomState | None = None,
        dtype: Literal["float32", "float64"] = "float32",
    ) -> None:
        self.n_components = n_components
        self.preset = preset
        self.pixels = pixels
        self.hidden = hidden
        self.n_steps = n_steps
        self.n_test_steps = n_test_steps
        self.n_init = n_init
        self.noise = noise
        self.noise_end = noise_end
        self.noise_type = noise_type
        self.kl_weight = kl_weight
        self.prior = prior
        self.loss_steps = loss_steps
        self.gamma_gradient = gamma_gradient
        self.lr = lr
        self.schedule = schedule
        self.averaging = averaging
        self.max_gradient = max_gradient
        self.products = products
        self.batch_size = batch_size
        self.max_updates = max_updates
        self.cpu_seconds = cpu_seconds
        self.checkpoint = checkpoint
        self.random_state = random_state
        self.dtype = dtype

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        complete_signature(cls)

    @classmethod
    def version(cls, checkpoint: str | Path | None = None, **_: Any) -> str:
        """Of torch, and a digest of the weights if there are any: retrained is another model."""
        weights = f", weights {digest(checkpoint)}" if checkpoint else ""
        return f"torch {torch.__version__}{weights}"

    @abstractmethod
    def _network(self, n_pixels: int, recipe: Recipe) -> MStep:
        """The network, untrained; it draws from torch's own generator."""

    def fit(self, X: FloatArray, y: None = None) -> Self:
        """Train on X, or take the weights of ``checkpoint`` and learn nothing.

        Args:
            X: Images (n_images, n_pixels) or sequences of them (n_sequences, n_frames, n_pixels).
            y: Ignored.

        Raises:
            ValueError: X has another shape, or values that such pixels cannot have.
            InputError: The checkpoint is not there, or is one of another model or of other images.
        """
        for _ in self.iter_fit(X):
            pass
        return self

    def iter_fit(self, X: FloatArray) -> Iterator[int]:
        """Train update by update: yields 0 at the start, then the updates done."""
        self._validate_params()
        if self.checkpoint is not None:
            yield self._take(X)
            return
        trainer = self.trainer(X)
        yield 0
        while trainer.progress < 1:
            self.losses_.append(trainer.update())
            self.n_iter_ = trainer.done
            yield self.n_iter_

    def trainer(self, X: FloatArray) -> Trainer:
        """What trains this model on X, update by update: the model is as far as that is."""
        self._validate_params()
        rng = check_random_state(self.random_state)
        self.recipe_ = recipe = self.recipe()
        if recipe.products == "bfloat16" and not has_bfloat16(self.dtype):
            raise ValueError(
                "products='bfloat16' takes a processor that multiplies such numbers (avx512_bf16, "
                f"AMX) and dtype='float32', got dtype={self.dtype!r} on "
                f"{torch.backends.cpu.get_cpu_capability()}; use products='exact'"
            )
        X = self._checked(X)
        if X.ndim == 3:  # a step for each frame that has one before it
            self.recipe_ = recipe = replace(recipe, n_steps=X.shape[1] - 1)
        seed = int(rng.randint(2**31))
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            network = self._network(X.shape[-1], recipe).to(getattr(torch, self.dtype))
        trainer = Trainer(network, recipe, X, seed, self.cpu_seconds)
        self.network_ = trainer.averaged
        self.n_iter_, self.losses_ = 0, []
        self.n_features_in_, self._seed = X.shape[-1], seed
        return trainer

    @property
    def training_suite(self) -> str:
        """Name of the suite with the images that the preset is for."""
        return f"training-{self.preset}"

    def training(
        self, draw: Draw, seed: int, n_updates: int | None, batch_size: int | None
    ) -> GrouperTraining:
        """A training on images that are drawn, for `embench train`.

        Args:
            draw: Draws the dataset.
            seed: Of the dataset and, unless ``random_state`` says otherwise, of the training.
            n_updates, batch_size: In place of ``max_updates`` and ``batch_size``.
        """
        model = clone(self)
        own = {"max_updates": n_updates, "batch_size": batch_size}
        model.set_params(**{name: value for name, value in own.items() if value is not None})
        if model.random_state is None:
            model.set_params(random_state=seed)
        return GrouperTraining(model, draw, seed)

    def recipe(self) -> Recipe:
        """The preset with what the parameters say instead.

        Example:
            >>> RNNEM(preset="quick", hidden=50).recipe().hidden
            50
        """
        names = {one.name for one in fields(Recipe)} & self.get_params(deep=False).keys()
        asked = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        recipe = replace(self.presets[self.preset], **asked)
        recipe.step_weights  # noqa: B018 what is wrong with them is said before any work
        return recipe

    def group_proba(self, X: FloatArray) -> FloatArray:
        """Responsibility of each group for each pixel after the last step.

        The first frame of a sequence has no prediction that was made before it: its groups are by
        that of the second one.

        Args:
            X: Images (n_images, n_pixels), or sequences (n_sequences, n_frames, n_pixels).

        Returns:
            Shape (..., n_pixels, n_components), float64; sums over components are 1.
        """
        return np.concatenate([self._last_gamma(part) for part in self._parts(X)])

    def predict(self, X: FloatArray) -> IntArray:
        """The group with the largest responsibility for each pixel, in the shape of X."""
        return self.group_proba(X).argmax(axis=-1)

    def score(self, X: FloatArray, y: None = None) -> float:
        """Mean log-likelihood of an image, or of a predicted frame, after the last step [nat].

        The mixture of a pixel is that of all groups' predictions with equal weights.
        """
        found = [self._log_likelihood(part, *self._run(part)) for part in self._parts(X)]
        return torch.cat(found).double().mean().item()

    def em_steps(
        self, X: FloatArray, n_steps: int | None = None
    ) -> Iterator[tuple[FloatArray, FloatArray]]:
        """Predictions psi and responsibilities gamma after each step, both (n_images, n_pixels,
        n_components).

        Args:
            X: Images (n_images, n_pixels), all looked at together; of sequences a step is a frame.
            n_steps: More or fewer than ``n_test_steps``.
        """
        law = LAWS[self.recipe_.pixels]
        check_is_fitted(self)
        for outputs, gamma in self._run(
            self._tensor(self._checked(X, self.n_features_in_)), n_steps
        )[1]:
            yield _last_axis(law.predictions(outputs)), _last_axis(gamma)

    @property
    def training_seconds(self) -> float:
        """What the training behind ``checkpoint`` took of the CPU, once, before any fit [s]."""
        return float(self._trained().provenance["cpu_seconds"])

    def _take(self, X: FloatArray) -> int:
        """Be as the checkpoint says; 0, the updates done here."""
        found = self._trained()
        own = found.recipe
        self.recipe_ = replace(
            own,
            n_components=self.n_components or own.n_components,
            n_test_steps=self.n_test_steps or own.n_test_steps,
            n_init=self.n_init or own.n_init,
        )
        self.n_features_in_ = found.n_pixels
        self._checked(X, found.n_pixels)
        network = self._network(found.n_pixels, self.recipe_)
        self.network_ = found.put_into(network).to(getattr(torch, self.dtype))
        self.n_iter_, self.losses_ = 0, []
        self._seed = int(check_random_state(self.random_state).randint(2**31))
        return 0

    def _trained(self) -> Checkpoint:
        if self.checkpoint is None:
            raise AttributeError("no checkpoint: this model learns when it is fitted")
        return Checkpoint.load(self.checkpoint, self.name)

    def _parts(self, X: FloatArray) -> Iterator[Tensor]:
        """Some images at a time."""
        check_is_fitted(self)
        X = self._checked(X, self.n_features_in_)
        for start in range(0, len(X), CHUNK):
            yield self._tensor(X[start : start + CHUNK])

    def _last_gamma(self, images: Tensor) -> FloatArray:
        """(n_images, n_pixels, n_components), or with frames (n_sequences, n_frames, ...)."""
        film, moments = self._run(images)
        if images.ndim == 2:
            *_, (_, gamma) = moments
            return _last_axis(gamma)
        found = list(moments)
        first = LAWS[self.recipe_.pixels].e_step(film.noisy[0], found[0].outputs)
        return np.stack([_last_axis(gamma) for gamma in (first, *(one.gamma for one in found))], 1)

    @torch.no_grad()
    def _run(self, images: Tensor, n_steps: int | None = None) -> tuple[Film, list[Moment]]:
        """Steps of EM without noise; the same images give the same first responsibilities."""
        recipe = self.recipe_
        if images.ndim == 2:
            clean = unroll.still(images, n_steps or recipe.n_test_steps)
            film = Film(clean, clean)
        else:
            film = Film(*unroll.frames(images))
        generator = torch.Generator().manual_seed(self._seed)
        best: list[Moment] = []
        for _ in range(recipe.n_init):
            first = unroll.first_responsibilities(recipe.n_components, film.clean[0], generator)
            found = list(unroll.moments(self.network_, recipe, film, first))
            if best:
                old, new = (self._log_likelihood(images, film, one) for one in (best, found))
                pairs = zip(found, best, strict=True)
                found = [_chosen(new > old, one, other) for one, other in pairs]
            best = found
        return film, best

    def _log_likelihood(self, images: Tensor, film: Film, moments: list[Moment]) -> Tensor:
        """Of each image after the last step, of sequences the mean over frames, [B] [nat]."""
        law, first = LAWS[self.recipe_.pixels], -1 if images.ndim == 2 else 0
        pairs = list(zip(film.clean, moments, strict=True))[first:]
        each = [law.log_likelihood(clean, moment.outputs) for clean, moment in pairs]
        return torch.stack(each).mean(0)

    def _tensor(self, X: FloatArray) -> Tensor:
        return torch.as_tensor(X, dtype=next(self.network_.parameters()).dtype)

    def _checked(self, X: FloatArray, n_pixels: int | None = None) -> FloatArray:
        """Images or sequences, of so many pixels, of what the pixels can be."""
        X = np.asarray(X)
        if X.ndim not in (2, 3) or 0 in X.shape or X.dtype.kind not in "fiub":
            raise ValueError(
                "expected images (n_images, n_pixels) or sequences (n_sequences, n_frames, "
                f"n_pixels) of numbers, got {X.dtype} of shape {X.shape}"
            )
        if X.ndim == 3 and X.shape[1] < 2:
            raise ValueError(f"expected sequences of 2 frames or more, got X of shape {X.shape}")
        if X.shape[-1] != (n_pixels or X.shape[-1]):
            raise ValueError(f"expected images of {n_pixels} pixels, got X of shape {X.shape}")
        low, high = float(X.min()), float(X.max())
        if not np.isfinite(low + high):
            raise ValueError("expected finite numbers in X")
        if self.recipe_.pixels == "bernoulli" and (low < 0 or high > 1):
            raise ValueError(
                f"expected pixels in [0, 1] for pixels='bernoulli', got {low:g} to {high:g}; "
                "pixels='gaussian' takes any"
            )
        return X


class RNNEM(NeuralGrouper):
    """RNN-EM: every group of pixels is explained by a copy of one recurrent network.

    Each group k predicts the image as psi_k. In a step of EM a network that all groups share sees
    where its group was wrong, gamma_k (x - psi_k), and predicts anew; then every pixel is given to
    the groups in proportion to how well they predict it. The network is trained through all steps
    on sum_k [gamma_k * cross-entropy(x, psi_k) + kl_weight (1 - gamma_k) KL(prior || psi_k)], while
    what it sees is noisy. Nothing but the random first gamma tells the groups apart.

    Training ends after a fixed budget. Nothing stops it early: the loss of images that are not
    learned from goes on falling when a group learns to hold two objects, and picks a worse model.

    Args:
        n_components: Groups; the network may be used with another number than it was trained with.
        preset: "quick" (two small shapes), "standard" (three large ones), "gaussian" (grey), each
            for a core of a CPU, or "published" and "published-flying", the original recipes. What
            follows is the preset's where it is None.
        pixels: "bernoulli" (in [0, 1]) or "gaussian" (any, with a fixed standard deviation).
        hidden: Units of the recurrent network.
        cell: "rnn" (sigmoid), "gru" or "lstm".
        encoder, decoder: Layers before and behind the cell: "none", "dense" or "conv", which takes
            images with sides that are multiples of 4.
        image_shape: Height and width, for "conv"; None for square images.
        n_steps: Steps of EM in training; of sequences one for each frame but the first.
        n_test_steps: Steps of EM in ``predict`` and ``score``.
        n_init: First responsibilities tried there for each image; those of the largest likelihood
            in the end are kept.
        noise: Share of the pixels that are hit, anew in each step of training.
        noise_end: Where that share goes in the course of the training; None: it stays.
        noise_type: "bitflip", "masked_uniform" or "none".
        kl_weight: Weight of the KL term.
        prior: What a group is to predict where it has nothing to say.
        loss_steps: Steps that the loss is taken at: "all", "late" (the second half), "last", or a
            weight for each.
        gamma_gradient: Whether gradients flow through the E-step.
        lr: Learning rate of Adam, the largest.
        schedule: "constant", or "cosine", which falls to 0 at the end of the budget.
        averaging: Decay of the running average of the weights, which is what predicts; 0 for none.
        max_gradient: Norm that gradients are cut down to.
        products: "exact", in ``dtype``; or "bfloat16": matrix products of training alone, where the
            processor has them, with factors of 8 binary digits.
        batch_size: Images of an update.
        max_updates: The budget, which decides alone unless cpu_seconds are given.
        cpu_seconds: A budget of time [s]; with it, how far a fit gets depends on the machine.
        checkpoint: Path of weights that `embench train` wrote: then a fit learns nothing.
        random_state: Seed of weights, order, noise and first responsibilities.
        dtype: "float32" or "float64".

    Attributes: ``network_``; ``recipe_``, all of the above as it was used; ``n_iter_``, updates
    done; ``losses_``, the loss of each [nat].

    Source:
        Greff, van Steenkiste and Schmidhuber (2017), Neural expectation maximization.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> left = rng.random(200) < 0.5
        >>> X = np.where(left[:, None], [1, 1, 0, 0], [0, 0, 1, 1])
        >>> model = RNNEM(2, hidden=8, max_updates=5, random_state=0).fit(X)
        >>> model.predict(X).shape, len(model.losses_)
        ((200, 4), 5)
    """

    name = "rnn-em"

    _parameter_constraints: ClassVar[dict[str, Any]] = {
        **NeuralGrouper._parameter_constraints,
        "cell": [StrOptions(set(CELLS)), None],
        "encoder": [StrOptions({"none", "dense", "conv"}), None],
        "decoder": [StrOptions({"none", "dense", "conv"}), None],
        "image_shape": ["array-like", None],
    }

    def __init__(
        self,
        n_components: int | None = None,
        *,
        preset: str = "standard",
        cell: Cell | None = None,
        encoder: Coder | None = None,
        decoder: Coder | None = None,
        image_shape: tuple[int, int] | None = None,
        **common: Any,
    ) -> None:
        super().__init__(n_components, preset=preset, **common)
        self.cell = cell
        self.encoder = encoder
        self.decoder = decoder
        self.image_shape = image_shape

    def _network(self, n_pixels: int, recipe: Recipe) -> MStep:
        side = isqrt(n_pixels)
        return RecurrentMStep(n_pixels, recipe, self.image_shape or (side, side))


class NEM(NeuralGrouper):
    """N-EM: every group of pixels climbs the gradient of its expected likelihood.

    Each group k has a vector z_k and predicts the image as psi_k = sigmoid(W sigmoid(z_k)). The
    M-step is one step of z_k up the gradient of the expected log-likelihood, of a size that is
    learned with W; all else, the parameters too, is as in `rnn-em`.

    Source:
        Greff, van Steenkiste and Schmidhuber (2017), Neural expectation maximization, eq. 5.

    Example:
        >>> X = np.eye(4)[[0, 1, 2, 3] * 10]
        >>> model = NEM(2, hidden=8, max_updates=5, random_state=0).fit(X)
        >>> model.group_proba(X).sum(axis=-1).round(6).min().item()
        1.0
    """

    name = "n-em"

    presets: ClassVar[Mapping[str, Recipe]] = N_EM_PRESETS

    def _network(self, n_pixels: int, recipe: Recipe) -> MStep:
        return GradientMStep(n_pixels, recipe)


def _last_axis(groups: Tensor) -> FloatArray:
    """(n_images, n_pixels, n_components) in float64 of [n_components, n_images, n_pixels]."""
    return groups.movedim(0, -1).double().numpy()


def _chosen(better: Tensor, one: Moment, other: Moment) -> Moment:
    """The one where it is better, [n_images], else the other."""
    pairs = zip(one, other, strict=True)
    return Moment(*(torch.where(better[:, None], new, old) for new, old in pairs))
