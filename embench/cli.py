"""The command line: arguments in, one function call, words out. Only this module prints."""

from __future__ import annotations

import os
import shlex
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from embench import __version__, store
from embench.registry import IMAGE_SUFFIXES, unknown
from embench.types import COVARIANCE_ALIASES, COVARIANCE_TYPES, TRACKS, InputError, Record, Spec

if TYPE_CHECKING:
    import pandas as pd

    from embench.comparing.tables import Comparison
    from embench.measuring.demo import Moment
    from embench.measuring.training import Progress

INTERRUPTED = 130

AT_LEAST_ONE = click.IntRange(min=1)
ABOVE_ZERO = click.FloatRange(min=0, min_open=True)

WATCHED = ("em", "amortised-em", "recurrent-em")
"""What `embench watch` shows unless it is told otherwise."""

STYLES = ("csv", "json", "markdown", "html")
"""What `embench compare --format` can print."""


class UserMistake(click.ClickException):
    """One line that says what was expected and what came; exit code 2, no traceback."""

    exit_code = 2


class Commands(click.Group):
    """Sub-commands whose `InputError` becomes a `UserMistake`, and which know near misses."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except InputError as error:
            raise UserMistake(str(error)) from error


class MisspeltGate(click.UsageError):
    """Ends with 4, nothing was compared: click's own 2 would read as a loss of quality."""

    exit_code = 4


class Gate(click.Command):
    """The command whose exit code is its verdict."""

    def make_context(self, *args: Any, **options: Any) -> click.Context:
        try:
            return super().make_context(*args, **options)
        except click.UsageError as error:
            raise MisspeltGate(error.format_message(), error.ctx) from error


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="embench")
def main() -> None:
    """Which way of fitting a mixture is best for data like mine, and what does it cost?

    \b
    embench run                              a first comparison, under two minutes
    embench run --data measurements.csv      the same question on your own data
    embench compare                          tables, figures and a page of the latest run
    """
    sys.path.append(os.getcwd())  # so that --model module:Class finds a file of your own


