"""Commands on a running server: they ask it over MPREG, and show the same as of a log."""

from __future__ import annotations

import inspect
import json
from typing import Any, Self

import pytest
from click.testing import CliRunner, Result

from mpreg_mq.cli.commands import root
from mpreg_mq.model import QueueStatistics
from mpreg_mq.mpreg import client

URL = "ws://127.0.0.1:9000"


class FakeClient:
    """Answers as a server with one queue does; remembers with what it was made and asked."""

    made: tuple[str, str | None] = ("", None)
    asked: tuple[Any, ...] = ()

    def __init__(self, server: Any, *, token: str | None = None) -> None:
        FakeClient.made = server, token

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        return None

    async def list_queues(self) -> list[str]:
        return ["orders"]

    async def statistics(self, queue: str) -> QueueStatistics:
        return QueueStatistics(messages_sent=7, messages_acknowledged=3, messages_failed=1, current_queue_size=4)

    async def dead_letters(self, queue: str, limit: int = 100) -> list[dict[str, Any]]:
        letter = {"id": "5-x", "topic": "t", "created_at": 1.0, "dead_lettered_at": 2.0, "attempts": 2}
        letter |= {"payload": {"sku": 7}, "headers": {"trace": "abc"}}
        return [
            {**letter, "failure_reason": "because", "last_error": "boom", "subscriber_id": "s", "redriven_from": None}
        ]

    async def redrive(
        self,
        queue: str,
        message_ids: Any = None,
        *,
        limit: int | None = None,
        target_queue: str | None = None,
        dry_run: bool = False,
    ) -> list[str]:
        FakeClient.asked = queue, message_ids, limit, target_queue, dry_run
        return ["9-y"]

    async def purge_dead_letters(self, queue: str, message_ids: Any = None) -> int:
        FakeClient.asked = queue, message_ids
        return 2


@pytest.fixture(autouse=True)
def server(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server answers."""
    monkeypatch.setattr(client, "QueueClient", FakeClient)


def run(*arguments: str) -> Result:
    """Run a command."""
    return CliRunner().invoke(root, list(arguments), prog_name="mpreg-mq")


REAL_CLIENT = client.QueueClient


@pytest.mark.parametrize("name", ["list_queues", "statistics", "dead_letters", "redrive", "purge_dead_letters"])
def test_the_stand_in_takes_what_the_client_takes(name: str) -> None:
    """Given the real client, then the one in these tests has the same parameters."""
    assert inspect.signature(getattr(FakeClient, name)).parameters.keys() == (
        inspect.signature(getattr(REAL_CLIENT, name)).parameters.keys()
    )


def test_stats_and_top_of_a_server() -> None:
    """Given a server, then its counts, with the token that was given or is in the environment."""
    result = run("stats", URL, "--token", "secret", "--json")
    assert result.exit_code == 0, result.output
    figures = json.loads(result.stdout)
    assert (figures["queue"], figures["pending"], figures["statistics"]["messages_sent"]) == ("orders", 4, 7)
    assert figures["subscribers"] is None
    assert FakeClient.made == (URL, "secret")
    result = CliRunner().invoke(root, ["top", URL, "--once"], env={"MPREG_MQ_TOKEN": "from the environment"})
    assert result.exit_code == 0, result.output
    assert "orders" in result.stdout
    assert FakeClient.made == (URL, "from the environment")


def test_a_server_tells_nothing_of_the_past() -> None:
    """Given a moment, then that is wrong usage, and the message says where to ask."""
    result = run("stats", URL, "--until", "5")
    assert result.exit_code == 2
    assert "its log tells how it was" in result.stderr


def test_dead_letters_of_a_server() -> None:
    """Given a server, then its dead letters are listed like those of a log."""
    assert "because" in run("dlq", "list", URL).stdout
    assert json.loads(run("dlq", "list", URL, "--json").stdout)["message_id"] == "5-x"


def test_a_dead_letter_of_a_server_is_shown_whole() -> None:
    """Given the beginning of an id, then reason, headers and payload; given another, then an error that says so."""
    shown = run("dlq", "show", URL, "5").stdout
    assert "orders/5-x on t" in shown
    assert "because" in shown
    assert "header trace: abc" in shown
    assert '"sku": 7' in shown
    row = json.loads(run("dlq", "show", URL, "5-x", "-q", "orders", "--json").stdout)
    assert (row["payload"], row["headers"]) == ({"sku": 7}, {"trace": "abc"})
    missing = run("dlq", "show", URL, "6")
    assert missing.exit_code == 1
    assert "no dead letter has an id that begins with 6" in missing.stderr


def test_purge_on_a_server() -> None:
    """Given ids or --all, then the server is asked for exactly that; given neither, nothing is."""
    assert run("dlq", "purge", URL, "-q", "orders", "5-x").stdout == "2 dead letters purged\n"
    assert list(FakeClient.asked) == ["orders", ("5-x",)]
    line = run("dlq", "purge", URL, "-q", "orders", "--all", "--json").stdout
    assert json.loads(line) == {"queue": "orders", "purged": 2}
    assert list(FakeClient.asked) == ["orders", None]
    assert run("dlq", "purge", URL, "-q", "orders").exit_code == 2


def test_redrive_on_a_server() -> None:
    """Given ids, a limit and a target, then the server is asked for exactly that, also as a dry run."""
    result = run("dlq", "redrive", URL, "-q", "orders", "5-x", "--limit", "1", "--to", "other", "--dry-run")
    assert result.stdout == "1 dead letter would be redriven\n"
    assert FakeClient.asked == ("orders", ("5-x",), 1, "other", True)
    (line,) = run("dlq", "redrive", URL, "-q", "orders", "--json").stdout.splitlines()
    assert json.loads(line) == {"target_queue": "orders", "new_message_id": "9-y", "dry_run": False}
    assert list(FakeClient.asked) == ["orders", None, None, None, False]


def test_without_mpreg_it_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Given no MPREG, then the error is one line that says how to install it."""

    class Missing(FakeClient):
        def __init__(self, server: Any, *, token: str | None = None) -> None:
            raise ModuleNotFoundError("No module named 'mpreg'", name="mpreg")

    monkeypatch.setattr(client, "QueueClient", Missing)
    result = run("stats", URL)
    assert result.exit_code == 1
    assert "asking a server needs mpreg; install MPREG" in result.stderr


def test_no_connection_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """Given a server that cannot be reached, then that is one line, and the exit status 1."""

    class Unreachable(FakeClient):
        async def list_queues(self) -> list[str]:
            raise ConnectionError(f"mq.list: no connection to {URL}: refused")

    monkeypatch.setattr(client, "QueueClient", Unreachable)
    result = run("top", URL, "--once")
    assert result.exit_code == 1
    assert result.stderr == f"mpreg-mq: mq.list: no connection to {URL}: refused\n"
