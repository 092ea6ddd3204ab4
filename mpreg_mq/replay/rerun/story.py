"""One message's story, as events that stand alone and as a test that tells them to the current code."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from enum import Enum
from typing import Any

import attrs
import msgspec

from mpreg_mq.configuration import QueueConfiguration
from mpreg_mq.events import EventLog, base_version
from mpreg_mq.events import types as e
from mpreg_mq.model import MessageOptions
from mpreg_mq.replay.base import again_if_overtaken
from mpreg_mq.replay.endings import ends
from mpreg_mq.replay.records import Progress, read, silent
from mpreg_mq.replay.rerun.engine import rerun_events
from mpreg_mq.replay.source import QUEUE_STREAMS, base_position
from mpreg_mq.replay.subjects import Found, MessageNotFoundError, find_message
from mpreg_mq.replay.wording import in_words, message_ids

_ABOUT_THE_QUEUE = (
    e.QueueCreated,
    e.QueueReconfigured,
    e.QueueDeleted,
    e.QueuePaused,
    e.QueueResumed,
    e.SubscriberJoined,
    e.SubscriberLeft,
)


@again_if_overtaken
def story_of(
    log: EventLog, message_id: str, *, queue: str | None = None, progress: Progress = silent
) -> tuple[Found, list[e.Event]]:
    """A message, and the events that its story needs: its own, and those of its queue and subscribers until its end.

    Raises:
        MessageNotFoundError: the id names no message, or several.
        ReadingStoppedError: the log cannot be read to its end.
    """
    base = base_position(log)
    found = find_message(log, message_id, queue=queue, progress=progress)
    if not found.records or base_version(log, QUEUE_STREAMS + found.queue):
        raise MessageNotFoundError(
            f"{log.location}: the first events of queue {found.queue!r} are compacted, and its story needs them; "
            "use an archive of the log"
        )
    last = found.records[-1].position
    own = {record.position for record in found.records}
    events = [
        _narrowed(record.event, found.message_id)
        for record in read(log, base=base, queue=found.queue, progress=progress)
        if record.position in own or (record.position < last and isinstance(record.event, _ABOUT_THE_QUEUE))
    ]
    return found, events


def _narrowed(event: e.Event, message_id: str) -> e.Event:
    """The event about this message alone."""
    if isinstance(event, e.MessagesPurged | e.DeadLettersPurged) and len(event.message_ids) > 1:
        return type(event)(event.at, (message_id,))
    return event


def assert_same_story(events: Iterable[e.Event]) -> None:
    """Tell a story to the current code and require every decision about it to be the recorded one.

    Raises:
        AssertionError: a decision differs; the message tells which, and what it was and would be.
        ProjectionError: the current code cannot follow the story at all.
    """
    differences = rerun_events(events, alone=True).differences
    if differences:
        raise AssertionError("the current code decides otherwise:\n" + "\n".join(map(str, differences)))


def story_as_test(found: Found, events: Sequence[e.Event], origin: str) -> str:
    """A pytest file that tells the story to the current code."""
    name = re.sub(r"\W+", "_", f"{found.queue}_{found.message_id}").strip("_").lower()
    first = events[0].at
    body = "\n".join(f"    # +{event.at - first:.3f} s {in_words(event)}\n    {as_code(event)}," for event in events)
    end = next((event for event in reversed(events) if ends(event) and found.message_id in message_ids(event)), None)
    outcome = "is unfinished" if end is None else in_words(end)
    imports = _imports({*_NAMES.findall(body)} & _MODEL_NAMES.keys())
    return f'''"""The story of message {found.message_id} in queue {found.queue}, exported from {origin}.

It must go the same way with the current code. Where a change makes it go another way on purpose, export it again.
"""

{imports}

STORY = [
{body}
]


def test_{name}_goes_the_same_way() -> None:
    """Given what happened to the message, then the current code decides the same at every step."""
    assert_same_story(STORY)


def test_{name}_ends_the_same_way() -> None:
    """Given its story, then the message has the end that was recorded: {outcome.replace(chr(34), chr(39))}."""
    state = QueueState.replay(STORY)
    state.check()
    assert (state.messages.get({found.message_id!r}) is None) is {end is not None}
    assert (state.dead_letters.get({found.message_id!r}) is not None) is {_is_dead_letter(events, found.message_id)}
'''


_NAMES = re.compile(r"(?<![\w.])([A-Z]\w+)(?=[(.])")
_MODEL_NAMES = {
    "QueueConfiguration": "mpreg_mq.configuration",
    "MessageOptions": "mpreg_mq.model",
    "DeliveryGuarantee": "mpreg_mq.model",
    "OverflowPolicy": "mpreg_mq.model",
    "QueueType": "mpreg_mq.model",
    "RejectionReason": "mpreg_mq.model",
}


_ALWAYS = (
    "from mpreg_mq.events import types as e",
    "from mpreg_mq.projections import QueueState",
    "from mpreg_mq.replay.rerun import assert_same_story",
)


def _imports(names: Iterable[str]) -> str:
    """Import lines for these names and what every such file needs, in order."""
    modules: dict[str, list[str]] = {}
    for name in sorted(names):
        modules.setdefault(_MODEL_NAMES[name], []).append(name)
    return "\n".join(sorted((*_ALWAYS, *(f"from {module} import {', '.join(of)}" for module, of in modules.items()))))


def _is_dead_letter(events: Sequence[e.Event], message_id: str) -> bool:
    dead = False
    for event in events:
        if message_id in message_ids(event):
            if isinstance(event, e.MessageDeadLettered):
                dead = True
            elif isinstance(event, e.DeadLetterRedriven | e.DeadLettersPurged):
                dead = False
    return dead


def as_code(value: Any) -> str:
    """Python code for an event and what is in it, without fields that have their defaults."""
    if isinstance(value, Enum):
        return f"{type(value).__name__}.{value.name}"
    if isinstance(value, e.Event | QueueConfiguration | MessageOptions):
        prefix = "e." if isinstance(value, e.Event) else ""
        given = ", ".join(f"{name}={as_code(item)}" for name, item in _given(value))
        return f"{prefix}{type(value).__name__}({given})"
    if isinstance(value, tuple):
        return f"({', '.join(map(as_code, value))}{',' if len(value) == 1 else ''})"
    return repr(value)


def _given(value: Any) -> Iterable[tuple[str, Any]]:
    """Names and values of the fields that are not at their defaults."""
    if isinstance(value, msgspec.Struct):
        fields = [(field.name, field.default, field.default_factory) for field in msgspec.structs.fields(value)]
        for name, default, factory in fields:
            item = getattr(value, name)
            unset = factory() if factory is not msgspec.NODEFAULT else default
            if unset is msgspec.NODEFAULT or item != unset:
                yield name, item
        return
    for field in attrs.fields(type(value)):
        item = getattr(value, field.name)
        default = field.default
        if isinstance(default, attrs.Factory):  # type: ignore[arg-type]
            default = default.factory()
        if default is attrs.NOTHING or item != default:
            yield field.name, item
