"""Reports: complete, escaped, free of NaN, readable at 80 columns, each figure with its labels."""

from __future__ import annotations

import io
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from embench.comparing.compare import Comparison, compare
from embench.comparing.words import quantity, significant, with_stddev
from embench.reporting import text
from embench.reporting.page import provenance, write_report
from embench.reporting.plots import MAX_PANELS, figures

from .synthetic_records import SPEED, USUAL, failed, frame, make_records

SWEEP = "blobs:n_features=8,n_components=3"
"""With the usual blobs, one more size of n_features and one more of n_components."""

HOSTILE = "<script>alert('x')</script> | [bold]nothing[/bold]\nsecond line"


@pytest.fixture(scope="module")
def comparison() -> Comparison:
    """Two tracks, sweeps, a dataset without truth, and a failure with a hostile message."""
    records = make_records(datasets=[*USUAL, SWEEP], n_seeds=3)
    return compare(frame([failed(records[0], "error", HOSTILE), *records[1:]]))


@pytest.fixture(scope="module")
def page(comparison, tmp_path_factory) -> Path:
    """The report of that comparison, in a folder that was not there."""
    folder = tmp_path_factory.mktemp("report") / "new" / "folder"
    return write_report(comparison.records, comparison, folder)


@pytest.fixture(scope="module")
def drawn(comparison):
    found = figures(comparison)
    for figure in found.values():
        figure.draw_without_rendering()
    return found


def printed(comparison: Comparison, width: int) -> str:
    console = Console(file=io.StringIO(), width=width, force_terminal=False)
    for part in text.terminal(comparison):
        console.print(part)
    return console.file.getvalue()


def edge_cases() -> dict[str, Comparison]:
    ordinary = make_records(datasets=["iris"], tracks=["default"], n_seeds=2)
    return {
        "empty": compare(frame([])),
        "all failed": compare(frame([failed(r) for r in ordinary])),
        "one seed": compare(frame(make_records(datasets=["iris"], n_seeds=1))),
        "some failed": compare(frame([*map(failed, ordinary[:3]), *ordinary[3:]])),
    }


@pytest.mark.parametrize("name", ["empty", "all failed", "one seed", "some failed"])
def test_no_output_ever_says_nan(name, tmp_path) -> None:
    comparison = edge_cases()[name]
    page = write_report(comparison.records, comparison, tmp_path)

    outputs = [
        str(comparison),
        comparison._repr_html_(),
        printed(comparison, 80),
        text.markdown(comparison),
        text.csv(comparison),
        text.as_json(comparison),
        re.sub(r"base64,[^\"]*", "", page.read_text()),
    ]

    for output in outputs:
        assert not re.search(r"\bnan\b", output, re.IGNORECASE)


@pytest.mark.parametrize("width", [80, 140])
def test_the_terminal_stays_within_its_width(comparison, width) -> None:
    lines = printed(comparison, width).splitlines()

    assert max(map(len, lines)) <= width
    assert any("em:covariance_type=diag" in line for line in lines)
    # Labels and messages hold brackets, which rich would otherwise take for markup.
    assert any("[bold]" in line for line in lines)


def test_labels_with_brackets_are_printed_whole() -> None:
    cpu = make_records(datasets=["iris"], tracks=["default"], models=["em"])
    gpu = [replace(r, trial=replace(r.trial, device="cuda")) for r in cpu]

    found = printed(compare(frame([*cpu, *gpu])), 80)

    assert found.count("em [cpu]") >= 2
    assert any(line.startswith(("1", "2")) and "em [cuda]" in line for line in found.splitlines())


def test_the_page_of_a_record_tells_everything() -> None:
    record = failed(make_records(n_seeds=1)[0], "timeout", "cut off after 60 s")

    page = text.record_page(record)

    assert record.trial.id in page
    assert "timeout: cut off by the clock" in page
    assert "cut off after 60 s" in page
    assert "Synthetic 9000" in page


