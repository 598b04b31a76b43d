"""Where an operator's tasks come from, and how it is held against EM: its training as a whole."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import torch

from embench.models.starts import starting_mixture
from embench.models.unrolled.bridge import stacked
from embench.models.unrolled.checkpoint import Checkpoint
from embench.models.unrolled.operators import Core, EMOperator
from embench.models.unrolled.training import Task, Trainer, nlls
from embench.types import Draw, Drawn, InputError, IntArray

N_UPDATES, BATCH_SIZE = 3000, 32

N_HELD_OUT = 8
"""Tasks that an operator is held against EM on; none is ever learned from."""

EM_STEPS = 20
"""What EM may do there, from the same start."""


class OperatorTraining:
    """Every update learns from fresh datasets of one kind, whatever was drawn before.

    Args:
        core: Of the operator.
        draw: Draws datasets of one size.
        seed: Decides the networks' first weights and every dataset.
        n_updates: Of all.
        batch_size: Datasets of an update.
    """

    def __init__(self, core: Core, draw: Draw, seed: int, n_updates: int, batch_size: int) -> None:
        self.n_updates, self.batch_size = n_updates, batch_size
        self._untrained = EMOperator(core, random_state=seed).double()
        self._trainer = Trainer(EMOperator(core, random_state=seed).double(), n_updates)
        self._draw = draw
        self._learning, self._held_out = np.random.SeedSequence(seed).spawn(2)

    @property
    def done(self) -> int:
        return self._trainer.done

    @property
    def is_finished(self) -> bool:
        return self.done == self.n_updates

    def update(self) -> None:
        self._trainer.update(self._task(self._learning, self.done))

    def state(self) -> dict[str, Any]:
        return self._trainer.state()

    def resume(self, state: Mapping[str, Any]) -> None:
        self._trainer.resume(state)

    def findings(self) -> dict[str, float]:
        """Mean NLL [nat] of new samples of datasets that it does not learn from, and EM's."""
        operator = self._trainer.operator
        return {
            "held-out NLL": self._nll(operator, operator.n_steps),
            f"held-out NLL of EM after {EM_STEPS} steps": self._nll_of_em,
        }

    def facts(self) -> dict[str, int]:
        return {
            "n_updates": self.n_updates,
            "batch_size": self.batch_size,
            "n_datasets": self.n_updates * self.batch_size,
        }

    def predictions(self) -> tuple[IntArray, IntArray] | None:
        return None

    def save(self, path: Path, provenance: Mapping[str, Any]) -> None:
        Checkpoint(self._trainer.operator, provenance).save(path)

    @cached_property
    def _unseen(self) -> list[Task]:
        return [self._task(self._held_out, i) for i in range(N_HELD_OUT)]

    @cached_property
    def _nll_of_em(self) -> float:
        return self._nll(self._untrained, EM_STEPS)

    def _nll(self, operator: EMOperator, n_steps: int) -> float:
        with torch.no_grad():
            return mean(nlls(operator, task, n_steps)[-1].item() for task in self._unseen)

    def _task(self, seed: np.random.SeedSequence, i: int) -> Task:
        """Task number i, whatever was asked for before."""
        own = np.random.SeedSequence(seed.entropy, spawn_key=(*seed.spawn_key, i))
        return _task(self._draw(own, self.batch_size))


def _task(drawn: Sequence[Drawn]) -> Task:
    """Datasets of one spec, in float64."""
    _check(drawn[0])
    starts = [
        starting_mixture(one.data.X_train, one.data.n_components, np.random.SeedSequence(one.seed))
        for one in drawn
        if one.data.n_components is not None
    ]
    return Task(
        torch.as_tensor(np.stack([one.data.X_train for one in drawn])),
        torch.as_tensor(np.stack([one.data.X_test for one in drawn])),
        stacked(starts),
    )


def _check(drawn: Drawn) -> None:
    """See that it can be learned from."""
    spec, _, data = drawn
    if data.n_components is None or data.Y_train is not None:
        lacking = "a number of components" if data.n_components is None else "a density of X alone"
        raise InputError(f"{spec}: cannot be learned from: it has not {lacking}")
