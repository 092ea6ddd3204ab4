"""How results are shown, and judged against the targets."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import pytest

from benchmarks.catalogue import ROWS, row_named
from benchmarks.harness.model import Contestant, Context, Entry, Kind, Metric, Outcome, Row
from benchmarks.harness.statistics import Summary
from benchmarks.report.document import BEGIN, END, publish, replaced
from benchmarks.report.picture import columns, panels, picture
from benchmarks.report.text import aligned, markdown, number, plain_report, reasons, row_lines, times_ours
from benchmarks.results import Results
from benchmarks.servers import SERVERS
from benchmarks.targets import TARGETS, Target, verdicts

MACHINE = {"date": "today", "commit": "abc", "processor": "a < b", "system": "s", "python": "p", "sqlite": "3"}


def unused(context: Context) -> Contestant:
    raise AssertionError("nothing is measured here")


RATE = Metric("rate", "messages/s")
ROW = Row(
    "row",
    "what is done",
    (RATE, Metric("late", "ms", "lateness", higher_is_better=False)),
    (
        Entry("ours", "ours | us", "fsync", unused, Kind.OURS),
        Entry("peer", "peer & co", "none", unused),
        Entry("raw", "raw", "fsync", unused, Kind.LIMIT),
        Entry("gone", "gone", "none", unused),
        Entry("broken", "broken", "none", unused),
    ),
)


def results(*outcomes: Outcome) -> Results:
    return Results(MACHINE, {"mpreg-mq": "1"}, {"rounds": 3, "seconds": 1.0}, outcomes)


MEASURED = results(
    Outcome("row", "ours", {"rate": (90.0, 100.0, 120.0), "late": (1.0, 2.0, 3.0)}),
    Outcome("row", "peer", {"rate": (40.0, 50.0, 60.0), "late": (4.0, 4.0, 5.0)}),
    Outcome("row", "raw", {"rate": (4_000.0, 5_000.0, 6_000.0)}),
    Outcome("row", "gone", skipped="there is no gone; get it"),
    Outcome("row", "broken", failed="it broke"),
)


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0.00"), (0.0123, "0.012"), (0.5, "0.50"), (12.34, "12.3"), (123.4, "123"), (12_345.6, "12,346")],
)
def test_figures_have_about_three_digits(value: float, text: str) -> None:
    """Given a figure, then it is written with the digits that count."""
    assert number(value) == text


def test_a_row_is_a_table_with_reasons_for_what_is_missing() -> None:
    """Given outcomes, then each entry has a line, with ours compared, and what is missing is named as such."""
    lines = row_lines(ROW, RATE, MEASURED)
    assert lines[1:] == [
        ("ours | us", "fsync", "100", "90.0 .. 120", ""),
        ("peer & co", "none", "50.0", "40.0 .. 60.0", "2.00x"),
        ("limit: raw", "fsync", "5,000", "4,000 .. 6,000", "0.020x"),
        ("gone", "none", "skipped", "", ""),
        ("broken", "none", "FAILED", "", ""),
    ]
    assert reasons(MEASURED) == ["gone skipped: there is no gone; get it", "broken in row failed: it broke"]


def test_times_ours_follows_the_direction_of_the_metric() -> None:
    """Given a metric where less is better, then half of it counts as twice as good."""
    one, two = Summary.of([1.0]), Summary.of([2.0])
    assert times_ours(one, two, ROW.metrics[1]) == "2.00x"
    assert times_ours(one, two, RATE) == "0.50x"
    assert times_ours(None, two, RATE) == "-"


def test_tables_are_aligned_and_survive_markdown() -> None:
    """Given lines, then columns line up as text, and a bar in a cell does not split it in Markdown."""
    assert aligned([("a", "b", "c"), ("long", "x", "1,000")]) == "a     b      c\nlong  x  1,000"
    assert markdown([("", "n"), ("a|b", "1")], left=1) == "|  | n |\n| --- | ---: |\n| a\\|b | 1 |"


def test_a_report_shows_all_of_it() -> None:
    """Given a run, then its report has the machine, a table for each metric, and the reasons."""
    report = plain_report([ROW], MEASURED)
    for part in ("commit abc", "what is done\n", "what is done: lateness", "gone skipped: there is no gone"):
        assert part in report


def test_results_survive_their_file(tmp_path: Path) -> None:
    """Given results, when they are written and read, then they are the same; another file is refused by name."""
    MEASURED.write(tmp_path / "deep" / "results.json")
    assert Results.read(tmp_path / "deep" / "results.json") == MEASURED
    (tmp_path / "other.json").write_text("[]")
    with pytest.raises(ValueError, match=r"other\.json"):
        Results.read(tmp_path / "other.json")


def test_the_picture_is_svg_with_a_bar_for_each_figure() -> None:
    """Given results, then the picture is well-formed, names everybody, and cuts a limit that dwarfs the others."""
    root = ElementTree.fromstring(picture([ROW], MEASURED))
    texts = [element.text for element in root.iter("{http://www.w3.org/2000/svg}text")]
    for text in ("ours | us", "peer & co", "limit: raw", "What is done: lateness", "5,000 →", "100"):
        assert text in texts
    assert "gone" not in texts
    widths = [float(element.get("width", "0")) for element in root.iter("{http://www.w3.org/2000/svg}rect")]
    assert all(width <= float(root.get("width", "0")) for width in widths)


def test_panels_compare_and_are_best_first() -> None:
    """Given a row in which ours is alone, then it has no panel; in a panel the best comes first."""
    alone = Row("alone", "alone", (RATE,), ROW.entries[:1])
    both = results(*MEASURED.outcomes, Outcome("alone", "ours", {"rate": (1.0,)}))
    drawn = panels([alone, ROW], both)
    assert [panel.title for panel in drawn] == ["What is done", "What is done: lateness"]
    assert [bar.summary.median for bar in drawn[0].bars] == [5_000.0, 100.0, 50.0]
    assert [bar.summary.median for bar in drawn[1].bars] == [2.0, 4.0]
    assert [panel for column in columns(drawn) for panel in column] == drawn


def test_publishing_replaces_the_figures_and_nothing_else(tmp_path: Path) -> None:
    """Given a document with marks, when two runs are published, then the prose stays and the figures are the latest."""
    document = tmp_path / "performance.md"
    document.write_text(f"Before.\n\n{BEGIN}\nold\n{END}\n\nAfter.\n")
    publish([ROW], MEASURED, document)
    publish([ROW], MEASURED, document)
    text = document.read_text()
    assert text.startswith("Before.\n\n" + BEGIN)
    assert text.endswith(END + "\n\nAfter.\n")
    assert "old" not in text
    assert text.count("| peer & co | none | 50.0 |") == 1
    assert "(performance.svg)" in text
    assert ElementTree.fromstring((tmp_path / "performance.svg").read_text()).tag.endswith("svg")
    assert Results.read(tmp_path / "performance.json") == MEASURED


def test_a_document_without_marks_is_left_alone() -> None:
    """Given a document without the marks, then nothing is put into it."""
    with pytest.raises(ValueError, match="figures: begin"):
        replaced("prose", "figures")


def test_targets_name_what_is_measured() -> None:
    """Given the targets, when every entry of every row has a value, then every target can be judged."""
    everything = results(
        *(
            Outcome(row.name, entry.name, {metric.name: (1.0,) for metric in row.metrics})
            for row in ROWS
            for entry in row.entries
        )
    )
    assert [verdict.target.what for verdict in verdicts(everything) if verdict.reached is None] == []
    assert [
        one.target.what for one in verdicts(everything) if (one.limit == "-") is not (one.target.limit is None)
    ] == []
    assert len(verdicts(everything)) == len(TARGETS)


@pytest.mark.parametrize(
    ("at_least", "strict", "value", "reached"),
    [
        (True, False, 2.0, True),
        (True, True, 2.0, False),
        (True, False, 1.9, False),
        (False, False, 2.0, True),
        (False, True, 2.0, False),
        (False, True, 1.9, True),
        (False, False, 2.1, False),
    ],
)
def test_a_target_is_reached_within_its_bound(at_least: bool, strict: bool, value: float, reached: bool) -> None:
    """Given a bound of 2, then a value is within it or not; a strict bound is not reached by itself."""
    target = Target("row", "what", lambda _: None, 2.0, "{:.1f}", at_least, strict)
    assert target.reached(value) is reached


def test_a_target_whose_figure_is_missing_is_said_to_be_unmeasured() -> None:
    """Given a row without its peer, then the target that compares with it is not judged, and others of the row are."""
    some = results(Outcome("durable-64", "ours", {"messages/s": (40_000.0,)}))
    assert [(verdict.measured, verdict.word) for verdict in verdicts(some)] == [
        ("-", "not measured"),
        ("-", "not measured"),
        ("40,000/s", "yes"),
    ]


def test_a_target_stands_beside_what_the_least_that_does_the_work_had() -> None:
    """Given the limit of a row, then its target tells what that reached, in the target's own measure."""
    rates = {"ours-waiting": 3_000.0, "raw-sqlite": 6_000.0, "raw-on-loop": 4_500.0}
    some = results(*(Outcome("durable-1", entry, {"messages/s": (rate,)}) for entry, rate in rates.items()))
    assert [(verdict.measured, verdict.limit) for verdict in verdicts(some)] == [("50%", "75%")]


def test_names_of_rows_and_entries_are_unique_and_servers_known() -> None:
    """Given the catalogue, then a name means one thing, ours is in every row, and every server can be started."""
    assert len({row.name for row in ROWS}) == len(ROWS)
    for row in ROWS:
        names = [entry.name for entry in row.entries]
        assert len(set(names)) == len(names)
        assert Kind.OURS in {entry.kind for entry in row.entries}
        assert {entry.server for entry in row.entries} - {None} <= set(SERVERS)
        assert row_named(row.name) is row
