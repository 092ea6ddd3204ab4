"""How attrs comes to know classes that msgspec made, so that its functions (fields, asdict, evolve, has) take them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import attrs
import msgspec


def show_to_attrs(classes: Iterable[type[msgspec.Struct]]) -> None:
    """Give each class the description of its fields that attrs looks for; nothing else of it changes."""
    for cls in classes:
        fields = {field.name: _shown(field) for field in msgspec.structs.fields(cls)}
        # Only its description is of use, so it gets no methods.
        twin = attrs.make_class(cls.__name__, fields, init=False, eq=False, repr=False, slots=False)
        cls.__attrs_attrs__ = attrs.fields(twin)  # type: ignore[attr-defined]


def _shown(field: msgspec.structs.FieldInfo) -> Any:
    if field.default_factory is not msgspec.NODEFAULT:
        return attrs.field(factory=field.default_factory, type=field.type)
    return attrs.field(default=attrs.NOTHING if field.required else field.default, type=field.type)
