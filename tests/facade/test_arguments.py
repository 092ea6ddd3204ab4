"""What is given to a queue's verbs by mistake is refused, with what to give instead; nothing is swallowed."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpreg_mq import (
    BlockingMessageQueueManager,
    ConfigurationError,
    DeadLetter,
    DeliveryGuarantee,
    InvalidOptionError,
    InvalidTopicError,
    MessageId,
    MessageQueue,
    MessageQueueManager,
    QueueConfiguration,
    QueueManagerConfiguration,
    QueueNotFoundError,
    RejectionReason,
    VirtualClock,
)
from mpreg_mq.arguments import id_texts
from tests.support.running import Recorder, make_queue, until

GOOD: list[Any] = [("t", "pair"), {"topic": "t", "payload": "mapping"}, {"topic": "t", "payload": 1, "priority": 2}]
BAD: list[tuple[Any, RejectionReason]] = [
    ({"topic": "t", "payload": 2, "delivery_guarantee": "broadcast"}, RejectionReason.INVALID_OPTION),
    ({"topic": "t", "payload": 2, 5: 1}, RejectionReason.INVALID_OPTION),
    ({"topic": "t", "payload": 2, "self": 1}, RejectionReason.INVALID_OPTION),
    (("a..b", 1), RejectionReason.INVALID_TOPIC),
    (("t", object()), RejectionReason.PAYLOAD_NOT_ENCODABLE),
]


@given(
    st.lists(st.one_of(st.sampled_from([(entry, None) for entry in GOOD]), st.sampled_from(BAD)), max_size=8),
    st.sampled_from(DeliveryGuarantee),
)
def test_s5_a_batch_has_one_result_for_each_message(
    drawn: list[tuple[Any, RejectionReason | None]], guarantee: DeliveryGuarantee
) -> None:
    """For all batches of good and bad entries and all guarantees: each has a result of its own, in order, and the good
    ones are delivered whatever stands before them."""

    async def story() -> None:
        queue, seen = make_queue(), Recorder()
        queue.subscribe("s", "t", seen)
        results = await queue.send_messages([entry for entry, _ in drawn], guarantee)
        assert [result.rejection for result in results] == [reason for _, reason in drawn]
        good = [entry for entry, reason in drawn if reason is None]
        wanted = [entry["payload"] if isinstance(entry, dict) else entry[1] for entry in good]
        await until(lambda: len(seen.messages) == len(wanted))
        assert sorted(map(str, seen.payloads)) == sorted(map(str, wanted))
        await queue.shutdown()

    asyncio.run(story())


@pytest.mark.parametrize("messages", [None, 5, object()])
@pytest.mark.parametrize("guarantee", [DeliveryGuarantee.FIRE_AND_FORGET, DeliveryGuarantee.AT_LEAST_ONCE])
def test_s5_a_batch_that_is_none_is_refused(messages: Any, guarantee: DeliveryGuarantee) -> None:
    """Given something that has no entries instead of a batch, then a queue and a manager say what they expect."""

    async def story() -> None:
        async with MessageQueueManager() as manager:
            await manager.create_queue("q")
            for send in (manager.queue("q").send_messages, lambda *given: manager.send_messages("q", *given)):
                with pytest.raises(InvalidOptionError, match=r"messages: got .*expected a list of \(topic, payload\)"):
                    await send(messages, guarantee)

    asyncio.run(story())


def test_g1_fire_and_forget_has_no_delay() -> None:
    """Given a fire-and-forget message with a delay, alone, in a batch or on a route, then it is refused rather than
    delivered now; a delay of 0 is none."""
    now = DeliveryGuarantee.FIRE_AND_FORGET

    async def story() -> None:
        async with MessageQueueManager() as manager:
            await manager.create_queue("q")
            seen = Recorder()
            manager.subscribe_to_queue("q", "s", "#", seen)
            (in_batch,) = await manager.send_messages("q", [("t", 1)], now, delay_seconds=5)
            for refused in (await manager.send_message("q", "t", 1, now, delay_seconds=5), in_batch):
                assert refused.rejection is RejectionReason.INVALID_OPTION
                assert "delay_seconds: got 5, but a fire-and-forget message" in str(refused.error_message)
            with pytest.raises(InvalidOptionError, match="delay_seconds: got 5"):
                await manager.route_topic_to_queue("t", "q", now, delay_seconds=5)
            assert seen.messages == []
            assert (await manager.send_message("q", "t", 2, now, delay_seconds=0)).delivered_to == {"s"}

    asyncio.run(story())


# --- subscriptions ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["auto_acknowledge", "blocking"])
@pytest.mark.parametrize("value", ["no", "", 0, 1, None])
def test_flags_of_a_subscription_are_true_or_false(name: str, value: Any) -> None:
    """Given a flag as text or number, then it is refused, because "no" is as true as "yes"."""
    queue = make_queue()
    with pytest.raises(InvalidOptionError, match=f"{name}: got .*expected True or False"):
        queue.subscribe("s", "#", print, **{name: value})
    assert queue.subscriptions == {}
    queue.shutdown_sync()


@pytest.mark.parametrize(
    ("given_name", "value", "meant"),
    [
        ("auto_ack", "yes", "auto_acknowledge"),
        ("acknowledge", False, "auto_acknowledge"),
        ("auto_acknowledgement", "no", "auto_acknowledge"),
        ("max_inflight", "10", "max_in_flight"),
        ("in_flight", 10, "max_in_flight"),
        ("auto_ack", False, "auto_acknowledge"),
        ("max_inflight", 10, "max_in_flight"),
        ("block", True, "blocking"),
        ("callbak", print, "callback"),
    ],
)
def test_a_misspelt_argument_of_a_subscription_is_no_metadata(given_name: str, value: Any, meant: str) -> None:
    """Given an argument by nearly its name, then the error names the one that was meant."""
    queue = make_queue()
    with pytest.raises(InvalidOptionError, match=f"metadata: got '{given_name}': .*did you mean {meant}"):
        queue.subscribe("s", "#", None, **{given_name: value})
    queue.shutdown_sync()


def test_metadata_may_have_the_names_that_one_would_give_it() -> None:
    """Given what programs say of their subscribers, then it is kept as metadata."""
    names = (
        "source team region owner version host service instance max_retries max_age created_by automatic flight "
        "max_weight max_height max_light acknowledged_by knowledge max_in_memory in_flight"
    )
    metadata: dict[str, Any] = dict.fromkeys([*names.split(), "booking", "topic", "pattern", "subscriber", "name"], "x")
    queue = make_queue()
    subscription = queue.subscribe("s", "#", None, **metadata)
    assert queue.subscriptions[subscription].metadata == metadata
    queue.shutdown_sync()


def test_l1_a_fetch_is_for_what_its_subscriber_is_subscribed_to() -> None:
    """Given a subscriber that fetches under one pattern, when it asks for another one, then that is refused, and not
    answered with what the first one matches; its own patterns and the default will do."""

    async def story() -> None:
        queue = make_queue()
        assert await queue.receive_messages("p", topic_pattern="order.*") == []
        await queue.send_message("order.paid", 1)
        with pytest.raises(InvalidOptionError, match=r"topic_pattern: got 'mail\.\*', but 'p' fetches .*'order\.\*'"):
            await queue.receive_messages("p", topic_pattern="mail.*")
        queue.subscribe("p", "mail.*")
        assert await queue.receive_messages("p", topic_pattern="mail.*") != []
        await queue.send_message("order.paid", 2)
        assert [message.payload for message in await queue.receive_messages("p", topic_pattern="order.*")] == [2]
        await queue.send_message("order.paid", 3)
        assert [message.payload for message in await queue.receive_messages("p")] == [3]
        await queue.shutdown()

    asyncio.run(story())


@pytest.mark.parametrize("pattern", [["order.*", "mail.*"], {"order.*": 1}, b"order.*", None, "order..paid"])
def test_what_is_no_pattern_is_refused_as_one_to_who_fetches_already(pattern: Any) -> None:
    """Given a subscriber that has fetched, when it names what is no pattern, such as a list of them, then that is
    refused in the words in which it is at its first fetch."""

    async def story() -> None:
        queue = make_queue()
        assert await queue.receive_messages("p", topic_pattern="order.*") == []
        for subscriber in ("p", "newcomer"):
            with pytest.raises(InvalidTopicError, match="topic pattern: got "):
                await queue.receive_messages(subscriber, topic_pattern=pattern)
        await queue.shutdown()

    asyncio.run(story())


@pytest.mark.parametrize("given_id", [["id"], {"id": 1}, None, 5])
def test_what_is_no_id_ends_no_subscription(given_id: Any) -> None:
    """Given a subscription, when what can be no id of one is unsubscribed, such as a list, then there was none."""

    async def story() -> None:
        async with MessageQueueManager() as manager:
            await manager.create_queue("q")
            mine = manager.subscribe_to_queue("q", "s", "#")
            assert not manager.unsubscribe_from_queue("q", given_id)
            assert not manager.queue("q").unsubscribe(given_id)
            assert list(manager.queue("q").subscriptions) == [mine]

    asyncio.run(story())


@pytest.mark.parametrize("clock", [0, 1.5, "virtual", VirtualClock, asyncio])
def test_what_is_no_clock_is_refused_before_the_log_is_opened(clock: Any, tmp_path: Path) -> None:
    """Given the class of a clock, or a time, in its place, when a queue or a manager is made, then that says what a
    clock is, and there is no log."""
    log = tmp_path / "q.db"
    makers: list[Callable[[], object]] = [
        lambda: MessageQueue(QueueConfiguration("q"), log=log, clock=clock),
        lambda: MessageQueueManager(log=log, clock=clock),
        lambda: BlockingMessageQueueManager(log=log, clock=clock),
    ]
    for make in makers:
        with pytest.raises(ConfigurationError, match=r"clock: got .*, expected an object with now and call_at"):
            make()
    assert not log.exists()


def test_autostart_is_true_or_false() -> None:
    """Given a flag that is neither, as a setting read from text is, then no queue is made that delivers at once."""
    with pytest.raises(InvalidOptionError, match="autostart: got 'no', expected True or False"):
        MessageQueue(QueueConfiguration("q"), autostart="no")  # type: ignore[arg-type]


# --- settling and dead letters ------------------------------------------------------------------------------


def test_l2_a_message_stands_for_its_id() -> None:
    """Given a message instead of its id, when it is extended, given back and acknowledged, then that counts."""

    async def story() -> None:
        queue = make_queue()
        await queue.send_message("t", 1)
        (message,) = await queue.receive_messages("p")
        assert await queue.extend_lease(message, "p", 60)
        assert await queue.negative_acknowledge(message, "p")
        (again,) = await queue.receive_messages("p")
        assert await queue.acknowledge_message(again, "p")
        assert not await queue.acknowledge_message(str(again.id), "p")
        await queue.shutdown()

    asyncio.run(story())


async def with_dead_letters(queue: MessageQueue, clock: VirtualClock, count: int) -> None:
    """Give a queue dead letters."""
    for number in range(count):
        await queue.send_message("t", number, max_retries=0)
    for message in await queue.receive_messages("p", count):
        await queue.negative_acknowledge(message.id, "p")
    await clock.settle()
    assert len(queue.dead_letter_queue) == count


def test_d1_dead_letters_are_named_by_themselves_or_their_ids() -> None:
    """Given dead letters, when they are named as they were listed, as ids or as text, then they are redriven."""

    async def story() -> None:
        clock = VirtualClock()
        queue = make_queue(clock)
        await with_dead_letters(queue, clock, 5)
        first, second, third, fourth, _ = queue.list_dead_letters()
        assert await queue.redrive_dead_letters([first, second.id, str(third.id)], dry_run=True) == [
            first.id,
            second.id,
            third.id,
        ]
        assert len(await queue.redrive_dead_letters([first, second.id, str(third.id)])) == 3
        assert await queue.purge_dead_letters([fourth]) == 1
        assert await queue.purge_dead_letters(queue.dead_letter_queue) == 1
        await queue.shutdown()

    asyncio.run(story())


ONE_OR_NONE: dict[str, Callable[[DeadLetter], Any]] = {
    "text": lambda letter: str(letter.id),
    "bytes": lambda letter: b"id",
    "the letter": lambda letter: letter,
    "its id": lambda letter: letter.id,
    "a number": lambda letter: 5,
    "numbers": lambda letter: [5],
    "nothing": lambda letter: [None],
    "lists": lambda letter: [["id"]],
}


@pytest.mark.parametrize("one", ["id", b"id", MessageId("id"), 5, None])
def test_l2_several_messages_are_not_one(one: Any) -> None:
    """Given one id where several messages are acknowledged, then the error says to give a list."""
    with pytest.raises(InvalidOptionError, match="expected several ids or messages; give a list"):
        id_texts(one)
    assert id_texts(["a", MessageId("b")]) == ["a", "b"]


@pytest.mark.parametrize("one", ONE_OR_NONE)
def test_d1_one_dead_letter_is_not_taken_for_several(one: str) -> None:
    """Given one id, one dead letter or something else instead of several, then nothing is done, and the error says to
    give a list."""

    async def story() -> None:
        clock = VirtualClock()
        queue = make_queue(clock)
        await with_dead_letters(queue, clock, 1)
        (letter,) = queue.list_dead_letters()
        named = ONE_OR_NONE[one](letter)
        verbs: list[Callable[[], Awaitable[Any]]] = [
            lambda: queue.purge_dead_letters(named),
            lambda: queue.redrive_dead_letters(named),
            lambda: queue.redrive_dead_letters(named, dry_run=True),
        ]
        for verb in verbs:
            with pytest.raises(InvalidOptionError, match=r"message_ids: got .*expected (several )?ids or dead letters"):
                await verb()
        assert queue.list_dead_letters() == [letter]
        await queue.shutdown()

    asyncio.run(story())


def test_d1_the_target_of_a_redrive_is_a_queue() -> None:
    """Given the name of a queue as the target, or a dry run that is neither, then the error says what is."""

    async def story() -> None:
        async with MessageQueueManager() as manager:
            await manager.create_queue("q")
            target: Any = "q2"
            with pytest.raises(InvalidOptionError, match=r"target: got 'q2', expected a MessageQueue; manager\.queue"):
                await manager.queue("q").redrive_dead_letters(target=target)
            dry_run: Any = "no"
            with pytest.raises(InvalidOptionError, match="dry_run: got 'no', expected True or False"):
                await manager.redrive_dead_letters("q", dry_run=dry_run)

    asyncio.run(story())


# --- names of queues, headers -------------------------------------------------------------------------------

NO_NAMES: list[Any] = [[], {}, set(), None, 5, b"q"]


@pytest.mark.parametrize("name", NO_NAMES, ids=repr)
@pytest.mark.parametrize("auto", [True, False])
def test_s2_what_is_no_name_is_an_unknown_queue(name: Any, auto: bool) -> None:
    """Given a list or something else that no queue can be called, then each verb answers as for any queue that is not
    there."""
    config = QueueManagerConfiguration(enable_auto_queue_creation=auto)

    async def story() -> None:
        async with MessageQueueManager(config) as manager:
            sent = await manager.send_message(name, "t", 1)
            (in_batch,) = await manager.send_messages(name, [("t", 1)])
            assert sent.rejection is in_batch.rejection is RejectionReason.UNKNOWN_QUEUE
            assert manager.subscribe_to_queue(name, "s", "#") is None
            assert not manager.unsubscribe_from_queue(name, "s")
            assert manager.get_queue_info(name) is None
            assert manager.get_queue_statistics(name) is None
            assert not await manager.acknowledge_message(name, "m", "s")
            assert not await manager.negative_acknowledge(name, "m", "s")
            assert not await manager.extend_lease(name, "m", "s", 1)
            assert not await manager.delete_queue(name)
            verbs: list[Callable[[], Awaitable[Any]]] = [
                lambda: manager.receive_messages(name, "s"),
                lambda: manager.purge_queue(name),
                lambda: manager.purge_dead_letters(name),
                lambda: manager.redrive_dead_letters(name),
            ]
            for verb in verbs:
                with pytest.raises(QueueNotFoundError):
                    await verb()
            for at_once in (manager.queue, manager.pause_queue, manager.resume_queue, manager.list_dead_letters):
                with pytest.raises(QueueNotFoundError):
                    at_once(name)

    asyncio.run(story())


@pytest.mark.parametrize("headers", ["x", "", 5, [("k", "v")]])
def test_headers_of_a_published_message_are_a_mapping(headers: Any) -> None:
    """Given headers that are no mapping, then publishing says so, on a loop and without one."""

    async def story() -> None:
        async with MessageQueueManager() as manager:
            with pytest.raises(InvalidOptionError, match=r"headers: got .*expected a mapping"):
                await manager.publish_to_topic_exchange("t", 1, headers=headers)

    asyncio.run(story())
    with (
        BlockingMessageQueueManager() as manager,
        pytest.raises(InvalidOptionError, match=r"headers: got .*expected a mapping"),
    ):
        manager.publish_to_topic_exchange("t", 1, headers=headers)
