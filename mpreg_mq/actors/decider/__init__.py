"""The pure decider: ``decide(state, command, context) -> Decision``.

It touches no clock, no I/O, no thread and no randomness: time, id token and durability come in with the
context. It reads the state and changes nothing that counts; only ``QueueState.apply`` does.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mpreg_mq.actors import commands as c
from mpreg_mq.actors.decider import administration, delivering, sending, settling
from mpreg_mq.actors.decider.decision import NOTHING, WAIT_FOR_ROOM, Context, Decision
from mpreg_mq.actors.decider.delivering import decide_dispatch, next_dispatch
from mpreg_mq.actors.decider.timing import decide_tick
from mpreg_mq.projections import QueueState

DECIDERS: dict[type[Any], Callable[[QueueState, Any, Context], Decision]] = {
    c.Send: sending.decide_send,
    c.SendBatch: sending.decide_send_batch,
    c.SendEach: sending.decide_send_each,
    c.RecordRejection: sending.decide_rejection,
    c.Subscribe: administration.decide_subscribe,
    c.Unsubscribe: administration.decide_unsubscribe,
    c.Receive: delivering.decide_receive,
    c.Acknowledge: settling.decide_acknowledge,
    c.NegativeAcknowledge: settling.decide_negative_acknowledge,
    c.ExtendLease: settling.decide_extend,
    c.EndLease: settling.decide_end_lease,
    c.Detach: administration.decide_detach,
    c.Pause: administration.decide_pause,
    c.Resume: administration.decide_resume,
    c.Purge: administration.decide_purge,
    c.Delete: administration.decide_delete,
    c.Open: administration.decide_open,
    c.Redrive: administration.decide_redrive,
    c.AcceptRedriven: administration.decide_accept_redriven,
    c.RecordRedriven: administration.decide_record_redriven,
    c.PurgeDeadLetters: administration.decide_purge_dead_letters,
}


def decide(state: QueueState, command: Any, context: Context) -> Decision:
    """What the command means now.

    Raises:
        KeyError: the command is not one of :mod:`mpreg_mq.actors.commands`.
        MessageQueueError: the command cannot be carried out; nothing changed.
    """
    return DECIDERS[type(command)](state, command, context)


__all__ = [
    "DECIDERS",
    "NOTHING",
    "WAIT_FOR_ROOM",
    "Context",
    "Decision",
    "decide",
    "decide_dispatch",
    "decide_tick",
    "next_dispatch",
]
