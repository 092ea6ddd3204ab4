"""A log as JSON lines: what an export file looks like, and reading one as a log.

The first line describes the file, each line after it is an event, and the last line counts and checksums what is
before it, so that a file that was cut or changed is noticed. A name that ends in ``.gz`` means gzip.
"""

from __future__ import annotations

import gzip
import os
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from hashlib import blake2b
from itertools import pairwise
from pathlib import Path
from typing import BinaryIO, NoReturn, TypeVar, cast

import msgspec

from mpreg_mq.errors import CorruptLogError, EventLogError
from mpreg_mq.events.codec import CODEC
from mpreg_mq.events.log import Append, RecordedEvent, Snapshot
from mpreg_mq.events.types import Event

FORMAT = "mpreg-mq event log"
FORMAT_VERSION = 1
SUFFIXES = (".jsonl", ".jsonl.gz")
"""Names that :func:`~mpreg_mq.events.opening.open_log` takes for an export."""

_L = TypeVar("_L", bound=msgspec.Struct)


class Base(msgspec.Struct, frozen=True, kw_only=True):
    """The snapshot of a stream whose first events are not there any more."""

    stream: str
    version: int
    body: bytes


class Header(msgspec.Struct, frozen=True, kw_only=True):
    """The first line."""

    format: str
    format_version: int
    streams: list[str] | None = None
    """The streams that were chosen; None for all."""
    base_position: int = 0
    """Position up to which the log had been truncated."""
    bases: list[Base] = []
    """What stands for the truncated events."""


class Line(msgspec.Struct, frozen=True, kw_only=True):
    """An event."""

    position: int
    stream: str
    version: int
    type: str
    schema: int
    event: msgspec.Raw

    @classmethod
    def of(cls, record: RecordedEvent) -> Line:
        """The line of a recorded event."""
        encoded = CODEC.encode_json(record.event)
        return cls(
            position=record.position,
            stream=record.stream,
            version=record.version,
            type=encoded.type,
            schema=encoded.schema,
            event=msgspec.Raw(encoded.body),
        )

    def record(self) -> RecordedEvent:
        """The recorded event of this line."""
        event: Event = CODEC.decode_json(self.type, self.schema, bytes(self.event))
        return RecordedEvent(self.position, self.stream, self.version, event)


class Footer(msgspec.Struct, frozen=True, kw_only=True):
    """The last line. ``last_position`` is the exported log's, ``checksum`` BLAKE2b-128 of all lines before."""

    events: int
    last_position: int
    checksum: str


class LineWriter:
    """Writes lines, and the checksum of what it wrote at the end."""

    def __init__(self, target: BinaryIO) -> None:
        self._target = target
        self._encode = msgspec.json.Encoder().encode
        self._checksum = blake2b(digest_size=16)

    def write(self, line: Header | Line) -> None:
        """Add a line."""
        content = self._encode(line) + b"\n"
        self._checksum.update(content)
        self._target.write(content)

    def finish(self, events: int, last_position: int) -> None:
        """Add the last line."""
        footer = Footer(events=events, last_position=last_position, checksum=self._checksum.hexdigest())
        self._target.write(self._encode(footer) + b"\n")


def open_lines(path: Path) -> BinaryIO:
    """The file for reading, through gzip if its name says so."""
    if path.name.endswith(".gz"):
        return cast(BinaryIO, gzip.open(path))
    return path.open("rb")


