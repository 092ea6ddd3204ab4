"""How large the files of a log are, and how large the log itself should be."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from mpreg_mq.errors import CorruptLogError


def size_of(path: str) -> int:
    """Bytes of a file; 0 where there is none."""
    try:
        return os.stat(path).st_size
    except FileNotFoundError:
        return 0


def check_size(path: Path) -> None:
    """Notice a file that was cut: SQLite takes what is there for all there ever was.

    Raises:
        CorruptLogError: it is shorter than its header says.
    """
    with contextlib.suppress(FileNotFoundError), path.open("rb") as file:
        header = file.read(100)
        size = os.fstat(file.fileno()).st_size
        if not header.startswith(b"SQLite format 3\0") or len(header) < 100:
            return
        page = int.from_bytes(header[16:18], "big")
        expected = int.from_bytes(header[28:32], "big") * (65536 if page == 1 else page)
        if size < expected:
            raise CorruptLogError(
                f"open {path}: found {size} bytes, expected {expected}: its end is missing; repair the log"
            )
