"""The event log on JetStream, against a real server: what it promises beyond the contract of every log."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest

from mpreg_mq import MessageQueueManager
from mpreg_mq.errors import CorruptLogError, EventLogError, LogFullError, OwnershipLostError, VersionConflictError
from mpreg_mq.events import Append, Event, EventLog, MessageEnqueued, RecordedEvent, open_log
from tests.support.nats_servers import fresh_stream, nats_cluster, require_nats, shared_server
from tests.support.numbered_events import event, events
from tests.support.running import Recorder, until


@pytest.fixture(autouse=True)
def servers() -> None:
    """Skip where no server can be run."""
    require_nats()


def large(megabytes: float) -> Event:
    return MessageEnqueued(at=1.0, message_id="large", topic="t", payload=bytes(int(megabytes * (1 << 20))))


def read(log: EventLog, stream: str, after_version: int = 0) -> list[Event]:
    return [record.event for record in log.read_stream(stream, after_version)]


# --- what is appended together ------------------------------------------------------------------------------


def test_events_of_one_append_are_one_message(log: Any) -> None:
    """Given appends of many events, then the stream holds a message for each append, not for each event."""
    log.append([Append("queue:a", 0, events(500))])
    log.append([Append("queue:a", 500, events(500))])
    assert log._call(log._reader.last_sequence()) == 2
    assert log.stream_version("queue:a") == 1000


@pytest.mark.parametrize("megabytes", [1, 1.5, 5])
def test_an_event_larger_than_a_message_is_stored_in_parts(log: Any, megabytes: float) -> None:
    """Given an event of more than the server takes in a message, then it is stored whole, between others."""
    log.append([Append("queue:a", 0, events(1))])
    log.append([Append("queue:a", 1, (event(2), large(megabytes))), Append("queue:b", 0, events(1))])
    log.append([Append("queue:a", 3, events(1, 4))])
    assert read(log, "queue:a") == [event(1), event(2), large(megabytes), event(4)]
    assert [record.version for record in log.read_all()] == [1, 2, 3, 1, 4]
    for after in range(5):
        assert len(read(log, "queue:a", after)) == 4 - after


def test_positions_rise_and_reading_goes_on_after_any_of_them(log: Any) -> None:
    """Given frames of several events and parts, then positions rise, and each is a place to read on from."""
    log.append([Append("queue:a", 0, (event(1), large(2), event(3))), Append("queue:b", 0, events(2))])
    log.append([Append("queue:a", 3, events(2))])
    records = list(log.read_all())
    positions = [record.position for record in records]
    assert positions == sorted(set(positions))
    assert log.last_position() == positions[-1]
    for place, position in enumerate(positions, start=1):
        assert list(log.read_all(position)) == records[place:]


def test_streams_that_have_nothing_in_common_are_appended_to_in_one_go(log: Any) -> None:
    """Given appends for many streams, some of which do not fit, then each stream succeeds or fails by itself."""
    log.append([Append("queue:1", 0, events(1))])
    outcomes = log.append_each(
        [Append(f"queue:{number}", 0, events(1)) for number in range(3)]
        + [Append("queue:0", 1, events(1, 2)), Append("queue:2", 5, events(1))]
    )
    assert outcomes[0] is None
    assert outcomes[3] is None
    assert isinstance(outcomes[1], VersionConflictError)
    assert isinstance(outcomes[2], VersionConflictError)
    assert isinstance(outcomes[4], VersionConflictError)
    assert [log.stream_version(f"queue:{number}") for number in range(3)] == [2, 1, 0]


def test_the_tail_of_a_long_stream_is_found_with_few_requests(log: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Given a stream of 600 messages among as many others, then reading its end does not read its beginning."""
    for version in range(600):
        log.append_each([Append("queue:a", version, events(1, version)), Append("queue:b", version, events(1))])
    sequences: list[int] = []
    chunk = log._engine.chunk

    async def noted(subject: str, sequence: int, *rest: Any) -> Any:
        sequences.append(sequence)
        return await chunk(subject, sequence, *rest)

    monkeypatch.setattr(log._engine, "chunk", noted)
    assert read(log, "queue:a", 590) == list(events(10, 590))
    assert min(sequences) > 1000


# --- when no answer comes -----------------------------------------------------------------------------------


