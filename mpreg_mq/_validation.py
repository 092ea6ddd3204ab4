"""Range checks that configurations, options and façade arguments share."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import attrs

from mpreg_mq.errors import ConfigurationError

MAX_QUEUE_NAME_LENGTH = 80
MAX_SECONDS = 10 * 366 * 86400.0
"""Ten years: longer delays and timeouts are mistakes, and infinite ones would never fire."""

_QUEUE_NAME = re.compile(r"[A-Za-z0-9_.-]{1,80}\Z")

Check = Callable[[Any], str | None]
"""Answers what was expected, or None where the value is fine."""


MAX_TEXT_LENGTH = 1000
"""Most characters of a reason or an error that are kept."""


def storable(text: str) -> str:
    """A reason or an error as it is kept: not longer than that, and with what UTF-8 cannot encode written out."""
    kept = text[:MAX_TEXT_LENGTH]
    try:
        kept.encode()
    except UnicodeEncodeError:
        return kept.encode("utf-8", "backslashreplace").decode()[:MAX_TEXT_LENGTH]
    return kept


def describe(value: object, limit: int = 60) -> str:
    """``repr`` of a value, cut to ``limit`` characters, for error messages."""
    try:
        text = repr(value)
    # An object's own repr may raise anything, and so does that of an int of more than 4300 digits.
    except Exception as error:
        text = f"{type(value).__name__} (its repr raises {type(error).__name__})"
    return text if len(text) <= limit else f"{text[:limit]}... ({len(text)} characters)"


def queue_name_problem(name: object) -> str | None:
    """What is wrong with a queue name, or None."""
    if isinstance(name, str) and _QUEUE_NAME.match(name) and name.strip("."):
        return None
    return (
        f"got {describe(name)}, expected 1 to {MAX_QUEUE_NAME_LENGTH} characters of A-Z a-z 0-9 _ - . (not only dots)"
    )


def seconds(minimum: float, *, exclusive: bool = False, optional: bool = False) -> Check:
    """Check for a finite number of seconds of at least (or more than) ``minimum``."""

    def check(value: Any) -> str | None:
        if value is None and optional:
            return None
        fine = (
            isinstance(value, int | float)
            and not isinstance(value, bool)
            and (value > minimum if exclusive else value >= minimum)
            and value <= MAX_SECONDS
        )
        if fine:
            return None
        bound = f"more than {minimum:g}" if exclusive else f"{minimum:g} or more"
        return f"got {describe(value)}, expected a number of seconds, {bound} and at most {MAX_SECONDS:.0f}"

    return check


def whole(minimum: int, maximum: int, *, optional: bool = False) -> Check:
    """Check for an int from ``minimum`` to ``maximum``."""

    def check(value: Any) -> str | None:
        if value is None and optional:
            return None
        if isinstance(value, int) and not isinstance(value, bool) and minimum <= value <= maximum:
            return None
        return f"got {describe(value)}, expected a whole number from {minimum} to {maximum}"

    return check


def number(minimum: float, maximum: float) -> Check:
    """Check for a finite number from ``minimum`` to ``maximum``."""

    def check(value: Any) -> str | None:
        if isinstance(value, int | float) and not isinstance(value, bool) and minimum <= value <= maximum:
            return None
        return f"got {describe(value)}, expected a number from {minimum:g} to {maximum:g}"

    return check


def flag(value: Any) -> str | None:
    """Check for a bool."""
    return None if isinstance(value, bool) else f"got {describe(value)}, expected True or False"


def configured(check: Check) -> Callable[[Any, attrs.Attribute[Any], Any], None]:
    """An attrs validator that raises :class:`ConfigurationError` naming class, field, value and range."""

    def validator(instance: Any, attribute: attrs.Attribute[Any], value: Any) -> None:
        problem = check(value)
        if problem is not None:
            raise ConfigurationError(f"{type(instance).__name__}.{attribute.name}: {problem}")

    return validator
