"""How much of a core's matrix-product peak the training of `rnn-em` reaches, and how good it gets.

``python benchmarks/neural.py`` measures the gradient of a batch by hand, by hand with products of
bfloat16 where the processor has them, and by autograd, and whole updates, beside a product of large
float32 matrices, in turns in one thread: CPU seconds, medians over the rounds. Work is
6 n_steps n_components (2 n_pixels hidden + hidden^2) operations an image.

``python benchmarks/neural.py --train quick`` trains a preset from several seeds and prints the AMI
of held-out images and the CPU seconds that it took.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported

import time
from collections.abc import Callable, Mapping
from statistics import mean, median, stdev

import click
import torch
from rich.console import Console
from rich.table import Table

from embench import make_dataset, make_model
from embench.measuring.groups import mean_ami
from embench.models.neural.fused import has_bfloat16
from embench.models.neural.groupers import RNNEM
from embench.models.neural.recipes import PRESETS, Recipe

SIZES = {"quick": 20, "standard": 28, "published": 28}
"""Presets for binary stills, and the side of their images [pixel]."""

LARGE = 1024
"""Side of the matrices whose product is the peak."""

SECONDS = 0.3
"""About what one turn of each takes."""

N_TRAIN, N_TEST = 20_000, 1000


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--rounds", type=click.IntRange(min=3), default=9, show_default=True)
@click.option("--train", type=click.Choice(list(SIZES)), help="Train this preset instead.")
@click.option("--seeds", type=click.IntRange(min=1), default=3, show_default=True)
@click.option("--n-components", type=click.IntRange(min=1), help="Of --train.  [the preset's]")
@click.option("--model", type=click.Choice(["rnn-em", "n-em"]), default="rnn-em", show_default=True)
def main(rounds: int, train: str | None, seeds: int, n_components: int | None, model: str) -> None:
    """Speed of the training of neural EM, or what comes of it."""
    torch.set_num_threads(1)
    if train:
        _train(model, train, seeds, n_components)
    else:
        _speed(rounds)


def _speed(rounds: int) -> None:
    table = Table(
        "preset", "gradient by hand", "in bfloat16", "by autograd", "whole update", "peak [GFLOP/s]"
    )
    for name, size in SIZES.items():
        recipe = PRESETS[name]
        work = operations(recipe, size**2)
        calls = {"peak": (_product(), 2.0 * LARGE**3)}
        calls |= {what: (call, work) for what, call in _calls(name, size).items()}
        rates = _rates(calls, rounds)
        peak = median(rates["peak"])
        shares = [
            median(own / best for own, best in zip(rates[what], rates["peak"], strict=True))
            if what in rates
            else None
            for what in ("by hand", "bfloat16", "by autograd", "update")
        ]
        cells = ("" if share is None else f"{share:.0%}" for share in shares)
        table.add_row(name, *cells, f"{peak / 1e9:.0f}")
    console = Console(highlight=False)
    console.print("share of the peak of float32 matrix products of this core")
    console.print(table)


def operations(recipe: Recipe, n_pixels: int) -> float:
    """Floating-point operations in the matrix products of a batch, forward and backward."""
    K, T, H = recipe.n_components, recipe.n_steps, recipe.hidden
    return 6.0 * recipe.batch_size * K * T * (2 * n_pixels * H + H**2)


def _calls(preset: str, size: int) -> Mapping[str, Callable[[], object]]:
    """The gradient of one batch in every way that this processor has, and an update with all that
    belongs to it."""
    X = make_dataset("shapes", seed=0, size=size, n_train=1000, n_test=1).X_train
    trainer = RNNEM(preset=preset, random_state=0).trainer(X)
    film, gamma = trainer.batch()
    halved = {}
    if has_bfloat16("float32"):
        other = RNNEM(preset=preset, products="bfloat16", random_state=0).trainer(X)
        halved["bfloat16"] = lambda: other.gradient(film, gamma)
    return {
        **halved,
        "by hand": lambda: trainer.gradient(film, gamma),
        "by autograd": lambda: trainer.gradient_by_autograd(film, gamma),
        "update": trainer.update,
    }


def _product() -> Callable[[], object]:
    a, b = (torch.randn(LARGE, LARGE) for _ in range(2))
    out = torch.empty(LARGE, LARGE)
    return lambda: torch.mm(a, b, out=out)


def _rates(
    calls: Mapping[str, tuple[Callable[[], object], float]], rounds: int
) -> dict[str, list[float]]:
    """Operations per CPU second of each, round by round, in turns."""
    repeats = {what: _repeats(call) for what, (call, _) in calls.items()}
    found: dict[str, list[float]] = {what: [] for what in calls}
    for number in range(rounds):
        for what in list(calls)[:: -1 if number % 2 else 1]:
            call, work = calls[what]
            found[what].append(work * repeats[what] / _seconds(call, repeats[what]))
    return found


def _repeats(call: Callable[[], object]) -> int:
    """How often it fits into a turn, after a warm-up."""
    _seconds(call, 2)
    return max(1, round(SECONDS / _seconds(call, 2) * 2))


def _seconds(call: Callable[[], object], n: int) -> float:
    """CPU seconds of n calls."""
    start = time.process_time()
    for _ in range(n):
        call()
    return time.process_time() - start


def _train(model: str, preset: str, seeds: int, n_components: int | None) -> None:
    size = SIZES[preset]
    data = make_dataset("shapes", seed=0, size=size, n_train=N_TRAIN, n_test=N_TEST)
    found = []
    for seed in range(seeds):
        made = make_model(model, preset=preset, n_components=n_components, random_state=seed)
        start = time.process_time()
        made.fit(data.X_train)
        seconds = time.process_time() - start
        found.append(mean_ami(data.y_test, made.predict(data.X_test)))
        click.echo(f"seed {seed}: AMI {found[-1]:.3f} after {seconds:.1f} CPU seconds")
    spread = f" +- {stdev(found):.3f}" if len(found) > 1 else ""
    click.echo(f"{model}, {preset}: AMI {mean(found):.3f}{spread}")


if __name__ == "__main__":
    main()
