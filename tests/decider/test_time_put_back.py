"""A queue's time is that of its events: what only a clock had said counts no more once it is put back (O3, T1, I4)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpreg_mq.actors import commands as c
from mpreg_mq.actors.decider import NOTHING, Context, Decision, decide, decide_dispatch, decide_tick
from mpreg_mq.events import types as e
from mpreg_mq.invariants import check_history, recorded
from mpreg_mq.model import DeliveryGuarantee, MessageOptions
from mpreg_mq.projections import QueueState
from mpreg_mq.projections.deadlines import DeadlineKind
from mpreg_mq.testing.strategies import START as BEGIN
from mpreg_mq.testing.strategies import commands, configurations, guarantees
from tests.support.given import START, Scenario, callback

BROADCAST = DeliveryGuarantee.BROADCAST


def from_events(state: QueueState, history: list[e.Event]) -> QueueState:
    """The state of a process that has no snapshot."""
    return QueueState.replay(history)


def from_snapshot(state: QueueState, history: list[e.Event]) -> QueueState:
    """The state of a process that has a snapshot of the one before, saved when that ended."""
    restored = QueueState.restore(state.dump())
    assert restored is not None
    return restored


def as_it_is(state: QueueState, history: list[e.Event]) -> QueueState:
    """The state of the same process, whose clock is put back."""
    return state


Afterwards = Callable[[QueueState, list[e.Event]], QueueState]


def put_back(q: Scenario, now: float, afterwards: Afterwards) -> None:
    """Put the clock back, and go on with those states."""
    q.state, q.live, q.placed = (afterwards(state, q.history) for state in (q.state, q.live, q.placed))
    q.now = now


@pytest.mark.parametrize("pull", [False, True], ids=["push", "pull"])
@pytest.mark.parametrize("way", ["option", "group", "retry", "copy"])
@pytest.mark.parametrize("afterwards", [from_events, from_snapshot, as_it_is])
def test_o3_what_was_due_by_a_clock_that_was_put_back_waits_for_its_time(
    afterwards: Afterwards, way: str, pull: bool
) -> None:
    """Given a message, or a retry, that was due by the clock without any event, when the clock is put back, with the
    process or without, then it is not delivered before its time comes again, and then it is."""
    q = Scenario(retry_backoff_seconds=10.0, retry_jitter=0.0)
    q.subscribe("s", pull=pull)

    def take() -> list[str]:
        return q.receive("s") if pull else [message_id for message_id, _ in q.dispatch()]

    if way in ("option", "group"):
        message = q.send("a", delay_seconds=10.0, group_id="g" if way == "group" else None)
    else:
        message = q.send("a", BROADCAST if way == "copy" else DeliveryGuarantee.AT_LEAST_ONCE)
        assert take() == [message]
        assert q.fail(message, "s")
    q.now += 10.0
    for state in (q.state, q.live, q.placed):
        assert decide_tick(state, q.context) == NOTHING
        assert len(state.messages.lanes) == 1

    put_back(q, START + 9.0, afterwards)
    assert take() == []
    q.now = START + 10.0
    assert take() == [message]
    assert check_history(recorded(q.history)) == []


@pytest.mark.parametrize("afterwards", [from_events, from_snapshot])
def test_t1_a_copy_that_had_expired_by_a_clock_that_was_put_back_is_delivered(afterwards: Afterwards) -> None:
    """Given a broadcast, one copy of which is leased and the other was too late by the clock, when the next process has
    a clock that lies before that, then it delivers the other copy, with a snapshot or without."""
    q = Scenario(default_acknowledgment_timeout_seconds=100.0)
    q.subscribe("s", "a", max_in_flight=1)
    q.subscribe("t", max_in_flight=1)
    other = q.send("b")
    assert q.dispatch() == [(other, "t")]
    message = q.send("a", BROADCAST, message_ttl_seconds=10.0)
    assert q.dispatch() == [(message, "s")]
    q.now += 9.0
    assert q.acknowledge(other, "t")
    q.now += 2.0
    for state in (q.state, q.live, q.placed):
        assert decide_dispatch(state, q.context) == NOTHING
        assert len(state.messages.lanes) == 0

    put_back(q, START + 9.5, afterwards)
    assert q.dispatch() == [(message, "t")]
    assert check_history(recorded(q.history)) == []


# --- for all ----------------------------------------------------------------------------------------------------


def standing(state: QueueState) -> Any:
    """What is ready by the events, and every deadline that is still to come, in order."""
    ready = {key(slot) for message in state.messages for slot in message.slots() if slot.lane is not None}
    deadlines = []
    for deadline in state.messages.deadlines:
        if deadline.kind is DeadlineKind.DUE and deadline.when <= state.last_at:
            ready.add(key(deadline.target))
        else:
            deadlines.append((deadline.when, deadline.kind, key(deadline.target)))
    return ready, deadlines


def key(target: Any) -> Any:
    """What tells a deadline's target from others, in any state."""
    if isinstance(target, str):
        return target
    message = getattr(target, "message", target)
    return message.id, getattr(target, "subscriber_id", None)


