"""``mdn``: a network that turns x into the parameters of a Gaussian mixture of y."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from itertools import pairwise
from numbers import Integral, Real
from typing import Any, ClassVar, Literal, Self

import numpy as np
import torch
from sklearn.cluster import KMeans
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils import check_random_state
from sklearn.utils._param_validation import Interval, StrOptions
from torch import Tensor, nn

from embench.models import families
from embench.models.base import DivergenceWarning, resolved_device
from embench.models.conditional import ROWS, ConditionalDensity
from embench.models.engine import Family
from embench.models.gradient.likelihood import Coordinates, components, log_joint
from embench.types import ConditionalMixture, FloatArray, IntArray

ACTIVATIONS = {"tanh": nn.Tanh, "relu": nn.ReLU, "silu": nn.SiLU, "gelu": nn.GELU}
OPTIMIZERS = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}

SMALL = 0.1
"""Share of its usual size that the weights of the head begin with: at first nearly the same mixture
for every x, that of the clusters of Y, and no component far from all targets."""


class MixtureDensityNetwork(ConditionalDensity):
    """A network that gives every x a Gaussian mixture of y, trained on the likelihood.

    Minimises -1/n sum_i log sum_k w_k(x_i) N(y_i; m_k(x_i), S_k(x_i)), where weights, means and
    covariances are read off a linear layer on top of a network. The precision of a component is
    P P', P upper triangular with a diagonal of 1 / stddevs, so that any output is a mixture.

    Leaves out regularisation but for ``weight_decay`` and a ``validation_share``: on few samples a
    network without them ends too sure of itself. X and Y are standardised inside (Y by one scale
    where the family has one); densities are those of Y in its own units.

    Args:
        n_components: Number of components, the same for every x.
        covariance_type: "full", "tied" (the components of one x share a full covariance), "diag",
            "spherical", "tied_spherical" (they share one variance) or "constant" (the identity, in
            units of Y squared: nothing is learned); "diagonal", "isotropic" and "shared_isotropic"
            are other names of three of them.
        hidden_sizes: Units of the fully connected layers, or of the one; () for none.
        activation: "tanh", "relu", "silu" or "gelu", after each of them.
        backbone: A torch module of your own in their place, from standardised X
            [n_samples, n_features] to [n_samples, n_hidden]; a copy is trained, from its parameters
            as they are.
        optimizer: "adam" or "adamw".
        lr: Learning rate, at first.
        weight_decay: Of all weights: part of the gradient in "adam", apart from it in "adamw".
        schedule: "cosine" takes the rate down to 0 over the passes, "constant" leaves it.
        max_iter: Passes over the data.
        batch_size: Samples per step; what is left over at the end makes a smaller step.
        min_stddev: Added in quadrature to every standard deviation, in those of Y, of a target
            given those before it: a component on a single sample has no infinite density.
        validation_share: Share of the samples, in [0, 1), that is not trained on (start and
            standardisation are those of all); the parameters after the pass that explained them
            best are kept. 0: those after the last pass.
        random_state: Seed of the start, the batches, the samples set apart and of draws.
        device: "cpu", "cuda" or "auto" (cuda where there is one).
        dtype: "float64", "float32" or "auto" (that of X): precision of the network.

    Attributes: ``network_``, the trained module, and ``n_iter_``, the passes done; ``losses_``, the
    mean NLL [nat] over the batches of each pass, taken while parameters moved; when the fit has
    ended ``loss_``, the NLL per sample of what it was trained on by the parameters that it ended
    with.

    Source:
        Bishop (1994), Mixture density networks; Bishop (2006), section 5.6. The factor P: Williams
        (1996), Using neural networks to model conditional multivariate densities.

    Example:
        >>> X = np.linspace(-1, 1, 200)[:, None]
        >>> Y = X[:, 0] ** 2
        >>> model = MixtureDensityNetwork(1, batch_size=20, max_iter=50, random_state=0).fit(X, Y)
        >>> model.predict(np.array([[-0.8], [0.8]])).round(1).tolist()
        [0.6, 0.6]
    """

    version: ClassVar[str] = f"torch {torch.__version__}"

    late_imports: ClassVar[tuple[str, ...]] = ("torch._dynamo",)
    """What a first fit imports: torch's optimisers take a second to get going."""

    _parameter_constraints: ClassVar[dict[str, Any]] = {
        "n_components": [Interval(Integral, 1, None, closed="left")],
        "covariance_type": [StrOptions(set(families.NAMES))],
        "hidden_sizes": ["array-like", Interval(Integral, 1, None, closed="left")],
        "activation": [StrOptions(set(ACTIVATIONS))],
        "backbone": [nn.Module, None],
        "optimizer": [StrOptions(set(OPTIMIZERS))],
        "lr": [Interval(Real, 0, None, closed="neither")],
        "weight_decay": [Interval(Real, 0, None, closed="left")],
        "schedule": [StrOptions({"cosine", "constant"})],
        "max_iter": [Interval(Integral, 1, None, closed="left")],
        "batch_size": [Interval(Integral, 1, None, closed="left")],
        "min_stddev": [Interval(Real, 0, None, closed="neither")],
        "validation_share": [Interval(Real, 0, 1, closed="left")],
        "random_state": ["random_state"],
        "device": [StrOptions({"cpu", "cuda", "auto"})],
        "dtype": [StrOptions({"float64", "float32", "auto"})],
    }

    def __init__(
        self,
        n_components: int = 3,
        *,
        covariance_type: str = "full",
        hidden_sizes: int | Sequence[int] = (64, 64),
        activation: Literal["tanh", "relu", "silu", "gelu"] = "tanh",
        backbone: nn.Module | None = None,
        optimizer: Literal["adam", "adamw"] = "adam",
        lr: float = 5e-3,
        weight_decay: float = 0.0,
        schedule: Literal["cosine", "constant"] = "cosine",
        max_iter: int = 200,
        batch_size: int = 256,
        min_stddev: float = 1e-3,
        validation_share: float = 0.0,
        random_state: int | np.random.RandomState | None = None,
        device: Literal["cpu", "cuda", "auto"] = "cpu",
        dtype: Literal["auto", "float64", "float32"] = "auto",
    ) -> None:
        self.n_components = n_components
        self.covariance_type = covariance_type
        self.hidden_sizes = hidden_sizes
        self.activation = activation
        self.backbone = backbone
        self.optimizer = optimizer
        self.lr = lr
        self.weight_decay = weight_decay
        self.schedule = schedule
        self.max_iter = max_iter
        self.batch_size = batch_size
        self.min_stddev = min_stddev
        self.validation_share = validation_share
        self.random_state = random_state
        self.device = device
        self.dtype = dtype

    def fit(self, X: FloatArray, Y: FloatArray) -> Self:
        """Fit to X (n_samples, n_features) and Y (n_samples, n_targets) or (n_samples,)."""
        for _ in self.iter_fit(X, Y):
            pass
        return self

    def iter_fit(self, X: FloatArray, Y: FloatArray) -> Iterator[int]:
        """Fit pass by pass: yields 0 at the start, then the passes over the data done.

        The cosine is that of ``max_iter`` passes, wherever the stream is left.
        """
        dtype = [np.float64, np.float32] if self.dtype == "auto" else np.dtype(self.dtype)
        X, Y = self._validated(X, Y, dtype=dtype)
        rng, device = check_random_state(self.random_state), resolved_device(self.device)
        network = self._started(X, Y, rng, device)
        kept, apart = self._parted(len(X), rng)
        own, others = (network.taken(X[rows], Y[rows]) for rows in (kept, apart))
        optimizer = OPTIMIZERS[self.optimizer](
            network.parameters(), lr=self.lr, weight_decay=self.weight_decay
        )
        self.network_, self.n_iter_, self.losses_ = network, 0, []
        self.__dict__.pop("loss_", None)  # of an earlier fit
        lowest = math.inf
        yield 0
        for n_iter in range(1, self.max_iter + 1):
            rate, before = self._rate(n_iter - 1), deepcopy(network.state_dict())
            with _drawing(rng, device):
                loss = _trained(network, optimizer, rate, *own, self.batch_size)
            if not (math.isfinite(loss) and _is_finite(network)):
                network.load_state_dict(before)
                self.loss_ = self.network_.loss(*own)
                warnings.warn(
                    f"the loss became {loss} in pass {n_iter}; the network before it is kept: try "
                    "a smaller lr",
                    DivergenceWarning,
                    stacklevel=2,
                )
                return
            self.losses_.append(loss)
            self.n_iter_ = n_iter
            if len(apart) and (loss := network.loss(*others)) < lowest:
                lowest, self.network_ = loss, deepcopy(network)
            if n_iter == self.max_iter:
                self.loss_ = self.network_.loss(*own)
            yield n_iter

    def _rate(self, n_passes: int) -> float:
        """The learning rate after so many passes."""
        if self.schedule == "constant":
            return self.lr
        return self.lr * 0.5 * (1 + math.cos(math.pi * n_passes / self.max_iter))

    def _parted(self, n_samples: int, rng: np.random.RandomState) -> tuple[IntArray, IntArray]:
        """Rows to train on, and rows to set apart."""
        n_apart = round(self.validation_share * n_samples)
        if n_samples - n_apart < 2:
            raise ValueError(
                f"expected at least 2 samples to train on, got {n_samples} samples and "
                f"validation_share={self.validation_share}"
            )
        order = rng.permutation(n_samples) if n_apart else np.arange(n_samples)
        return order[n_apart:], order[:n_apart]

    def _started(
        self, X: FloatArray, Y: FloatArray, rng: np.random.RandomState, device: str
    ) -> Network:
        """A network whose mixture is, nearly for every x, that of the clusters of Y."""
        with _drawing(rng, "cpu"):
            backbone = self._layers(X.shape[1]) if self.backbone is None else self.backbone
            network = Network(
                deepcopy(backbone),
                X,
                Y,
                n_components=self.n_components,
                family=families.named(self.covariance_type),
                min_stddev=self.min_stddev,
            )
        network.begin(*_clusters(network.standardised(Y), self.n_components, rng))
        return network.to(device).eval()

    def _layers(self, n_inputs: int) -> nn.Module:
        """The fully connected layers."""
        hidden = np.atleast_1d(np.asarray(self.hidden_sizes))
        whole = hidden.dtype.kind in "iu" or hidden.size == 0
        if not whole or hidden.ndim > 1 or (hidden < 1).any():
            raise ValueError(
                f"expected hidden_sizes to be integers of 1 or more, got {self.hidden_sizes!r}"
            )
        sizes = [n_inputs, *hidden.tolist()]
        layers: list[nn.Module] = []
        for before, after in pairwise(sizes):
            layers += [nn.Linear(before, after), ACTIVATIONS[self.activation]()]
        return nn.Sequential(*layers)

    def _mixtures(self, X: FloatArray) -> ConditionalMixture:
        return self.network_.mixtures(X)


