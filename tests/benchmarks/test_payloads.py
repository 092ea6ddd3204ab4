"""What is sent."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from benchmarks.contestants.life import bodies_of, lives
from benchmarks.harness.payloads import JSON_BYTES, Payloads
from mpreg_mq.events.types import MessageAcknowledged, MessageDelivered, MessageEnqueued


def test_small_payloads_are_100_bytes_of_json_and_differ() -> None:
    """Given the small payloads, then each is 100 bytes as compact JSON, and no two are the same."""
    encoded = [msgspec.json.encode(payload) for _, payload in Payloads.small().messages]
    assert {len(body) for body in encoded} == {JSON_BYTES}
    assert len(set(encoded)) == len(encoded)
    assert Payloads.small().mean_bytes == JSON_BYTES


def test_webhooks_are_read_from_a_file(tmp_path: Path) -> None:
    """Given JSON lines with a blank one among them, when they are read and taken, then they come in turn."""
    path = tmp_path / "hooks.jsonl"
    path.write_text('{"topic": "a.b", "payload": {"n": 1}}\n\n{"topic": "a.c", "payload": [2]}\n')
    payloads = Payloads.from_file(path)
    assert payloads.name == "hooks.jsonl"
    assert payloads.take(3) == [("a.b", {"n": 1}), ("a.c", [2]), ("a.b", {"n": 1})]
    assert payloads.mean_bytes == (len('{"n":1}') + len("[2]")) / 2


@pytest.mark.parametrize("text", ["", "not json\n", '{"topic": "a"}\n', "[1, 2]\n", "3\n"])
def test_a_file_of_something_else_is_refused_with_its_name(tmp_path: Path, text: str) -> None:
    """Given a file without messages, or with a line of another form, then the error names the file."""
    path = tmp_path / "hooks.jsonl"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"hooks\.jsonl"):
        Payloads.from_file(path)


def test_a_life_is_three_events() -> None:
    """Given two messages, then their lives are enqueued, delivered, acknowledged, and as many bodies."""
    messages = Payloads.small().take(2)
    kinds = [type(event) for event in lives(messages)]
    assert kinds == [MessageEnqueued, MessageDelivered, MessageAcknowledged] * 2
    assert len(bodies_of(messages)) == 6
    assert all(bodies_of(messages))