@pytest.mark.parametrize("appends", [1, 2])
def test_an_append_whose_confirmation_is_lost_is_stored_once(
    log: Any, monkeypatch: pytest.MonkeyPatch, appends: int
) -> None:
    """Given confirmations that get lost, then the append is tried again, recognised, and answered as a success."""
    from mpreg_mq.events.nats.engine import UnansweredError

    store = log._engine.store
    lost: list[int] = []

    async def lose_the_first(messages: Any) -> int:
        sequence: int = await store(messages)
        if not lost:
            lost.append(sequence)
            raise UnansweredError("nats: timeout")
        return sequence

    monkeypatch.setattr(log._engine, "store", lose_the_first)
    batch = [Append(f"queue:{number}", 0, events(2)) for number in range(appends)]
    log.append(batch)
    log.append([Append("queue:0", 2, events(1, 3))])
    assert len(lost) == 1
    assert read(log, "queue:0") == list(events(3))
    assert log._call(log._reader.last_sequence()) == appends + 1


def test_an_append_that_is_overtaken_while_unanswered_is_a_conflict(log: Any, url: str) -> None:
    """Given an append that never arrived and another writer's that did, then the retry is refused."""
    from mpreg_mq.events.nats.engine import UnansweredError

    other = open_log(url)
    store = log._engine.store
    tries: list[int] = []

    async def overtaken(messages: Any) -> int:
        tries.append(1)
        if len(tries) == 1:
            await asyncio.to_thread(other.append, [Append("queue:a", 0, events(1, 7))])
            raise UnansweredError("nats: timeout")
        sequence: int = await store(messages)
        return sequence

    log._engine.store = overtaken
    with pytest.raises(VersionConflictError, match="is at version 1, the append expected 0"):
        log.append([Append("queue:a", 0, events(1))])
    other.close()


# nats-py leaves the streams of a connection that it has lost to the collector.
@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_without_a_server_an_append_is_refused_in_time_and_goes_on_later() -> None:
    """Given a server that is killed, then an append says that its outcome is unknown; after a restart it goes on.

    What became of that append is known once it has come after all or another one has taken its place.
    """
    with nats_cluster() as cluster:
        log: Any = open_log(cluster.url("LOG", "append_timeout_seconds=1"))
        log.append([Append("queue:a", 0, events(2))])
        cluster.servers[0].kill()
        with pytest.raises(EventLogError, match="no confirmation within 1 s"):
            log.append([Append("queue:a", 2, events(1, 3))])
        with pytest.raises(EventLogError, match="see whether the servers run"):
            log.stream_version("queue:a")
        cluster.start()
        version = log.stream_version("queue:a")
        assert version in (2, 3)
        try:
            log.append([Append("queue:a", version, events(1, version + 1))])
        except VersionConflictError:
            # The client sends what was under way once it is connected again, which can be after the look.
            assert (version, log.stream_version("queue:a")) == (2, 3)
            version = 3
            log.append([Append("queue:a", version, events(1, version + 1))])
        assert read(log, "queue:a") == list(events(version + 1))
        log.close()


def test_a_full_stream_refuses_new_events_and_keeps_the_old(log: Any) -> None:
    """Given a stream that an administrator has limited, then an append beyond is refused as a full log."""
    log.append([Append("queue:a", 0, events(1))])
    name = log.target.stream
    settings = log._call(log._engine.api(f"STREAM.INFO.{name}", {}))["config"]
    log._call(log._engine.api(f"STREAM.UPDATE.{name}", {**settings, "max_bytes": 4096}))
    with pytest.raises(LogFullError, match="maximum bytes exceeded"):
        log.append([Append("queue:a", 1, (large(0.1),))])
    log.append([Append("queue:a", 1, events(1, 2))])
    assert read(log, "queue:a") == list(events(2))


def test_nobody_there_is_said_when_opening() -> None:
    """Given an address where nobody listens, then opening fails in time and says so."""
    with pytest.raises(EventLogError, match=r"no server answers within 0\.5 s"):
        open_log("nats://127.0.0.1:9/LOG?connect_timeout_seconds=0.5")


# --- ownership ----------------------------------------------------------------------------------------------


