"""What the first bytes of a log file say to SQLite, and what they say in every log."""

from __future__ import annotations

from pathlib import Path

MAGIC = b"SQLite format 3\0"
HEADER_BYTES = 100

WRITE_VERSION = 18
"""Where it says who may write the file."""
NEWEST_VERSION = 2
"""Of those that SQLite knows; it takes a file with a newer one for one that must only be read."""

_SAME_IN_EVERY_LOG = {
    0: MAGIC,
    # A write-ahead log.
    WRITE_VERSION: bytes([NEWEST_VERSION, NEWEST_VERSION]),
    # Fractions of a page, of which SQLite takes no others.
    21: bytes([64, 32, 32]),
    # How long the file is has to be asked of the file.
    28: bytes(4),
    # The newest format of tables.
    44: (4).to_bytes(4, "big"),
    # UTF-8.
    56: (1).to_bytes(4, "big"),
}


def restore(path: Path) -> None:
    """Write what is the same in every log."""
    with path.open("r+b") as file:
        for at, content in _SAME_IN_EVERY_LOG.items():
            file.seek(at)
            file.write(content)


def header_problem(header: bytes) -> str | None:
    """What keeps SQLite from writing a file that it can read; None where nothing does, or it is none of SQLite's."""
    if len(header) < HEADER_BYTES or not header.startswith(MAGIC) or header[WRITE_VERSION] <= NEWEST_VERSION:
        return None
    return (
        f"its header is damaged: found write version {header[WRITE_VERSION]}, expected {NEWEST_VERSION}, and SQLite "
        "would not write it; repair the log"
    )


def read_header(path: Path) -> bytes:
    """The first bytes of a file.

    Raises:
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        return file.read(HEADER_BYTES)
