"""Client histories in the format of Jepsen, which Elle, Knossos and other checkers read.

One EDN map a line: ``{:index 0, :type :invoke, :process 0, :f :send, :value "m1", :time 1000000}``; ``:time`` is in
nanoseconds since the first operation. Processes are numbered as Jepsen has it: after an unknown outcome a client goes
on under a new number.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from mpreg_mq.testing.clients import ClientHistory, Operation, Outcome


def jepsen_lines(history: ClientHistory) -> Iterator[str]:
    """The lines of the history, invocations and ends in order."""
    numbers: dict[str, int] = {}
    busy: dict[int, Operation] = {}
    taken: dict[int, int] = {}
    start = history.operations[0].began_at if history.operations else 0.0
    free = 0
    latest = 0.0
    for index, (operation, outcome) in enumerate(history.events()):
        if outcome is None:
            number = numbers.get(operation.process)
            if number is None or number in busy:
                number, free = free, free + 1
                numbers[operation.process] = number
            busy[number] = operation
            taken[id(operation)] = number
            at = operation.began_at
        else:
            number = taken[id(operation)]
            busy.pop(number, None)
            if outcome is Outcome.UNKNOWN and numbers.get(operation.process) == number:
                del numbers[operation.process]
            at = operation.ended_at or operation.began_at
        # A new process may have a clock that is behind, and Jepsen's time never runs back.
        latest = max(latest, at - start)
        kind = "invoke" if outcome is None else outcome.value
        fields = {
            "index": index,
            "type": _Keyword(kind),
            "process": number,
            "f": _Keyword(operation.function),
            "value": operation.value,
            "time": round(latest * 1e9),
        }
        if outcome is not None and operation.error is not None:
            fields["error"] = operation.error
        yield "{" + ", ".join(f":{key} {_edn(value)}" for key, value in fields.items()) + "}"


class _Keyword(str):
    __slots__ = ()


def _edn(value: Any) -> str:
    if value is None:
        return "nil"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, _Keyword):
        return f":{value}"
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, list | tuple):
        return "[" + " ".join(_edn(item) for item in value) + "]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_edn(key)} {_edn(item)}" for key, item in value.items()) + "}"
    text = str(value).replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{text}"'
