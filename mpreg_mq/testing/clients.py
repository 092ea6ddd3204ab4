"""What senders and receivers saw, written down outside the log, so that it can be held against the promises.

An operation begins with :meth:`ClientHistory.invoke` and ends as *ok* (it happened), *fail* (it did not) or *unknown*
(its process ended first, or there was an error that does not tell). Unknown outcomes are never counted as either.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from enum import Enum
from typing import Any

import attrs

from mpreg_mq.model import DeliveryGuarantee


class Outcome(Enum):
    """How an operation ended."""

    OK = "ok"
    FAIL = "fail"
    UNKNOWN = "info"


@attrs.define(eq=False)
class Operation:
    """One thing a client did. ``began`` and ``ended`` are ordinals in the history, ``began_at`` and ``ended_at`` times.

    ``function`` is ``send``, ``deliver`` or ``acknowledge`` (others are kept and not judged); ``value`` names the
    message by what the client knows, usually its payload, whatever that is made of; ``process`` is who did it.
    """

    process: str
    function: str
    value: Any
    began: int
    began_at: float
    details: dict[str, Any] = attrs.field(factory=dict)
    outcome: Outcome | None = None
    ended: int | None = None
    ended_at: float | None = None
    error: str | None = None


class ClientHistory:
    """Operations in the order in which they began."""

    def __init__(self) -> None:
        self.operations: list[Operation] = []
        self.now = 0.0
        self._events: list[tuple[Operation, Outcome | None]] = []

    def __iter__(self) -> Iterator[Operation]:
        return iter(self.operations)

    def __len__(self) -> int:
        return len(self.operations)

    @property
    def ordinal(self) -> int:
        """The ordinal of what comes next."""
        return len(self._events)

    def invoke(self, process: str, function: str, value: Any, at: float | None = None, **details: Any) -> Operation:
        """An operation begins."""
        self.now = self.now if at is None else at
        operation = Operation(process, function, value, self.ordinal, self.now, details)
        self.operations.append(operation)
        self._events.append((operation, None))
        return operation

    def end(self, operation: Operation, outcome: Outcome, at: float | None = None, error: str | None = None) -> None:
        """An operation ends.

        Raises:
            ValueError: ``outcome`` is neither an :class:`Outcome` nor the value of one.
        """
        try:
            outcome = Outcome(outcome)
        except ValueError:
            expected = ", ".join(f"Outcome.{known.name} ({known.value!r})" for known in Outcome)
            raise ValueError(f"ClientHistory.end: got {outcome!r}, expected one of {expected}") from None
        self.now = self.now if at is None else at
        operation.outcome = outcome
        operation.ended, operation.ended_at, operation.error = self.ordinal, self.now, error
        self._events.append((operation, outcome))

    def crash(self, at: float | None = None) -> None:
        """The process ended: whatever was under way has an unknown outcome."""
        for operation in self.operations:
            if operation.outcome is None:
                self.end(operation, Outcome.UNKNOWN, at, "the process ended")

    def events(self) -> Iterator[tuple[Operation, Outcome | None]]:
        """Beginnings (None) and ends, in order."""
        return iter(self._events)

    def of(self, function: str) -> list[Operation]:
        """The operations of one function."""
        return [operation for operation in self.operations if operation.function == function]


class Loss(Enum):
    """Where in the order of accepted messages the lost ones are: what ate them shows in that."""

    PREFIX = "prefix"
    MIDDLE = "middle"
    TAIL = "tail"


@attrs.frozen
class ClientViolation:
    """A promise that a client saw broken: ``kind`` is one of :data:`KINDS`, ``value`` the message."""

    kind: str
    value: Any
    sentence: str
    operations: tuple[Operation, ...] = ()

    def __str__(self) -> str:
        lines = [f"{self.kind}: {self.sentence}"]
        for op in self.operations:
            outcome = "open" if op.outcome is None else op.outcome.value
            lines.append(f"  {op.process} {op.function} {op.value!r} at {op.began_at:g}: {outcome}")
        return "\n".join(lines)


KINDS = ("lost", "duplicated", "unexpected", "out of order", "after acknowledgment")


def check_clients(
    history: ClientHistory,
    *,
    drained: bool = True,
    excused: Iterable[Any] = (),
    forgotten: Collection[Operation] = (),
) -> list[ClientViolation]:
    """What the clients saw that the queue does not promise; O(operations).

    Args:
        history: ``send`` operations may carry ``guarantee=`` and ``group=``. A ``deliver`` operation of a message
            that was fetched may carry ``asked=``, the history's ``ordinal`` when it was asked for: it was leased at
            some moment between that and its coming.
        drained: whether everything had time to be delivered; otherwise nothing counts as lost.
        excused: values of messages that may never arrive: they expired, were dropped, purged or are dead letters.
        forgotten: operations that succeeded and were lost afterwards, where the durability of their queue allows that:
            what came of them counts as unknown.
    """
    return _Clients(history, forgotten).check(drained, {_key(value) for value in excused})


def _key(value: Any) -> Any:
    """Something to find a value by: the same for equal ones, and for a tuple and the list that it arrives as."""
    if type(value) is str:
        return value
    if isinstance(value, Mapping):
        return "mapping", frozenset((_key(name), _key(part)) for name, part in value.items())
    if isinstance(value, list | tuple):
        return "sequence", tuple(_key(part) for part in value)
    if isinstance(value, set | frozenset):
        return "set", frozenset(_key(part) for part in value)
    try:
        hash(value)
    except TypeError:
        return type(value).__qualname__, repr(value)
    return value


class _Clients:
    def __init__(self, history: ClientHistory, forgotten: Collection[Operation]) -> None:
        self.forgotten = forgotten
        self.sends: dict[Any, Operation] = {}
        self.deliveries: dict[Any, list[Operation]] = {}
        self.acknowledgments: dict[Any, list[Operation]] = {}
        self.perhaps: set[Any] = set()
        for operation in history:
            key = _key(operation.value)
            if operation.function == "send":
                self._add_send(key, operation)
            elif operation.function == "deliver":
                self.deliveries.setdefault(key, []).append(operation)
            elif operation.function == "acknowledge" and self._outcome(operation) is Outcome.OK:
                self.acknowledgments.setdefault(key, []).append(operation)
            elif operation.function == "acknowledge" and self._outcome(operation) is not Outcome.FAIL:
                self.perhaps.add(key)

    def _outcome(self, operation: Operation) -> Outcome | None:
        return Outcome.UNKNOWN if operation in self.forgotten else operation.outcome

    def _add_send(self, key: Any, operation: Operation) -> None:
        """Of several tries to send one message, the one that was accepted counts, else one that may have been."""
        before = self.sends.get(key)
        if before is None or self._certainty(operation) < self._certainty(before):
            self.sends[key] = operation

    def check(self, drained: bool, excused: set[Any]) -> list[ClientViolation]:
        found = [*self._unexpected(), *self._duplicated(), *self._after_acknowledgment(), *self._out_of_order()]
        return [*found, *self._lost(excused)] if drained else found

    def _unexpected(self) -> Iterator[ClientViolation]:
        for key, deliveries in self.deliveries.items():
            send, value = self.sends.get(key), deliveries[0].value
            if send is None:
                yield ClientViolation(
                    "unexpected", value, f"{value!r} is delivered and was never sent", (deliveries[0],)
                )
            elif self._outcome(send) is Outcome.FAIL:
                yield ClientViolation(
                    "unexpected", value, f"{value!r} is delivered and its send was refused", (send, deliveries[0])
                )

    def _alone(self, key: Any) -> bool:
        send = self.sends.get(key)
        guarantee = None if send is None else send.details.get("guarantee")
        return guarantee is None or guarantee is DeliveryGuarantee.AT_LEAST_ONCE

    def _duplicated(self) -> Iterator[ClientViolation]:
        for key, acknowledgments in self.acknowledgments.items():
            by_process: dict[str, Operation] = {}
            for operation in acknowledgments:
                value = operation.value
                first = by_process.setdefault("" if self._alone(key) else operation.process, operation)
                if first is not operation:
                    yield ClientViolation(
                        "duplicated", value, f"two acknowledgments of {value!r} counted", (first, operation)
                    )

    def _after_acknowledgment(self) -> Iterator[ClientViolation]:
        for key, acknowledgments in self.acknowledgments.items():
            for delivery in self.deliveries.get(key, ()):
                value = delivery.value
                for done in acknowledgments:
                    mine = self._alone(key) or done.process == delivery.process
                    if mine and done.ended is not None and delivery.details.get("asked", delivery.began) > done.ended:
                        yield ClientViolation(
                            "after acknowledgment",
                            value,
                            f"{value!r} is delivered after its acknowledgment counted",
                            (done, delivery),
                        )
                        break

    def _out_of_order(self) -> Iterator[ClientViolation]:
        """Within a group, what was accepted before another send began is first delivered before it."""
        groups: dict[Any, list[Operation]] = {}
        for send in self.sends.values():
            group = send.details.get("group")
            if group is not None and self._outcome(send) is Outcome.OK and self._remembered(send.value):
                groups.setdefault(_key(group), []).append(send)
        for sends in groups.values():
            group = sends[0].details["group"]
            sends.sort(key=lambda send: self._remembered(send.value)[0].began)
            latest: Operation | None = None
            for send in sends:
                if latest is not None and send.ended is not None and send.ended < latest.began:
                    first, second = self._remembered(latest.value)[0], self._remembered(send.value)[0]
                    yield ClientViolation(
                        "out of order",
                        send.value,
                        f"in group {group!r}, {send.value!r} was sent before {latest.value!r} and delivered after it",
                        (send, latest, first, second),
                    )
                if latest is None or send.began > latest.began:
                    latest = send

    def _remembered(self, value: Any) -> list[Operation]:
        """Deliveries that were not lost: after one that was, what ended an earlier message may be lost as well."""
        return [delivery for delivery in self.deliveries.get(_key(value), ()) if delivery not in self.forgotten]

    def _lost(self, excused: set[Any]) -> Iterator[ClientViolation]:
        accepted = [
            (key, send)
            for key, send in self.sends.items()
            if self._outcome(send) is Outcome.OK
            and send.details.get("guarantee") is not DeliveryGuarantee.FIRE_AND_FORGET
        ]
        done = [self._arrived(key) or key in excused for key, _ in accepted]
        first = next((index for index, arrived in enumerate(done) if arrived), None)
        last = max((index for index, arrived in enumerate(done) if arrived), default=None)
        for index, (key, send) in enumerate(accepted):
            if done[index]:
                continue
            where = Loss.MIDDLE
            if first is None or last is None or index > last:
                where = Loss.TAIL
            elif index < first:
                where = Loss.PREFIX
            seen = self.deliveries.get(key, [])
            how = "was never delivered" if not seen else "was delivered and never acknowledged"
            yield ClientViolation(
                "lost", send.value, f"{send.value!r} was accepted and {how} ({where.value})", (send, *seen[:2])
            )

    def _arrived(self, key: Any) -> bool:
        """Whether somebody was done with it, or may have been: an acknowledgment whose reply is unknown may count."""
        if key in self.acknowledgments or key in self.perhaps:
            return True
        return any(delivery.outcome is Outcome.OK for delivery in self.deliveries.get(key, ()))

    def _certainty(self, send: Operation) -> int:
        return (Outcome.OK, None, Outcome.UNKNOWN, Outcome.FAIL).index(self._outcome(send))