@main.command()
@click.argument("suite", required=False)
@click.option(
    "--model",
    "models",
    multiple=True,
    metavar="NAME[:PARAM=VALUE,...]",
    help="Models in place of the suite's; several by commas or by repeating.",
)
@click.option(
    "--dataset",
    "datasets",
    multiple=True,
    metavar="NAME[:PARAM=VALUE,...]",
    help="Datasets in place of the suite's, written like models.",
)
@click.option(
    "--data",
    "files",
    multiple=True,
    type=click.Path(),
    metavar="FILE",
    help="A file of your own: .csv, .npy, .npz, .parquet, .h5; several by repeating.",
)
@click.option("--label", metavar="COLUMN", help="The column of --data that holds labels.")
@click.option(
    "--target",
    metavar="COLUMN[,...]",
    help="Columns of --data to predict from the others: densities p(Y|X).",
)
@click.option("--drop", metavar="COLUMN[,...]", help="Columns of --data to leave out.")
@click.option("--n-components", metavar="N[,N...]", help="Component counts to try.")
@click.option("--seeds", type=click.IntRange(min=1), help="Number of seeds.")
@click.option(
    "--track",
    "tracks",
    multiple=True,
    metavar="|".join(TRACKS),
    help="What is kept equal; several by commas or by repeating.",
)
@click.option("--device", type=click.Choice(["cpu", "cuda", "auto"]))
@click.option("--dtype", type=click.Choice(["float64", "float32"]))
@click.option("--threads", type=click.IntRange(min=1), help="For every numerical library.")
@click.option(
    "--time-limit",
    type=click.FloatRange(min=0, min_open=True),
    metavar="SECONDS",
    help="Budget of a fit on the budget track, cut-off on the others.",
)
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder of this run; the same folder again resumes.  [results/<date>-<suite>]",
)
def run(
    suite: str | None,
    models: Sequence[str],
    datasets: Sequence[str],
    files: Sequence[str],
    label: str | None,
    target: str | None,
    drop: str | None,
    n_components: str | None,
    tracks: Sequence[str],
    out: Path | None,
    **others: Any,
) -> None:
    """Run SUITE (default: quick; with --data own-data, conditional or, of images, grouping).

    SUITE is the name of a shipped suite (see `embench suites`) or the path of a TOML file.
    Ctrl-C loses nothing that is finished; the same command again goes on where it stopped.
    Trials that fail are records, too; only if all fail is the exit code 1.
    """
    from embench.measuring.plan import customised, load_suite, plan
    from embench.measuring.run import default_folder, execute, remaining

    several = {"target": target, "drop": drop}
    columns = {"label": label} if label else {}
    columns |= {role: names.replace(",", "+") for role, names in several.items() if names}
    if columns and not files:
        raise InputError(f"--{next(iter(columns))} names columns of --data; name a file, too")
    own = [Spec(os.path.expanduser(file), columns) for file in files]
    suite = suite or _suite_for(files, target)
    chosen = customised(
        load_suite(suite),
        models=models or None,
        datasets=[*datasets, *own] or None,
        n_components=_counts(n_components, "--n-components") if n_components is not None else None,
        tracks=_words(tracks),
        **others,
    )
    folder = out.expanduser() if out else default_folder(suite, *files)
    planned = plan(chosen)
    trials = remaining(planned.trials, folder)
    for sentence in planned.left_out:
        click.echo(sentence, err=True)
    click.echo(_announcement(len(planned.trials), len(trials), folder), err=True)
    failed = 0
    if trials:
        failed = _watch(execute(trials, folder), len(trials), folder)
        click.echo(f"{len(trials) - failed} ok, {failed} failed: {folder / store.RECORDS}")
    click.echo(f"next: embench compare {shlex.quote(str(folder))}")
    sys.exit(bool(trials) and failed == len(trials))


@main.command()
@click.argument("runs", nargs=-1, metavar="[RUN]...")
@click.option(
    "--baseline",
    metavar="MODEL",
    help="Compare with this one.  [sklearn-em, else em; for p(Y|X) linear-gaussian; of images "
    "pixel-kmeans]",
)
@click.option(
    "--metric",
    "metrics",
    multiple=True,
    metavar="NAME",
    help="Compare only these; several by commas or by repeating.",
)
@click.option(
    "--track", "tracks", multiple=True, metavar="|".join(TRACKS), help="Look only at these."
)
@click.option(
    "--format", "style", type=click.Choice(STYLES), help="Print this and write no report."
)
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder of the report.  [report/ in the (last) run]",
)
def compare(
    runs: Sequence[str],
    baseline: str | None,
    metrics: Sequence[str],
    tracks: Sequence[str],
    style: str | None,
    out: Path | None,
) -> None:
    """Compare the models of RUNs (default: the latest) and write a page with figures.

    A RUN is a folder, or its name below results/. Models are paired by seed.
    """
    from embench.comparing.compare import compare
    from embench.comparing.frames import load

    folders = [_run_folder(run) for run in runs] or [_latest_run()]
    records = load(folders)
    found = compare(records, baseline=baseline, metrics=_words(metrics), tracks=_words(tracks))
    if style:
        click.echo(_formatted(style, records, found))
        return
    _print_comparison(found)
    page = _written_report(records, found, out or folders[-1] / "report")
    click.echo(f"\nreport with figures: {page}")


