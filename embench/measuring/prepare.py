"""Everything before the clock starts: data, estimator, start, and that all are what was planned."""

from __future__ import annotations

import numpy as np
from sklearn.base import clone

from embench import gaussian, registry
from embench.models.starts import starting_mixture
from embench.types import Dataset, FloatArray, InputError, Model, StartableModel, Trial


def prepared(trial: Trial) -> tuple[Dataset, tuple[FloatArray, ...], Model]:
    """Everything before the clock starts: the data, the samples to fit, the model at its start.

    The samples are X, and Y where the dataset has targets, in the trial's dtype: ``fit(*samples)``.
    `run_trial` clocks the fits of clones of this model; a loop of another's making can, too.
    """
    _check_versions(trial)
    data = registry.make_dataset(trial.dataset.name, seed=trial.seed, **trial.dataset.params)
    samples = tuple(np.ascontiguousarray(part, dtype=trial.dtype) for part in data.train)
    model = _configured(trial, data)
    if trial.track == "same-start":
        _begin_at_start(model, samples[0], trial)
    return data, samples, model


def _check_versions(trial: Trial) -> None:
    """See that code and data are still those of the plan: else a record would lie.

    Raises:
        InputError: They are not.
    """
    for kind, spec in (("dataset", trial.dataset), ("model", trial.model)):
        if spec.version and (found := registry.version(kind, spec)) != spec.version:
            raise InputError(
                f"{kind} {spec} has changed since the run was planned, or is another here: "
                f"expected version {spec.version}, got {found}"
            )


def _configured(trial: Trial, data: Dataset) -> Model:
    """The trial's estimator with everything the trial decides, where the estimator can be told."""
    model = registry.make_model(trial.model.name, **trial.model.params)
    _, model_seed, _ = _children(trial.seed)
    decided = {
        "random_state": int(model_seed.generate_state(1)[0]),
        "device": trial.device,
        "dtype": trial.dtype,
        "n_components": data.n_components,
        "image_shape": data.image_shape,
    }
    known = model.get_params()
    return model.set_params(
        **{
            key: value
            for key, value in decided.items()
            if key in known and key not in trial.model.params
        }
    )


def _begin_at_start(model: Model, X: FloatArray, trial: Trial) -> None:
    """Give the model the common start and see that it really stands there.

    Raises:
        RuntimeError: The model's likelihood at its start is not the judge's likelihood of it.
    """
    _, _, start_seed = _children(trial.seed)
    samples = X.astype(np.float64)
    start = starting_mixture(samples, model.get_params()["n_components"], start_seed)
    assert isinstance(model, StartableModel)
    model.start_from(start)
    if "n_init" in model.get_params():
        model.set_params(n_init=1)  # restarts from one start are one restart, many times
    twin = clone(model)
    next(stream := twin.iter_fit(X))
    found, expected = twin.score(X), gaussian.log_likelihood(start, samples)
    stream.close()
    if not gaussian.agree(found, expected, model.get_params().get("dtype", trial.dtype)):
        raise RuntimeError(
            f"the model does not begin at the given start: its log-likelihood there is {found:g}, "
            f"the judge's {expected:g}"
        )


def _children(seed: int) -> list[np.random.SeedSequence]:
    """Seeds of the data, the model and the start, in this order."""
    return np.random.SeedSequence(seed).spawn(3)
