"""What every projection has: ``apply(event)``, the only thing that changes it, and ``check()``."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar, TypeVar

from mpreg_mq._collector import collector_paused
from mpreg_mq.errors import ProjectionError
from mpreg_mq.events.types import Event

P = TypeVar("P", bound="Projection")
Handler = Callable[[Any], None]
Handled = Mapping[type[Event], str]
"""Method name by event type."""


class Projection:
    """A fold of events.

    ``HANDLED`` names the method for each event type the projection cares about; other events leave it as it
    is. A handler that meets an event which contradicts the state raises :class:`ProjectionError`.
    """

    __slots__ = ()

    HANDLED: ClassVar[Handled] = {}

    def handler(self, event_type: type[Event]) -> Handler | None:
        """The bound method for events of this type, or None."""
        name = self.HANDLED.get(event_type)
        return None if name is None else getattr(self, name)

    def apply(self, event: Event) -> None:
        """Fold one event in.

        Raises:
            ProjectionError: the event contradicts what came before.
        """
        handler = self.handler(type(event))
        if handler is not None:
            handler(event)

    def apply_all(self, events: Iterable[Event]) -> None:
        """Fold events in, one after another.

        Raises:
            ProjectionError: an event contradicts what came before; those before it are folded in.
        """
        apply = self.apply
        for event in events:
            apply(event)

    def check(self) -> None:
        """Assert the projection's own consistency; O(size).

        Raises:
            AssertionError: it is not consistent.
        """

    @classmethod
    def replay(cls: type[P], events: Iterable[Event]) -> P:
        """The projection of these events."""
        projection = cls()
        with collector_paused():
            projection.apply_all(events)
        return projection


def contradiction(event: Event, found: str) -> ProjectionError:
    """The error of an event that cannot follow what is there."""
    return ProjectionError(f"cannot apply {event!r}: {found}; the log and this release disagree")
