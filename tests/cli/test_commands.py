"""Each command on the incident's log: what it prints for people, what it prints with --json, and its exit status."""

from __future__ import annotations

import asyncio
import json
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from mpreg_mq import MessageQueueManager, QueueConfiguration
from mpreg_mq.actors.retention import Compactor
from mpreg_mq.cli.commands import root
from mpreg_mq.configuration import RetentionPolicy
from mpreg_mq.events import Append, SQLiteEventLog
from mpreg_mq.events import types as e
from mpreg_mq.replay import following
from tests.cli.conftest import Runner
from tests.support.history import History


def lines(result: Result) -> list[dict[str, Any]]:
    """The JSON lines of a command that went well."""
    assert result.exit_code == 0, result.output
    return [json.loads(line) for line in result.stdout.splitlines()]


def text(result: Result) -> str:
    """What a command that went well printed; nothing of it has blanks at the end of a line."""
    assert result.exit_code == 0, result.output
    assert all(line == line.rstrip() for line in result.stdout.splitlines())
    return result.stdout


def test_log_info(run: Runner) -> None:
    """Given a log, then its streams and their sizes."""
    (info,) = lines(run("log", "info", "LOG", "--json"))
    assert info["last_position"] == 124
    assert [stream["name"] for stream in info["streams"]] == ["queue:mail", "queue:orders"]
    assert "124 events in 2 streams" in text(run("log", "info", "LOG"))


def test_log_show_filters(run: Runner) -> None:
    """Given filters, then only these events, as lines and as JSON with payloads decoded."""
    shown = text(run("log", "show", "LOG", "-q", "orders", "-m", "12-", "--type", "DeliveryFailed"))
    assert (
        shown == "    118  2026-05-01T10:05:10.130Z  orders  12-00a1  attempt 1 failed at warehouse: KeyError: 'sku'\n"
    )
    (first, second) = lines(run("log", "show", "LOG", "--topic", "order.paid", "--since", "106", "-n", "2", "--json"))
    assert (first["position"], first["type"]) == (106, "MessageEnqueued")
    assert first["event"]["payload"] == {"order": 1011, "imported": True}
    assert second["position"] == 107


