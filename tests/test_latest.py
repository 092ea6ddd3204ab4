"""What is kept of what comes again and again."""

from __future__ import annotations

from mpreg_mq.latest import Latest


def test_the_oldest_is_forgotten_and_nothing_else() -> None:
    """Given more than are kept, then the oldest are forgotten; what is noted again, or taken out, makes no room of
    another's."""
    latest: Latest[str, int] = Latest(3)
    for number, key in enumerate("abca"):
        latest.note(key, number)
    assert list(latest.items()) == [("a", 3), ("b", 1), ("c", 2)]
    latest.note("d", 4)
    assert list(latest) == ["b", "c", "d"]
    assert latest.pop("c") == 2
    latest.note("e", 5)
    assert list(latest) == ["b", "d", "e"]
