"""Finds the owner of a queue, asks it, and asks the next one when it is gone."""

from __future__ import annotations

import asyncio
import logging
from itertools import count
from typing import Any

import msgspec

from mpreg_mq._validation import describe
from mpreg_mq.actors import commands as c
from mpreg_mq.cluster import wire
from mpreg_mq.cluster.node import Node
from mpreg_mq.cluster.transport import NobodyThereError
from mpreg_mq.cluster.wire import Acknowledged, Outcome, Reply
from mpreg_mq.errors import EventLogError, QueueNotFoundError
from mpreg_mq.events.nats.engine import UnansweredError
from mpreg_mq.model import DeliveryResult, RejectionReason

logger = logging.getLogger("mpreg_mq")

TRY_SECONDS = 5.0
"""How long one node is given for its answer, on top of what a receive waits."""

LATE_SECONDS = 1.0
"""How long the answer of an owner is still waited for after somebody else has become it."""


class UnknownOutcomeError(EventLogError):
    """A request may have been carried out or not, and must not simply be repeated."""


class Router:
    """Carries requests of this process to the owners of queues."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._epochs: dict[str, int] = {}
        self._receives = count(1)

    async def ask(self, queue: str, asked: msgspec.Struct, *, repeatable: bool = True, waits: float = 0.0) -> Any:
        """The answer of the queue's owner, whoever that is in the end.

        Args:
            queue: whose owner.
            asked: one of :mod:`mpreg_mq.cluster.wire`.
            repeatable: whether it may be carried out twice where the first answer is lost.
            waits: how long the owner itself may wait before it answers.

        Raises:
            QueueNotFoundError: there is no such queue.
            UnknownOutcomeError: it is not repeatable, and no answer came.
            EventLogError: no owner could be found in time, or none that its log would answer.
            MessageQueueError: the owner refused it.
        """
        if not isinstance(queue, str):
            raise QueueNotFoundError(f"Queue {describe(queue)} does not exist; its name is a string")
        loop = asyncio.get_running_loop()
        node, directory = self._node, self._node.directory
        deadline = loop.time() + node.configuration.request_timeout_seconds + waits
        last = "nobody owns it"
        unknown = False
        tries = 0
        while True:
            if queue not in directory.queues and not await self.has(queue):
                if unknown and type(asked) is c.Delete:
                    # It was there, and the try that nobody answered is what deleted it.
                    return True
                raise QueueNotFoundError(
                    f"Queue {queue!r} does not exist; create it first, or list_queues() to see those that do"
                )
            owner = directory.owner(queue)
            left = deadline - loop.time()
            if left <= 0:
                raise EventLogError(
                    f"queue {queue!r}: no owner answered within {node.configuration.request_timeout_seconds:g} s "
                    f"({last}); see 'mpreg-mq cluster status', and whether the servers have a quorum"
                )
            if owner is None:
                await directory.changed(min(left, node.configuration.look_seconds))
                continue
            tries += 1
            if tries > 1:
                node.metrics.requests_tried_again += 1
            try:
                reply = await self._ask_owner(owner, queue, asked, min(left, TRY_SECONDS + waits), repeatable)
            except NobodyThereError:
                last = f"{owner} is not there"
                node.look_soon()
                await directory.changed(min(left, node.configuration.look_seconds))
                continue
            except UnansweredError as error:
                last, unknown = str(error), True
                self._give_up_unless(repeatable, last)
                node.look_soon()
                continue
            # The log has confirmed a deletion; the ownership that is newer is that of the next queue of the name.
            deleted = type(asked) is c.Delete and reply.outcome is Outcome.DONE
            if not deleted and reply.epoch and reply.epoch < self._epochs.get(queue, 0):
                # Of an owner that did not know yet that it was one no more.
                last, unknown = f"{owner} answered for an ownership that is over", True
                self._give_up_unless(repeatable, last)
            elif reply.outcome is Outcome.MOVED:
                last = f"{owner} does not own it"
                node.look_soon()
                await directory.changed(min(left, 0.05))
            elif reply.outcome is Outcome.UNAVAILABLE:
                last, unknown = reply.detail, True
                self._give_up_unless(repeatable, last)
                await directory.changed(min(left, 0.1))
            else:
                self._epochs[queue] = max(reply.epoch, self._epochs.get(queue, 0))
                return self._answered(asked, wire.answer_of(asked, reply), unknown)

    async def has(self, queue: str) -> bool:
        """Whether there is a queue now, and not only at the last look.

        Raises:
            EventLogError: the cluster cannot be looked at.
        """
        try:
            await self._node.directory.refresh()
        except UnansweredError as error:
            raise EventLogError(f"queue {queue!r}: the cluster cannot be looked at: {error}") from error
        return queue in self._node.directory.queues

    @staticmethod
    def _give_up_unless(repeatable: bool, why: str) -> None:
        if not repeatable:
            raise UnknownOutcomeError(
                f"no confirmation ({why}): the message may be accepted or not; send it again with a deduplication_id "
                "on a queue that deduplicates, and it is accepted once"
            )

    @staticmethod
    def _answered(asked: msgspec.Struct, answer: Any, unknown: bool) -> Any:
        """A duplicate of a try that nobody answered is that try's success, and so is an acknowledgment of before."""
        if type(asked) is wire.AcknowledgeMany:
            counted = (Acknowledged.COUNTED, Acknowledged.BEFORE) if unknown else (Acknowledged.COUNTED,)
            return [outcome in counted for outcome in answer]
        if unknown and type(asked) is c.Send and answer.rejection is RejectionReason.DUPLICATE:
            return DeliveryResult(True, answer.duplicate_of)
        return answer

    async def _ask_owner(
        self, owner: str, queue: str, asked: msgspec.Struct, seconds: float, repeatable: bool
    ) -> Reply:
        if type(asked) is not wire.ReceiveRequest:
            return await self._reply_of(owner, queue, asked, seconds, repeatable)
        request_id = f"{self._node.member}.{next(self._receives)}"
        try:
            asked = msgspec.structs.replace(asked, request_id=request_id)
            return await self._reply_of(owner, queue, asked, seconds, repeatable)
        except (asyncio.CancelledError, UnansweredError):
            # What the owner leases, or has leased, for this would go to nobody.
            self._node.in_background(self._withdraw(owner, queue, wire.CancelReceive(request_id)))
            raise

    async def _withdraw(self, owner: str, queue: str, cancel: wire.CancelReceive) -> None:
        try:
            await self._reply_of(owner, queue, cancel, TRY_SECONDS, True)
        except (NobodyThereError, UnansweredError) as error:
            logger.info("queue %s: a receive was not withdrawn, its leases will run out: %s", queue, error)

    async def _reply_of(self, owner: str, queue: str, asked: msgspec.Struct, seconds: float, repeatable: bool) -> Reply:
        node = self._node
        if owner == node.member:
            return await node.carry_out(queue, asked)
        node.metrics.requests_forwarded += 1
        asking = asyncio.get_running_loop().create_task(
            node.transport.ask(owner, wire.encode_request(queue, asked), seconds)
        )
        try:
            # Who else deleted the queue meanwhile is only in the answer.
            await self._while_owner(asking, owner, queue, waits_late=not repeatable or type(asked) is c.Delete)
            return wire.decode_reply(asking.result())
        finally:
            if not asking.done():
                asking.cancel()

    async def _while_owner(self, asking: asyncio.Task[bytes], owner: str, queue: str, *, waits_late: bool) -> None:
        """Wait for the answer as long as it comes from the owner, or ``LATE_SECONDS`` longer.

        Raises:
            UnansweredError: somebody else is the owner now, and there is no answer.
        """
        directory = self._node.directory
        while not asking.done():
            if directory.owner(queue) != owner:
                if waits_late:
                    await asyncio.wait({asking}, timeout=LATE_SECONDS)
                if not asking.done():
                    raise UnansweredError(f"{owner} is not its owner any more")
                return
            changed = asyncio.get_running_loop().create_task(directory.changed(self._node.configuration.look_seconds))
            either: set[asyncio.Future[Any]] = {asking, changed}
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            changed.cancel()

    async def ask_member(self, member: str, queue: str, asked: msgspec.Struct, seconds: float = TRY_SECONDS) -> Any:
        """The answer of one member.

        Raises:
            EventLogError: it does not answer.
            MessageQueueError: it refused.
        """
        try:
            if member == self._node.member:
                reply = await self._node.carry_out(queue, asked)
            else:
                reply = wire.decode_reply(
                    await self._node.transport.ask(member, wire.encode_request(queue, asked), seconds)
                )
        except NobodyThereError as error:
            raise EventLogError(f"cluster: {member} is not there") from error
        except UnansweredError as error:
            raise EventLogError(f"cluster: {error}") from error
        if reply.outcome in (Outcome.MOVED, Outcome.UNAVAILABLE):
            raise EventLogError(f"cluster: {member}: {reply.detail or 'it does not own the queue'}")
        return wire.answer_of(asked, reply)
