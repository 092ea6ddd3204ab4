"""The demo: its figures, its input, and that it notices when its log does not tell what happened."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from mpreg_mq.demo.cli import demo
from mpreg_mq.demo.verify import conservation_problems, verify
from mpreg_mq.events import types as e
from mpreg_mq.projections import QueueState


def test_the_scenes_run_and_the_log_agrees(tmp_path: Path) -> None:
    """Given a few orders, then every figure adds up and the rebuilt state equals the live one."""
    result = CliRunner().invoke(demo, ["--messages", "50", "--json", "--log", str(tmp_path / "demo.db")])
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert report["ok"]
    assert report["verification"]["problems"] == []
    orders = report["orders"]
    assert (orders["paid"], orders["shipped"]) == (50, 50)
    assert (orders["dead_letters"], orders["redriven"], orders["duplicates_rejected"]) == (2, 2, 5)
    assert orders["notified"] + orders["expired"] == 50
    assert len(report["scenes"]) == 10


def test_tables_are_for_people(tmp_path: Path) -> None:
    """Given no --json, then there are tables and the verdict."""
    lines = tmp_path / "in.jsonl"
    lines.write_text('{"topic": "a.b", "payload": 1}\n\n{"topic": "a.c.d", "payload": {"x": 2}}\n')
    result = CliRunner().invoke(demo, ["--input", str(lines)])
    assert result.exit_code == 0, result.output
    assert "a.b.#" in result.output
    assert "no message is lost" in result.output


def test_input_goes_through_patterns_as_a_naive_matcher_says(tmp_path: Path) -> None:
    """Given a file and more messages than lines, then it is repeated and the counts agree."""
    lines = tmp_path / "in.jsonl"
    lines.write_text("".join(json.dumps({"topic": f"t.{n % 3}.x", "payload": n}) + "\n" for n in range(7)))
    result = CliRunner().invoke(demo, ["--input", str(lines), "--messages", "200", "--json"])
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)["input"]
    assert report["messages"] == report["per_pattern"]["#"] == 200
    assert report["matches_naive"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("not json\n", "line 1: not JSON"),
        ('{"topic": "a", "payload": 1}\n{"topic": "a"}\n', 'line 2: expected an object with "topic"'),
        ('{"topic": "a..b", "payload": 1}\n', "line 1"),
        ("\n", "no messages"),
    ],
)
def test_malformed_input_is_named_by_its_line(tmp_path: Path, text: str, words: str) -> None:
    """Given a bad line, then the error names it and the exit status is 1."""
    path = tmp_path / "in.jsonl"
    path.write_text(text)
    result = CliRunner().invoke(demo, ["--input", str(path)])
    assert result.exit_code == 1
    assert words in result.output


def test_usage_errors_are_status_2() -> None:
    """Given a number of messages below one, then it is a usage error."""
    assert CliRunner().invoke(demo, ["--messages", "0"]).exit_code == 2


def test_a_live_state_that_the_log_does_not_tell_is_noticed(tmp_path: Path) -> None:
    """Given a live state with an event the log lacks, then the comparison says what differs."""
    from mpreg_mq import MessageQueue, QueueConfiguration

    path = tmp_path / "q.db"
    queue = MessageQueue(QueueConfiguration("q"), log=path)
    queue.shutdown_sync()
    state = queue._actor.state
    assert verify(f"sqlite:///{path}", {"q": state}).ok
    state.apply(e.MessageEnqueued(state.last_at, "m", "t", b""))
    verification = verify(f"sqlite:///{path}", {"q": state})
    assert not verification.ok
    assert any("pending differs" in problem for problem in verification.problems)


def test_i2_is_checked_from_the_events_alone() -> None:
    """Given events that end a message twice or one never accepted, then both are problems."""
    events = [e.MessageEnqueued(1.0, "m", "t", b""), e.MessageExpired(1.0, "m"), e.MessageExpired(1.0, "m")]
    problems = list(conservation_problems([*events, e.MessagesPurged(1.0, ("x",))], QueueState()))
    assert any("ended twice" in problem for problem in problems)
    assert any("never accepted" in problem for problem in problems)
    lost = list(conservation_problems(events[:1], QueueState()))
    assert any("neither finished nor held" in problem for problem in lost)
