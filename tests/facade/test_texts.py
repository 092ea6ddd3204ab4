"""Whatever text a caller gives is kept or refused by itself: what cannot be stored harms nobody else (S2, R1, I4)."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mpreg_mq import (
    MessageQueue,
    MessageQueueManager,
    QueueConfiguration,
    QueuedMessage,
    RejectionReason,
    VirtualClock,
)
from mpreg_mq.errors import MessageQueueError
from mpreg_mq.events import check_log
from tests.support.running import assert_fold_equality, until

SURROGATE = "caf\udce9"
"""A name as ``os.fsdecode`` makes it of one that is not UTF-8."""

TEXTS = st.text(st.characters(), max_size=20) | st.sampled_from([SURROGATE, "", "x" * 2000])


class Text(str):
    """A string of a class of its own, such as NumPy's ``str_``."""


class Seconds(float):
    """A number of a class of its own, such as NumPy's ``float64``."""


async def opened(path: Path, **settings: Any) -> tuple[MessageQueueManager, MessageQueue]:
    manager = MessageQueueManager(log=path)
    await manager.create_queue("q", QueueConfiguration("q", retry_backoff_seconds=0.0, **settings))
    return manager, manager.queue("q")


async def closed_and_read_again(manager: MessageQueueManager, queue: MessageQueue, path: Path) -> None:
    """The log has the state that the queue had, and can be opened again."""
    await until(lambda: queue._actor._outstanding == 0)
    assert_fold_equality(queue)
    await manager.shutdown()
    assert check_log(path) is None
    again = MessageQueueManager(log=path)
    assert again.list_queues() == ["q"]
    await again.shutdown()


def test_r1_an_error_that_utf8_cannot_encode_is_a_failure_like_any_other(tmp_path: Path) -> None:
    """Given a callback whose error has a lone surrogate, then its attempts end in a dead letter that shows it written
    out, and what others do meanwhile is done once."""

    async def story() -> None:
        manager, queue = await opened(tmp_path / "log.db", max_retries=1)
        good: list[Any] = []

        def fail(message: QueuedMessage) -> None:
            raise ValueError(f"no file {SURROGATE}")

        queue.subscribe("good", "ok", lambda message: good.append(message.payload))
        queue.subscribe("bad", "bad", fail)
        await queue.send_messages([("bad", 0), *[("ok", number) for number in range(20)]])
        await until(lambda: len(queue.dead_letter_queue) == 1)
        (dead,) = queue.dead_letter_queue
        assert dead.last_error == "ValueError: no file caf\\udce9"
        assert good == list(range(20))
        await closed_and_read_again(manager, queue, tmp_path / "log.db")

    asyncio.run(story())


def test_l3_a_reason_is_kept_as_far_as_it_can_be(tmp_path: Path) -> None:
    """Given a reason that is long and that UTF-8 cannot encode, then the message comes back all the same."""

    async def story() -> None:
        manager, queue = await opened(tmp_path / "log.db", max_retries=0)
        await queue.send_message("t", 1)
        (message,) = await queue.receive_messages("w")
        assert await queue.negative_acknowledge(message.id, "w", SURROGATE + "x" * 5000)
        (dead,) = queue.dead_letter_queue
        assert dead.last_error is not None
        assert dead.last_error.startswith("caf\\udce9xxx")
        assert len(dead.last_error) == 1000
        await closed_and_read_again(manager, queue, tmp_path / "log.db")

    asyncio.run(story())


def test_s2_a_refused_send_is_no_harm_to_those_beside_it(tmp_path: Path) -> None:
    """Given a topic that UTF-8 cannot encode, when others send at the same time, then it alone is refused."""

    async def story() -> None:
        manager, queue = await opened(tmp_path / "log.db")
        sends = [
            queue.send_message(f"order.{SURROGATE}" if number == 3 else "order.paid", number) for number in range(9)
        ]
        results = await asyncio.gather(*sends)
        assert [result.rejection for result in results] == [
            RejectionReason.INVALID_TOPIC if number == 3 else None for number in range(9)
        ]
        assert len(queue.pending_messages) == 8
        await closed_and_read_again(manager, queue, tmp_path / "log.db")

    asyncio.run(story())