@main.command(cls=Gate)
@click.option("--baseline", required=True, metavar="RUN", help="The run to be held against.")
@click.option("--candidate", required=True, metavar="RUN", help="The run to be judged.")
def gate(baseline: str, candidate: str) -> None:
    """Judge a run against an earlier one; the exit code is the verdict.

    \b
    0  no regression
    1  time or memory got worse
    2  quality got worse, or something is missing that was measured before
    3  inconclusive: the noise leaves it open
    4  nothing comparable was measured
    """
    from embench.comparing.frames import load
    from embench.comparing.gate import EXIT_CODES, gate

    try:
        runs = [load(_run_folder(run)) for run in (baseline, candidate)]
    except InputError as error:
        click.echo(f"nothing to compare: {error}", err=True)
        sys.exit(EXIT_CODES["nothing compared"])
    verdict = gate(*runs)
    click.echo(str(verdict))
    sys.exit(verdict.exit_code)


@main.command()
@click.argument("trial")
@click.option(
    "--run", "folder", type=click.Path(path_type=Path), metavar="RUN", help="Look in this run only."
)
def show(trial: str, folder: Path | None) -> None:
    """Show everything known of TRIAL: its id, or as much of it as makes it unique."""
    from embench.reporting.text import record_page

    folders = [_run_folder(str(folder))] if folder else store.runs(store.RESULTS)
    records = [record for place in folders for record in store.read(place)]
    found = [record for record in store.latest(records) if trial in record.trial.id]
    exact = [record for record in found if record.trial.id == trial]
    if not found:
        raise unknown("trial", trial, {record.trial.id for record in records})
    if len(found) > 1 and not exact:
        listed = "\n  ".join(record.trial.id for record in found)
        raise InputError(f"{trial!r} is part of {len(found)} trials; say which:\n  {listed}")
    click.echo(record_page((exact or found)[0]))


@main.command()
@click.argument("model")
def check(model: str) -> None:
    """Hold MODEL, perhaps your own module:Class, against the laws of a fair player.

    Exit code 1 if one is broken. scikit-learn's check_estimator is worth a look, too.
    """
    from embench.checks import checked_apart

    broken = 0
    for finding in checked_apart(model):
        broken += bool(finding.broken)
        mark = "BROKEN" if finding.broken else "-" if finding.skipped else "ok"
        reason = finding.broken or finding.skipped
        click.echo(f"{mark:6} {finding.law}" + (f": {reason}" if reason else ""))
    sys.exit(bool(broken))


