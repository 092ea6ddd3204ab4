"""Filling a file with zeros up to the size that it will come to anyway.

A sync of a file that has grown waits for the file system to note the new size, and where the new blocks are; one of a
file whose blocks were written before waits for the data alone. To reserve the blocks (``posix_fallocate``) is not
enough: that they now hold something is noted as well.
"""

from __future__ import annotations

import os
from pathlib import Path

_CHUNK_BYTES = 1 << 20


def fill(path: Path, size: int) -> None:
    """Write zeros behind the end of a file until it has ``size`` bytes, and wait until they are on disk.

    Nobody may write behind its end meanwhile. It does nothing where the file is as long already.

    Raises:
        OSError: that cannot be done; what was added is taken away again, so that it takes room from nobody.
    """
    with path.open("r+b", buffering=0) as file:
        end = file.seek(0, os.SEEK_END)
        if end >= size:
            return
        try:
            for start in range(end, size, _CHUNK_BYTES):
                missing = memoryview(bytes(min(_CHUNK_BYTES, size - start)))
                while missing:
                    missing = missing[file.write(missing) :]
            os.fsync(file.fileno())
        except OSError:
            file.truncate(end)
            raise