@pytest.mark.parametrize("key", [1011, 5.5, b"k", ("a", 1), ["x"], None, "", "x" * 257, SURROGATE])
def test_u1_a_key_that_is_no_text_is_refused(tmp_path: Path, key: Any) -> None:
    """Given a key that is no string of 1 to 256 characters, then nothing is sent, and the log can be opened again."""

    async def story() -> None:
        manager, queue = await opened(tmp_path / "log.db")
        for _ in range(2):
            result = await queue.send_once(key, "t", 1)
            assert result.rejection is RejectionReason.INVALID_OPTION
            assert "key: got" in str(result.error_message)
        assert queue.pending_messages == []
        await closed_and_read_again(manager, queue, tmp_path / "log.db")

    asyncio.run(story())


@pytest.mark.parametrize("metadata", [{"source": SURROGATE}, {SURROGATE: "source"}, {"source": 5}])
def test_metadata_that_cannot_be_stored_is_refused(tmp_path: Path, metadata: dict[str, Any]) -> None:
    """Given metadata that is no text that UTF-8 can encode, then there is no subscription, and closing works."""

    async def story() -> None:
        manager, queue = await opened(tmp_path / "log.db")
        with pytest.raises(MessageQueueError, match="metadata: got"):
            queue.subscribe("w", "#", lambda message: None, **metadata)
        assert queue.subscriptions == {}
        await closed_and_read_again(manager, queue, tmp_path / "log.db")

    asyncio.run(story())


def test_strings_and_numbers_of_other_classes_are_what_they_are_one_of(tmp_path: Path) -> None:
    """Given options that are strings and numbers of classes of their own, then they are taken, and those that are sent
    beside them as well."""

    async def story() -> None:
        manager, queue = await opened(tmp_path / "log.db")
        results = await asyncio.gather(
            queue.send_message(
                Text("t.x"), 1, headers={Text("user"): Text("ada")}, group_id=Text("g"), delay_seconds=Seconds(0.0)
            ),
            queue.send_message("t.y", 2),
        )
        assert [result.success for result in results] == [True, True]
        queue.subscribe(Text("w"), Text("t.#"), None, source=Text("a file"))
        assert len(await queue.receive_messages("w", 2)) == 2
        await closed_and_read_again(manager, queue, tmp_path / "log.db")

    asyncio.run(story())


Ask = Callable[[MessageQueue, str], Awaitable[Any]]


async def _subscribed(queue: MessageQueue, text: str) -> None:
    queue.unsubscribe(queue.subscribe(text, "nothing", None, note=text))


async def _unsubscribed(queue: MessageQueue, text: str) -> None:
    queue.unsubscribe(text)


async def _given_back(queue: MessageQueue, text: str) -> None:
    for message in await queue.receive_messages("w"):
        assert await queue.negative_acknowledge(message.id, "w", text)


ASKED: dict[str, Ask] = {
    "send": lambda queue, text: queue.send_message(text, 1),
    "options": lambda queue, text: queue.send_message("t", 1, group_id=text, headers={text: text}),
    "deduplication": lambda queue, text: queue.send_message("t", 1, deduplication_id=text),
    "once": lambda queue, text: queue.send_once(text, "t", 1),
    "subscribe": _subscribed,
    "receive": lambda queue, text: queue.receive_messages(text, topic_pattern="nothing"),
    "acknowledge": lambda queue, text: queue.acknowledge_message(text, text),
    "give back": _given_back,
    "redrive": lambda queue, text: queue.redrive_dead_letters([text]),
    "purge": lambda queue, text: queue.purge_dead_letters([text]),
    "unsubscribe": _unsubscribed,
}


@settings(max_examples=50)
@given(asked=st.lists(st.tuples(st.sampled_from(sorted(ASKED)), TEXTS), min_size=1, max_size=6))
def test_whatever_is_asked_the_others_get_what_they_asked_for(
    tmp_path_factory: pytest.TempPathFactory, asked: list[tuple[str, str]]
) -> None:
    """For all texts in whatever takes one: those who send beside it succeed, and the log has what the queue had."""

    async def story() -> None:
        path = tmp_path_factory.mktemp("texts") / "log.db"
        manager = MessageQueueManager(log=path, clock=VirtualClock())
        await manager.create_queue("q", QueueConfiguration("q", max_retries=1_000_000))
        queue = manager.queue("q")
        await queue.send_message("t", 0)
        for what, text in asked:
            beside, answer, after = await asyncio.gather(
                queue.send_message("beside", 1),
                ASKED[what](queue, text),
                queue.send_message("after", 1),
                return_exceptions=True,
            )
            assert not isinstance(answer, BaseException) or isinstance(answer, MessageQueueError), what
            for sent in (beside, after):
                assert not isinstance(sent, BaseException)
                assert sent.success, sent.error_message
        await closed_and_read_again(manager, queue, path)

    asyncio.run(story())