@main.command()
@click.option("--samples", type=click.IntRange(min=2), default=1000, show_default=True)
@click.option("--components", type=AT_LEAST_ONE, default=5, show_default=True)
@click.option("--dims", type=AT_LEAST_ONE, default=2, show_default=True)
@click.option(
    "--family",
    type=click.Choice([*COVARIANCE_TYPES, *COVARIANCE_ALIASES]),
    default="full",
    show_default=True,
)
@click.option("--radius", type=ABOVE_ZERO, default=8.0, show_default=True, help="Of the means.")
@click.option("--seed", type=click.IntRange(0, 2**32 - 1), default=42, show_default=True)
@click.option("--iterations", type=AT_LEAST_ONE, default=500, show_default=True)
@click.option("--mixture-lr", type=ABOVE_ZERO, default=0.05, show_default=True)
@click.option("--component-lr", type=ABOVE_ZERO, default=0.05, show_default=True)
@click.option(
    "--init",
    type=click.Choice(["kmeans", "uniform"]),
    default="kmeans",
    show_default=True,
    help="Where it begins; uniform: means anywhere within the radius.",
)
@click.option(
    "--standardize/--no-standardize",
    default=True,
    show_default=True,
    help="Learning rates in standard deviations of the components, not in units of the data.",
)
@click.option("--log-freq", type=AT_LEAST_ONE, metavar="N", help="Iterations from line to line.")
@click.option("--visualize/--no-visualize", default=True, show_default=True)
@click.option(
    "--out",
    type=click.Path(dir_okay=False, path_type=Path),
    default="demo.png",
    show_default=True,
    help="The picture: .png, .pdf, .svg, or .gif, which moves.",
)
def demo(
    samples: int,
    components: int,
    dims: int,
    family: str,
    radius: float,
    seed: int,
    iterations: int,
    mixture_lr: float,
    component_lr: float,
    log_freq: int | None,
    visualize: bool,
    out: Path,
    **how: Any,
) -> None:
    """Watch gradient descent fit a mixture to mock data, with EM beside it.

    Weights that hardly move and means that get stuck, as published settings have them:

    \b
    embench demo --init uniform --no-standardize --mixture-lr 3e-5 --component-lr 1e-2
    """
    from embench.measuring.demo import beside, gradient_descent, mock_data

    if visualize:
        from embench.reporting.demo import check_path

        check_path(out)
    data = mock_data(
        family,
        n_samples=samples,
        n_features=dims,
        n_components=components,
        radius=radius,
        seed=seed,
    )
    rates = {"mixture_lr": mixture_lr, "component_lr": component_lr, "radius": radius, **how}
    every = log_freq or max(1, iterations // 25)
    stream = gradient_descent(data, family, every, max_iter=iterations, seed=seed, **rates)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a descent that is cut off shows in the picture
        fit = _followed(stream, iterations)
        others = beside(data, family, seed)
    _list({"gradient descent": str(fit[-1]), **{name: str(end) for name, end in others.items()}})
    if visualize:
        from embench.reporting.demo import draw

        draw(out, data.X_train, fit, others)
        click.echo(f"picture: {out}")


@main.command()
@click.argument("models", nargs=-1, metavar="[MODEL[:PARAM=VALUE,...]]...")
@click.option(
    "--dataset",
    default="blobs:n_components=4,separation=3",
    show_default=True,
    metavar="NAME[:PARAM=VALUE,...]",
)
@click.option("--iterations", default="0,1,2,3,5", show_default=True, metavar="N[,N...]")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
@click.option(
    "--out",
    type=click.Path(dir_okay=False, path_type=Path),
    default="watch.png",
    show_default=True,
    help="The picture: .png, .pdf or .svg.",
)
def watch(models: Sequence[str], dataset: str, iterations: str, seed: int, out: Path) -> None:
    """Watch MODELs fit from one start, a row of pictures for each, with their held-out NLL.

    By default EM beside what has learned to do with few of its steps.
    """
    from embench.measuring.demo import side_by_side
    from embench.reporting.demo import STILL, check_path, draw_side_by_side

    check_path(out, STILL)
    specs = [spec for text in models or WATCHED for spec in Spec.parse(text)]
    wanted = _counts(iterations, "--iterations", least=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # fits are cut off on purpose
        data, fits = side_by_side(specs, Spec.parse(dataset)[0], wanted, seed)
    _list({name: f"held-out {path[-1]}" for name, path in fits.items()})
    draw_side_by_side(out, data.X_train, fits)
    click.echo(f"picture: {out}")


@main.command()
@click.argument("model")
@click.option("--preset", metavar="NAME", help="The model's parameter of this name, if it has one.")
@click.option(
    "--suite", help="Its datasets are learned from; a name, or a TOML file.  [the model's own]"
)
@click.option("--updates", type=AT_LEAST_ONE, help="In all.  [the model's own number]")
@click.option(
    "--batch-size", type=AT_LEAST_ONE, help="Datasets, or images, of an update.  [the model's own]"
)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
@click.option("--threads", type=AT_LEAST_ONE, help="For every numerical library.  [the suite's]")
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder of the weights; the same folder again resumes.  [results/<date>-train-<model>]",
)
def train(
    model: str,
    preset: str | None,
    suite: str | None,
    updates: int | None,
    batch_size: int | None,
    seed: int,
    threads: int | None,
    out: Path | None,
) -> None:
    """Train MODEL, such as amortised-em or rnn-em:hidden=64, before any fit, once.

    Ctrl-C loses seconds of work; the same command again goes on where it stopped, and ends at the
    same weights.
    """
    from embench.measuring.plan import customised, load_suite
    from embench.measuring.run import default_folder
    from embench.measuring.training import train as trained
    from embench.measuring.training import trainable, weights_file

    spec = _one_of(model, "model")
    if preset:
        spec = Spec(spec.name, {**spec.params, "preset": preset})
    folder = out.expanduser() if out else default_folder(f"train-{spec.name}")
    chosen = customised(load_suite(suite or trainable(spec).training_suite), threads=threads)
    stream = trained(spec, chosen, folder, n_updates=updates, batch_size=batch_size, seed=seed)
    curve = []
    try:
        for progress in stream:
            click.echo(str(progress))
            curve.append(progress)
    except KeyboardInterrupt:
        click.echo(f"interrupted; the same command goes on with what is in {folder}")
        sys.exit(INTERRUPTED)
    weights = shlex.quote(str(weights_file(folder, spec.name)))
    click.echo(f"weights: {weights}")
    click.echo(f"picture: {_picture_of(curve, folder / 'progress.png')}")
    click.echo(f"next: embench run --model {spec.name}:checkpoint={weights}")


@main.command()
@click.argument("model")
@click.option(
    "--dataset",
    default="shapes",
    show_default=True,
    metavar="NAME[:PARAM=VALUE,...]",
    help="Images.",
)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
@click.option(
    "--image", type=click.IntRange(min=0), default=0, show_default=True, help="Its number."
)
@click.option("--steps", type=AT_LEAST_ONE, help="Of EM.  [the model's own]")
@click.option(
    "--out",
    type=click.Path(dir_okay=False, path_type=Path),
    default="groups.png",
    show_default=True,
    help="The picture; that of agreement against steps is written beside it.",
)
def groups(model: str, dataset: str, seed: int, image: int, steps: int | None, out: Path) -> None:
    """Watch MODEL (rnn-em, n-em) group the pixels of a held-out image, step by step.

    \b
    embench groups rnn-em:checkpoint=FILE     with what embench train has written
    embench groups rnn-em:preset=quick --dataset shapes:size=20
    """
    from embench.measuring.groups import followed
    from embench.reporting import neural
    from embench.reporting.demo import check_path

    beside = out.with_stem(f"{out.stem}-by-step")
    check_path(out)
    found = followed(
        _one_of(model, "model"), _one_of(dataset, "dataset"), seed=seed, image=image, n_steps=steps
    )
    figures = {
        out: neural.groups(found.image, found.psi, found.gamma, found.image_shape),
        beside: neural.agreement_by_step(found.ami),
    }
    for path, figure in figures.items():
        figure.savefig(path, dpi=110, facecolor="white")
    click.echo(f"AMI after {len(found.ami)} steps: {found.ami[-1]:.3f}")
    click.echo(f"pictures: {out}, {beside}")


@main.command()
def models() -> None:
    """List the models: those of embench and those of installed plug-ins."""
    from embench import registry

    _list(registry.models())


@main.command()
def datasets() -> None:
    """List the datasets; a file of your own is one, too (`embench run --data FILE`)."""
    from embench import registry

    _list(registry.datasets())


@main.command()
def suites() -> None:
    """List the suites that come with embench."""
    from embench.measuring.plan import suites

    _list(suites())


def _one_of(text: str, kind: str) -> Spec:
    """A model or a dataset as the command line writes it."""
    found = Spec.parse(text)
    if len(found) != 1:
        raise InputError(f"expected one {kind}, got {text!r}")
    return found[0]


def _picture_of(curve: Sequence[Progress], path: Path) -> Path:
    """What a training was found to be worth against its updates, written to a file."""
    from embench.reporting.neural import progress

    findings = {
        name: [(moment.update, moment.findings[name]) for moment in curve]
        for name in curve[-1].findings
    }
    progress(findings).savefig(path, dpi=110, facecolor="white")
    return path


def _suite_for(files: Sequence[str], target: str | None) -> str:
    """The suite of those who name none, by what is in their files."""
    if target:
        return "conditional"
    if any(Path(file).suffix.lower() in IMAGE_SUFFIXES for file in files):
        return "grouping"
    return "own-data" if files else "quick"


def _followed(moments: Iterator[Moment], total: int) -> list[Moment]:
    """Pull a fit to its end, a line for each moment, and return them all."""
    from rich.console import Console
    from rich.progress import Progress

    seen = []
    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("gradient descent", total=total)
        for moment in moments:
            seen.append(moment)
            progress.update(task, completed=moment.n_iter)
            progress.console.print(str(moment), highlight=False)
    return seen


def _formatted(style: str, records: pd.DataFrame, found: Comparison) -> str:
    """The comparison as one text in one of STYLES."""
    from embench.reporting import page, text

    if style == "html":
        return page.html(records, found, page.images(found))
    return {"csv": text.csv, "json": text.as_json, "markdown": text.markdown}[style](found)


def _print_comparison(found: Comparison) -> None:
    from rich.console import Console

    from embench.reporting.text import terminal

    console = Console(highlight=False)
    for part in terminal(found):
        console.print(part)


def _written_report(records: pd.DataFrame, found: Comparison, folder: Path) -> Path:
    from embench.reporting.page import write_report

    try:
        return write_report(records, found, folder)
    except OSError as error:
        raise InputError(
            f"cannot write the report to {folder}: {error.strerror}; choose another --out"
        ) from error


def _words(texts: Sequence[str]) -> list[str] | None:
    """Words from an option that may be repeated and may hold several, parted by commas."""
    return [word for text in texts for word in text.split(",")] or None


def _latest_run() -> Path:
    if not (found := store.runs(store.RESULTS)):
        raise InputError(f"no run in {store.RESULTS}/ yet; start one with: embench run")
    return found[-1]


def _list(lines: Mapping[str, str]) -> None:
    width = max(map(len, lines), default=0)
    for name, line in lines.items():
        click.echo(f"{name:{width}}  {line}")


def _watch(records: Iterator[Record], total: int, folder: Path) -> int:
    """Pull the records and show how far they are; the number that failed."""
    failed = 0
    try:
        with _progress(total) as advance:
            for record in records:
                failed += record.status != "ok"
                advance(record)
    except KeyboardInterrupt:
        click.echo(f"interrupted; what is finished is in {folder}, the same command resumes")
        sys.exit(INTERRUPTED)
    except OSError as error:
        raise UserMistake(
            f"cannot write to {folder}: {error.strerror}; what is finished is kept and the same "
            "command resumes"
        ) from error
    return failed


@contextmanager
def _progress(total: int) -> Iterator[Callable[[Record], None]]:
    """A bar with the time that is left on a terminal, now and then a line elsewhere."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left:"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("trials", total=total)

        def advance(record: Record) -> None:
            progress.advance(task)
            if record.status != "ok":
                console.print(
                    f"{record.status}: {record.trial.id}: {record.message}",
                    markup=False,
                    highlight=False,
                    soft_wrap=True,
                )

        yield advance


def _announcement(planned: int, left: int, folder: Path) -> str:
    trials = "1 trial" if planned == 1 else f"{planned} trials"
    if left == 0:
        return f"{trials}, all done, in {folder}; another --out measures again"
    resumed = f" ({planned - left} are done)" if left < planned else ""
    return f"{trials}{resumed} into {folder}"


def _counts(text: str, option: str, least: int = 1) -> list[int]:
    """Integers from "2,3,5"."""
    try:
        counts = [int(word) for word in text.split(",")]
    except ValueError:
        counts = []
    if not counts or min(counts) < least:
        raise InputError(f"{option}: expected integers >= {least} like 2,3,5, got {text!r}")
    return counts


def _run_folder(text: str) -> Path:
    """A run by its folder, or by its name below results/."""
    for folder in (Path(text), store.RESULTS / text):
        if (folder / store.RECORDS).exists():
            return folder
    known = [folder.name for folder in store.runs(store.RESULTS)]
    raise unknown("run", text, known)


if __name__ == "__main__":
    main()
