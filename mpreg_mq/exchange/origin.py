"""Where a message came from, in its headers: its publisher, and the queues that it has been in.

The trail of queues keeps a message that came from a queue from entering it again, whoever published it in between.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

import msgspec

from mpreg_mq.actors.current import current_delivery

PREFIX = "mpreg-mq."
PUBLISHER = PREFIX + "publisher"
MESSAGE_ID = PREFIX + "message-id"
PUBLISHED_AT = PREFIX + "published-at"
PATTERN = PREFIX + "route"
TRAIL = PREFIX + "trail"

MAX_TRAIL = 32
"""Most queues that a message passes through before it counts as going in circles."""

Trail = tuple[str, ...]


def place(cluster: str, queue_name: str) -> str:
    """How a trail names a queue: unlike that of any other cluster, and without a comma."""
    return f"{quote(cluster, safe='')}/{queue_name}" if cluster else queue_name


def trail_of(headers: Mapping[str, Any] | None) -> Trail:
    """The trail in a message's headers; empty where there is none, or none that can be read."""
    text = headers.get(TRAIL) if headers else None
    return tuple(text.split(",")) if isinstance(text, str) and text else ()


def current_trail(cluster: str) -> Trail:
    """The queues behind the message whose callback runs here, its own queue last; empty outside of callbacks."""
    message = current_delivery.get()
    if message is None:
        return ()
    return joined(trail_of(message.headers), (place(cluster, message.id.source_node),))


def with_trail(headers: Mapping[str, Any], trail: Trail) -> dict[str, Any]:
    """The headers with this trail instead of theirs."""
    merged = {key: value for key, value in headers.items() if key != TRAIL}
    if trail:
        merged[TRAIL] = ",".join(trail)
    return merged


def joined(first: Trail, second: Trail) -> Trail:
    """Both trails, each place once, in the order in which they were passed."""
    return tuple(dict.fromkeys((*first, *second)))


def text_headers(headers: Mapping[str, Any]) -> dict[str, str]:
    """Headers as a queue takes them: text stays, None goes, anything else becomes JSON."""
    return {str(key): _text(value) for key, value in headers.items() if value is not None}


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value
    try:
        return msgspec.json.encode(value).decode()
    # An object's own code may raise anything.
    except Exception:
        return f"<{type(value).__name__}>"


def origin_headers(message: Any, pattern: str, trail: Trail) -> dict[str, str]:
    """The headers of a published message on its way into a queue, with its origin.

    What it says of its own origin under our names does not count, but for the trail.
    """
    headers = {key: value for key, value in text_headers(message.headers or {}).items() if not key.startswith(PREFIX)}
    headers[PUBLISHER] = str(message.publisher)
    headers[MESSAGE_ID] = str(message.message_id)
    headers[PUBLISHED_AT] = repr(float(message.timestamp))
    headers[PATTERN] = pattern
    if trail:
        headers[TRAIL] = ",".join(trail)
    return headers