def _is_finite(network: nn.Module) -> bool:
    return all(bool(torch.isfinite(part).all()) for part in network.parameters())


class Network(nn.Module):
    """Backbone and head, and the frame that they work in: standardised X and Y."""

    def __init__(
        self,
        backbone: nn.Module,
        X: FloatArray,
        Y: FloatArray,
        *,
        n_components: int,
        family: Family,
        min_stddev: float,
    ) -> None:
        super().__init__()
        self.min_stddev, self.is_learned = min_stddev, family.is_learned
        self.dtype = torch.float32 if X.dtype == np.float32 else torch.float64
        X, Y = X.astype(np.float64), Y.astype(np.float64)
        self.X_mean, X_stddevs = X.mean(axis=0), X.std(axis=0)
        self.X_scale = np.where(np.ptp(X, axis=0) > 0, X_stddevs, 1.0)
        self.Y_mean, variances = Y.mean(axis=0), Y.var(axis=0)
        common = np.full_like(variances, variances.mean())
        self.has_one_scale = family.own_dimensions == 0
        self.Y_scale = np.sqrt(common if self.has_one_scale else variances)
        K, D = n_components, Y.shape[1]
        C, S = 1 if family.is_shared else K, 1 if self.has_one_scale else D
        P = D * (D - 1) // 2 if family.is_rotated else 0
        self.shapes = [(K,), (K, D), (C, S) if family.is_learned else (0, S), (C, P)]
        self.backbone = backbone.to(self.dtype)
        self.head = nn.Linear(self._n_hidden(X), sum(map(math.prod, self.shapes)), dtype=self.dtype)

    def forward(self, inputs: Tensor) -> Coordinates:
        """Free numbers of one mixture for each of standardised inputs [n, n_features]."""
        outputs = self.head(self.backbone(inputs)).T.split(list(map(math.prod, self.shapes)))
        logits, means, log_stddevs, coefficients = (
            output.reshape(*shape, len(inputs))
            for output, shape in zip(outputs, self.shapes, strict=True)
        )
        if self.is_learned:
            floor = log_stddevs.new_tensor(2 * math.log(self.min_stddev))
            log_stddevs = 0.5 * torch.logaddexp(2 * log_stddevs, floor)
        else:
            log_stddevs = logits.new_full((1, 1, len(inputs)), -math.log(self.Y_scale[0]))
        return Coordinates(logits, means, log_stddevs, coefficients)

    def log_likelihoods(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """Log p(y|x) [n] of what is `taken`, in nat, of Y in its own units."""
        joint = log_joint(targets, components(self(inputs)))
        return joint.logsumexp(0) - float(np.log(self.Y_scale).sum())

    @torch.no_grad()
    def loss(self, inputs: Tensor, targets: Tensor) -> float:
        """Mean NLL per sample [nat] of what is `taken`."""
        parts = zip(inputs.split(ROWS), targets.split(ROWS, dim=1), strict=True)
        return -float(sum(self.log_likelihoods(*part).sum() for part in parts)) / len(inputs)

    @torch.no_grad()
    def mixtures(self, X: FloatArray) -> ConditionalMixture:
        """The mixtures of Y for each row of X, in float64 and in the units of Y."""
        coordinates = Coordinates(*(part.cpu().double() for part in self(self._inputs(X))))
        log_weights, means, factors = components(coordinates)
        if factors.ndim == 3:
            own = factors.shape[0], self.shapes[1][1], factors.shape[-1]
            factors = torch.diag_embed(factors.expand(own).permute(2, 0, 1))
        else:
            factors = factors.permute(3, 0, 1, 2)
        identity = torch.eye(factors.shape[-1], dtype=factors.dtype)
        # P P' is the precision, so P^-T is a factor of the covariance.
        inverse = torch.linalg.solve_triangular(factors, identity, upper=True).numpy()
        scaled = inverse * self.Y_scale
        covariances = scaled.swapaxes(-1, -2) @ scaled
        n_samples, K, D = len(X), *self.shapes[1]
        return ConditionalMixture(
            weights=log_weights.T.exp().numpy(),
            means=means.permute(2, 0, 1).numpy() * self.Y_scale + self.Y_mean,
            covariances=np.broadcast_to(covariances, (n_samples, K, D, D)),
        )

    def standardised(self, Y: FloatArray) -> FloatArray:
        """Y [n, n_targets] in the frame."""
        return (Y - self.Y_mean) / self.Y_scale

    def taken(self, X: FloatArray, Y: FloatArray) -> tuple[Tensor, Tensor]:
        """X [n, n_features] and Y [n_targets + 1, n], its last row ones, standardised tensors."""
        targets = np.vstack([self.standardised(Y).T, np.ones(len(Y))])
        return self._inputs(X), self._tensor(targets)

    @torch.no_grad()
    def begin(self, weights: FloatArray, means: FloatArray, stddevs: FloatArray) -> None:
        """Let the head say this mixture, and hardly anything of x.

        Shapes: ``weights`` [K], ``means`` [K, D], ``stddevs`` [D].
        """
        C, S = self.shapes[2]
        own = np.sqrt(np.mean(stddevs**2, keepdims=True)) if self.has_one_scale else stddevs
        log_stddevs = np.broadcast_to(np.log(own), (C, S))
        parts = [np.log(weights), means, log_stddevs, np.zeros(self.shapes[3])]
        self.head.weight.mul_(SMALL)
        self.head.bias.copy_(torch.from_numpy(np.concatenate([part.ravel() for part in parts])))

    def _n_hidden(self, X: FloatArray) -> int:
        """How many features the backbone gives, after a look at their shape."""
        rows = X[:2]
        wanted = (
            f"expected a backbone from inputs of shape {rows.shape} to features "
            f"({len(rows)}, n_hidden)"
        )
        try:
            with torch.no_grad():
                features = self.backbone.eval()(self._inputs(rows))
        except RuntimeError as error:
            raise ValueError(f"{wanted}, but it raised: {error}") from error
        if not isinstance(features, Tensor):
            raise ValueError(f"{wanted}, got a {type(features).__name__}")
        if features.ndim != 2 or len(features) != len(rows):
            raise ValueError(f"{wanted}, got features of shape {tuple(features.shape)}")
        return features.shape[1]

    def _inputs(self, X: FloatArray) -> Tensor:
        return self._tensor((X - self.X_mean) / self.X_scale)

    def _tensor(self, array: FloatArray) -> Tensor:
        device = next((part.device for part in self.parameters()), torch.device("cpu"))
        return torch.as_tensor(array, dtype=self.dtype, device=device)


def _trained(
    network: Network,
    optimizer: torch.optim.Optimizer,
    rate: float,
    inputs: Tensor,
    targets: Tensor,
    batch_size: int,
) -> float:
    """One pass, a step for each batch; the mean NLL over them [nat]."""
    for group in optimizer.param_groups:
        group["lr"] = rate
    total, size = 0.0, min(batch_size, len(inputs))
    network.train()
    for rows in torch.randperm(len(inputs)).to(inputs.device).split(size):
        optimizer.zero_grad()
        nll = -network.log_likelihoods(inputs[rows], targets[:, rows]).sum()
        (nll / size).backward()  # so that a sample of a smaller batch counts like any other
        optimizer.step()
        total += float(nll.detach())
    network.eval()
    return total / len(inputs)


def _clusters(
    Y: FloatArray, n_components: int, rng: np.random.RandomState
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Weights [K] and means [K, D] of clusters of Y [n, D], and the deviations [D] within them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # fewer different targets than clusters
        found = KMeans(n_components, n_init=1, random_state=rng).fit(Y)
    counts = np.bincount(found.labels_, minlength=n_components) + 1.0
    residuals = Y - found.cluster_centers_[found.labels_]
    stddevs = np.hypot(residuals.std(axis=0), SMALL)
    return counts / counts.sum(), found.cluster_centers_.astype(np.float64), stddevs


@contextmanager
def _drawing(rng: np.random.RandomState, device: str) -> Iterator[None]:
    """Torch's own generators at a seed from ``rng``, and afterwards as they were before."""
    cuda = device == "cuda"
    with torch.random.fork_rng([torch.cuda.current_device()] if cuda else []):
        seed = int(rng.randint(2**31))
        torch.default_generator.manual_seed(seed)
        if cuda:
            torch.cuda.manual_seed(seed)
        yield
