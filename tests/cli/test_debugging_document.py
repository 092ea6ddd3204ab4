"""docs/debugging.md shows what the commands print, and its pictures are what they draw."""

from __future__ import annotations

import pytest

from tests.support.debugging_document import DEPTH, DOCS, DOCUMENT, LIFE, generate


@pytest.fixture(scope="module")
def generated() -> dict[str, str]:
    """The document and its pictures, made anew."""
    return generate()


@pytest.mark.parametrize("name", [DOCUMENT, LIFE, DEPTH])
def test_the_document_is_what_the_commands_print(generated: dict[str, str], name: str) -> None:
    """Given the incident, then the files in docs/ are what comes of it now."""
    assert (DOCS / name).read_text(encoding="utf-8") == generated[name]


def test_every_command_of_it_printed_something(generated: dict[str, str]) -> None:
    """Given the document, then each command in it is followed by what it printed."""
    lines = generated[DOCUMENT].splitlines()
    commands = [number for number, line in enumerate(lines) if line.startswith("$ ")]
    assert len(commands) >= 15
    assert all(not lines[number + 1].startswith(("$ ", "```")) for number in commands)
