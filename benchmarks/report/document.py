"""docs/performance.md: the figures of one run, between two marks, and the picture beside it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from benchmarks.harness.model import Row
from benchmarks.report.picture import picture
from benchmarks.report.text import markdown, reasons, sections, target_lines
from benchmarks.results import Results

BEGIN, END = "<!-- figures: begin -->", "<!-- figures: end -->"


def figures(rows: Sequence[Row], results: Results, image: str, data: str) -> str:
    """The part of the document that a run writes."""
    machine, settings = results.machine, results.settings
    mpreg = settings.get("mpreg_commit")
    versions = ", ".join(f"{name} {version}" for name, version in results.versions.items())
    parts = [
        f"Run on {machine['date']} at commit {machine['commit']}: {machine['processor']}, {machine['system']}, "
        f"{machine['python']}, SQLite {machine['sqlite']}. {settings['rounds']} rounds, taken by turns, of about "
        f"{settings['seconds']:g} s each; the figures are medians.",
        f"Versions: {versions}{'' if mpreg is None else f', MPREG at commit {mpreg}'}.",
        f"![Medians of the run as bars; the line in each spans least and greatest]({image})",
        f"Every single round is in [{data}]({data}).",
        "## Targets",
        markdown(target_lines(results), left=3),
        "## All figures",
    ]
    for title, lines in sections(rows, results):
        parts += [f"**{title[0].upper()}{title[1:]}**", markdown(lines)]
    if said := reasons(results):
        parts += ["Not in the tables:", "\n".join(f"- {reason}" for reason in said)]
    return "\n\n".join(parts)


def replaced(document: str, part: str) -> str:
    """The document with a new part between its marks.

    Raises:
        ValueError: the marks are not there.
    """
    before, begin, rest = document.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"expected {BEGIN} and {END} in the document; write them where the figures belong")
    return f"{before}{BEGIN}\n\n{part}\n\n{END}{after}"


def publish(rows: Sequence[Row], results: Results, document: Path) -> None:
    """Write the figures into the document, and the picture and the results beside it.

    Raises:
        ValueError: the document has no marks.
    """
    image, data = document.with_suffix(".svg"), document.with_suffix(".json")
    part = figures(rows, results, image.name, data.name)
    text = replaced(document.read_text(encoding="utf-8"), part)
    document.write_text(text, encoding="utf-8")
    image.write_text(picture(rows, results), encoding="utf-8")
    results.write(data)
