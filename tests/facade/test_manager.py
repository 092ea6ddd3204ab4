"""The manager, on memory and SQLite logs: queues by name, recovery, factories, the blocking façade."""

from __future__ import annotations

import asyncio
import threading
import warnings
from pathlib import Path
from random import Random
from typing import Any

import pytest

import mpreg_mq.factories
from mpreg_mq import (
    BlockingMessageQueueManager,
    ConfigurationError,
    DeliveryGuarantee,
    EventLogError,
    MessageQueueError,
    MessageQueueManager,
    OverflowPolicy,
    QueueClosedError,
    QueueConfiguration,
    QueuedMessage,
    QueueManagerConfiguration,
    QueueNotFoundError,
    QueueType,
    RejectionReason,
    VirtualClock,
    create_high_throughput_queue_manager,
    create_reliable_queue_manager,
    create_standard_queue_manager,
)
from mpreg_mq.actors import commands as c
from mpreg_mq.projections import QueueState
from mpreg_mq.testing.disk import SimulatedDisk
from mpreg_mq.testing.loop import SimulatedClock, SimulatedLoop
from mpreg_mq.testing.seams import deterministic
from tests.support.running import Recorder, until, wait_until


@pytest.fixture(params=["memory", "sqlite"])
def log(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The address of a fresh log."""
    return "memory:" if request.param == "memory" else f"sqlite:///{tmp_path}/queues.db"


def test_queues_are_created_listed_described_and_deleted(log: str) -> None:
    """Given names, then queues come and go, and MPREG's report has them."""

    async def story() -> None:
        async with MessageQueueManager(log=log) as manager:
            assert await manager.create_queue("a")
            assert not await manager.create_queue("a")
            assert await manager.create_queue("b", QueueConfiguration("b", QueueType.PRIORITY))
            assert manager.list_queues() == ["a", "b"]
            assert manager.queue_configs["b"].queue_type is QueueType.PRIORITY
            info = manager.get_queue_info("b")
            assert info is not None
            assert (info["name"], info["config"]["queue_type"], info["subscriptions"]) == ("b", "priority", 0)
            await manager.send_message("a", "t", 1)
            assert await manager.delete_queue("a")
            assert not await manager.delete_queue("a")
            assert manager.get_global_statistics().total_messages_sent == 1
            assert await manager.create_queue("a")
            assert manager.get_queue_statistics("a") is not None
            assert manager.queue("a").get_statistics().messages_sent == 0
            with pytest.raises(QueueNotFoundError, match="does not exist"):
                manager.queue("c")
            assert manager.get_queue_info("c") is None
            assert manager.get_queue_statistics("c") is None

    asyncio.run(story())


@pytest.mark.parametrize("name", ["", "../x", "a b", "ü", "x" * 81, "x" * 10_000, "..", None, 5])
def test_bad_queue_names_are_refused(name: Any) -> None:
    """Given a name that is not allowed, then creating raises, and sending is refused with a reason."""

    async def story() -> None:
        async with MessageQueueManager() as manager:
            with pytest.raises(ConfigurationError, match="name"):
                await manager.create_queue(name)
            result = await manager.send_message(name, "t", 1)
            assert result.rejection is RejectionReason.UNKNOWN_QUEUE
            assert manager.list_queues() == []

    asyncio.run(story())


def test_s2_a_deleted_queue_refuses_whoever_still_holds_it(log: str) -> None:
    """Given a queue object that outlived its queue, then it rejects sends, raises for the rest, and logs nothing."""

    async def story() -> None:
        async with MessageQueueManager(log=log) as manager:
            await manager.create_queue("q")
            queue = manager.queue("q")
            await manager.send_message("q", "t", 1)
            await queue._ask(c.Delete())
            position = manager.log.last_position()
            refused = await queue.send_message("t", 2)
            assert (refused.success, refused.rejection) == (False, RejectionReason.CLOSING)
            (batched,) = await queue.send_messages([("t", 2)])
            assert (batched.success, batched.rejection) == (False, RejectionReason.CLOSING)
            with pytest.raises(QueueClosedError, match="'q' was deleted"):
                await queue.purge_queue()
            with pytest.raises(QueueClosedError, match="'q' was deleted"):
                queue.subscribe("s", "t")
            assert manager.log.last_position() == position

    asyncio.run(story())


def test_limits_and_mismatches_are_refused() -> None:
    """Given max_queues of one, then the second is refused; a configuration must name the queue it is for."""

    async def story() -> None:
        async with MessageQueueManager(QueueManagerConfiguration(max_queues=1)) as manager:
            with pytest.raises(ConfigurationError, match="expected the same"):
                await manager.create_queue("a", QueueConfiguration("b"))
            assert await manager.create_queue("a")
            assert not await manager.create_queue("b")
            result = await manager.send_message("b", "t", 1)
            assert "max_queues=1" in str(result.error_message)

    asyncio.run(story())


def test_concurrent_creation_of_one_name_creates_it_once(log: str) -> None:
    """Given ten tasks that create or first send to the same queue, then there is one, and every send arrives."""

    async def story() -> None:
        async with MessageQueueManager(log=log) as manager:
            created = await asyncio.gather(*(manager.create_queue("q") for _ in range(5)))
            assert created.count(True) == 1
            results = await asyncio.gather(*(manager.send_message("other", "t", n) for n in range(10)))
            assert all(result.success for result in results)
            assert len(manager.queue("other").pending_messages) == 10

    asyncio.run(story())


def test_concurrent_creation_goes_on_after_one_that_failed() -> None:
    """Given five tasks that create the same queue, when the first cannot store it, then the next one does."""
    failures = iter([EventLogError("no space left")])

    def fault() -> None:
        failure = next(failures, None)
        if failure is not None:
            raise failure

    disk, loop = SimulatedDisk(fault=fault), SimulatedLoop()

    async def story() -> None:
        async with MessageQueueManager(log=disk.open(loop), clock=SimulatedClock(loop)) as manager:
            created = await asyncio.gather(*(manager.create_queue("q") for _ in range(5)), return_exceptions=True)
            assert isinstance(created[0], EventLogError)
            assert created[1:] == [True, False, False, False]
            assert (await manager.send_message("q", "t", 1)).success

    with deterministic(Random(1)):
        loop.run_until_complete(story())


def test_unknown_queues_answer_as_mpreg_does() -> None:
    """Given no such queue and no automatic creation, then every verb says so in its own way."""

    async def story() -> None:
        manager = MessageQueueManager(QueueManagerConfiguration(enable_auto_queue_creation=False))
        result = await manager.send_message("q", "t", 1)
        assert "does not exist" in str(result.error_message)
        assert [one.success for one in await manager.send_messages("q", [("t", 1), ("t", 2)])] == [False, False]
        assert manager.subscribe_to_queue("q", "s", "#") is None
        assert not manager.unsubscribe_from_queue("q", "x")
        assert not await manager.acknowledge_message("q", "x", "s")
        assert not await manager.negative_acknowledge("q", "x", "s")
        assert not await manager.extend_lease("q", "x", "s", 5)
        assert not await manager.route_topic_to_queue("a.#", "q")
        for verb in (
            manager.receive_messages("q", "s"),
            manager.purge_queue("q"),
            manager.redrive_dead_letters("q"),
            manager.purge_dead_letters("q"),
        ):
            with pytest.raises(QueueNotFoundError):
                await verb
        for name in ("pause_queue", "resume_queue", "list_dead_letters"):
            with pytest.raises(QueueNotFoundError):
                getattr(manager, name)("q")
        await manager.shutdown()
        await manager.shutdown()
        assert (await manager.send_message("q", "t", 1)).rejection is RejectionReason.CLOSING
        with pytest.raises(QueueClosedError):
            manager.subscribe_to_queue("q", "s", "#")
        with pytest.raises(QueueClosedError):
            await manager.create_queue("q")

    asyncio.run(story())


def test_every_verb_goes_to_its_queue(log: str) -> None:
    """Given a queue, then the manager's verbs do what the queue's do."""

    async def story() -> None:
        async with MessageQueueManager(log=log) as manager:
            await manager.create_queue("q", QueueConfiguration("q", max_retries=0))
            await manager.create_queue("other")
            assert manager.pause_queue("q")
            assert manager.resume_queue("q")
            await manager.send_messages("q", [("t", n) for n in range(4)])
            one, two, three, four = await manager.receive_messages("q", "p", 4)
            assert await manager.extend_lease("q", one.id, "p", 60)
            assert await manager.acknowledge_message("q", one.id, "p")
            for broken in (two, three, four):
                assert await manager.negative_acknowledge("q", broken.id, "p", "broken")
            assert [dead.id for dead in manager.list_dead_letters("q")] == [two.id, three.id, four.id]
            assert await manager.purge_dead_letters("q", [three.id]) == 1
            assert await manager.redrive_dead_letters("q", [two.id], target_queue="other") != []
            assert len(await manager.redrive_dead_letters("q")) == 1
            assert await manager.purge_queue("q") == 1
            subscription = manager.subscribe_to_queue("q", "s", "#", team="red", max_in_flight=3)
            assert subscription is not None
            assert manager.queue("q").subscriptions[subscription].metadata == {"team": "red"}
            assert manager.statistics.active_subscriptions == 2
            assert manager.unsubscribe_from_queue("q", subscription)
            assert manager.statistics.overall_success_rate() == pytest.approx(1 / 4)

    asyncio.run(story())


def test_a_restart_finds_everything_again(tmp_path: Path) -> None:
    """Given a SQLite log of queues in every state, when it is opened again, then it is all there and goes on."""
    log = f"sqlite:///{tmp_path}/queues.db"
    clock = VirtualClock()
    configuration = QueueConfiguration("q", max_retries=2, enable_deduplication=True, retry_backoff_seconds=50)

    async def before() -> None:
        manager = MessageQueueManager(log=log, clock=clock)
        await manager.create_queue("q", configuration)
        await manager.create_queue("gone")
        await manager.delete_queue("gone")

        def fail(message: QueuedMessage) -> None:
            raise RuntimeError(message.payload)

        subscription = manager.subscribe_to_queue("q", "s", "fail", fail)
        assert subscription is not None
        await manager.send_message("q", "fail", "dead", max_retries=0)
        await manager.send_message("q", "fail", "once")
        await manager.send_message("q", "later", "delayed", delay_seconds=100, deduplication_id="key")
        await until(lambda: len(manager.queue("q").dead_letter_queue) == 1)
        await until(lambda: manager.queue("q").get_statistics().messages_requeued == 1)
        await manager.shutdown()

    async def after() -> None:
        async with MessageQueueManager(log=log, clock=clock) as manager:
            await manager.restore_persisted_queues()
            assert manager.list_queues() == ["q"]
            queue = manager.queue("q")
            assert queue.config == configuration
            assert [entry.payload for entry in queue.dead_letter_queue] == ["dead"]
            assert [message.payload for message in queue.pending_messages] == ["once", "delayed"]
            again = await manager.send_message("q", "later", "x", deduplication_id="key")
            assert again.rejection is RejectionReason.DUPLICATE
            seen = Recorder()
            manager.subscribe_to_queue("q", "s", "#", seen)
            await clock.advance(49)
            await until(lambda: queue.get_statistics().messages_acknowledged == 1)
            assert [(m.payload, m.delivery_attempt) for m in seen.messages] == [("once", 2)]
            await clock.advance(51)
            await until(lambda: queue.get_statistics().messages_acknowledged == 2)
            assert not await manager.create_queue("q")

    asyncio.run(before())
    asyncio.run(after())


def test_a_queue_opened_with_another_configuration_follows_it(tmp_path: Path) -> None:
    """Given a log of a queue, when it is opened with another configuration, then that one holds and is logged."""
    from mpreg_mq import MessageQueue

    path = tmp_path / "q.db"
    MessageQueue(QueueConfiguration("q", max_size=5), log=path).shutdown_sync()
    queue = MessageQueue(QueueConfiguration("q", max_size=6), log=path)
    assert queue.config.max_size == 6
    queue.shutdown_sync()


def test_durable_sends_share_commits_and_deliver_everything(tmp_path: Path) -> None:
    """Given 64 senders on a SQLite log, then all are answered, all is delivered, and the log folds to the same."""

    async def story() -> None:
        async with MessageQueueManager(log=tmp_path / "q.db") as manager:
            await manager.create_queue("q")
            seen = Recorder()
            manager.subscribe_to_queue("q", "s", "#", seen)

            async def sender(number: int) -> None:
                for count in range(10):
                    assert (await manager.send_message("q", "t", (number, count))).success

            await asyncio.gather(*(sender(number) for number in range(64)))
            await until(lambda: manager.queue("q").get_statistics().messages_acknowledged == 640)
            state = manager.queue("q")._actor.state
        from mpreg_mq import open_log

        reopened = open_log(tmp_path / "q.db")
        rebuilt = QueueState.replay(record.event for record in reopened.read_stream("queue:q"))
        assert rebuilt.describe() == state.describe()
        reopened.close()

    asyncio.run(story())


def test_a_log_of_somebody_else_stays_open() -> None:
    """Given an EventLog object, when the manager shuts down, then the log is its owner's to close."""
    from mpreg_mq.events import MemoryEventLog

    log = MemoryEventLog()
    manager = MessageQueueManager(log=log)
    manager.shutdown_sync()
    assert not log.closed


def test_a_bad_log_is_an_error_at_construction(tmp_path: Path) -> None:
    """Given a foreign file, then construction says so."""
    (tmp_path / "x.db").write_bytes(b"not a database at all" * 100)
    with pytest.raises(EventLogError):
        MessageQueueManager(log=tmp_path / "x.db")
    with pytest.raises(ConfigurationError):
        MessageQueueManager(log="redis://localhost")


@pytest.mark.parametrize("make", [MessageQueueManager, BlockingMessageQueueManager])
@pytest.mark.parametrize("address", ["sqlite:///orders.db", Path("orders.db"), {"max_queues": 3}])
def test_what_is_no_configuration_is_no_default_either(make: Any, address: Any) -> None:
    """Given the address of a log in the place of the configuration, then that is an error which says where it goes, and
    not a manager whose queues are gone with the process."""
    with pytest.raises(ConfigurationError, match="log="):
        make(address)


@pytest.mark.parametrize(
    "make",
    [create_standard_queue_manager, create_high_throughput_queue_manager, create_reliable_queue_manager],
)
def test_what_cannot_be_published_on_is_no_exchange(make: Any) -> None:
    """Given the address of a log in the place of the exchange, then that is an error which says where it goes."""
    with pytest.raises(ConfigurationError, match="log="):
        make("sqlite:///orders.db")


def test_publishing_goes_to_the_exchange() -> None:
    """Given an exchange, then publishing reaches it; when it fails, or there shall be none, the answer is False."""
    published: list[Any] = []

    class PublishOnly:
        def publish_message(self, message: Any) -> None:
            if message.topic == "bad":
                raise RuntimeError
            published.append((message.topic, message.payload, message.publisher))

    async def story() -> None:
        async with MessageQueueManager(None, PublishOnly()) as manager:
            assert await manager.publish_to_topic_exchange("a.b", 1)
            assert not await manager.publish_to_topic_exchange("bad", 1)
            assert not await manager.route_topic_to_queue("a.#", "q")
        alone = QueueManagerConfiguration(enable_topic_exchange_integration=False)
        async with MessageQueueManager(alone) as manager:
            assert not await manager.publish_to_topic_exchange("a.b", 1)
            assert not await manager.route_topic_to_queue("a.#", "q")
        assert published == [("a.b", 1, "message-queue-manager")]

    asyncio.run(story())


def test_the_factories_differ(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Given the three factories, then their queues differ as documented, and the environment names the log."""
    monkeypatch.delenv("MPREG_MQ_LOG", raising=False)
    monkeypatch.setattr(mpreg_mq.factories, "_warned", False)

    async def story() -> None:
        standard, fast = create_standard_queue_manager(), create_high_throughput_queue_manager()
        with pytest.warns(RuntimeWarning, match="nothing survives"):
            reliable = create_reliable_queue_manager()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            await create_reliable_queue_manager().shutdown()
        for manager in (standard, fast, reliable):
            await manager.create_queue("q")
        configurations = [manager.queue("q").config for manager in (standard, fast, reliable)]
        assert [one.max_size for one in configurations] == [10_000, 50_000, 10_000]
        assert [one.max_retries for one in configurations] == [3, 1, 5]
        assert [one.enable_deduplication for one in configurations] == [False, False, True]
        assert [one.overflow_policy for one in configurations] == [
            OverflowPolicy.REJECT,
            OverflowPolicy.DROP_OLDEST,
            OverflowPolicy.WAIT,
        ]
        assert (await standard.send_message("new", "t", 1)).success
        assert not (await reliable.send_message("new", "t", 1)).success
        monkeypatch.setenv("MPREG_MQ_LOG", str(tmp_path / "env.db"))
        durable = create_reliable_queue_manager()
        assert durable.log.location.startswith("sqlite:")
        for manager in (standard, fast, reliable, durable):
            await manager.shutdown()

    asyncio.run(story())


def acknowledged(manager: BlockingMessageQueueManager) -> int:
    statistics = manager.get_queue_statistics("q")
    assert statistics is not None
    return statistics.messages_acknowledged


def test_the_blocking_facade_has_the_same_verbs(log: str) -> None:
    """Given no asyncio, then queues work from threads, callbacks may call the manager, and it closes once."""
    with BlockingMessageQueueManager(log=log) as manager:
        assert manager.create_queue("q", QueueConfiguration("q", max_retries=0))
        done = threading.Event()

        def work(message: QueuedMessage) -> None:
            assert manager.send_message("q", "second", message.payload + 1).success

        manager.subscribe_to_queue("q", "s", "first", work)
        manager.subscribe_to_queue("q", "t", "second", lambda message: done.set(), blocking=False)
        assert manager.send_message("q", "first", 1).success
        assert done.wait(20)
        # The first callback returns on its own thread, some time after what it sent was delivered.
        wait_until(lambda: acknowledged(manager) == 2)
        manager.send_messages("q", [("third", 3), ("third", 4)])
        three, four = [
            *manager.receive_messages("q", "p", 2, 5, topic_pattern="third"),
            *manager.receive_messages("q", "p", 2),
        ][:2]
        assert manager.extend_lease("q", three.id, "p", 60)
        assert manager.acknowledge_message("q", three.id, "p")
        assert manager.negative_acknowledge("q", four.id, "p", "no")
        assert [entry.last_error for entry in manager.list_dead_letters("q")] == ["no"]
        assert len(manager.redrive_dead_letters("q")) == 1
        assert manager.purge_dead_letters("q") == 0
        assert manager.purge_queue("q") == 1
        assert manager.pause_queue("q")
        assert manager.resume_queue("q")
        subscription = manager.subscribe_to_queue("q", "u", "#")
        assert subscription is not None
        assert manager.unsubscribe_from_queue("q", subscription)
        statistics = manager.get_queue_statistics("q")
        assert statistics is not None
        assert statistics.messages_dead_lettered == 1
        assert manager.get_global_statistics().total_queues == 1
        assert manager.get_queue_info("q") is not None
        assert manager.list_queues() == ["q"]
        assert manager.config == QueueManagerConfiguration()
        assert manager.delete_queue("q")
    manager.shutdown()
    with pytest.raises(QueueClosedError):
        manager.create_queue("q")


def test_the_blocking_facade_refuses_to_wait_for_itself() -> None:
    """Given a callback on the manager's own loop, when it calls the manager, then the error says what to do."""
    errors: list[str] = []
    with BlockingMessageQueueManager() as manager:
        manager.create_queue("q", QueueConfiguration("q", max_retries=0))

        def call_back(message: QueuedMessage) -> None:
            try:
                manager.create_queue("other")
            except MessageQueueError as error:
                errors.append(str(error))

        manager.subscribe_to_queue("q", "s", "#", call_back, blocking=False)
        manager.send_message("q", "t", 1, DeliveryGuarantee.FIRE_AND_FORGET)
    assert "blocking=True" in errors[0]
