"""How large the files of a log are, and how large the log itself should be."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from mpreg_mq.errors import CorruptLogError
from mpreg_mq.events.sqlite.header import HEADER_BYTES, MAGIC, header_problem


def size_of(path: str) -> int:
    """Bytes of a file; 0 where there is none."""
    try:
        return os.stat(path).st_size
    except FileNotFoundError:
        return 0


def check_size(path: Path) -> None:
    """Notice a file that was cut, of which SQLite takes what is there for all there ever was, or that it cannot write.

    Raises:
        CorruptLogError: it is shorter than its header says, or must not be written.
    """
    with contextlib.suppress(FileNotFoundError), path.open("rb") as file:
        header = file.read(HEADER_BYTES)
        size = os.fstat(file.fileno()).st_size
        if not header.startswith(MAGIC) or len(header) < HEADER_BYTES:
            return
        problem = header_problem(header)
        if problem is not None:
            raise CorruptLogError(f"open {path}: {problem}")
        page = int.from_bytes(header[16:18], "big")
        expected = int.from_bytes(header[28:32], "big") * (65536 if page == 1 else page)
        if size < expected:
            raise CorruptLogError(
                f"open {path}: found {size} bytes, expected {expected}: its end is missing; repair the log"
            )