@pytest.mark.parametrize(
    "arguments",
    [
        ("log", "show", "LOG", "--type", "Nope"),
        ("log", "show", "LOG", "--topic", "a..b"),
        ("log", "show", "LOG", "--since", "yesterday"),
        ("replay", "LOG", "--until", "yesterday"),
        ("diff", "LOG"),
        ("diff", "LOG", "other.db", "--from", "3"),
        ("diff", "LOG", "--from", "5", "--to", "1"),
        ("diff", "LOG", "--from", "now", "--to", "5"),
        ("diff", "LOG", "--from", "5", "--to", "0.5"),
        ("diff", "LOG", "--from", "2026-05-01T10:06Z", "--to", "2026-05-01T10:05Z"),
        ("dlq", "redrive", "LOG"),
        ("dlq", "purge", "LOG", "-q", "orders"),
        ("dlq", "purge", "LOG", "-q", "orders", "--all", "11"),
        ("why", "LOG"),
        ("nonsense",),
    ],
    ids=" ".join,
)
def test_wrong_usage_is_status_2(run: Runner, arguments: tuple[str, ...]) -> None:
    """Given arguments that make no sense, then the exit status is 2, stdout is empty and stderr says what does."""
    result = run(*arguments)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert "Usage:" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("log", "show", "LOG", "-q", "nope"), "there is no queue 'nope'; it has mail, orders"),
        (("log", "tail", "LOG", "-q", "nope"), "there is no queue 'nope'; it has mail, orders"),
        (("why", "LOG", "nope"), "no message has an id that begins with 'nope'"),
        (("why", "LOG", "1"), "'1' is the beginning of 1-00a1 (orders), 1-00a2 (mail)"),
        (("why", "LOG", "@999"), "there is no event at position 999; the last one is at 124"),
        (("trace", "LOG", "order-1012"), "is no message"),
        (("replay", "LOG", "-q", "nope"), "there is no queue 'nope'; it has mail, orders"),
        (("dlq", "show", "LOG", "99"), "no dead letter has an id that begins with 99"),
        (("stats", "/nowhere/log.db"), "there is no such file"),
        (("log", "export", "LOG", "/nowhere/out.jsonl"), "/nowhere"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_errors_are_status_1_and_one_line(run: Runner, arguments: tuple[str, ...], words: str) -> None:
    """Given something that cannot be done, then one line on stderr says what to do, and the exit status is 1."""
    result = run(*arguments)
    assert result.exit_code == 1
    assert result.stdout == ""
    assert result.stderr.startswith("mpreg-mq: ")
    assert result.stderr.count("\n") == 1
    assert words in result.stderr


def test_log_tail(run: Runner) -> None:
    """Given a number, then the last events."""
    assert [line["position"] for line in lines(run("log", "tail", "LOG", "-n", "2", "--json"))] == [123, 124]
    assert len(text(run("log", "tail", "LOG")).splitlines()) == 10


def test_log_tail_follows_a_live_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Given -f on a log that another thread appends to, then new events are printed until Ctrl-C."""
    path = tmp_path / "live.db"
    writer = SQLiteEventLog(path)
    writer.append([Append("queue:q", 0, [e.QueuePaused(1.0)])])
    looked = 0

    def wait(seconds: float) -> None:
        nonlocal looked
        looked += 1
        if looked == 2:
            raise KeyboardInterrupt
        writer.append([Append("queue:q", 1, [e.QueueResumed(2.0)])])

    monkeypatch.setattr(following.follow, "__kwdefaults__", {"wait": wait})
    result = CliRunner().invoke(root, ["log", "tail", "-f", str(path)])
    writer.close()
    assert result.exit_code == 0, result.output
    assert [line.split("  ")[-1] for line in result.stdout.splitlines()] == ["paused: nothing is delivered", "resumed"]


def test_log_tail_says_what_it_did_not_see(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Given -f on a log that is compacted before it is looked at again, then which events are missing is said."""
    path = tmp_path / "live.db"
    events = History().joined("a").sent("1").sent("2").sent("3").events
    looked = 0
    with closing(SQLiteEventLog(path, synchronous="NORMAL")) as writer:
        writer.append([Append("queue:q", 0, events[:1])])

        def wait(seconds: float) -> None:
            nonlocal looked
            looked += 1
            if looked == 2:
                raise KeyboardInterrupt
            for version in range(1, 5):
                writer.append([Append("queue:q", version, events[version : version + 1])])
            for _ in Compactor(writer, RetentionPolicy(keep_events=1, least_events=1), lambda: 0.0).steps():
                pass

        monkeypatch.setattr(following.follow, "__kwdefaults__", {"wait": wait})
        result = CliRunner().invoke(root, ["log", "tail", "-f", str(path)])
    assert result.exit_code == 0, result.output
    assert [line.split()[0] for line in result.stdout.splitlines()] == ["1", "5"]
    assert "events 2 to 4 were compacted before they were read" in result.stderr


def test_export_import_and_diff(run: Runner, tmp_path: Path) -> None:
    """Given an export that is imported again, then the logs hold the same events; of one queue alone they part."""
    exported, imported = str(tmp_path / "all.jsonl.gz"), str(tmp_path / "again.db")
    assert text(run("log", "export", "LOG", exported)) == f"124 events written to {exported}\n"
    (done,) = lines(run("log", "import", exported, imported, "--json"))
    assert done["events"] == 124
    assert text(run("diff", "LOG", imported)) == "the logs hold the same events\n"
    assert lines(run("diff", "LOG", imported, "--json")) == []
    alone = str(tmp_path / "orders.jsonl")
    run("log", "export", "LOG", alone, "-q", "orders")
    parted = text(run("diff", "LOG", alone))
    assert "queue:mail parts at version 1" in parted
    assert "messages_sent" in parted
    (parting, *changes) = lines(run("diff", "LOG", alone, "--json"))
    assert (parting["kind"], parting["right_count"]) == ("parting", 0)
    assert {change["kind"] for change in changes} == {"change"}


def test_diff_of_two_moments(run: Runner) -> None:
    """Given two moments, then the events in between and what they changed."""
    shown = text(run("diff", "LOG", "--from", "115", "--to", "121", "-q", "orders"))
    assert "6 events in between" in shown
    assert "circuits_opened" in shown
    assert "0 events in between" in text(run("diff", "LOG", "--from", "115", "--to", "115"))
    assert "exchange them" in run("diff", "LOG", "--from", "121", "--to", "115").stderr
    events, *changes = lines(run("diff", "LOG", "--from", "-30s", "--json"))
    assert events["count"] == 7
    assert any(change["name"] == "15-00a1" for change in changes)


def test_replay(run: Runner) -> None:
    """Given a moment, then pending messages in order, dead letters, keys, breakers and counts."""
    shown = text(run("replay", "LOG", "-q", "orders", "--rows", "3"))
    assert "pending, in order: 4, the first 3" in shown
    assert "no subscriber free" in shown
    assert "open, for 30.1 s" in shown
    assert "11-00a1" in shown
    rows = lines(run("replay", "LOG", "-q", "orders", "--until", "2026-05-01T10:05:02Z", "--json"))
    assert [row["message_id"] for row in rows if row["kind"] == "pending"] == ["11-00a1"]
    assert text(run("replay", "LOG", "--until", "0")) == "0 events, up to position 0, before the first event\n"


def test_trace(run: Runner, tmp_path: Path) -> None:
    """Given a message, then its life as a table, as JSON, and as a picture."""
    picture = tmp_path / "life.svg"
    result = run("trace", "LOG", "12", "-q", "orders", "--svg", str(picture))
    assert "attempt 1 failed at warehouse: KeyError: 'sku'" in text(result)
    assert "not finished: mpreg-mq why" in result.stderr
    assert picture.read_text().startswith("<svg")
    steps = lines(run("trace", "LOG", "11-", "-q", "orders", "--json"))
    assert [step["type"] for step in steps][-1] == "MessageDeadLettered"
    assert steps[0]["after_seconds"] == 0.0


def test_why(run: Runner) -> None:
    """Given a message, a key or a position, then an answer in words, and the blockers as data."""
    assert "breaker of warehouse open since" in text(run("why", "LOG", "13-", "-q", "orders"))
    assert "duplicate of 12-00a1" in text(run("why", "LOG", "order-1012"))
    assert "duplicate of 12-00a1, its key expires in 9 m 59 s" in text(run("why", "LOG", "@121"))
    (answer,) = lines(run("why", "LOG", "14-00a1", "--json"))
    assert answer["standing"] == "waiting"
    assert answer["ways"][0]["blockers"][0]["kind"] == "no_subscriber"


def test_stats_and_top(run: Runner) -> None:
    """Given a log, then the counts of its queues; top looks once when told to."""
    mail, orders = sorted(lines(run("stats", "LOG", "--json")), key=lambda row: str(row["queue"]))
    assert (mail["statistics"]["messages_acknowledged"], orders["statistics"]["messages_sent"]) == (10, 15)
    assert "90.9%" in text(run("stats", "LOG"))
    assert "orders" in text(run("top", "LOG", "--once"))
    assert {row["queue"] for row in lines(run("top", "LOG", "--once", "--json"))} == {"mail", "orders"}


def test_dead_letters_of_a_fork(run: Runner, tmp_path: Path) -> None:
    """Given a fork, then dead letters are listed, shown, tried, redriven and purged there, and the log stays."""
    copy = str(tmp_path / "fork.db")
    assert text(run("fork", "LOG", copy, "--at", "120")) == f"120 events copied into {copy}\n"
    assert "KeyError: 'sku'" in text(run("dlq", "list", copy))
    (shown,) = lines(run("dlq", "show", copy, "11", "--json"))
    assert shown["payload"] == {"order": 1011, "imported": True}
    assert '"order": 1011' in text(run("dlq", "show", copy, "11"))
    assert "1 dead letter would be redriven" in text(run("dlq", "redrive", copy, "-q", "orders", "--dry-run"))
    assert "breaker of warehouse" in text(run("dlq", "redrive", copy, "-q", "orders", "11"))
    assert text(run("dlq", "list", copy)) == "no dead letters\n"
    assert text(run("dlq", "purge", copy, "-q", "orders", "--all")) == "0 dead letters purged\n"
    (before,) = lines(run("dlq", "list", "LOG", "--json"))
    assert before["message_id"] == "11-00a1"


def test_a_fork_in_the_middle_of_a_decision(run: Runner, tmp_path: Path) -> None:
    """Given the position of a failed attempt, which is not what came of that, then the copy ends before both, and it
    is said."""
    events = lines(run("log", "show", "LOG", "--type", "DeliveryFailed", "-q", "orders", "--json"))
    position = events[0]["position"]
    assert isinstance(position, int)
    result = run("fork", "LOG", str(tmp_path / "fork.db"), "--at", str(position))
    assert result.exit_code == 0
    assert f"position {position} is within a decision; the copy ends before that, at position {position - 1}" in (
        result.stderr
    )
    (told,) = lines(run("fork", "LOG", str(tmp_path / "again.db"), "--at", str(position), "--json"))
    assert (told["events"], told["position"]) == (position - 1, position - 1)


def test_dead_letters_of_a_log_that_is_open_are_not_touched(tmp_path: Path) -> None:
    """Given a log that a process writes, then a redrive of it is refused, a dry run is not."""
    path = tmp_path / "live.db"
    writer = SQLiteEventLog(path)
    dead = History(max_retries=0).joined("a").sent("1").delivered("1", "a").failed("1", "a").dead("1", "a")
    writer.append([Append("queue:q", 0, dead.events)])
    refused = CliRunner().invoke(root, ["dlq", "redrive", str(path), "-q", "q"])
    tried = CliRunner().invoke(root, ["dlq", "redrive", str(path), "-q", "q", "--dry-run"])
    assert writer.last_position() == len(dead.events)
    writer.close()
    assert refused.exit_code == 1, refused.output
    assert tried.exit_code == 0, tried.output


def test_a_redrive_says_what_is_refused(tmp_path: Path) -> None:
    """Given a dead letter that is too large for another queue, when it is redriven there, then stderr says why it is
    not, and it stays, as the dry run said."""
    path = tmp_path / "orders.db"

    async def one_dead_letter() -> None:
        async with MessageQueueManager(log=path) as manager:
            await manager.create_queue("a", QueueConfiguration("a", max_retries=0))
            await manager.create_queue("b", QueueConfiguration("b", max_payload_bytes=10))
            await manager.send_message("a", "t", "x" * 100)
            (message,) = await manager.receive_messages("a", "s")
            await manager.negative_acknowledge("a", message.id, "s")

    asyncio.run(one_dead_letter())
    for options, said in ((["--dry-run"], "would be redriven"), ([], "redriven")):
        result = CliRunner().invoke(root, ["dlq", "redrive", str(path), "-q", "a", "--to", "b", *options])
        assert text(result) == f"0 dead letters {said}\n"
        assert "payload is 102 bytes encoded, expected at most max_payload_bytes=10" in result.stderr
    (dead,) = lines(CliRunner().invoke(root, ["dlq", "list", str(path), "--json"]))
    assert dead["queue"] == "a"


def test_a_closed_stdout_is_no_crash(incident_path: Path) -> None:
    """Given a shell that has closed stdout, then a command ends without a traceback."""
    command = [sys.executable, "-m", "mpreg_mq.cli", "stats", str(incident_path)]
    ended = subprocess.run(["sh", "-c", '"$@" >&-', "sh", *command], stderr=subprocess.PIPE, text=True, check=False)
    assert (ended.returncode, ended.stderr) == (0, "")


def test_no_color_and_no_terminal_mean_plain_text(run: Runner) -> None:
    """Given output that goes to no terminal, then there is not a single escape sequence in it."""
    for arguments in (("replay", "LOG"), ("log", "show", "LOG"), ("trace", "LOG", "11-", "-q", "orders")):
        assert "\x1b" not in text(run(*arguments))


def test_queue_names_complete(incident_path: Path) -> None:
    """Given a log on the command line, when the shell asks for queues, then it gets those of the log."""
    words = f"mpreg-mq replay {incident_path} --queue "
    env = {"_MPREG_MQ_COMPLETE": "bash_complete", "COMP_WORDS": words, "COMP_CWORD": "4"}
    result = CliRunner().invoke(root, [], prog_name="mpreg-mq", env=env)
    assert sorted(result.stdout.split()) == ["plain,mail", "plain,orders"]


def test_rerun(run: Runner) -> None:
    """Given the settings that the queues had, then nothing differs and all is well; given others, each difference."""
    assert text(run("rerun", "LOG")) == "107 decisions made again, 0 differ\n"
    shown = text(run("rerun", "LOG", "--set", "max_retries=1"))
    assert "DeliveryFailed + MessageRequeued -> DeliveryFailed + MessageDeadLettered" in shown
    assert "  + dead letter after 2 attempts" in shown
    difference, summary = lines(run("rerun", "LOG", "--set", "max_retries=1", "--json"))
    assert difference["decided"][1]["type"] == "MessageDeadLettered"
    assert (summary["differences"], summary["followed"]) == (1, 2)
    for wrong in ("max_retries", "max_retry=1", "max_retries=-1"):
        assert run("rerun", "LOG", "--set", wrong).exit_code == 2


def test_a_rerun_that_differs_with_todays_code_is_status_3(run: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    """Given code that decides otherwise, then the exit status says that a promise was broken."""
    monkeypatch.setattr("mpreg_mq.actors.decider.settling.backoff_seconds", lambda *_: 7.123456)
    result = run("rerun", "LOG")
    assert result.exit_code == 3
    assert "2 differ" in result.stdout


def test_export_test(run: Runner, tmp_path: Path) -> None:
    """Given a message, then a test file; one that exists is never written over."""
    out = str(tmp_path / "test_11.py")
    assert "events of orders/11-00a1 written to" in text(run("export-test", "LOG", "11-00a1", "-o", out))
    assert "def test_orders_11_00a1_goes_the_same_way" in Path(out).read_text()
    again = run("export-test", "LOG", "11-00a1", "-o", out)
    assert again.exit_code == 1
    assert "exists" in again.stderr


def test_report(run: Runner, tmp_path: Path) -> None:
    """Given a log, then a page; --json says how large it is."""
    out = tmp_path / "report.html"
    assert text(run("report", "LOG", "-o", str(out))) == f"written to {out}\n"
    assert "Life of message 11-00a1" in out.read_text()
    (done,) = lines(run("report", "LOG", "-o", str(out), "-m", "1-00a2", "--json"))
    assert done["bytes"] == out.stat().st_size


def test_verify(run: Runner, tmp_path: Path) -> None:
    """Given a log, then the verdict; status 0 when all is kept, 3 when a promise was broken, 1 when it is damaged."""
    assert "every promise kept" in text(run("verify", "LOG"))
    (summary,) = lines(run("verify", "LOG", "--json"))
    assert summary["ok"]
    path = tmp_path / "broken.db"
    history = History().joined("a").sent("1").delivered("1", "a").delivered("1", "a", 2)
    writer = SQLiteEventLog(path)
    writer.append([Append("queue:q", 0, history.events)])
    writer.close()
    broken = run("verify", str(path))
    assert broken.exit_code == 3
    assert "L1 broken at position 5 of queue:q, message 1" in broken.stdout
    assert "delivered to a, attempt 1" in broken.stdout
    as_json = run("verify", str(path), "--json")
    assert as_json.exit_code == 3
    assert json.loads(as_json.stdout.splitlines()[0])["evidence"]


def test_a_damaged_log_is_repaired_beside_a_copy(run: Runner, tmp_path: Path) -> None:
    """Given a damaged log, then verify and others end with status 1, repair cuts it, and a whole log is let alone."""
    path = tmp_path / "copy.db"
    run("fork", "LOG", str(path))
    assert "nothing to repair" in text(run("log", "repair", str(path)))
    connection = sqlite3.connect(path)
    with connection:
        connection.execute("UPDATE records SET body = x'ff' WHERE position BETWEEN 60 AND 70")
    connection.close()
    for arguments in (("verify", str(path)), ("replay", str(path)), ("stats", str(path)), ("rerun", str(path))):
        result = run(*arguments)
        assert result.exit_code == 1, arguments
        assert "readable up to position" in result.stderr
    assert "the damaged file is" in text(run("log", "repair", str(path)))
    assert "every promise kept" in text(run("verify", str(path)))
    assert list(tmp_path.glob("copy.db.damaged-1"))


def test_a_repair_says_what_was_lost(run: Runner, tmp_path: Path) -> None:
    """Given a log that is cut, then how many events are lost, or that nobody knows; an archive is status 1 and is not
    touched."""
    path = tmp_path / "copy.db"
    run("fork", "LOG", str(path))
    content = path.read_bytes()
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("UPDATE records SET body = x'ff' WHERE position BETWEEN 60 AND 70")
    kept = json.loads(run("log", "repair", str(path), "--json").stdout)["kept_events"]
    path.write_bytes(content)
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("UPDATE records SET body = x'ff' WHERE position BETWEEN 60 AND 70")
    assert f"{124 - kept} events lost that are known to have been there" in text(run("log", "repair", str(path)))
    path.write_bytes(bytes(100) + content[100:])
    assert "how many events are lost is not known" in text(run("log", "repair", str(path)))
    run("fork", "LOG", str(tmp_path / "compacted.db"))
    path = tmp_path / "compacted.db"
    run("log", "compact", str(path), "--keep-events", "60")
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("UPDATE snapshots SET body = x'ff'")
        connection.execute("UPDATE records SET body = x'ff' WHERE position > 110")
    for words in ("queue:mail, queue:orders: the snapshot in place of", "no repair brings it back"):
        result = run("log", "repair", str(path))
        assert (result.exit_code, words in result.stderr) == (1, True)
    archive = tmp_path / "archive.jsonl.gz"
    run("log", "export", "LOG", str(archive))
    content = archive.read_bytes()
    refused = run("log", "repair", str(archive))
    assert (refused.exit_code, archive.read_bytes()) == (1, content)
    assert "found an export or an archive" in refused.stderr


def test_a_repair_takes_the_address_of_a_log(run: Runner, tmp_path: Path) -> None:
    """Given a log by its address, then it is repaired as by its path; what is no file, or is missing, is said to be."""
    path = tmp_path / "copy.db"
    run("fork", "LOG", str(path))
    assert "nothing to repair" in text(run("log", "repair", f"sqlite:///{path}?synchronous=NORMAL"))
    for target, words in (
        ("nats://127.0.0.1:4222/ORDERS", "repair nats://127.0.0.1:4222/ORDERS: this is no file"),
        ("memory:", "repair memory:: this is no file"),
        (str(tmp_path / "missing.db"), "missing.db: there is no such file"),
    ):
        refused = run("log", "repair", target)
        assert (refused.exit_code, words in refused.stderr) == (1, True), refused.stderr


def test_log_compact(run: Runner, tmp_path: Path) -> None:
    """Given a log and what to keep, then the rest goes into an archive that reads like a log; queues do not change."""
    path, archive = str(tmp_path / "copy.db"), tmp_path / "archive"
    run("fork", "LOG", path)
    assert run("log", "compact", path).exit_code == 2
    assert run("log", "compact", path, "--keep-time", "soon").exit_code == 2
    assert run("log", "compact", str(tmp_path / "none.db"), "--keep-events", "1").exit_code == 1
    before = text(run("replay", path, "-q", "orders")).splitlines()[1:]
    assert "104 events up to position 104 taken out into" in text(
        run("log", "compact", path, "--keep-events", "3", "--archive", str(archive))
    )
    assert text(run("replay", path, "-q", "orders")).splitlines()[1:] == before
    assert "events up to position 104 are compacted" in text(run("log", "info", path))
    (kept,) = archive.iterdir()
    assert text(run("stats", str(kept)))
    assert text(run("log", "compact", path, "--keep-time", "3000d")).endswith("nothing to compact\n")
    (done,) = lines(run("log", "compact", path, "--keep-bytes", "999999999", "--json"))
    assert done == {"events": 0, "archive": None}
