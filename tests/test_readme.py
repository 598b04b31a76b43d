"""README says what is true: its commands exist, its examples run, its tables are complete."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import embench
from embench.cli import main
from embench.comparing.gate import EXIT_CODES
from embench.measuring.plan import plan
from embench.measuring.suite import load_suite, suites
from embench.metrics import METRICS
from embench.types import STATUSES, TRACKS

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, flags=re.DOTALL | re.MULTILINE)


def test_the_first_two_blocks_are_all_that_a_stranger_needs():
    assert blocks("console")[:2] == ["make bench\n", "make test\n"]


def test_every_command_and_option_named_exists():
    spoken = re.findall(r"embench ([a-z]+)((?: --?[a-z-]+| [^\s`|]+)*)", README)
    commands = main.commands

    for name, rest in spoken:
        if name not in commands:
            assert name in {"puts", "is", "models"}, f"embench {name}"
            continue
        known = {option for p in commands[name].params for option in (*p.opts, *p.secondary_opts)}
        assert set(re.findall(r"--[a-z-]+", rest)) <= known, f"embench {name}{rest}"


def test_every_make_target_named_exists():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))

    named = re.findall(r"`make ([a-z -]+)`", README)

    assert {word for words in named for word in words.split()} <= targets


def test_the_python_example_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    example = next(block for block in blocks("python") if "embench.run" in block)

    exec(compile(example, "README.md", "exec"), {})

    assert list(tmp_path.glob("results/*-quick/records.jsonl"))


@pytest.mark.parametrize("begin", ["import numpy", "from sklearn"])
def test_the_other_python_examples_run(begin, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    examples = [block for block in blocks("python") if block.startswith(begin)]

    for example in examples:
        exec(compile(example, "README.md", "exec"), {})

    assert examples


def test_the_suite_example_can_be_planned(tmp_path):
    example = next(block for block in blocks("toml") if "[[models]]" in block)
    (tmp_path / "mine.toml").write_text(example)

    assert plan(load_suite(tmp_path / "mine.toml")).trials


def test_the_model_example_is_judged(tmp_path, monkeypatch):
    example = next(block for block in blocks("python") if "class MyMixture" in block)
    (tmp_path / "readme_model.py").write_text(example)
    monkeypatch.syspath_prepend(tmp_path)

    records = embench.run("quick", models="readme_model:MyMixture", datasets="iris", seeds=1,
                          tracks=["default"], out=tmp_path / "run", isolation="none")  # fmt: skip

    assert list(records["status"]) == ["ok"]


@pytest.mark.parametrize(
    "names",
    [embench.models(), embench.datasets(), suites(), METRICS, TRACKS],
    ids=["models", "datasets", "suites", "metrics", "tracks"],
)
def test_tables_name_everything_there_is(names):
    assert [name for name in names if f"`{name}`" not in README] == []


def test_statuses_and_exit_codes_are_explained():
    assert all(f"`{status}`" in README for status in STATUSES if status != "ok")
    assert re.findall(r"^\| (\d) \|", README, flags=re.MULTILINE) == [
        str(code) for code in sorted(EXIT_CODES.values())
    ]


def test_linked_pictures_are_there():
    for path in re.findall(r"!\[.*?\]\((.*?)\)", README):
        assert (ROOT / path).is_file()
