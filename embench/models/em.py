"""``em``, a drop-in for scikit-learn's GaussianMixture, and what all variants of it share."""

from __future__ import annotations

import inspect
import warnings
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterator, Sequence
from copy import copy
from typing import Any, ClassVar, Literal, NamedTuple, Self

import numpy as np
import scipy
import sklearn.mixture
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils import check_random_state
from sklearn.utils._param_validation import StrOptions
from sklearn.utils.validation import _check_sample_weight, validate_data

from embench.models import engine, families, sources, streams
from embench.models.engine import FAMILIES, Arrays, Frame, Parameters, Samples, Statistics
from embench.types import FloatArray, IntArray, Mixture

NOT_CONVERGED = (
    "Best performing initialization did not converge. Try different init parameters, or increase "
    "max_iter, tol, or check for degenerate data."
)

FORGETTING = 0.6
"""Exponent of the step size (t + 2)^-0.6 of `partial_fit`: in (0.5, 1] it converges; near 0.5 it
forgets a poor start soonest (Cappe and Moulines, 2009, section 3)."""


class Run(NamedTuple):
    """One restart as far as it has come, in the frame; ``lower_bounds`` [nat] are those before."""

    parameters: Parameters
    lower_bound: float = -np.inf
    lower_bounds: tuple[float, ...] = ()
    n_iter: int = 0
    converged: bool = False

    def after(self, lower_bound: float, parameters: Parameters, tol: float) -> Run:
        """One iteration on."""
        return Run(
            parameters,
            lower_bound,
            (*self.lower_bounds, lower_bound),
            self.n_iter + 1,
            converged=abs(lower_bound - self.lower_bound) < tol,
        )


class Runs(NamedTuple):
    """Many runs side by side, in the frame.

    Shapes: ``parameters`` [R, ...]; ``lower_bounds`` [n_iter + 1, R] [nat], the first of them
    before all; ``n_iter`` and ``converged`` [R].

    A run that rests repeats its last bound.
    """

    parameters: Parameters
    lower_bounds: FloatArray
    n_iter: IntArray
    converged: NDArray[np.bool_]

    def after(
        self, moving: IntArray, bounds: FloatArray, parameters: Parameters, tol: float
    ) -> Runs:
        """One iteration on for those that are moving."""
        lower_bounds = np.vstack([self.lower_bounds, self.lower_bounds[-1]])
        lower_bounds[-1, moving] = bounds
        n_iter = self.n_iter.copy()
        n_iter[moving] += 1
        if len(moving) < len(n_iter):
            old = [part.copy() for part in self.parameters]
            for part, new in zip(old, parameters, strict=True):
                part[moving] = new
            parameters = Parameters._make(old)
        converged = self.converged.copy()
        converged[moving] = np.abs(bounds - self.lower_bounds[-1, moving]) < tol
        return Runs(parameters, lower_bounds, n_iter, converged)

    def run(self, i: int) -> Run:
        """One of them."""
        n_iter = int(self.n_iter[i])
        bounds = self.lower_bounds[: n_iter + 1, i].tolist()
        converged = bool(self.converged[i])
        return Run(_nth(self.parameters, i), bounds[-1], tuple(bounds[1:]), n_iter, converged)


