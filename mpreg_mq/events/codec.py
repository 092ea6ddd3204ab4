"""How events become bytes and come back: MessagePack bodies with a type tag and a schema version beside them.

A body is a map of field name to value without the fields that equal their default, so the common event is
small. A default is therefore part of the format: changing one, or anything else but adding a field that has a
default, needs an upcaster in :data:`UPCASTERS`, which also raises the type's schema version.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import reduce
from itertools import compress, count
from operator import attrgetter, or_
from typing import Any, NamedTuple, get_type_hints

import attrs
import msgspec

from mpreg_mq._validation import describe
from mpreg_mq.errors import CorruptLogError, EventLogError, UnknownEventError
from mpreg_mq.events import types
from mpreg_mq.events.types import Event
from mpreg_mq.model import DEFAULT_OPTIONS

Upcaster = Callable[[dict[str, Any]], dict[str, Any]]
"""Turns the field map of one schema version into that of the next."""

EVENT_TYPES: dict[str, type[Event]] = {
    name: cls
    for name, cls in vars(types).items()
    if isinstance(cls, type) and issubclass(cls, Event) and cls is not Event
}
"""Every event type by its tag, which is its class name."""

TYPE_NUMBERS: dict[str, int] = {
    name: number
    for number, name in enumerate(
        (
            "QueueCreated",
            "QueueReconfigured",
            "QueueDeleted",
            "QueuePaused",
            "QueueResumed",
            "SubscriberJoined",
            "SubscriberLeft",
            "CircuitOpened",
            "CircuitHalfOpened",
            "CircuitClosed",
            "MessageEnqueued",
            "FireAndForgetSent",
            "DuplicateRejected",
            "MessageRejected",
            "AudienceFixed",
            "AudienceMemberLeft",
            "MessageDelivered",
            "MessageAcknowledged",
            "DeliveryFailed",
            "LeaseExpired",
            "LeaseExtended",
            "MessageRequeued",
            "QuorumMissed",
            "MessageCompleted",
            "MessageDeadLettered",
            "MessageFailed",
            "MessageExpired",
            "MessageDropped",
            "MessagesPurged",
            "DeadLetterRedriven",
            "DeadLettersPurged",
            "TopicRouteAdded",
            "TopicRouteRemoved",
        )
    )
}
"""What a type is called in :meth:`Codec.encode_many`. The order is part of the format: add new types at the end."""

_TAGS = tuple(TYPE_NUMBERS)

_MOST_TYPES = 128
"""Number of a type at schema version v: its own + 128 * (v - 1), one byte for all that are at their first version."""

UPCASTERS: dict[tuple[str, int], Upcaster] = {}
"""By (type tag, schema version it reads). The current version of a type is one above its last upcaster's."""


def _schema_versions(upcasters: Mapping[tuple[str, int], Upcaster]) -> dict[str, int]:
    versions = dict.fromkeys(EVENT_TYPES, 1)
    for tag, from_version in upcasters:
        versions[tag] = max(versions[tag], from_version + 1)
    return versions


SCHEMA_VERSIONS: dict[str, int] = _schema_versions(UPCASTERS)
"""The schema version this release writes, by type tag."""


class EncodedEvent(NamedTuple):
    """An event as a store keeps it."""

    type: str
    schema: int
    body: bytes


_EVENT = attrgetter("event")
_OPTIONS = attrgetter("options")

_Packer = Callable[[Any], Any]

# A value made by one of these is the same each time; other factories (clocks, random identifiers) are not.
_CONSTANT_FACTORIES = (dict, list, set, frozenset, tuple)


def _packer(cls: type[Event]) -> _Packer | None:
    """The function that turns an event into what is encoded; None where the event itself can be.

    That an event leaves out what equals its default is msgspec's doing, and no business of the attrs values in it.
    """
    hints = get_type_hints(cls)
    nested = [(field.name, field.default) for field in attrs.fields(cls) if attrs.has(hints[field.name])]
    if not nested:
        return None
    pack = _map_packer(cls)

    def pack_unless_default(event: Any) -> Any:
        for name, default in nested:
            if getattr(event, name) is not default:
                return pack(event)
        return event

    return pack_unless_default


def _map_packer(cls: type[Any]) -> Callable[[Any], dict[str, Any]]:
    """Compile the function that turns a value of a class that attrs knows into its map without defaults."""
    hints = get_type_hints(cls)
    required: list[str] = []
    optional: list[tuple[str, Any]] = []
    nested: list[tuple[str, Callable[[Any], dict[str, Any]]]] = []
    for field in attrs.fields(cls):
        default: Any = field.default
        if isinstance(default, attrs.Factory):  # type: ignore[arg-type]
            default = default.factory() if default.factory in _CONSTANT_FACTORIES else attrs.NOTHING
        if default is attrs.NOTHING:
            required.append(field.name)
        else:
            optional.append((field.name, default))
        if attrs.has(hints[field.name]):
            nested.append((field.name, _map_packer(hints[field.name])))

    def pack(value: Any) -> dict[str, Any]:
        body = {name: getattr(value, name) for name in required}
        for name, default in optional:
            item = getattr(value, name)
            if item is not default and item != default:
                body[name] = item
        for name, pack_item in nested:
            if name in body:
                body[name] = pack_item(body[name])
        return body

    return pack


