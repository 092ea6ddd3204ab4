"""Hypothesis strategies for events and what is in them."""

from __future__ import annotations

from enum import Enum
from typing import Any, get_args, get_origin, get_type_hints

import attrs
from hypothesis import strategies as st

from mpreg_mq.configuration import QueueConfiguration
from mpreg_mq.events.types import EVENT_TYPES, Event

SCALARS: dict[Any, st.SearchStrategy[Any]] = {
    float: st.floats(allow_nan=False),
    int: st.integers(-(2**63), 2**63 - 1),
    str: st.text(),
    bytes: st.binary(),
    bool: st.booleans(),
    type(None): st.none(),
}


def values_of(hint: Any) -> st.SearchStrategy[Any]:
    """Any value of a field's type."""
    if hint in SCALARS:
        return SCALARS[hint]
    if hint is QueueConfiguration:
        return configurations()
    if attrs.has(hint):
        return values_of_class(hint)
    if isinstance(hint, type) and issubclass(hint, Enum):
        return st.sampled_from(hint)
    if get_origin(hint) is dict:
        return st.dictionaries(*map(values_of, get_args(hint)))
    if get_origin(hint) is tuple:
        return st.lists(values_of(get_args(hint)[0]), max_size=5).map(tuple)
    return st.one_of(*map(values_of, get_args(hint)))


def values_of_class(cls: type[Any]) -> st.SearchStrategy[Any]:
    """Any value of an attrs class that checks nothing; half of its defaults stay."""
    hints = get_type_hints(cls)
    required = {
        field.name: values_of(hints[field.name]) for field in attrs.fields(cls) if field.default is attrs.NOTHING
    }
    optional = {field.name: values_of(hints[field.name]) for field in attrs.fields(cls) if field.name not in required}
    return st.fixed_dictionaries(required, optional=optional).map(lambda fields: cls(**fields))


def configurations() -> st.SearchStrategy[QueueConfiguration]:
    """Any configuration of values that every field's range includes."""
    in_range = {
        **SCALARS,
        float: st.floats(1.0, 100.0),
        int: st.integers(1, 1000),
        str: st.from_regex(r"[a-z][a-z0-9.-]{0,20}", fullmatch=True),
    }

    def values(name: str, hint: Any) -> st.SearchStrategy[Any]:
        if name == "retry_jitter":
            return st.floats(0.0, 1.0)
        if hint in in_range:
            return in_range[hint]
        if isinstance(hint, type) and issubclass(hint, Enum):
            return st.sampled_from(hint)
        return st.one_of(*(values(name, part) for part in get_args(hint)))

    hints = get_type_hints(QueueConfiguration)
    name = values("name", str)
    others = {key: values(key, hint) for key, hint in hints.items() if key != "name"}
    return st.fixed_dictionaries({"name": name}, optional=others).map(lambda fields: QueueConfiguration(**fields))


def events() -> st.SearchStrategy[Event]:
    """Any event of any type."""
    return st.sampled_from(sorted(EVENT_TYPES, key=lambda cls: cls.__name__)).flatmap(values_of_class)