class JSONLinesEventLog:
    """A :class:`~mpreg_mq.events.log.RetainingLog` that reads an export; nothing can be appended to it.

    Opening reads the file once to check it, in O(size of the file) time and O(number of streams) memory, and so
    does each read from its first event.

    Raises:
        EventLogError: the file is missing, or a newer release wrote it.
        CorruptLogError: the file was cut or changed; the message says at which line.
    """

    blocking = True
    read_only = True

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._path = Path(os.path.abspath(path))
        self._closed = False
        self._versions: dict[str, int] = {}
        self._last_position = 0
        self._header = Header(format=FORMAT, format_version=FORMAT_VERSION)
        self._bases: dict[str, Snapshot] = {}
        self._check_file()

    @property
    def location(self) -> str:
        """The absolute path."""
        return str(self._path)

    @property
    def closed(self) -> bool:
        """Whether :meth:`close` was called."""
        return self._closed

    # --- checking -----------------------------------------------------------------------------------------

    def _check_file(self) -> None:
        checksum = blake2b(digest_size=16)
        events = 0
        before = b""
        for number, line in self._lines():
            if number == 2:
                self._check_header(before)
            elif number > 2:
                self._note(number - 1, before)
                events += 1
            checksum.update(before)
            before = line
        if not before:
            raise self._damaged(1, "the file is empty")
        footer = self._decoded(events + 2, before, Footer)
        if footer.checksum != checksum.hexdigest() or footer.events != events:
            raise self._damaged(events + 2, "the checksum is not that of the lines before")
        self._last_position = max(self._last_position, footer.last_position)

    def _check_header(self, line: bytes) -> None:
        header = self._decoded(1, line, Header)
        if header.format != FORMAT or header.format_version > FORMAT_VERSION:
            raise EventLogError(
                f"open {self._path}: found {header.format!r} version {header.format_version}, expected {FORMAT!r} "
                f"up to version {FORMAT_VERSION}; where a newer release wrote it, upgrade mpreg-mq"
            )
        self._header = header
        self._bases = {base.stream: Snapshot(base.stream, base.version, base.body) for base in header.bases}
        self._versions = {base.stream: base.version for base in header.bases}
        self._last_position = header.base_position

    def _note(self, number: int, content: bytes) -> None:
        line = self._decoded(number, content, Line)
        version = self._versions.get(line.stream, 0) + 1
        if line.position <= self._last_position or line.version != version:
            raise self._damaged(
                number,
                f"found position {line.position} and version {line.version} of {line.stream!r}, expected a position "
                f"above {self._last_position} and version {version}",
            )
        self._last_position = line.position
        self._versions[line.stream] = line.version

    def _lines(self) -> Iterator[tuple[int, bytes]]:
        """Number, from 1, and content of each line."""
        number = 0
        try:
            with open_lines(self._path) as file:
                for number, line in enumerate(file, 1):
                    if not line.endswith(b"\n"):
                        raise self._damaged(number, "the line does not end")
                    yield number, line
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise self._damaged(number + 1, str(error)) from error
        except OSError as error:
            raise EventLogError(f"open {self._path}: {error}") from error

    def _decoded(self, number: int, line: bytes, cls: type[_L]) -> _L:
        try:
            return msgspec.json.decode(line, type=cls)
        except (msgspec.MsgspecError, ValueError) as error:
            raise self._damaged(number, f"{error}; it begins with {line[:40]!r}") from None

    def _damaged(self, number: int, found: str) -> CorruptLogError:
        return CorruptLogError(
            f"open {self._path}: line {number} is not that of a whole export: {found}; export it again, or take a copy"
        )

    # --- reading ------------------------------------------------------------------------------------------

    def stream_version(self, stream: str) -> int:
        """Version of the stream's last event; 0 where it has none."""
        self._check_open()
        return self._versions.get(stream, 0)

    def streams(self) -> list[str]:
        """Names of the streams that have events, sorted."""
        self._check_open()
        return sorted(self._versions)

    def last_position(self) -> int:
        """Position of the exported log's last event, which may be of a stream that was not chosen."""
        self._check_open()
        return self._last_position

    def read_stream(self, stream: str, after_version: int = 0) -> Iterator[RecordedEvent]:
        """The stream's events above ``after_version``; O(size of the file)."""
        self._check_open()
        return self._records(lambda line: line.stream == stream and line.version > after_version)

    def read_all(self, after_position: int = 0) -> Iterator[RecordedEvent]:
        """All events above ``after_position``; positions have gaps where streams were chosen."""
        self._check_open()
        return self._records(lambda line: line.position > after_position)

    def _records(self, wanted: Callable[[Line], bool]) -> Iterator[RecordedEvent]:
        decode = msgspec.json.Decoder(Line).decode
        lines = (line for _, line in self._lines())
        next(lines, None)
        # The last line is told by what follows: nothing.
        for content, _ in pairwise(lines):
            self._check_open()
            line = decode(content)
            if wanted(line):
                yield line.record()

    def base_position(self) -> int:
        """Position up to which events had been truncated when the log was exported."""
        self._check_open()
        return self._header.base_position

    def base_version(self, stream: str) -> int:
        """Version up to which the stream's events had been truncated when the log was exported."""
        self._check_open()
        base = self._bases.get(stream)
        return 0 if base is None else base.version

    def snapshots(self, stream: str) -> list[Snapshot]:
        """The stream's base, where events before it had been truncated."""
        self._check_open()
        base = self._bases.get(stream)
        return [] if base is None else [base]

    def size_bytes(self) -> int:
        """Size of the file."""
        self._check_open()
        return self._path.stat().st_size

    # --- what only a log that is written can do -----------------------------------------------------------

    def append(self, batch: Sequence[Append]) -> None:
        """Refuse.

        Raises:
            EventLogError: always; so do the other methods that would change something.
        """
        self._refuse("append")

    def save_snapshot(self, snapshot: Snapshot) -> None:
        """Refuse."""
        self._refuse("snapshot")

    def truncate(self, position: int, bases: Mapping[str, Snapshot]) -> None:
        """Refuse."""
        self._refuse("truncate")

    def adopt(self, position: int, bases: Mapping[str, Snapshot]) -> None:
        """Refuse."""
        self._refuse("adopt")

    def record_end(self, position: int) -> int:
        """The base: the file cannot be truncated."""
        return self.base_position()

    def reclaim(self) -> bool:
        """Refuse."""
        self._refuse("reclaim")

    def _refuse(self, what: str) -> NoReturn:
        self._check_open()
        raise EventLogError(
            f"{what}: {self._path} is an export, which can only be read; import it into a log and use that"
        )

    def has_room(self) -> bool:
        """False: nothing can be appended."""
        return False

    def sync(self) -> None:
        """Do nothing: nothing was appended."""
        self._check_open()

    def close(self) -> None:
        """Refuse further use; calling it again does nothing."""
        self._closed = True

    def _check_open(self) -> None:
        if self._closed:
            raise EventLogError(f"the event log {self._path} is closed; open it again")
