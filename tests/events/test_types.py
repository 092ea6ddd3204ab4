"""Event types: frozen values that msgspec makes and that attrs knows too."""

from __future__ import annotations

import copy
import gc
import pickle
from typing import Any

import attrs
import msgspec
import pytest
from hypothesis import given

from mpreg_mq.events import encode, types
from tests.support.events import events


@given(events())
def test_an_event_cannot_be_changed(event: types.Event) -> None:
    """Given any event, when a field of it is assigned or deleted, then that is refused and the event is as before."""
    before = copy.copy(event)
    for name in type(event).__struct_fields__:
        with pytest.raises(AttributeError):
            setattr(event, name, None)
        with pytest.raises(AttributeError):
            delattr(event, name)
    assert event == before


@given(events())
def test_attrs_knows_events(event: types.Event) -> None:
    """Given any event, then attrs' functions see its fields with their defaults, and can copy and take it apart."""
    value: Any = event
    assert attrs.has(type(event))
    assert [field.name for field in attrs.fields(type(event))] == list(type(event).__struct_fields__)
    assert attrs.asdict(value, recurse=False) == msgspec.structs.asdict(event)
    assert type(event)(**attrs.asdict(value, recurse=False)) == event
    changed = attrs.evolve(value, at=event.at + 1.0)
    assert type(changed) is type(event)
    assert changed == msgspec.structs.replace(event, at=event.at + 1.0)


@pytest.mark.parametrize("cls", sorted(types.EVENT_TYPES, key=str))
def test_attrs_knows_the_defaults(cls: type[Any]) -> None:
    """Given an event type, then attrs reports the default that an event without the field has."""
    required = {field.name: None for field in attrs.fields(cls) if field.default is attrs.NOTHING}
    event = cls(**required)
    for field in attrs.fields(cls):
        if field.name not in required:
            default: Any = field.default
            expected = default.factory() if isinstance(default, attrs.Factory) else default  # type: ignore[arg-type]
            assert getattr(event, field.name) == expected


@given(events())
def test_events_are_plain_values(event: types.Event) -> None:
    """Given any event, then it can be pickled, equals its copy, and is nothing the cyclic collector has to look at."""
    assert pickle.loads(pickle.dumps(event)) == event
    assert encode(copy.copy(event)) == encode(event)
    assert not gc.is_tracked(event)
