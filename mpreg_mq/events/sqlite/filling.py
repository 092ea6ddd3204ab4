"""Filling a file with zeros up to the size that it will come to anyway.

A sync of a file that has grown waits for the file system to note the new size, and where the new blocks are; one of a
file whose blocks were written before waits for the data alone. To reserve the blocks (``posix_fallocate``) is not
enough: that they now hold something is noted as well.
"""

from __future__ import annotations

import os
from pathlib import Path


def fill(path: Path, step: int, size: int) -> int:
    """Write ``step`` zeros behind the end of a file, but not beyond ``size`` bytes, and wait until they are on disk.

    Returns the bytes that the file has then. Nobody may write behind its end meanwhile.

    Raises:
        OSError: that cannot be done; what was added is taken away again, so that it takes room from nobody.
    """
    with path.open("r+b", buffering=0) as file:
        end = file.seek(0, os.SEEK_END)
        missing = memoryview(bytes(max(0, min(step, size - end))))
        wanted = end + len(missing)
        try:
            while missing:
                missing = missing[file.write(missing) :]
            if wanted > end:
                os.fsync(file.fileno())
        except OSError:
            file.truncate(end)
            raise
    return wanted
