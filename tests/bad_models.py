"""Models that misbehave in every way a benchmark meets; named "bad_models:Sleeper" and so on."""

from __future__ import annotations

import os
import time
from typing import ClassVar

import numpy as np
from sklearn.base import BaseEstimator
from threadpoolctl import threadpool_limits

from embench.models.em import GaussianMixture
from embench.types import Mixture


class Misbehaving(GaussianMixture):
    """A good model but for what it does at the beginning of every fit."""

    def __init__(self, n_components=1, *, random_state=None):
        super().__init__(n_components, random_state=random_state)

    def fit(self, X, y=None):
        self.misbehave()
        return super().fit(X)

    def misbehave(self):
        raise NotImplementedError


class Sleeper(Misbehaving):
    def misbehave(self):
        time.sleep(3600)


class NativeHanger(Misbehaving):
    """Holds the interpreter lock for good, in C."""

    def misbehave(self):
        sum(iter(int, 1))


class Segfaulter(Misbehaving):
    def misbehave(self):
        import ctypes

        ctypes.string_at(0)


class Exiter(Misbehaving):
    def misbehave(self):
        os.write(2, b"goodbye from the model\n")
        os._exit(3)


class Hungry(Misbehaving):
    def misbehave(self):
        np.ones((2**40, 2**10))


class Raiser(Misbehaving):
    def misbehave(self):
        raise ValueError("this model does not like your data")


class Chatterbox(Misbehaving):
    """Prints a megabyte on both streams, and still fits."""

    def misbehave(self):
        os.write(1, b"x" * 2**20)
        os.write(2, b"y" * 2**20)


class Forker(Misbehaving):
    """Leaves a process behind that would live for an hour, and still fits."""

    def misbehave(self):
        if os.fork() == 0:
            time.sleep(3600)
            os._exit(0)


class Meddler(Misbehaving):
    """Changes global seeds, and still fits."""

    def misbehave(self):
        np.random.seed(0)  # noqa: NPY002


class NotANumber(BaseEstimator):
    """Fits to a mixture without a finite density."""

    def __init__(self, n_components=1):
        self.n_components = n_components

    def fit(self, X, y=None):
        self.mixture_ = Mixture(
            np.ones(1), np.full((1, X.shape[1]), np.nan), np.eye(X.shape[1])[None]
        )
        return self

    def predict(self, X):
        return np.zeros(len(X), dtype=int)

    def score(self, X, y=None):
        return 0.0


class FalseStarter(GaussianMixture):
    """Says that it can begin at a start, and does not."""

    def __init__(self, n_components=1, *, random_state=None):
        super().__init__(n_components, random_state=random_state)

    def start_from(self, start):
        return self


class BadlyWatched(GaussianMixture):
    """Fits well, and fails as soon as somebody looks on."""

    def fit(self, X, y=None):
        for _ in super().iter_fit(X):
            pass
        return self

    def iter_fit(self, X):
        yield 0


class NumpyCounter(GaussianMixture):
    """Counts in NumPy's integers."""

    def iter_fit(self, X):
        yield from map(np.int64, super().iter_fit(X))


class Threader(GaussianMixture):
    """Takes more threads than it was given."""

    def fit(self, X, y=None):
        threadpool_limits(2)
        return super().fit(X)


class Cheat(GaussianMixture):
    """Hands the judge a density that integrates to 2."""

    @property
    def mixture_(self):
        mixture = super().mixture_
        return Mixture(2 * mixture.weights, mixture.means, mixture.covariances)


class Compiler(GaussianMixture):
    """Takes longer the first time that a process fits it."""

    done: ClassVar[set] = set()

    def __init__(self, n_components=1, *, seconds=0.5, marker="", random_state=None):
        super().__init__(n_components, random_state=random_state)
        self.seconds = seconds
        self.marker = marker

    def fit(self, X, y=None):
        if self.marker not in self.done:
            time.sleep(self.seconds)
        self.done.add(self.marker)
        return super().fit(X)


class Bystander:
    """No estimator at all."""

    def fit(self, X, y=None):
        return self


class Silent(BaseEstimator):
    """Finds components and says nothing of a likelihood."""

    def fit(self, X, y=None):
        return self

    def predict(self, X):
        return np.zeros(len(X), dtype=int)


class Regicide(Misbehaving):
    """Kills the Dask worker that it is run for, which is above the root's session."""

    def misbehave(self):
        import psutil

        for process in psutil.Process().parents():
            if {"dask", "multiprocessing"} & set(
                " ".join(process.cmdline()).replace(".", " ").split()
            ):
                process.kill()
                time.sleep(3600)
