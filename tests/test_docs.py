"""The documents' Python blocks run as they stand."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
BLOCKS = [
    pytest.param(block, id=f"{path.name}-{number}")
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
    for number, block in enumerate(re.findall(r"```python\n(.*?)```", path.read_text(encoding="utf-8"), re.DOTALL), 1)
]


@pytest.mark.parametrize("block", BLOCKS)
def test_documented_code_runs(block: str) -> None:
    """Given a block of the documents, when it is run as a script, then it ends without an error."""
    exec(compile(block, "document", "exec"), {"__name__": "__main__"})


def test_links_between_documents_lead_somewhere() -> None:
    """Given the README's links to files, then the files are there."""
    targets = re.findall(r"\]\(([^)#:]+)\)", (ROOT / "README.md").read_text(encoding="utf-8"))
    assert targets
    assert [target for target in targets if not (ROOT / target).exists()] == []
