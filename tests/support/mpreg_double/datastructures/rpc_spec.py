"""What the catalog says of commands."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any


@dataclass(frozen=True)
class RpcParamDoc:
    name: str
    description: str


@dataclass(frozen=True)
class RpcDocSpec:
    summary: str
    description: str
    param_docs: tuple[RpcParamDoc, ...] = ()
    return_doc: str = ""


@dataclass(frozen=True)
class RpcExampleSpec:
    name: str
    description: str = ""
    request: Any = None
    response: Any = None


@dataclass
class RpcRegistration:
    spec: Any
    handler: Callable[..., Any]


@dataclass
class RpcRegistry:
    """Knows no way to take a command back."""

    known: dict[str, RpcRegistration] = field(default_factory=dict)

    def registrations(self) -> tuple[RpcRegistration, ...]:
        return tuple(self.known.values())

    def register(self, name: str, handler: Callable[..., Any], doc: Any, examples: Any) -> None:
        if name in self.known:
            raise ValueError(f"Function '{name}' is already registered (version 1.0.0).")
        assert handler.__name__
        assert inspect.iscoroutinefunction(handler)
        spec = SimpleNamespace(identity=SimpleNamespace(name=name), doc=doc, examples=tuple(examples))
        self.known[name] = RpcRegistration(spec, handler)
