"""From the names of streams of events to NATS subjects and back.

A subject's token holds no space, dot or wildcard, and the name of an event stream is any text.
"""

from __future__ import annotations

import re
from urllib.parse import quote, unquote

PREFIX = "mpreg-mq"
"""First token of every subject of ours."""

_EMPTY = "%"
_STREAM_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}\Z")


def valid_stream_name(name: str) -> bool:
    """Whether a JetStream stream of ours may have this name: letters, digits, ``_`` and ``-``, at most 64."""
    return _STREAM_NAME.match(name) is not None


def token(name: str) -> str:
    """One token of a subject for any text; O(length)."""
    # quote leaves the dot and the tilde as they are; the dot separates tokens.
    return quote(name, safe=":").replace(".", "%2E") or _EMPTY


def name_of(subject_token: str) -> str:
    """The text that :func:`token` was given."""
    return "" if subject_token == _EMPTY else unquote(subject_token)


def events_subject(stream_name: str, event_stream: str) -> str:
    """Where the events of one stream are published."""
    return f"{PREFIX}.{stream_name}.events.{token(event_stream)}"


def all_events_subject(stream_name: str) -> str:
    """Matches the events of all streams of one log."""
    return f"{PREFIX}.{stream_name}.events.*"


def event_stream_of(subject: str) -> str:
    """The name of the event stream whose events are published on ``subject``."""
    return name_of(subject.rsplit(".", 1)[-1])
