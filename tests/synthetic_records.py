"""Records as a run would leave them, made up: known speeds, known qualities, seeded noise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pandas as pd

from embench import store
from embench.types import Record, Spec, Trial

DATASETS = {
    "blobs:n_features=2,n_components=3": {"n_samples": 1000, "n_features": 2, "n_components": 3},
    "blobs:n_features=8,n_components=16": {"n_samples": 1000, "n_features": 8, "n_components": 16},
    "blobs:n_features=8,n_components=3": {"n_samples": 1000, "n_features": 8, "n_components": 3},
    "iris": {"n_samples": 100, "n_features": 4, "n_components": 3},
}
USUAL = ("blobs:n_features=2,n_components=3", "blobs:n_features=8,n_components=16", "iris")
SPEED = {"em": 3.0, "sklearn-em": 1.0, "spec-em": 0.5, "em:covariance_type=diag": 6.0}
"""How many times faster than sklearn-em each model is."""

LOSS = {"em": 0.0, "sklearn-em": 0.0, "spec-em": 0.0, "em:covariance_type=diag": 0.2}
"""How much worse each model's NLL is [nat]."""

ENVIRONMENT = {"cpu": "Synthetic 9000", "cores": 2, "python": "3.11.9", "torch": "2.6.0"}


def make_records(
    *,
    datasets: Sequence[str] = USUAL,
    models: Sequence[str] = tuple(SPEED),
    tracks: Sequence[str] = ("same-start", "default"),
    n_seeds: int = 5,
    noise: float = 0.05,
    noise_seed: int = 0,
    curves: bool = True,
) -> list[Record]:
    """One record per trial; ``noise`` is the standard deviation of log seconds."""
    rng = np.random.default_rng(noise_seed)
    return [
        make_record(dataset, model, track, seed, float(np.exp(noise * rng.normal())), curves)
        for track in tracks
        for dataset in datasets
        for model in models
        for seed in range(n_seeds)
    ]


def make_record(
    dataset: str, model: str, track: str, seed: int, slower: float = 1.0, curves: bool = True
) -> Record:
    """One ok record; the level of the NLL depends on dataset and seed alone."""
    [data], [player] = Spec.parse(dataset), Spec.parse(model)
    trial = Trial(dataset=data, model=player, track=track, seed=seed)
    sizes = DATASETS[dataset]
    level = sizes["n_features"] * (1.2 + 0.3 * np.sin(seed))
    seconds = (
        slower
        * 1e-6
        * sizes["n_samples"]
        * sizes["n_components"]
        / SPEED.get(model, SPEED[player.name])
    )
    seconds *= 1 + sizes["n_features"] / 2
    excess = 0.02 + LOSS.get(model, 0.0)
    metrics = {
        "nll": level + excess,
        "ami": 0.9 - LOSS.get(model, 0.0) - 0.01 * seed,
        "ari": 0.85 - LOSS.get(model, 0.0) - 0.01 * seed,
        "fit_seconds": seconds,
        "cpu_seconds": 1.1 * seconds,
        "n_iter": 20.0 + seed,
        "peak_memory": 2**20 * (10.0 if model == "spec-em" else 3.0),
    }
    if dataset != "iris":
        metrics["excess_nll"] = excess
    steps = (1, 2, 3, 5, 8, 13, 20 + seed)
    fall = [1.5 * 0.8**n for n in steps[:-1]] + [0.0]
    curve = [
        (seconds * n / steps[-1], n, level + excess + above)
        for n, above in zip(steps, fall, strict=True)
    ]
    return Record(
        trial=trial,
        status="ok",
        metrics=metrics,
        curve=tuple(curve) if curves else (),
        sizes=sizes,
        environment=ENVIRONMENT,
    )


def failed(
    record: Record, status: str = "diverged", message: str = "weights are not finite"
) -> Record:
    """The record that the same trial would have left, had it failed."""
    return replace(record, status=status, message=message, metrics={}, curve=())


def changed(record: Record, **metrics: float | None) -> Record:
    """The record with other metrics; None takes a metric away."""
    both = {**record.metrics, **metrics}
    return replace(record, metrics={k: v for k, v in both.items() if v is not None})


def frame(records: Sequence[Record], run: str = "run") -> pd.DataFrame:
    return store.frame(records, run=run)
