"""What all models fitted by steps on the engine share: everything but the step."""

from __future__ import annotations

import os
import warnings
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterator
from copy import copy
from numbers import Real
from typing import Any, ClassVar, Literal, NamedTuple, Self, get_args

import numpy as np
import scipy
import sklearn.mixture
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils import check_random_state
from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils.validation import _check_sample_weight, check_is_fitted, validate_data

from embench.models import engine, families, sources, streams
from embench.models.base import complete_signature, resolved_device
from embench.models.engine import Family, Frame, Parameters, Samples
from embench.models.starts import starting_mixture
from embench.types import FloatArray, IntArray, Mixture

NOT_CONVERGED = (
    "Best performing initialization did not converge. Try different init parameters, or increase "
    "max_iter, tol, or check for degenerate data."
)


CovarianceType = Literal["full", "tied", "diag", "spherical", "tied_spherical", "constant"]
"""The families' own names; there are aliases, too."""

InitParams = Literal["kmeans", "k-means++", "random", "random_from_data", "spherical"]
"""scikit-learn's starts, and `starting_mixture`: "spherical"."""

BLUR = 0.03
"""Deviations of a component by which rounding may move samples before the user hears of it: about
0.03 nat for a sample three deviations out. No float64 data of less than 13 digits get there."""


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