def test_the_page_escapes_what_others_wrote(comparison, page) -> None:
    written = page.read_text()

    assert "<script>" not in written
    assert "&lt;script&gt;" in written
    assert "<script>" not in comparison._repr_html_()


def test_the_page_stands_alone_and_its_tags_close(page) -> None:
    class Parser(HTMLParser):
        void = ("meta", "img", "link", "br")

        def __init__(self) -> None:
            super().__init__()
            self.open: list[str] = []
            self.sources: list[str] = []

        def handle_starttag(self, tag, attrs) -> None:
            self.sources += [value for name, value in attrs if name in ("src", "href")]
            self.open += [tag] if tag not in self.void else []

        def handle_endtag(self, tag) -> None:
            assert self.open.pop() == tag

    parser = Parser()

    parser.feed(page.read_text())

    assert parser.open == []
    assert parser.sources
    assert all(source.startswith("data:image/png;base64,") for source in parser.sources)


def test_a_report_has_page_markdown_and_every_figure(drawn, page) -> None:
    found = {path.stem for path in (page.parent / "figures").glob("*.png")}
    assert found == set(drawn)

    links = re.findall(r"\]\((figures/[^)]*)\)", (page.parent / "report.md").read_text())
    assert all((page.parent / link).exists() for link in links)
    assert len(links) == len(drawn)


def test_every_row_of_a_markdown_table_has_the_cells_of_its_head(comparison) -> None:
    cells = []

    for line in text.markdown(comparison).splitlines():
        cells.append(len(re.findall(r"(?<!\\)\|", line)))

    tables = [count for count in cells if count]
    # Every change; summaries: nine metrics less gpu, and three; a model and its times to targets.
    assert set(tables) == {9, 12, 5}
    assert "\\<script\\>" in text.markdown(comparison)


def test_csv_and_json_hold_every_change(comparison) -> None:
    table = pd.read_csv(io.StringIO(text.csv(comparison)))
    value = json.loads(text.as_json(comparison))

    assert len(table) == len(value["changes"]) == len(comparison.changes)
    assert len(value["summary"]) == len(comparison.summary)
    assert value["failures"][0]["message"] == HOSTILE


def test_provenance_tells_each_distinct_value_once() -> None:
    table = pd.DataFrame(
        {"environment": [{"python": "3.11", "gpu": None}, {"python": "3.9", "cores": 2}]}
    )

    assert provenance(table) == [("python", ["3.9", "3.11"]), ("cores", ["2"])]


def test_every_figure_that_has_data_is_drawn(drawn) -> None:
    kinds = (
        "quality-against-time",
        "quality-against-iterations",
        "time-to-quality",
        "time-ratios",
        "scaling",
        "agreement",
        "memory-ratios",
    )

    assert set(drawn) == {
        f"{track}-{kind}" for track in ("same-start", "default") for kind in kinds
    }


def test_figures_without_data_are_left_out() -> None:
    assert figures(compare(frame([]))) == {}
    assert figures(edge_cases()["all failed"]) == {}
    assert "default-scaling" not in figures(edge_cases()["one seed"])


def test_every_axis_has_a_label_and_no_text_is_cut(drawn) -> None:
    for figure in drawn.values():
        frame_box = figure.bbox.padded(1)
        for axis in figure.axes:
            assert axis.get_xlabel()
            assert axis.get_ylabel() or all(label.get_text() for label in axis.get_yticklabels())
            box = axis.get_tightbbox()
            assert frame_box.x0 <= box.x0
            assert box.x1 <= frame_box.x1
            assert frame_box.y0 <= box.y0
            assert box.y1 <= frame_box.y1