def test_a_new_owner_shuts_out_the_old_one(log: Any, url: str) -> None:
    """Given a stream that another log claims, then every append of the owner before is refused by the server."""
    new: Any = open_log(url)
    first = log.claim("queue:a", "old")
    log.append([Append("queue:a", 0, events(2))])
    second = new.claim("queue:a", "new")
    assert (first.epoch, second.epoch, second.version) == (1, 2, 2)
    with pytest.raises(OwnershipLostError, match=r"has an owner of epoch 2, this log was its owner of epoch 1"):
        log.append([Append("queue:a", 2, events(1, 3))])
    new.append([Append("queue:a", 2, events(1, 4))])
    assert read(new, "queue:a") == [event(1), event(2), event(4)]
    assert new.streams() == ["queue:a"]
    new.close()


def test_the_server_and_not_the_clients_memory_shuts_out_the_old_owner(log: Any, url: str) -> None:
    """Given an old owner that looks at nothing before it appends, then JetStream refuses the append itself."""
    from mpreg_mq.events.nats.engine import MismatchError

    refused: list[MismatchError] = []
    store = log._engine.store

    async def noted(messages: Any) -> int:
        try:
            sequence: int = await store(messages)
        except MismatchError as error:
            refused.append(error)
            raise
        return sequence

    log._engine.store = noted
    log.claim("queue:a", "old")
    new: Any = open_log(url)
    new.claim("queue:a", "new")
    with pytest.raises(OwnershipLostError):
        log.append([Append("queue:a", 0, events(1))])
    assert [error.error_code for error in refused] == [10071]
    new.close()


def test_a_log_that_owns_nothing_cannot_append_to_an_owned_stream(log: Any, url: str) -> None:
    """Given an owned stream, then a log that has not claimed it is refused, and so is one that has released it."""
    log.claim("queue:a", "owner")
    stranger: Any = open_log(url)
    with pytest.raises(OwnershipLostError, match="this log is not its owner"):
        stranger.append([Append("queue:a", 0, events(1))])
    log.release("queue:a")
    with pytest.raises(OwnershipLostError, match="this log is not its owner"):
        log.append([Append("queue:a", 0, events(1))])
    stranger.append([Append("queue:b", 0, events(1))])
    stranger.close()


def test_a_claim_is_above_every_epoch_there_was(log: Any) -> None:
    """Given epochs from elsewhere, then a claim's is above them and above those in the log."""
    assert log.claim("queue:a", "n", above=7).epoch == 8
    assert log.claim("queue:a", "n", above=3).epoch == 9


# --- what is stored -----------------------------------------------------------------------------------------


def test_a_log_is_there_again_after_its_process(url: str) -> None:
    """Given a log that was closed, when it is opened again, then everything is there and goes on."""
    log = open_log(url)
    log.append([Append("queue:a", 0, events(3))])
    log.close()
    log = open_log(url)
    assert read(log, "queue:a") == list(events(3))
    log.append([Append("queue:a", 3, events(1, 4))])
    log.close()
    log = open_log(url, read_only=True)
    assert [(record.stream, record.version) for record in log.read_all()] == [("queue:a", n) for n in (1, 2, 3, 4)]
    with pytest.raises(EventLogError, match="opened read-only"):
        log.append([Append("queue:a", 4, events(1))])
    log.close()


def test_a_missing_log_is_not_made_by_reading(url: str) -> None:
    """Given no such stream, when it is opened read-only, then that fails and makes none."""
    for _ in range(2):
        with pytest.raises(EventLogError, match="stream not found"):
            open_log(url, read_only=True)


def test_a_stream_of_another_program_is_refused(log: Any) -> None:
    """Given a JetStream stream that is no log, then opening it says whose it is not."""
    name = fresh_stream()
    log._call(log._engine.api(f"STREAM.CREATE.{name}", {"name": name, "subjects": [f"{name}.x"], "storage": "memory"}))
    with pytest.raises(EventLogError, match="stream of another program"):
        open_log(shared_server().url(name))


def publish(log: Any, subject: str, payload: bytes, headers: dict[str, str]) -> None:
    log._call(log._engine.request(subject, payload, headers))