class DensityByEM(sklearn.mixture.GaussianMixture, ABC):
    """A density fitted by steps on embench's engine: everything but the step.

    A variant says in `_steps` how one mixture becomes the next. Starts, restarts, stopping rule
    and attributes are scikit-learn's. Hyper-parameters of its own go before ``**common``:

        def __init__(self, n_components=1, *, inertia=0.5, **common):
            super().__init__(n_components, **common)
            self.inertia = inertia
    """

    version: ClassVar[str] = (
        f"numpy {np.__version__}, scipy {scipy.__version__}, scikit-learn {sklearn.__version__}"
    )

    in_memory: ClassVar[bool] = False
    """Whether the steps look at single samples, so that X cannot be read in chunks."""

    _parameter_constraints: ClassVar[dict[str, Any]] = {
        **sklearn.mixture.GaussianMixture._parameter_constraints,
        "device": [StrOptions({"cpu", "cuda", "auto"})],
        "dtype": [StrOptions({"float64", "float32", "auto"})],
    }

    def __init__(
        self,
        n_components: int = 1,
        *,
        covariance_type: Literal["full", "tied", "diag", "spherical"] = "full",
        tol: float = 1e-3,
        reg_covar: float = 1e-6,
        max_iter: int = 100,
        n_init: int = 1,
        init_params: Literal["kmeans", "k-means++", "random", "random_from_data"] = "kmeans",
        weights_init: FloatArray | None = None,
        means_init: FloatArray | None = None,
        precisions_init: FloatArray | None = None,
        random_state: int | np.random.RandomState | None = None,
        warm_start: bool = False,
        verbose: int = 0,
        verbose_interval: int = 10,
        device: Literal["cpu", "cuda", "auto"] = "cpu",
        dtype: Literal["auto", "float64", "float32"] = "auto",
    ) -> None:
        super().__init__(
            n_components=n_components,
            covariance_type=covariance_type,
            tol=tol,
            reg_covar=reg_covar,
            max_iter=max_iter,
            n_init=n_init,
            init_params=init_params,
            weights_init=weights_init,
            means_init=means_init,
            precisions_init=precisions_init,
            random_state=random_state,
            warm_start=warm_start,
            verbose=verbose,
            verbose_interval=verbose_interval,
        )
        self.device = device
        self.dtype = dtype

    @abstractmethod
    def _steps(
        self, samples: Samples, parameters: Parameters, random_state: np.random.RandomState
    ) -> Iterator[tuple[float, Parameters]]:
        """Iterate for ever: the mean log-likelihood [nat] before each step, the mixture after it.

        Args:
            samples: The data in their frame; what they offer is all that a step should need.
            parameters: The start, in that frame.
            random_state: For steps that draw.
        """

    def fit(self, X: FloatArray, y: None = None, sample_weight: FloatArray | None = None) -> Self:
        """Fit to X of shape (n_samples, n_features); see the class for what is set.

        Args:
            X: Samples [u]: an array, or what need not fit into memory: the path of a ``.npy`` or
                ``.parquet`` file, a memory-mapped array, a Dask array.
            y: Ignored.
            sample_weight: How often each sample counts, (n_samples,); ones by default.

        Raises:
            ValueError: X is not finite numbers in two dimensions, has fewer samples than
                components, or a covariance became singular where ``reg_covar`` is 0.
        """
        samples, runs = self._fitting(X, sample_weight)
        self._expose(_last(runs), samples.frame, samples.arrays.dtype)
        return self

    def fit_predict(
        self, X: FloatArray, y: None = None, sample_weight: FloatArray | None = None
    ) -> IntArray:
        """Fit to X and return the most probable component of each sample, (n_samples,)."""
        return self.fit(X, sample_weight=sample_weight).predict(X)

    def iter_fit(self, X: FloatArray, sample_weight: FloatArray | None = None) -> Iterator[int]:
        """Fit step by step: yields 0 at the start, then the iterations done.

        At every yield the model holds the best mixture so far and can be used or left. Restarts
        that go on side by side take an iteration together.
        """
        samples, runs = self._fitting(X, sample_weight)
        for done, run in enumerate(runs):
            self._expose(run, samples.frame, samples.arrays.dtype)
            yield done

    def score(self, X: FloatArray, y: None = None) -> float:
        """Mean log-likelihood per sample [nat] of an array, or of anything that `fit` reads."""
        return streams.mean_of(self.score_samples, X)

    def score_samples(self, X: FloatArray) -> FloatArray:
        """Log-density of each sample, (n_samples,) [nat]."""
        return streams.each_sample(super().score_samples, X)

    def predict(self, X: FloatArray) -> IntArray:
        """Most probable component of each sample, (n_samples,)."""
        return streams.each_sample(super().predict, X)

    def predict_proba(self, X: FloatArray) -> FloatArray:
        """Responsibilities, (n_samples, n_components); rows sum to 1."""
        return streams.each_sample(super().predict_proba, X)

    def _fitting(
        self, X: FloatArray, sample_weight: FloatArray | None
    ) -> tuple[Samples, Iterator[Run]]:
        """The samples in their frame, and the best run so far after every iteration."""
        samples: Samples
        X = sources.in_memory(X) if self.in_memory else X
        if sources.is_stream(X):
            self._validate_params()
            random_state = check_random_state(self.random_state)
            samples, X, sample_weight = streams.read(
                X,
                FAMILIES[self.covariance_type],
                self.reg_covar,
                random_state,
                sample_weight=sample_weight,
                dtype=self.dtype,
                device=self._device(),
            )  # X is now what the start is made of
            X, sample_weight = self._validated(X, sample_weight)
        else:
            X, sample_weight = self._validated(X, sample_weight)
            random_state = check_random_state(self.random_state)
            samples = self._framed(X, sample_weight)
        self.__dict__.pop("_stepwise", None)
        resumed = self.warm_start and hasattr(self, "converged_")
        starts = (
            Run(samples.frame.inward(self._parameters()), self.lower_bound_)
            if resumed
            else Run(samples.frame.inward(self._start(X, sample_weight, random_state)))
            for _ in range(1 if resumed else self.n_init)
        )
        return samples, self._runs(samples, starts, random_state)

    def _runs(
        self, samples: Samples, starts: Iterator[Run], random_state: np.random.RandomState
    ) -> Iterator[Run]:
        """One restart after another: the best so far at the first start and after every step."""
        best: Run | None = None
        for restart, start in enumerate(starts):
            self._print_verbose_msg_init_beg(restart)
            if best is None:
                yield start
            shown = run = start
            for run in self._iterated(samples, start, random_state):
                shown = best if best and best.lower_bound >= run.lower_bound else run
                yield shown
            self._print_verbose_msg_init_end(run.lower_bound, run.converged)
            best = shown
        assert best
        self._warn_unless_converged(best)

    def _iterated(
        self, samples: Samples, run: Run, random_state: np.random.RandomState
    ) -> Iterator[Run]:
        """A run after each of its iterations."""
        steps = self._steps(samples, run.parameters, random_state)
        while run.n_iter < self.max_iter and not run.converged:
            before = run.lower_bound
            lower_bound, parameters = next(steps)
            run = run.after(float(lower_bound), parameters, self.tol)
            self._print_verbose_msg_iter_end(run.n_iter, run.lower_bound - before)
            yield run

    def _warn_unless_converged(self, best: Run) -> None:
        """Warn of the best run unless it converged, in scikit-learn's words."""
        if not best.converged and self.max_iter > 0:
            warnings.warn(NOT_CONVERGED, ConvergenceWarning, stacklevel=2)

    def _start(
        self,
        X: FloatArray,
        sample_weight: FloatArray | None,
        random_state: np.random.RandomState,
    ) -> Parameters:
        """The start as scikit-learn makes it; about the centre, so that nothing cancels far out.

        Not where single samples become components: scikit-learn's covariances then depend on
        where the origin is, and a drop-in begins at the same ones.
        """
        given = (self.weights_init, self.means_init, self.precisions_init)
        all_given = all(part is not None for part in given)
        centre = X.mean(axis=0, dtype=np.float64).astype(X.dtype)
        if all_given or self.init_params in ("k-means++", "random_from_data"):
            return self._initialised(X, sample_weight, random_state)
        start = self._initialised(X - centre, sample_weight, random_state)
        return start if self.means_init is not None else start._replace(means=start.means + centre)

    def _initialised(
        self,
        X: FloatArray,
        sample_weight: FloatArray | None,
        random_state: np.random.RandomState,
    ) -> Parameters:
        """scikit-learn's start, with more regularisation where its covariances need it."""
        twin, drawn_before = copy(self), random_state.get_state()
        while True:
            try:
                families.initialise(twin, X, random_state, sample_weight)
            except ValueError as error:
                if "ill-defined" not in str(error) or twin.reg_covar == 0:
                    raise
                random_state.set_state(drawn_before)
                twin.reg_covar *= 10
            else:
                break
        if twin.reg_covar > self.reg_covar:
            engine.warn_of_regularisation("of the start", twin.reg_covar / self.reg_covar)
        return twin._parameters()

    def _framed(self, X: FloatArray, sample_weight: FloatArray | None) -> Samples:
        """Validated samples, centred and whitened where the passes will run."""
        return Samples.of(
            X,
            FAMILIES[self.covariance_type],
            self.reg_covar,
            sample_weight=sample_weight,
            dtype=X.dtype.name,
            device=self._device(),
        )

    def _validated(
        self, X: FloatArray, sample_weight: FloatArray | None, *, reset: bool = True
    ) -> tuple[FloatArray, FloatArray | None]:
        """X as a finite array of the model's dtype, after a look at every parameter."""
        self._validate_params()
        dtype = [np.float64, np.float32] if self.dtype == "auto" else np.dtype(self.dtype)
        X = validate_data(self, X, dtype=dtype, ensure_min_samples=2 if reset else 1, reset=reset)
        if reset and len(X) < self.n_components:
            raise ValueError(
                "Expected n_samples >= n_components but got n_components = "
                f"{self.n_components}, n_samples = {len(X)}"
            )
        self._check_parameters(X, xp=np)
        if sample_weight is not None:
            sample_weight = _check_sample_weight(
                sample_weight, X, dtype=np.float64, ensure_non_negative=True
            )
        return X, sample_weight

    def _parameters(self) -> Parameters:
        """The fitted attributes, in float64."""
        fitted = (self.weights_, self.means_, self.covariances_, self.precisions_cholesky_)
        return Parameters(*(np.asarray(array, dtype=np.float64) for array in fitted))

    def _expose(self, run: Run, frame: Frame, dtype: str) -> None:
        """Set the fitted attributes, out of the frame."""
        self._show(run, self._outward(frame, run.parameters), dtype)

    def _outward(self, frame: Frame, parameters: Parameters) -> Parameters:
        """Out of the frame, where what was definite in it may be so no longer."""
        return frame.family.definite(frame.outward(parameters), self.reg_covar)

    def _show(self, run: Run, shown: Parameters, dtype: str) -> None:
        """Set the fitted attributes."""
        self.weights_, self.means_, self.covariances_, self.precisions_cholesky_ = (
            array.astype(dtype) for array in shown
        )
        self.precisions_ = families.precisions(self.precisions_cholesky_, self.covariance_type)
        self.n_iter_, self.converged_ = run.n_iter, run.converged
        self.lower_bound_, self.lower_bounds_ = run.lower_bound, list(run.lower_bounds)

    def _device(self) -> str:
        if self.device == "cpu":
            return "cpu"
        import torch

        if torch.cuda.is_available():
            return "cuda"
        if self.device == "auto":
            return "cpu"
        raise ValueError("device='cuda': torch finds no CUDA device; use 'cpu' or 'auto'")

    def _estimate_weighted_log_prob(self, X: FloatArray, xp: Any = None) -> FloatArray:
        """Log-joint (n_samples, n_components): what scikit-learn's score and predict build on."""
        joint = engine.log_joint(
            X,
            self._parameters(),
            FAMILIES[self.covariance_type],
            dtype=np.asarray(X).dtype.name,
            device=self._device(),
        )
        return joint.T.astype(X.dtype, copy=False)

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Make the constructor's signature whole: a variant's own names only what it adds."""
        super().__init_subclass__(**kwargs)
        own = inspect.signature(cls.__init__).parameters.values()
        named = {one.name: one for one in own if one.kind != one.VAR_KEYWORD}
        if "__init__" not in vars(cls) or len(named) == len(own):
            return
        parent = cls.__mro__[1]
        inherited = inspect.signature(parent.__init__).parameters  # type: ignore[misc]
        whole = inspect.Signature([*({**named, **inherited, **named}).values()])
        cls.__init__.__signature__ = whole  # type: ignore[attr-defined]


class MixtureByEM(DensityByEM):
    """A Gaussian mixture fitted by steps: the judge can score it, and it can begin at another."""

    @property
    def mixture_(self) -> Mixture:
        """The fitted mixture for the judge: float64, full matrices."""
        return families.mixture(self.weights_, self.means_, self.covariances_, self.covariance_type)

    def start_from(self, start: Mixture) -> Self:
        """Begin the next fit at ``start``; its covariances must be of this family."""
        return self.set_params(**families.start_params(start, self.covariance_type))


class GaussianMixture(MixtureByEM):
    """Classical EM on embench's engine: float64 or float32, CPU or GPU.

    Maximises the mean log-likelihood 1/n sum_i log sum_k w_k N(x_i; mu_k, S_k) by alternating
    responsibilities and weighted moments. Constructor, attributes, starts and stopping rule are
    those of `sklearn.mixture.GaussianMixture`; from the same start both go the same way. Restarts
    go on side by side, at a fraction of the cost of one after another.

    Args:
        n_components: Number of components.
        covariance_type: "full", "tied", "diag" or "spherical".
        tol: Ends when the mean log-likelihood rises by less [nat]; 0 runs all iterations.
        reg_covar: Added to the diagonal of every covariance [u^2]. Where a covariance is not
            positive definite all the same, more is added to it, with a warning; 0 means none, and
            then that is an error.
        max_iter: Largest number of EM iterations.
        n_init: Number of restarts; the best is kept.
        init_params: "kmeans", "k-means++", "random" or "random_from_data".
        weights_init, means_init, precisions_init: A start of your own, shapes as the fitted
            attributes; give all three.
        random_state: Seed of the start.
        warm_start: Continue from the last fit.
        verbose, verbose_interval: As in scikit-learn.
        device: "cpu", "cuda" or "auto" (cuda where there is one).
        dtype: "float64", "float32" or "auto" (that of X): precision of the passes over X.

    Attributes: ``weights_`` (n_components,), ``means_`` (n_components, n_features) [u],
    ``covariances_`` and ``precisions_`` in the shape of their family [u^2, u^-2],
    ``converged_``, ``n_iter_``, ``lower_bound_`` (before the last M-step, as in scikit-learn).

    Source:
        Dempster, Laird and Rubin (1977); Bishop (2006), section 9.2.

    Example:
        >>> X = np.array([[1.0, 2], [1, 4], [1, 0], [10, 2], [10, 4], [10, 0]])
        >>> em = GaussianMixture(n_components=2, random_state=0).fit(X)
        >>> sorted(em.means_[:, 0].round(6).tolist())
        [1.0, 10.0]
    """

    def fit_many(
        self, X: FloatArray, starts: Sequence[Mixture] | None = None
    ) -> list[GaussianMixture]:
        """Fit one mixture to each of many datasets of one size, all at once.

        Args:
            X: Datasets, shape (n_problems, n_samples, n_features) [u].
            starts: Where each begins, n_problems mixtures of this family; by default each makes
                its own start.

        Returns:
            A fitted copy of this model for every dataset.

        Raises:
            ValueError: X has not three dimensions, or there are not as many starts as datasets.

        Example:
            >>> X = np.random.default_rng(0).normal(size=(5, 100, 2))
            >>> [em.converged_ for em in GaussianMixture(2, random_state=0).fit_many(X)]
            [True, True, True, True, True]
        """
        X = np.asarray(X)
        if X.ndim != 3 or len(X) == 0:
            raise ValueError(
                f"expected X of shape (n_problems, n_samples, n_features), got {X.shape}"
            )
        if starts is not None and len(starts) != len(X):
            raise ValueError(f"expected {len(X)} starts, one for each dataset, got {len(starts)}")
        flat, _ = self._validated(X.reshape(-1, X.shape[-1]), None)
        X = flat.reshape(X.shape)
        random_state = check_random_state(self.random_state)
        family = self.covariance_type
        if starts is None:
            begin = _stacked([self._start(x, None, random_state) for x in X])
        else:
            covariances = np.stack([families.compact(start, family) for start in starts])
            begin = Parameters(
                np.stack([start.weights for start in starts]),
                np.stack([start.means for start in starts]),
                covariances,
                FAMILIES[family].precisions_cholesky(covariances),
            )
        samples = self._framed(X, None)
        ended = _last(self._lockstep(samples, samples.frame.inward(begin)))
        shown = self._outward(samples.frame, ended.parameters)
        models = [copy(self) for _ in X]
        for i, model in enumerate(models):
            model._show(ended.run(i), _nth(shown, i), samples.arrays.dtype)
        if not ended.converged.all() and self.max_iter > 0:
            warnings.warn(NOT_CONVERGED, ConvergenceWarning, stacklevel=2)
        return models

    def partial_fit(
        self, X: FloatArray, y: None = None, sample_weight: FloatArray | None = None
    ) -> Self:
        """Take one step of stepwise EM with a batch of samples; begin with the first batch.

        Statistics of the batch enter a running average with step size (t + 2)^-0.6, and the
        mixture follows from the average. ``lower_bound_`` is the batch's log-likelihood before.

        Args:
            X: A batch, (n_samples, n_features) [u]; the first one must not be smaller than
                n_components.
            y: Ignored.
            sample_weight: As in `fit`.

        Source:
            Cappe and Moulines (2009), On-line expectation-maximization algorithm for latent data
            models.
        """
        first = not hasattr(self, "_stepwise")
        X, sample_weight = self._validated(X, sample_weight, reset=first)
        family = FAMILIES[self.covariance_type]
        if first:
            samples = self._framed(X, sample_weight)
            known = hasattr(self, "converged_")
            random_state = check_random_state(self.random_state)
            start = self._parameters() if known else self._start(X, sample_weight, random_state)
            run = Run(samples.frame.inward(start))
        else:
            run, average, frame = self._stepwise
            arrays = Arrays.on(self._device(), X.dtype.name)
            samples = Samples.within(frame, arrays, X, sample_weight)
        statistics = samples.e_step(run.parameters)
        batch, step = statistics.averaged(), (run.n_iter + 2) ** -FORGETTING
        average = batch if first else family.combine(average.scaled(1 - step), batch, step)
        parameters = samples.m_step(average, run.parameters, self.reg_covar)
        run = run.after(float(statistics.log_likelihood), parameters, self.tol)
        self._stepwise: tuple[Run, Statistics, Frame] = run, average, samples.frame
        self._expose(run, samples.frame, samples.arrays.dtype)
        return self

    def _steps(
        self, samples: Samples, parameters: Parameters, random_state: np.random.RandomState
    ) -> Iterator[tuple[float, Parameters]]:
        while True:
            log_likelihood, parameters = samples.em_step(parameters, self.reg_covar)
            yield float(log_likelihood), parameters

    def _runs(
        self, samples: Samples, starts: Iterator[Run], random_state: np.random.RandomState
    ) -> Iterator[Run]:
        """Restarts side by side over the same samples, which are read once for all of them."""
        if self.n_init == 1 or self.verbose:
            yield from super()._runs(samples, starts, random_state)
            return
        for runs in self._lockstep(samples, _stacked([run.parameters for run in starts])):
            best = runs.run(int(runs.lower_bounds[-1].argmax()))
            yield best
        self._warn_unless_converged(best)

    def _lockstep(self, samples: Samples, start: Parameters) -> Iterator[Runs]:
        """All runs at their starts and after every iteration; those that converged rest."""
        n_runs = len(start.weights)
        runs = Runs(
            start, np.full((1, n_runs), -np.inf), np.zeros(n_runs, int), np.zeros(n_runs, bool)
        )
        yield runs
        moving, parameters = np.arange(n_runs), start
        while len(moving) and len(runs.lower_bounds) <= self.max_iter:
            bounds, parameters = samples.em_step(parameters, self.reg_covar)
            runs = runs.after(moving, bounds, parameters, self.tol)
            yield runs
            still = ~runs.converged[moving]
            if not still.all():
                moving, parameters = moving[still], _nth(parameters, still)
                samples = samples.some(still) if samples.problems else samples


def _last(stream: Iterator[Any]) -> Any:
    """What a stream of at least one thing ends with."""
    return deque(stream, maxlen=1).pop()


def _stacked(parameters: Sequence[Parameters]) -> Parameters:
    return Parameters(*(np.stack(parts) for parts in zip(*parameters, strict=True)))


def _nth(stacked: Parameters, i: Any) -> Parameters:
    return Parameters(*(part[i] for part in stacked))
