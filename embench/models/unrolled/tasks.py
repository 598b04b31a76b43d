"""Where an operator's tasks come from, and how it is held against EM: its training as a whole."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
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
        """Mean NLL of new samples of datasets that it does not learn from, and how much lower that
        is than EM's [nat]."""
        nll = self._nll(self._trainer.operator, self._trainer.operator.n_steps)
        return {"held-out NLL": nll, f"below {EM_STEPS} steps of EM": self._nll_of_em - nll}

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


def _task(drawn: Iterable[Drawn]) -> Task:
    """Datasets of one spec, in float64."""
    fit = [(_n_components(one), one) for one in drawn]
    starts = [
        starting_mixture(one.data.X_train, n_components, np.random.SeedSequence(one.seed))
        for n_components, one in fit
    ]
    return Task(
        torch.as_tensor(np.stack([one.data.X_train for _, one in fit])),
        torch.as_tensor(np.stack([one.data.X_test for _, one in fit])),
        stacked(starts),
    )


def _n_components(drawn: Drawn) -> int:
    """How many components to look for in a dataset that can be learned from."""
    spec, _, data = drawn
    if data.task != "density":
        reason = f"its task is {data.task}"
    elif data.n_table is not None:
        reason = f"every seed splits the same {data.n_table} rows, those that runs are judged on"
    elif data.n_components is None:
        reason = "nobody knows how many components to look for"
    elif len(data.X_train) < data.n_components:
        reason = f"{data.n_components} components in {len(data.X_train)} samples"
    else:
        return data.n_components
    raise InputError(f"{spec}: cannot be learned from: {reason}")
