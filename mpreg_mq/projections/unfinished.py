"""The unfinished messages of a queue, by id and in lanes, and those that are neither yet because nobody asked.

Most messages are delivered and acknowledged in their order, one behind the other, and nothing ever looks at them. Until
something does, such a message is no more than its event.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator

from mpreg_mq.events import types as e
from mpreg_mq.projections.lanes import Lane, Lanes, Place
from mpreg_mq.projections.message import PLAIN_RANK, Defaults, Message, plain_message
from mpreg_mq.projections.subscribers import Subscriber

MOST_UNPLACED = 10_000
"""They are all placed at once, which takes some milliseconds."""

Unplaced = tuple[e.MessageEnqueued, int, int]
"""A message that nothing has looked at: its event, that event's version, and the message's sequence number."""


class Unfinished:
    """Base of :class:`~mpreg_mq.projections.messages.Messages`: where its messages are.

    The youngest may be unplaced. They are plain, which means at-least-once, of no group and with neither options nor a
    TTL, and of topics that all have the same lane. Whatever asks for messages or lanes has them placed first; only who
    delivers, or counts, need not. What they are among the others follows from their sequence numbers.
    """

    __slots__ = ("_by_id", "_defaults", "_lanes", "_on_doubt", "quick_lane", "unplaced")

    def __init__(self, lanes: Lanes, on_doubt: Callable[[], None] | None) -> None:
        self._lanes = lanes
        self._defaults: Defaults | None = None
        self._by_id: OrderedDict[str, Message] = OrderedDict()
        self._on_doubt = on_doubt
        self.unplaced: dict[str, Unplaced] = {}
        """Messages by id that nothing has looked at yet, oldest first."""
        self.quick_lane: Lane | None = None
        """The lane of the unplaced: that of a message which was acknowledged as soon as it was delivered."""

    def __len__(self) -> int:
        """Unfinished messages."""
        return len(self._by_id) + len(self.unplaced)

    def __iter__(self) -> Iterator[Message]:
        if self.unplaced:
            self.place_all()
        return iter(self._by_id.values())

    @property
    def lanes(self) -> Lanes:
        """The dispatch index, with all that is ready in it."""
        if self.unplaced:
            self.place_all()
        return self._lanes

    @property
    def older_lanes(self) -> Lanes:
        """The dispatch index for who asks what goes first: what is unplaced is younger than all that is in it."""
        return self._lanes

    @property
    def may_deliver(self) -> bool:
        """Whether something could be delivered; false for certain when nobody can take anything."""
        return bool(self.unplaced) or self._lanes.may_deliver

    def get(self, message_id: str) -> Message | None:
        """The unfinished message of an id, or None."""
        if message_id in self.unplaced:
            self.place_all()
        return self._by_id.get(message_id)

    def be_quick(self, lane: Lane) -> None:
        """A message of this lane was acknowledged as soon as it was delivered; let the next ones wait unplaced."""
        defaults = self._defaults
        if self.unplaced or lane.only is None or defaults is None or not defaults.plain:
            return
        if self._lanes.stale:
            # As whoever delivers has them; nobody does while a log is folded. The next message finds its lane again.
            self._lanes.settle()
        else:
            self.quick_lane = lane

    def accepted(self, message_id: str) -> e.MessageEnqueued | None:
        """The event of an unfinished message, or None; nothing more is looked at."""
        unplaced = self.unplaced.get(message_id)
        if unplaced is not None:
            return unplaced[0]
        message = self._by_id.get(message_id)
        return None if message is None else message.event

    def all_accepted(self) -> Iterator[e.MessageEnqueued]:
        """The events of all unfinished messages, in no order; nothing more is looked at. O(1) for each."""
        for event, _, _ in self.unplaced.values():
            yield event
        for message in self._by_id.values():
            yield message.event

    def place_all(self) -> None:
        """Make messages of what was accepted and not looked at, and put them where others stand; O(their number)."""
        unplaced, self.unplaced = self.unplaced, {}
        # It was not worth it.
        self.quick_lane = None
        defaults, by_id, place = self._defaults, self._by_id, self._lanes.place
        assert defaults is not None, "they were accepted"
        try:
            for message_id, (event, version, seq) in unplaced.items():
                by_id[message_id] = message = plain_message(event, seq, version, defaults.max_attempts)
                place(message.slot)
        except BaseException:
            # Ctrl-C, most likely.
            if self._on_doubt is not None:
                self._on_doubt()
            raise

    def first_unplaced(self) -> tuple[Unplaced, Subscriber] | None:
        """What goes next, if that is unplaced, and who can take it now; None says nothing of :attr:`lanes`. O(1)."""
        taker = self.taker_of_unplaced()
        return None if taker is None else (next(iter(self.unplaced.values())), taker)

    def taker_of_unplaced(self) -> Subscriber | None:
        """Who can take what is unplaced now, where nothing goes before it; O(1), amortised."""
        lane = self.quick_lane
        return self._lanes.taker(lane) if lane is not None and self.unplaced else None

    def place_of_unplaced(self) -> Place:
        """Where the first of the unplaced, which there must be, stands in the order of the queue. O(1)."""
        return PLAIN_RANK, next(iter(self.unplaced.values()))[2]