def test_bytes_that_were_not_written_by_a_log_are_found(log: Any) -> None:
    """Given messages without a label, with a damaged body or out of their order, then reading stops there."""
    from mpreg_mq.events.nats.frames import HEADER, Head, encode_frame, encode_pieces

    subject = f"mpreg-mq.{log.target.stream}.events."
    publish(log, f"{subject}no-label", b"", {"Other": "1"})
    ((label, body),) = encode_frame(Head(), encode_pieces([event(1)]), 0, "", 1 << 20)
    publish(log, f"{subject}damaged", body[:-1] + b"\x00", {HEADER: str(label)})
    publish(log, f"{subject}twice", body, {HEADER: str(label)})
    publish(log, f"{subject}twice", body, {HEADER: str(label)})
    with pytest.raises(CorruptLogError, match="no frame's label"):
        read(log, "no-label")
    with pytest.raises(CorruptLogError, match="the checksum of versions 1 to 1"):
        read(log, "damaged")
    with pytest.raises(CorruptLogError, match=r"goes on from version 1 .* with version 1"):
        read(log, "twice")


def test_a_newer_frame_format_is_refused(log: Any) -> None:
    """Given a frame of a newer release, then the error says to upgrade."""
    from mpreg_mq.errors import UnknownEventError
    from mpreg_mq.events.nats.frames import HEADER

    publish(log, f"mpreg-mq.{log.target.stream}.events.new", b"", {HEADER: "2 1 1 0 0 0 1/1"})
    with pytest.raises(UnknownEventError, match="frame format 2, this release reads 1"):
        read(log, "new")


# --- power loss ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("settings", "warned"), [("sync_interval: always", False), ("", True)])
def test_servers_that_do_not_sync_always_are_warned_about(
    caplog: pytest.LogCaptureFixture, settings: str, warned: bool
) -> None:
    """Given servers whose monitoring is named, then a warning says when they do not sync always."""
    with nats_cluster(settings=settings) as cluster, caplog.at_level(logging.WARNING, "mpreg_mq"):
        open_log(cluster.url("LOG", f"monitor={cluster.servers[0].monitor}")).close()
    assert ("does not sync always" in caplog.text) is warned
    assert "cannot find out" not in caplog.text


def test_not_knowing_whether_servers_sync_is_warned_about(caplog: pytest.LogCaptureFixture) -> None:
    """Given no monitoring, or one that does not answer, then a warning says that it is not known."""
    server = shared_server()
    with caplog.at_level(logging.WARNING, "mpreg_mq"):
        open_log(server.url(fresh_stream())).close()
        open_log(server.url(fresh_stream(), "monitor=http://127.0.0.1:9")).close()
        open_log(server.url(fresh_stream(), "monitor=127.0.0.1")).close()
    assert "cannot find out whether its servers sync always" in caplog.text
    assert caplog.text.count("does not answer") == 2


# --- queues on it -------------------------------------------------------------------------------------------


def test_queues_work_on_it_and_are_there_after_a_restart(url: str) -> None:
    """Given a manager on JetStream, then sends are delivered, and a second manager finds what the first left."""

    async def before() -> None:
        async with MessageQueueManager(log=url) as manager:
            seen = Recorder()
            manager.subscribe_to_queue("q", "s", "#", seen)
            await manager.create_queue("q")
            manager.subscribe_to_queue("q", "s", "done.#", seen)
            results = await asyncio.gather(*(manager.send_message("q", "done.x", n) for n in range(20)))
            assert all(result.success for result in results)
            await until(lambda: len(seen.messages) == 20)
            assert (await manager.send_message("q", "later", "kept")).success

    async def after() -> None:
        async with MessageQueueManager(log=url) as manager:
            (message,) = await manager.receive_messages("q", "p", 10)
            assert message.payload == "kept"
            assert await manager.acknowledge_message("q", message.id, "p")
            assert manager.get_global_statistics().total_messages_sent == 21

    asyncio.run(before())
    asyncio.run(after())
    log = open_log(url)
    records: list[RecordedEvent] = list(log.read_stream("queue:q"))
    assert [record.version for record in records] == list(range(1, len(records) + 1))
    log.close()


def test_more_replicas_than_servers_are_refused_with_the_reason() -> None:
    """Given one server, when a log with three replicas is to be made, then the error is JetStream's own."""
    with pytest.raises(EventLogError, match=r"replicas > 1 not supported in non-clustered mode"):
        open_log(f"nats://{shared_server().hosts}/{fresh_stream()}?replicas=3")
