"""The program in docs/scaling.md runs as it stands, on a server of ours."""

from __future__ import annotations

import re
from pathlib import Path

from tests.support.nats_servers import fresh_url, require_nats

DOCUMENT = Path(__file__).parents[2] / "docs" / "scaling.md"


def test_the_documented_program_runs() -> None:
    """Given the document's program, when its address is that of a running server, then it ends well."""
    require_nats()
    (block,) = re.findall(r"```py\n(.*?)```", DOCUMENT.read_text(encoding="utf-8"), re.DOTALL)
    address = "nats://localhost:4222/ORDERS"
    assert address in block
    program = block.replace(address, fresh_url())
    exec(compile(program, str(DOCUMENT), "exec"), {"__name__": "__main__"})