class Twins:
    """Two states of one queue that have the same events, by different ways; they have to decide the same."""

    def __init__(self) -> None:
        self.events: list[e.Event] = []
        self.ends = [0]
        self.now = BEGIN
        self.one = QueueState()
        self.other = QueueState()
        self.snapshots: list[tuple[int, bytes]] = []

    def decide(self, decider: Callable[..., Decision], *arguments: Any) -> bool:
        """Let both decide, and take what they do; whether that was anything."""
        decision = decider(self.one, *arguments, Context(self.now, "h"))
        assert decider(self.other, *arguments, Context(self.now, "h")) == decision
        for event in decision.events:
            self.one.apply(event)
            self.other.apply(event)
        self.events += decision.events
        if decision.events:
            self.ends.append(len(self.events))
        return bool(decision.events)

    def until_quiet(self, decider: Callable[[QueueState, Context], Decision]) -> None:
        """Let both decide until there is nothing to do."""
        while self.decide(decider):
            pass

    def save(self) -> None:
        """Keep a snapshot of the state that has seen the time."""
        self.snapshots.append((len(self.events), self.one.dump()))

    def restart(self, lost: int, share: float) -> None:
        """The process ends and the events of its latest decisions are lost; one twin has the newest snapshot."""
        end = self.ends[max(1, len(self.ends) - 1 - lost)]
        self.events = self.events[:end]
        self.ends = [one for one in self.ends if one <= end]
        self.snapshots = [one for one in self.snapshots if one[0] <= end]
        self.one = QueueState.replay(self.events)
        self.other = QueueState.replay(self.events)
        if self.snapshots:
            version, body = self.snapshots[-1]
            restored = QueueState.restore(body)
            assert restored is not None
            restored.apply_all(self.events[version:])
            restored.check()
            self.other = restored
        assert self.one.describe() == self.other.describe()
        assert self.one.last_at == self.other.last_at
        assert standing(self.one) == standing(self.other)
        self.put_back(share)

    def put_back(self, share: float) -> None:
        """The clock is put back by a share of the time since the last event, before which a queue never is."""
        self.now -= share * (self.now - self.one.last_at)


SHARES = st.sampled_from((0.0, 0.5, 1.0))


@st.composite
def what_is_asked(draw: st.DrawFn, state: QueueState, number: int) -> Any:
    """A command, most often one that has to do with time; None for one that is refused at the door."""
    if draw(st.booleans()):
        options = MessageOptions(
            delay_seconds=draw(st.sampled_from((None, 0.5, 7.0))),
            message_ttl_seconds=draw(st.sampled_from((None, None, 12.0))),
            group_id=draw(st.sampled_from((None, None, "g"))),
        )
        key = draw(st.sampled_from(("k", f"k{number}"))) if state.configuration.enable_deduplication else None
        return c.Send(draw(st.sampled_from(("a", "b"))), b"\xa1p", draw(guarantees()), options, key)
    command = draw(commands(state, number))
    subscriber = state.subscribers.get(getattr(command, "subscriber_id", ""))
    if isinstance(command, c.Subscribe) and subscriber is not None and subscriber.present:
        return command if subscriber.pull is (command.callback is None) else None
    return command


STEPS = ("ask",) * 5 + ("dispatch",) * 2 + ("look",) * 2 + ("wait",) * 3 + ("save", "put back", "restart", "restart")


@given(st.data())
def test_i4_from_a_snapshot_a_queue_goes_on_as_from_all_events_whatever_its_clock(data: st.DataObject) -> None:
    """Given any story, snapshots, crashes that lose the latest events, and clocks put back as far as the events left,
    then what is ready, every deadline and each decision is the same from a snapshot as from all events, and no rule is
    broken (O3, T1, L1, R2, R3, U1)."""
    twins = Twins()
    twins.decide(decide, c.Open(data.draw(configurations())))
    for name, pattern in (("r", "#"), ("s", "a")):
        twins.decide(decide, c.Subscribe(name, f"subscription-{name}", pattern, callback, max_in_flight=1))
    for number in range(data.draw(st.integers(5, 40))):
        step = data.draw(st.sampled_from(STEPS))
        if step in ("ask", "dispatch", "look"):
            # As a turn does, which makes ready what is due, in whichever state that has been seen before.
            twins.until_quiet(decide_tick)
        if step == "ask":
            command = data.draw(what_is_asked(twins.one, number))
            if command is not None:
                twins.decide(decide, command)
        elif step == "dispatch":
            twins.until_quiet(decide_dispatch)
        elif step == "wait":
            twins.now += data.draw(st.sampled_from((0.5, 2.0, 7.0, 30.0)))
        elif step == "put back":
            twins.put_back(data.draw(SHARES))
        elif step in ("save", "restart"):
            twins.save()
            if step == "restart":
                twins.restart(data.draw(st.sampled_from((0, 0, 1, 2))), data.draw(SHARES))
    assert check_history(recorded(twins.events)) == []