def _plain(value: Any) -> Any:
    """A string or number of a class of its own, such as NumPy's, as what it is one of."""
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, float):
        return float.__float__(value)
    if isinstance(value, int):
        return int.__int__(value)
    raise TypeError(f"objects of type {type(value).__name__} cannot be stored")


def _have_no_options(events: list[Event]) -> bool:
    """Whether all are messages that ask for nothing."""
    if set(map(type, events)) != {types.MessageEnqueued}:
        return False
    # The very ones: others that are equal to them are encoded by their packer, which leaves them out as well.
    return set(map(id, map(_OPTIONS, events))) == {id(DEFAULT_OPTIONS)}


class Codec:
    """Encodes and decodes events. Most code uses the one in :data:`CODEC`; safe to use from many threads.

    A codec of its own takes extra upcasters without changing what the rest of the program reads.
    """

    def __init__(self, upcasters: Mapping[tuple[str, int], Upcaster] = UPCASTERS) -> None:
        self._upcasters = dict(upcasters)
        self._versions = _schema_versions(self._upcasters)
        self._encode_body = msgspec.msgpack.Encoder(enc_hook=_plain).encode
        self._packers = {cls: (tag, _packer(cls)) for tag, cls in EVENT_TYPES.items()}
        decoders = {tag: msgspec.msgpack.Decoder(cls) for tag, cls in EVENT_TYPES.items()}
        self._decoders = {(tag, self._versions[tag]): decoder for tag, decoder in decoders.items()}
        self._decode_items = msgspec.msgpack.Decoder(list[tuple[int, msgspec.Raw]]).decode
        self._number()
        self._encode_json = msgspec.json.Encoder(enc_hook=_plain).encode
        self._json_decoders = {tag: msgspec.json.Decoder(cls) for tag, cls in EVENT_TYPES.items()}

    def _number(self) -> None:
        numbers = {tag: TYPE_NUMBERS[tag] + _MOST_TYPES * (version - 1) for tag, version in self._versions.items()}
        self._number_of = {cls: numbers[tag] for cls, (tag, _) in self._packers.items()}
        self._packer_of = {cls: pack for cls, (_, pack) in self._packers.items()}
        # What is encoded is [number, event]. With the number as a tag, msgspec decodes a whole body in one call.
        items = [
            msgspec.defstruct(
                tag, [("event", EVENT_TYPES[tag])], tag=number, array_like=True, forbid_unknown_fields=True, gc=False
            )
            for tag, number in numbers.items()
        ]
        item: Any = reduce(or_, items)
        self._decode_many = msgspec.msgpack.Decoder(list[item]).decode

    @property
    def schema_versions(self) -> dict[str, int]:
        """The schema version this codec writes, by type tag; a copy."""
        return dict(self._versions)

    def register_upcaster(self, type: str, from_version: int, upcaster: Upcaster) -> None:
        """Read ``from_version`` of a type through ``upcaster``; what is written from now on is at least one above.

        Raises:
            UnknownEventError: there is no such event type.
            EventLogError: ``from_version`` is below 1, or already has an upcaster.
        """
        if type not in EVENT_TYPES:
            raise UnknownEventError(f"upcaster for {describe(type)}: expected one of {', '.join(sorted(EVENT_TYPES))}")
        if from_version < 1 or (type, from_version) in self._upcasters:
            raise EventLogError(
                f"upcaster for {type} from schema version {from_version}: expected a version of 1 or more "
                "that has no upcaster yet"
            )
        self._upcasters[type, from_version] = upcaster
        decoder = self._decoders.pop((type, self._versions[type]))
        self._versions = _schema_versions(self._upcasters)
        self._decoders[type, self._versions[type]] = decoder
        self._number()

    def encode(self, event: Event) -> EncodedEvent:
        """The event's tag, schema version and body; O(size of the event).

        Raises:
            EventLogError: not an event type of this release, or a field holds what MessagePack cannot.
        """
        return self._encode(event, self._encode_body)

    def encode_many(self, events: Iterable[Event]) -> bytes:
        """Events as one body, which costs less time and space than one body each; O(their size).

        Raises:
            EventLogError: as for :meth:`encode`.
        """
        events = tuple(events)
        try:
            kinds = list(map(type, events))
            items: list[Any] = list(zip(map(self._number_of.__getitem__, kinds), events, strict=True))
            packers = list(map(self._packer_of.__getitem__, kinds))
            # Few types have one, and the events of the one that is common are most often encoded as they are: what all
            # of them have is left to the loops of C.
            packed = list(compress(events, packers))
            if packed and not _have_no_options(packed):
                for place in compress(count(), packers):
                    pack = packers[place]
                    assert pack is not None
                    items[place] = (items[place][0], pack(events[place]))
            return self._encode_body(items)
        except (KeyError, TypeError, ValueError, OverflowError, RecursionError, msgspec.MsgspecError):
            # One at a time, to say which.
            for event in events:
                self.encode(event)
            raise

    def decode_many(self, body: bytes) -> list[Event]:
        """The events of :meth:`encode_many`, brought to the current schema.

        Raises:
            UnknownEventError: a newer release wrote one of them.
            CorruptLogError: the body is not what :meth:`encode_many` makes.
        """
        try:
            return list(map(_EVENT, self._decode_many(body)))
        except (msgspec.MsgspecError, ValueError, RecursionError):
            return self._decode_each(body)

    def _decode_each(self, body: bytes) -> list[Event]:
        """The slow way, which knows older schemas and says what is wrong."""
        try:
            items = self._decode_items(body)
        except (msgspec.MsgspecError, ValueError, RecursionError) as error:
            raise _corrupt("a list of events", 1, body, error) from error
        return [self.decode(_tag(number % _MOST_TYPES), number // _MOST_TYPES + 1, bytes(raw)) for number, raw in items]

    def encode_json(self, event: Event) -> EncodedEvent:
        """As :meth:`encode`, with a body of JSON, in which bytes are base64; O(size of the event).

        JSON has no infinite numbers: an event that holds one has the MessagePack body as a JSON string, in base64.
        """
        encoded = self._encode(event, self._encode_json)
        if b"null" in encoded.body and not self._reads_back(encoded, event):
            return encoded._replace(body=self._encode_json(self.encode(event).body))
        return encoded

    def _reads_back(self, encoded: EncodedEvent, event: Event) -> bool:
        try:
            return self.decode_json(*encoded) == event
        except CorruptLogError:
            return False

    def _encode(self, event: Event, encode: Callable[[Any], bytes]) -> EncodedEvent:
        try:
            tag, pack = self._packers[type(event)]
        except KeyError:
            raise EventLogError(
                f"encode: got {describe(event)}, expected an event of mpreg_mq.events.types; define new ones there"
            ) from None
        try:
            body = encode(event if pack is None else pack(event))
        except (TypeError, ValueError, OverflowError, RecursionError, msgspec.MsgspecError) as error:
            raise EventLogError(
                f"encode: {tag} has a field that cannot be stored ({error}): {describe(event)}"
            ) from error
        return EncodedEvent(tag, self._versions[tag], body)

    def decode(self, type: str, schema: int, body: bytes) -> Event:
        """The event that was encoded, brought to the current schema; O(size of the event).

        Raises:
            UnknownEventError: a newer release wrote it.
            CorruptLogError: the body is not what :meth:`encode` makes.
        """
        decoder = self._decoders.get((type, schema))
        if decoder is None:
            return self._decode_older(type, schema, body)
        try:
            return decoder.decode(body)
        except (msgspec.MsgspecError, ValueError, RecursionError) as error:
            raise _corrupt(type, schema, body, error) from error

    def decode_json(self, type: str, schema: int, body: bytes) -> Event:
        """The event of :meth:`encode_json`, brought to the current schema.

        An upcaster sees bytes as the base64 text that they are in JSON.

        Raises:
            UnknownEventError: a newer release wrote it.
            CorruptLogError: the body is not what :meth:`encode_json` makes.
        """
        try:
            if body.startswith(b'"'):
                return self.decode(type, schema, msgspec.json.decode(body, type=bytes))
            if schema == self._versions.get(type):
                return self._json_decoders[type].decode(body)
            return self._upcast(type, schema, lambda: msgspec.json.decode(body, type=dict[str, Any]))
        except EventLogError:
            raise
        # An upcaster is given whatever the text held, so it may raise anything.
        except Exception as error:
            raise _corrupt(type, schema, body, error) from error

    def _decode_older(self, type: str, schema: int, body: bytes) -> Event:
        try:
            return self._upcast(type, schema, lambda: msgspec.msgpack.decode(body, type=dict[str, Any]))
        except UnknownEventError:
            raise
        # An upcaster is given whatever the bytes held, so it may raise anything.
        except Exception as error:
            raise _corrupt(type, schema, body, error) from error

    def _upcast(self, type: str, schema: int, fields_of_body: Callable[[], dict[str, Any]]) -> Event:
        current = self._versions.get(type)
        if current is None:
            raise UnknownEventError(
                f"decode: event type {describe(type)} is not known here; written by a newer release; upgrade mpreg-mq"
            )
        if schema > current:
            raise UnknownEventError(
                f"decode: {type} has schema version {schema}, this release reads up to {current}; "
                "written by a newer release; upgrade mpreg-mq"
            )
        fields = fields_of_body()
        for version in range(schema, current):
            fields = self._upcasters[type, version](fields)
        return msgspec.convert(fields, EVENT_TYPES[type])


def _tag(number: int) -> str:
    return _TAGS[number] if 0 <= number < len(_TAGS) else f"number {number}"


def _corrupt(type: str, schema: int, body: bytes, error: Exception) -> CorruptLogError:
    return CorruptLogError(
        f"decode: the {len(body)} bytes stored as {type} (schema version {schema}) are not such an event: "
        f"{error.__class__.__name__}: {error}; restore the log from a copy"
    )


CODEC = Codec()
"""The codec of this release."""

encode = CODEC.encode
decode = CODEC.decode
