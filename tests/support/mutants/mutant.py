"""What a mutant is: the queue with one fault, put in at a named place for as long as a context lasts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

import attrs

Wrap = Callable[[Any], Any]
"""Makes the faulty thing from the one that is there."""


@attrs.frozen
class Mutant:
    """A fault. ``target`` is ``module:attribute.path`` or ``module:TABLE[Key]``; ``rule`` is what has to catch it."""

    fault: str
    rule: str
    target: str
    wrap: Wrap
    scenario: str = "everything"

    @property
    def part(self) -> str:
        """Decider, projections, actors, invariants or store."""
        module = self.target.partition(":")[0]
        for part in ("decider", "projections", "actors", "invariants"):
            if part in module:
                return part
        return "store"

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The queue has the fault within the block."""
        holder, name, found = resolve(self.target)
        put(holder, name, self.wrap(found))
        try:
            yield
        finally:
            put(holder, name, found)


def resolve(target: str) -> tuple[Any, str, Any]:
    """What holds the target, under which name, and what is there now.

    Raises:
        AttributeError, KeyError: it is not there any more.
    """
    module, _, path = target.partition(":")
    holder: Any = import_module(module)
    path, _, key = path.partition("[")
    *way, name = path.split(".")
    for step in way:
        holder = getattr(holder, step)
    if key:
        table: dict[type[Any], Any] = getattr(holder, name)
        (kind,) = (kind for kind in table if kind.__name__ == key.rstrip("]"))
        return table, kind, table[kind]  # type: ignore[return-value]
    if isinstance(holder, type):
        # As it stands in the class, so that properties and class methods come back as they were.
        return holder, name, next(vars(base)[name] for base in holder.__mro__ if name in vars(base))
    return holder, name, getattr(holder, name)


def put(holder: Any, name: Any, value: Any) -> None:
    if isinstance(holder, dict):
        holder[name] = value
    else:
        setattr(holder, name, value)


def constant(value: Any) -> Wrap:
    """Whatever it was, it is this."""
    return lambda found: value


def returning(value: Any) -> Wrap:
    """Whatever it is asked, it answers this."""
    return lambda found: lambda *arguments, **keywords: value
