"""Writes docs/debugging.md and its pictures: what the commands print is what they print about the incident.

Run ``python -m tests.support.debugging_document`` after a change that makes the test of the document fail.
"""

from __future__ import annotations

import os
import re
import shlex
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from unittest import mock

from click.testing import CliRunner

from mpreg_mq.cli.commands import root
from mpreg_mq.replay import open_history
from mpreg_mq.replay.dead_letters import redrive
from mpreg_mq.replay.report import collect
from mpreg_mq.replay.report.page import depth_svg
from tests.support.incident import START, incident

DOCS = Path(__file__).parent.parent.parent / "docs"
DOCUMENT, LIFE, DEPTH = "debugging.md", "debugging-life.svg", "debugging-depth.svg"

TEMPLATE = Path(__file__).with_suffix(".md.in")
"""The words of the document; lines that begin with ``$ mpreg-mq`` in a console block are run."""


@contextmanager
def _workplace() -> Iterator[Path]:
    """A directory with the incident's log as ``orders.db``, in which commands run."""
    before = Path.cwd()
    with tempfile.TemporaryDirectory() as directory:
        place = Path(directory)
        incident(place / "orders.db")
        os.chdir(place)
        try:
            yield place
        finally:
            os.chdir(before)


def _run(command: str) -> str:
    """What a command prints; a redrive in it happens at 10:07, and its message gets the same id each time."""
    defaults = {**(redrive.__kwdefaults__ or {}), "clock": lambda: START + 420.0}
    with (
        mock.patch.object(redrive, "__kwdefaults__", defaults),
        mock.patch("secrets.token_hex", return_value="00b1"),
    ):
        result = CliRunner().invoke(root, shlex.split(command)[1:], prog_name="mpreg-mq")
    if result.exit_code != 0:
        raise AssertionError(f"{command} ended with {result.exit_code}: {result.output}")
    return result.output


def _told(block: re.Match[str]) -> str:
    lines = []
    for line in block[1].splitlines():
        lines.append(line)
        if line.startswith("$ mpreg-mq "):
            lines += _run(line[2:]).splitlines()
    return "```console\n" + "\n".join(lines) + "\n```"


def generate() -> dict[str, str]:
    """The document and its pictures, by file name in docs/."""
    with _workplace() as place:
        text = re.sub(r"```console\n(.*?)\n```", _told, TEMPLATE.read_text(encoding="utf-8"), flags=re.DOTALL)
        life = (place / LIFE).read_text(encoding="utf-8")
        with closing(open_history(place / "orders.db")) as log:
            depth = depth_svg(collect(log))
    return {DOCUMENT: text, LIFE: life, DEPTH: depth}


def main() -> None:
    """Write the files."""
    for name, content in generate().items():
        (DOCS / name).write_text(content, encoding="utf-8")
        print(f"wrote docs/{name}")


if __name__ == "__main__":
    main()