def test_a_legend_of_many_models_is_not_cut() -> None:
    models = [f"em:tol=1e-{n},max_iter=2000" for n in range(1, 21)]
    many = compare(frame(make_records(models=models, tracks=["default"], n_seeds=2)))

    for name, figure in figures(many).items():
        figure.draw_without_rendering()
        box, frame_box = figure.legends[0].get_window_extent(), figure.bbox.padded(1)
        assert frame_box.y0 <= box.y0 <= box.y1 <= frame_box.y1, name


def test_tick_labels_do_not_touch(drawn) -> None:
    for name, figure in drawn.items():
        for axis in figure.axes:
            low, high = axis.get_xlim()
            ticks = zip(axis.get_xticks(), axis.get_xticklabels(), strict=True)
            boxes = [label.get_window_extent() for at, label in ticks if low <= at <= high]
            assert len(boxes) >= 2, name
            for left, right in pairwise(sorted(boxes, key=lambda box: box.x0)):
                assert left.x1 < right.x0, name


def test_a_model_has_one_colour_in_all_figures(drawn) -> None:
    colours: dict[str, set] = {}

    for figure in drawn.values():
        for handle in figure.legends[0].legend_handles:
            label = handle.get_label().replace("\n", "")
            colours.setdefault(label, set()).add(handle.get_color())

    assert set(colours) == set(SPEED)
    assert all(len(found) == 1 for found in colours.values())
    assert len(set.union(*colours.values())) == len(SPEED)


def test_scaling_varies_one_size_at_a_time(drawn) -> None:
    axes = drawn["default-scaling"].axes

    titles = {axis.get_xlabel(): axis.get_title().replace("\n", " ") for axis in axes}

    assert titles == {
        "n_features": "blobs (n_samples=1000, n_components=3)",
        "n_components": "blobs (n_samples=1000, n_features=8)",
    }


def test_too_many_panels_are_cut_and_the_title_says_so() -> None:
    one = frame(make_records(datasets=["iris"], tracks=["default"], models=["em"], n_seeds=1))
    many = pd.concat(
        [one.assign(dataset=f"data{at}", id=str(at)) for at in range(MAX_PANELS + 3)],
        ignore_index=True,
    )

    figure = figures(compare(many))["default-quality-against-time"]

    assert len(figure.axes) == MAX_PANELS
    assert "the first 12 of 15 panels" in figure.get_suptitle()


def test_drawing_leaves_no_figure_open_in_pyplot(drawn) -> None:
    from matplotlib import pyplot

    assert pyplot.get_fignums() == []


@given(st.floats(1e-9, 1e9), st.sampled_from(["s", "B", "nat", ""]))
def test_a_quantity_can_be_read_back(value, unit) -> None:
    scales = {"µs": 1e-6, "ms": 1e-3, "min": 60, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}

    number, _, name = quantity(value, unit).partition(" ")

    # Three digits (rel), or four decimals of a nat (abs).
    read = float(number) * scales.get(name, 1)
    assert read == pytest.approx(value, rel=6e-3, abs=6e-5 if unit == "nat" else 0)


@given(st.floats(-1e8, 1e8), st.integers(1, 6))
def test_significant_digits_are_as_close_as_they_claim(value, digits) -> None:
    assert float(significant(value, digits)) == pytest.approx(value, rel=0.51 * 10 ** (1 - digits))


def test_a_deviation_is_written_in_the_unit_of_its_mean() -> None:
    assert with_stddev(3 * 2**20, 2**19, "B") == "3.00 ± 0.50 MiB"
    assert with_stddev(1.5, float("nan"), "nat") == "1.5000 nat"
    assert with_stddev(float("nan"), float("nan"), "s") == ""


def test_a_terminal_shows_the_best_and_counts_the_rest() -> None:
    models = ["sklearn-em", *(f"em:n_components={k}" for k in range(1, 13))]
    found = compare(frame(make_records(datasets=["iris"], tracks=["default"], models=models)))

    shown = printed(found, width=200)

    assert shown.count("faster than sklearn-em") == text.MOST_SENTENCES
    assert "... and 4 more of lower rank" in shown