class DensityByEM(sklearn.mixture.GaussianMixture, ABC):
    """A density fitted by steps on embench's engine: everything but the step.

    A variant says in `_steps` how one mixture becomes the next. Starts, restarts, stopping rule
    and attributes are scikit-learn's. Hyper-parameters of its own go before ``**common``:

        def __init__(self, n_components=1, *, inertia=0.5, **common):
            super().__init__(n_components, **common)
            self.inertia = inertia
    """

    version: ClassVar[str | Callable[..., str]] = (
        f"numpy {np.__version__}, scipy {scipy.__version__}, scikit-learn {sklearn.__version__}"
    )

    in_memory: ClassVar[bool] = False
    """Whether the steps look at single samples or draw, so that X cannot be read in chunks."""

    @property
    def _least_iterations(self) -> int:
        """How many iterations are done before the stopping rule is asked."""
        return 0

    _parameter_constraints: ClassVar[dict[str, Any]] = {
        **sklearn.mixture.GaussianMixture._parameter_constraints,
        "covariance_type": [StrOptions(set(families.NAMES))],
        "init_params": [StrOptions(set(get_args(InitParams)))],
        "precisions_init": ["array-like", Interval(Real, 0, None, closed="neither"), None],
        "device": [StrOptions({"cpu", "cuda", "auto"})],
        "dtype": [StrOptions({"float64", "float32", "auto"})],
    }

    def __init__(
        self,
        n_components: int = 1,
        *,
        covariance_type: CovarianceType = "full",
        tol: float = 1e-3,
        reg_covar: float = 1e-6,
        max_iter: int = 100,
        n_init: int = 1,
        init_params: InitParams = "kmeans",
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
        run = last(runs)
        self._expose(run, samples.frame, samples.arrays.dtype)
        self._warn_of_end(run.converged, run.parameters, samples)
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
        self._warn_of_end(run.converged, run.parameters, samples)

    def score(self, X: FloatArray, y: None = None) -> float:
        """Mean log-likelihood per sample [nat] of an array, or of anything that `fit` reads."""
        return streams.mean_of(self.score_samples, X)

    def score_samples(self, X: FloatArray) -> FloatArray:
        """Log-density of each sample, (n_samples,) [nat]."""
        return streams.each_sample(super().score_samples, X)

    def bic(self, X: FloatArray) -> float:
        """Bayesian information criterion on X, lower is better (Schwarz, 1978)."""
        X, n_samples = streams.counted(X)
        return float(-2 * self.score(X) * n_samples + self._n_parameters() * np.log(n_samples))

    def aic(self, X: FloatArray) -> float:
        """Akaike information criterion on X, lower is better (Akaike, 1974)."""
        X, n_samples = streams.counted(X)
        return -2 * self.score(X) * n_samples + 2 * self._n_parameters()

    def predict(self, X: FloatArray) -> IntArray:
        """Most probable component of each sample, (n_samples,)."""
        return streams.each_sample(super().predict, X)

    def predict_proba(self, X: FloatArray) -> FloatArray:
        """Responsibilities, (n_samples, n_components); rows sum to 1."""
        return streams.each_sample(super().predict_proba, X)

    def sample(self, n_samples: int = 1) -> tuple[FloatArray, IntArray]:
        """Draw X (n_samples, n_features) [u] and the components it comes from, in their order."""
        check_is_fitted(self)
        known = copy(families.in_known_words(self))
        if self._family.name in families.ONE_VARIANCE:
            known.covariances_ = np.full(len(self.means_), self.covariances_)
        return super(DensityByEM, known).sample(n_samples)

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
                self._family,
                self.reg_covar,
                random_state,
                sample_weight=sample_weight,
                dtype=self.dtype,
                device=self._device(),
                start_rows=10 * self.n_components,
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

    def _iterated(
        self, samples: Samples, run: Run, random_state: np.random.RandomState
    ) -> Iterator[Run]:
        """A run after each of its iterations."""
        steps = self._steps(samples, run.parameters, random_state)
        while run.n_iter < self.max_iter and not run.converged:
            before = run.lower_bound
            lower_bound, parameters = next(steps)
            tol = self.tol if run.n_iter >= self._least_iterations else 0.0
            run = run.after(float(lower_bound), parameters, tol)
            self._print_verbose_msg_iter_end(run.n_iter, run.lower_bound - before)
            yield run

    def _warn_of_end(self, converged: bool, parameters: Parameters, samples: Samples) -> None:
        """Warn the caller of a fit that did not converge, or whose dtype is too coarse."""
        if not converged and self.max_iter > 0:
            warnings.warn(NOT_CONVERGED, ConvergenceWarning, stacklevel=3)
        if samples.blur(parameters) > BLUR:
            warnings.warn(
                f"{samples.arrays.dtype} does not resolve components this tight in data this wide: "
                "use dtype='float64'",
                engine.PrecisionWarning,
                stacklevel=3,
            )

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
        twin = copy(self)
        if self.init_params == "spherical":
            twin._give_spherical_start(X, sample_weight, random_state)
        drawn_before = random_state.get_state()
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

    def _give_spherical_start(
        self,
        X: FloatArray,
        sample_weight: FloatArray | None,
        random_state: np.random.RandomState,
    ) -> None:
        """Set what nobody has given of the start to that of `starting_mixture`."""
        seed = np.random.SeedSequence(random_state.randint(2**31))
        start = starting_mixture(X, self.n_components, seed, sample_weight)
        made = families.start_params(start, self.covariance_type)
        missing = {part: value for part, value in made.items() if getattr(self, part) is None}
        # A word of scikit-learn's, which has nothing left to make.
        self.set_params(init_params="random", **missing)

    def _framed(self, X: FloatArray, sample_weight: FloatArray | None) -> Samples:
        """Validated samples, centred and whitened where the passes will run."""
        return Samples.of(
            X,
            self._family,
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
        if isinstance(X, str | os.PathLike):
            raise ValueError(f"expected samples in memory, got {str(X)!r}: only fit reads files")
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
        parameters = Parameters(*(np.asarray(array, dtype=np.float64) for array in fitted))
        return parameters._replace(
            precisions_cholesky=families.upper(parameters.precisions_cholesky, self.covariance_type)
        )

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

    @property
    def _family(self) -> Family:
        return families.named(self.covariance_type)

    def _check_parameters(self, X: FloatArray, xp: Any = None) -> None:
        known = families.in_known_words(self)
        super(DensityByEM, known)._check_parameters(X, xp)
        self.weights_init, self.means_init = known.weights_init, known.means_init
        if self._family.name == known.covariance_type:
            self.precisions_init = known.precisions_init

    def _device(self) -> str:
        return resolved_device(self.device)

    def _n_parameters(self) -> int:
        # Of the components that were found, not of those that were asked for.
        n_components, n_features = self.means_.shape
        own = self._family.n_parameters(n_components, n_features)
        return own + n_components * (n_features + 1) - 1

    def _estimate_weighted_log_prob(self, X: FloatArray, xp: Any = None) -> FloatArray:
        """Log-joint (n_samples, n_components): what scikit-learn's score and predict build on."""
        dtype = self._precision_for(X)
        joint = engine.log_joint(
            X,
            self._parameters(),
            self._family,
            dtype=dtype,
            device=self._device(),
        )
        return joint.T.astype(dtype, copy=False)

    def _precision_for(self, X: FloatArray) -> str:
        """The wider one of X's and the model's; whole numbers are float64."""
        return "float32" if X.dtype == self.means_.dtype == np.float32 else "float64"

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        complete_signature(cls)


class MixtureByEM(DensityByEM):
    """A Gaussian mixture fitted by steps, EM's own unless a variant has others: the judge can score
    it, and it can begin at another."""

    def _steps(
        self, samples: Samples, parameters: Parameters, random_state: np.random.RandomState
    ) -> Iterator[tuple[float, Parameters]]:
        while True:
            log_likelihood, parameters = samples.em_step(parameters, self.reg_covar)
            yield float(log_likelihood), parameters

    @property
    def mixture_(self) -> Mixture:
        """The fitted mixture for the judge: float64, full matrices."""
        return families.mixture(self.weights_, self.means_, self.covariances_, self.covariance_type)

    def start_from(self, start: Mixture) -> Self:
        """Begin the next fit at ``start``; its covariances must be of this family."""
        return self.set_params(**families.start_params(start, self.covariance_type))


def last(stream: Iterator[Any]) -> Any:
    """What a stream of at least one thing ends with."""
    return deque(stream, maxlen=1).pop()
