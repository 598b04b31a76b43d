"""A model that does what it is told to, where it is told to: "hostile:Hostile:deed=sleep"."""

from __future__ import annotations

import ctypes
import os
import random
import signal
import sys
import threading
import time
import warnings
from contextlib import suppress

import numpy as np

from embench.models.em import GaussianMixture

HOARD = []
"""What outlives a fit, in the process that it was done in."""


class Hostile(GaussianMixture):
    """A good model but for a deed, in its "init", "fit", "predict", "judgement" or "curve"."""

    def __init__(self, n_components=1, *, deed="nothing", where="fit", random_state=None):
        super().__init__(n_components, random_state=random_state)
        self.deed = deed
        self.where = where
        self._do("init")

    def fit(self, X, y=None):
        self._do("fit")
        for _ in super().iter_fit(X):
            pass
        return self

    def predict(self, X):
        self._do("predict")
        return super().predict(X)

    @property
    def mixture_(self):
        self._do("judgement")
        return super().mixture_

    def iter_fit(self, X):
        self._do("curve")
        yield from super().iter_fit(X)

    def _do(self, here):
        if here == self.where:
            globals()[self.deed](self)


class Drawer(GaussianMixture):
    """Begins where the global random states stand."""

    def __init__(self, n_components=1, *, max_iter=1, random_state=None):
        super().__init__(n_components, max_iter=max_iter, random_state=random_state)

    def fit(self, X, y=None):
        for _ in self.iter_fit(X):
            pass
        return self

    def iter_fit(self, X):
        import torch

        drawn = random.random() + np.random.rand() + float(torch.rand(()))  # noqa: NPY002
        self.set_params(random_state=int(1e6 * drawn))
        yield from super().iter_fit(X)


class NotCounted(GaussianMixture):
    """Has lost count of its iterations."""

    def fit(self, X, y=None):
        super().fit(X)
        self.n_iter_ = float("nan")
        return self

    iter_fit = None


def nothing(model):
    pass


def sleep(model=None):
    time.sleep(3600)


def hang_in_native_code(model):
    sum(iter(int, 1))


def be_deaf(model):
    """To every signal that can be blocked, and to the clock."""
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, range(1, signal.NSIG))
    sleep()


def stop_myself(model):
    os.kill(os.getpid(), signal.SIGSTOP)


def segfault(model=None):
    ctypes.string_at(0)


def segfault_in_a_thread(model):
    thread = threading.Thread(target=segfault)
    thread.start()
    thread.join()


def allocate_at_once(model):
    np.ones(100 * 2**27)


def allocate_bit_by_bit(model):
    """Until there is no more; every page is touched."""
    held = []
    while True:
        held.append(bytearray(b"x" * 2**20))


def allocate_crumbs(model):
    """Until not even the smallest thing finds a place."""
    held = ()
    for size in (2**20, 2**16, 2**12, 600, 300, 100, 1):
        with suppress(MemoryError):
            while True:
                held = (held, bytes(size))
    raise MemoryError


def allocate_in_torch(model):
    import torch

    held = []
    while True:
        held.append(torch.ones(2**20))


def allocate_in_a_fork(model):
    if pid := os.fork():
        os.waitpid(pid, 0)
        return
    try:
        allocate_bit_by_bit(model)
    finally:
        os._exit(1)


def hoard(model):
    HOARD.clear()
    HOARD.append(np.ones(2**24))
    tell_number(model)


def fork(model):
    if os.fork() == 0:
        sleep()


def fork_many(model):
    for _ in range(50):
        fork(model)


def fork_a_daemon(model):
    if pid := os.fork():
        os.waitpid(pid, 0)
        return
    os.setsid()
    if os.fork():
        os._exit(0)
    sleep()


def fork_an_orphan(model):
    """In the process group of this process, and nobody's child."""
    tell_number(model)
    if pid := os.fork():
        os.waitpid(pid, 0)
        return
    if os.fork():
        os._exit(0)
    sleep()


def fork_a_comet(model):
    """A process that is another one at every moment."""
    if os.fork():
        return
    os.setsid()
    while True:
        if os.fork():
            os._exit(0)


def go_on_twice(model):
    os.fork()


def close_files(model):
    os.closerange(3, 1000)


def print_a_lot(model):
    for _ in range(100):
        os.write(1, b"x" * 2**20)
        os.write(2, b"y" * 2**20)


def print_for_ever(model):
    while True:
        os.write(2, b"y" * 2**16)


def meddle(model):
    """Change all that is global, so that whoever comes next would do something else or fail."""
    np.random.seed(0)  # noqa: NPY002
    random.seed(0)
    np.seterr(over="raise")
    warnings.simplefilter("error")
    os.chdir("/")
    os.environ.clear()
    sys.path.clear()


def move_about(model):
    np.seterr(over="raise")
    warnings.simplefilter("error")
    os.chdir("/")


def exit_by_exception(model):
    raise SystemExit("that was it")


def interrupt(model):
    raise KeyboardInterrupt


def raise_what_nobody_catches(model):
    class Unheard(BaseException):
        pass

    raise Unheard("of course")


def exit_well(model):
    os._exit(0)


def kill_myself(model):
    os.kill(os.getpid(), signal.SIGKILL)


def die_oddly(model):
    """Of a signal without a name."""
    os.kill(os.getpid(), signal.SIGRTMIN + 6)


def kill_my_group(model):
    os.killpg(0, signal.SIGTERM)


def kill_my_parent(model):
    fork_a_daemon(model)
    os.kill(os.getppid(), signal.SIGTERM)
    sleep()


def stop_my_parent(model):
    os.kill(os.getppid(), signal.SIGSTOP)
    sleep()


def shout(model):
    raise ValueError("\x1b[2J\x1b[31mno\n\n\x07way\x1b[0m " + 2**20 * "a" + "\udcff")


def mumble(model):
    os.write(2, b"first\n\x1b[31m\xff\xfelast\x00 words\n")
    os._exit(3)


class NumberWarning(RuntimeWarning):
    pass


def tell_number(model):
    warnings.warn(f"process {os.getpid()}", NumberWarning, stacklevel=2)
