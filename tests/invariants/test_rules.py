"""Each rule, told by a history that keeps it and by histories that break it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from msgspec.structs import replace

from mpreg_mq.events import types as e
from mpreg_mq.invariants import InvariantChecker
from mpreg_mq.invariants.rules import ALL_RULES
from mpreg_mq.model import DeliveryGuarantee, MessageOptions, OverflowPolicy, QueueType, RejectionReason
from mpreg_mq.payload import fingerprint
from tests.support.beginnings import (
    BROADCAST,
    QUORUM,
    both_acknowledge,
    busy,
    died,
    done,
    dropping,
    enqueued,
    group_with_a_retry,
    held,
    one_acknowledged,
    opened,
    priority_with_a_retry,
    probed,
    ran_out,
    redriven,
    retried,
    two_members,
    unexplained,
)
from tests.support.history import History

# --- histories that keep every rule ---------------------------------------------------------------------------

GOOD: dict[str, Callable[[], History]] = {
    "at least once, with a retry": lambda: (
        History()
        .joined("a")
        .sent("1-r")
        .delivered("1-r", "a")
        .failed("1-r", "a")
        .requeued("1-r")
        .at(1000.1)
        .delivered("1-r", "a", 2)
        .acknowledged("1-r", "a")
    ),
    "broadcast to two": lambda: (
        two_members()
        .delivered("1-r", "a")
        .delivered("1-r", "b")
        .acknowledged("1-r", "a", False)
        .acknowledged("1-r", "b", False)
        .add(e.MessageCompleted(1000.0, "1-r"))
    ),
    "a quorum with a newcomer": lambda: (
        two_members(QUORUM, required_acknowledgments=2)
        .delivered("1-r", "a")
        .delivered("1-r", "b")
        .acknowledged("1-r", "a", False)
        .joined("c")
        .audience("1-r", "c")
        .delivered("1-r", "c")
        .acknowledged("1-r", "c", False)
        .add(e.MessageCompleted(1000.0, "1-r"))
    ),
    "a member unsubscribes": lambda: (
        two_members()
        .delivered("1-r", "a")
        .acknowledged("1-r", "a", False)
        .left("b")
        .add(e.AudienceMemberLeft(1000.0, "1-r", "b"), e.MessageCompleted(1000.0, "1-r"))
    ),
    "a dead letter is redriven": lambda: (
        History(max_retries=0)
        .joined("a")
        .sent("1-r")
        .delivered("1-r", "a")
        .failed("1-r", "a")
        .dead("1-r", "a")
        .add(replace(enqueued("1-r"), message_id="2-r", redriven_from="q/1-r"))
        .add(e.DeadLetterRedriven(1000.0, "1-r", "2-r", "q"))
        .delivered("2-r", "a")
        .acknowledged("2-r", "a")
    ),
    "a dead letter was redriven beyond the limits of the queue, before redrives were held to them": lambda: History(
        max_payload_bytes=1, max_headers_bytes=1
    ).add(replace(enqueued("1-r"), options=MessageOptions(headers={"key": "value"}), redriven_from="other/1-r")),
    "a dead letter of a queue that deduplicates is redriven": lambda: (
        History(max_retries=0, enable_deduplication=True)
        .joined("a")
        .sent("1-r", key="k")
        .delivered("1-r", "a")
        .failed("1-r", "a")
        .dead("1-r", "a")
        .add(replace(enqueued("1-r"), message_id="2-r", redriven_from="q/1-r"))
        .add(e.DeadLetterRedriven(1000.0, "1-r", "2-r", "q"))
    ),
    "a quorum is missed by members who failed at first": lambda: (
        two_members(QUORUM, required_acknowledgments=3, max_retries=1)
        .delivered("1-r", "a")
        .failed("1-r", "a")
        .requeued("1-r", member="a")
        .delivered("1-r", "b")
        .acknowledged("1-r", "b", False)
        .at(1000.1)
        .delivered("1-r", "a", 2)
        .acknowledged("1-r", "a", False)
        .add(e.QuorumMissed(1000.1, "1-r", 2, 3, 1300.1))
        .at(1300.1)
        .add(e.QuorumMissed(1300.1, "1-r", 2, 3, 1600.1))
        .at(1600.1)
        .dead("1-r", None, 2, None)
    ),
    "newcomers within the wait of a missed quorum": lambda: (
        both_acknowledge(two_members(QUORUM, required_acknowledgments=4, max_retries=0))
        .add(e.QuorumMissed(1000.0, "1-r", 2, 4, 1300.0))
        .at(1100.0)
        .joined("c")
        .audience("1-r", "c")
        .delivered("1-r", "c")
        .acknowledged("1-r", "c", False)
        .add(e.QuorumMissed(1100.0, "1-r", 3, 4, 1300.0))
        .at(1300.0)
        .dead("1-r", None, 1, None)
    ),
    "priorities and a group": lambda: (
        History(queue_type=QueueType.PRIORITY)
        .joined("a")
        .sent("1-r", priority=1, group_id="g")
        .sent("2-r", priority=9)
        .sent("3-r", priority=5, group_id="g")
        .delivered("2-r", "a")
        .delivered("3-r", "a")
        .acknowledged("3-r", "a")
        .delivered("1-r", "a")
    ),
    "a full queue drops its oldest": lambda: (
        History(max_size=1, overflow_policy=OverflowPolicy.DROP_OLDEST)
        .sent("1-r")
        .add(e.MessageDropped(1000.0, "1-r"))
        .sent("2-r")
    ),
    "a key is free after its window": lambda: (
        History(enable_deduplication=True, deduplication_window_seconds=10)
        .sent("1-r", key="k")
        .add(e.DuplicateRejected(1000.0, "t", "k", "1-r"))
        .at(1010.0)
        .sent("2-r", key="k")
    ),
    "a circuit opens, probes and closes": lambda: (
        History(circuit_breaker_failure_threshold=1)
        .joined("a")
        .sent("1-r")
        .delivered("1-r", "a")
        .failed("1-r", "a")
        .add(e.CircuitOpened(1000.0, "a", 1, 1030.0))
        .requeued("1-r")
        .at(1030.0)
        .add(e.CircuitHalfOpened(1030.0, "a"))
        .delivered("1-r", "a", 2)
        .acknowledged("1-r", "a")
        .add(e.CircuitClosed(1030.0, "a"))
    ),
}


@pytest.mark.parametrize("name", GOOD)
def test_a_history_that_keeps_the_rules_is_not_blamed(name: str) -> None:
    """Given a history as a queue writes it, then no rule objects, at any of its prefixes."""
    history = GOOD[name]()
    history.keeps_all()
    for length in range(len(history.events)):
        assert InvariantChecker().observe_all(history.records[:length]).finish(cut=True) == []


# --- histories that break one -------------------------------------------------------------------------------

BAD: list[tuple[str, str, Callable[[], History]]] = [
    ("S1", "an id twice", lambda: History().sent("1-r").sent("1-r")),
    ("S1", "an id from before", lambda: History().sent("2-r").sent("1-r")),
    ("S1", "an id of a finished message", lambda: done("1-r").sent("1-r")),
    ("S2", "a payload beyond the limit", lambda: History(max_payload_bytes=1).sent("1-r")),
    ("S2", "a topic with a wildcard", lambda: History().sent("1-r", "a.*")),
    ("S2", "headers beyond the limit", lambda: History(max_headers_bytes=1).sent("1-r", headers={"a": "bc"})),
    ("S2", "pending fire-and-forget", lambda: History().sent("1-r", guarantee=DeliveryGuarantee.FIRE_AND_FORGET)),
    ("G1", "a stranger", lambda: History().add(e.FireAndForgetSent(1000.0, "f1-r", "t", ("a",)))),
    ("G1", "a puller", lambda: History().joined("a", pull=True).add(e.FireAndForgetSent(1000.0, "f1-r", "t", ("a",)))),
    ("G1", "two outcomes", lambda: History().joined("a").add(e.FireAndForgetSent(1000.0, "f1-r", "t", ("a",), ("a",)))),
    (
        "G2",
        "two at once",
        lambda: History().joined("a").joined("b").sent("1-r").delivered("1-r", "a").delivered("1-r", "b", 2),
    ),
    ("G2", "the busier one", lambda: busy().delivered("2-r", "a")),
    ("G2", "an audience", lambda: History().joined("a").sent("1-r").audience("1-r", "a")),
    ("G2", "complete without anybody", lambda: History().sent("1-r").add(e.MessageCompleted(1000.0, "1-r"))),
    (
        "G3",
        "half an audience",
        lambda: History().joined("a").joined("b").sent("1-r", guarantee=BROADCAST).audience("1-r", "a"),
    ),
    ("G3", "a second audience", lambda: two_members().joined("c").audience("1-r", "c")),
    ("G3", "no audience", lambda: History().joined("a").sent("1-r", guarantee=BROADCAST).delivered("1-r", "a")),
    ("G3", "a stranger", lambda: two_members().joined("c").delivered("1-r", "c")),
    ("G3", "again after it acknowledged", lambda: one_acknowledged().delivered("1-r", "a", 2)),
    ("G3", "complete without one", lambda: one_acknowledged().add(e.MessageCompleted(1000.0, "1-r"))),
    ("G3", "one completes it", lambda: two_members().delivered("1-r", "a").acknowledged("1-r", "a", True)),
    ("G3", "everybody, and no end", lambda: both_acknowledge(two_members()).sent("2-r")),
    ("G3", "who left stays", lambda: two_members().left("a").sent("2-r")),
    ("G3", "who stays leaves", lambda: two_members().add(e.AudienceMemberLeft(1000.0, "1-r", "a"))),
    (
        "G3",
        "who was never in leaves",
        lambda: two_members().joined("c").left("c").add(e.AudienceMemberLeft(1000.0, "1-r", "c")),
    ),
    (
        "G3",
        "who acknowledged leaves",
        lambda: one_acknowledged().left("a").add(e.AudienceMemberLeft(1000.0, "1-r", "a")),
    ),
    (
        "G4",
        "too few",
        lambda: one_acknowledged(QUORUM, required_acknowledgments=2).add(e.MessageCompleted(1000.0, "1-r")),
    ),
    ("G4", "enough, and no end", lambda: one_acknowledged(QUORUM).delivered("1-r", "b")),
    ("G4", "enough, and given up", lambda: one_acknowledged(QUORUM).dead("1-r")),
    ("G4", "a newcomer is left out", lambda: two_members(QUORUM).joined("c").delivered("1-r", "a")),
    ("G4", "a member twice", lambda: two_members(QUORUM).audience("1-r", "a")),
    ("G4", "a newcomer that does not match", lambda: two_members(QUORUM).joined("c", "x").audience("1-r", "c")),
    (
        "G4",
        "given up too soon",
        lambda: two_members(QUORUM, required_acknowledgments=3).add(e.QuorumMissed(1000.0, "1-r", 0, 3, 1300.0)),
    ),
    (
        "G4",
        "a wrong count",
        lambda: both_acknowledge(two_members(QUORUM, required_acknowledgments=3)).add(
            e.QuorumMissed(1000.0, "1-r", 1, 3, 1300.0)
        ),
    ),
    ("G5", "given up for want of a subscriber", lambda: History().sent("1-r").dead("1-r", None, 0, None)),
    ("G6", "another topic", lambda: History().joined("a", "x").sent("1-r", "t").delivered("1-r", "a")),
    ("G6", "a subscription that is over", lambda: History().joined("a").sent("1-r").left("a").delivered("1-r", "a")),
    ("O1", "the second first", lambda: History().joined("a").sent("1-r").sent("2-r").delivered("2-r", "a")),
    (
        "O1",
        "a group in parallel",
        lambda: (
            History()
            .joined("a")
            .sent("1-r", group_id="g")
            .sent("2-r", group_id="g")
            .delivered("1-r", "a")
            .delivered("2-r", "a")
        ),
    ),
    ("O1", "a group past a retry", lambda: group_with_a_retry().delivered("2-r", "a")),
    (
        "O2",
        "the lower first",
        lambda: (
            History(queue_type=QueueType.PRIORITY).joined("a").sent("1-r").sent("2-r", priority=1).delivered("1-r", "a")
        ),
    ),
    ("O2", "a retry jumps the queue", lambda: priority_with_a_retry().delivered("1-r", "a", 2)),
    ("O3", "too early", lambda: History().joined("a").sent("1-r", delay_seconds=5).at(1004.0).delivered("1-r", "a")),
    (
        "O3",
        "the later one first",
        lambda: (
            History(queue_type=QueueType.DELAY)
            .joined("a")
            .sent("1-r", delay_seconds=2)
            .sent("2-r", delay_seconds=1)
            .at(1002.0)
            .delivered("1-r", "a")
        ),
    ),
    (
        "T1",
        "too late",
        lambda: History().joined("a").sent("1-r", message_ttl_seconds=5).at(1005.0).delivered("1-r", "a"),
    ),
    (
        "T1",
        "expired early",
        lambda: History().sent("1-r", message_ttl_seconds=5).at(1004.9).add(e.MessageExpired(1004.9, "1-r")),
    ),
    (
        "T1",
        "expired while leased",
        lambda: (
            History()
            .joined("a")
            .sent("1-r", message_ttl_seconds=5)
            .delivered("1-r", "a")
            .at(1006.0)
            .add(e.MessageExpired(1006.0, "1-r"))
        ),
    ),
    ("T1", "expired without a limit", lambda: History().sent("1-r").add(e.MessageExpired(1000.0, "1-r"))),
    ("L1", "two leases", lambda: two_members().delivered("1-r", "a").delivered("1-r", "a", 2)),
    ("L1", "another timeout", lambda: History().joined("a").sent("1-r").delivered("1-r", "a", deadline=1001.0)),
    ("L1", "ended early", lambda: held().at(1299.0).add(e.LeaseExpired(1299.0, "1-r", "a", 1, "late"))),
    (
        "L1",
        "ended without a lease",
        lambda: History().joined("a").sent("1-r").add(e.LeaseExpired(1000.0, "1-r", "a", 1, "late")),
    ),
    (
        "L1",
        "a lease of no time",
        lambda: History().joined("a", pull=True).sent("1-r").delivered("1-r", "a", pull=True, deadline=1000.0),
    ),
    (
        "L2",
        "a stranger",
        lambda: History().joined("a").joined("b").sent("1-r").delivered("1-r", "a").acknowledged("1-r", "b"),
    ),
    ("L2", "who was never given it", lambda: two_members().acknowledged("1-r", "a", False)),
    ("L2", "twice", lambda: one_acknowledged().acknowledged("1-r", "a", False)),
    ("L2", "and not finished", lambda: held().acknowledged("1-r", "a", False)),
    ("L3", "a failure without a lease", lambda: History().joined("a").sent("1-r").failed("1-r", "a")),
    ("L3", "a failure of another attempt", lambda: held().failed("1-r", "a", 2)),
    (
        "L3",
        "more time for a stranger",
        lambda: (
            History()
            .joined("a")
            .joined("b")
            .sent("1-r")
            .delivered("1-r", "a")
            .add(e.LeaseExtended(1000.0, "1-r", "b", 2000.0))
        ),
    ),
    ("L3", "extended into the past", lambda: held().add(e.LeaseExtended(1000.0, "1-r", "a", 999.0))),
    ("R1", "one attempt too many", lambda: retried(max_retries=0).delivered("1-r", "a", 2)),
    ("R1", "a count that starts anew", lambda: retried().at(1001.0).delivered("1-r", "a", 1)),
    ("R1", "dead at once", lambda: held().failed("1-r", "a").dead("1-r", "a")),
    ("R1", "a failure that nothing follows", lambda: held().failed("1-r", "a").sent("2-r")),
    ("R1", "a failure at the end", lambda: held().failed("1-r", "a")),
    ("R1", "requeued after the last", lambda: retried(max_retries=0)),
    ("R1", "requeued for nothing", lambda: History().sent("1-r").requeued("1-r")),
    ("R2", "before its due time", lambda: retried().at(1000.05).delivered("1-r", "a", 2)),
    ("R2", "without a due time", lambda: held().failed("1-r", "a").delivered("1-r", "a", 2)),
    ("R2", "a wait beyond the backoff", lambda: ran_out().requeued("1-r", 0.11)),
    ("R2", "a wait below the backoff", lambda: ran_out().requeued("1-r", 0.04)),
    ("R3", "given one while open", lambda: opened().at(1001.0).delivered("1-r", "a", 2)),
    ("R3", "stays closed", lambda: held(circuit_breaker_failure_threshold=1).failed("1-r", "a").requeued("1-r")),
    (
        "R3",
        "opens for nothing",
        lambda: History(circuit_breaker_failure_threshold=2).joined("a").add(e.CircuitOpened(1000.0, "a", 0, 1030.0)),
    ),
    ("R3", "a wrong count", lambda: opened(failures=2)),
    ("R3", "another recovery time", lambda: opened(until=1031.0)),
    ("R3", "half open early", lambda: opened().at(1029.0).add(e.CircuitHalfOpened(1029.0, "a"))),
    (
        "R3",
        "closes without a probe",
        lambda: opened().at(1030.0).add(e.CircuitHalfOpened(1030.0, "a"), e.CircuitClosed(1030.0, "a")),
    ),
    (
        "R3",
        "two probes",
        lambda: (
            opened()
            .at(1030.0)
            .add(e.CircuitHalfOpened(1030.0, "a"))
            .sent("2-r")
            .delivered("1-r", "a", 2)
            .delivered("2-r", "a")
        ),
    ),
    ("R3", "half open and never open", lambda: History().joined("a").add(e.CircuitHalfOpened(1000.0, "a"))),
    ("R3", "opens for nobody", lambda: History().add(e.CircuitOpened(1000.0, "a", 1, 1030.0))),
    ("R3", "a probe succeeds and it stays half open", lambda: probed().sent("2-r")),
    ("R3", "a probe succeeds at the end", lambda: probed()),
    ("R3", "a probe succeeds and another's closes", lambda: probed().add(e.CircuitClosed(1030.0, "b"))),
    ("D1", "without a reason", lambda: unexplained()),
    ("D1", "without an error", lambda: died(error=None)),
    ("D1", "without a subscriber", lambda: died(name=None)),
    (
        "D1",
        "failed without an error",
        lambda: (
            held(max_retries=0, enable_dead_letter_queue=False)
            .failed("1-r", "a")
            .add(e.MessageFailed(1000.0, "1-r", "because", None, 1, "a"))
        ),
    ),
    ("D1", "dead where it is disabled", lambda: died(enable_dead_letter_queue=False)),
    ("D1", "a wrong number of attempts", lambda: died(attempts=2)),
    ("D1", "a wrong error", lambda: died(error="bang")),
    ("D1", "a wrong subscriber", lambda: died(name="b")),
    ("D1", "redriven twice", lambda: redriven().add(e.DeadLetterRedriven(1000.0, "1-r", "2-r", "q"))),
    (
        "D1",
        "redriven from nothing",
        lambda: History().add(replace(enqueued("1-r"), redriven_from="q/0-r")),
    ),
    (
        "D1",
        "redriven and still dead",
        lambda: died().add(replace(enqueued("2-r"), redriven_from="q/1-r")).sent("3-r"),
    ),
    (
        "D1",
        "another message",
        lambda: died().add(replace(enqueued("2-r"), topic="u", redriven_from="q/1-r")),
    ),
    (
        "D1",
        "redriven with a key",
        lambda: died().add(replace(enqueued("2-r"), deduplication_key="k", redriven_from="q/1-r")),
    ),
    ("D1", "redriven to nowhere", lambda: died().add(e.DeadLetterRedriven(1000.0, "1-r", "2-r", "q"))),
    ("D1", "redriven as another", lambda: died().sent("2-r").add(e.DeadLetterRedriven(1000.0, "1-r", "2-r", "q"))),
    ("D1", "purged and not there", lambda: History().add(e.DeadLettersPurged(1000.0, ("1-r",)))),
    ("U1", "no key where the queue deduplicates", lambda: History(enable_deduplication=True).sent("1-r")),
    ("U1", "a key twice", lambda: History().sent("1-r", key="k").sent("2-r", key="k")),
    (
        "U1",
        "refused after the window",
        lambda: History().sent("1-r", key="k").at(1300.0).add(e.DuplicateRejected(1300.0, "t", "k", "1-r")),
    ),
    ("U1", "refused for a refused send", lambda: History().add(e.DuplicateRejected(1000.0, "t", "k", "0-r"))),
    (
        "U1",
        "refused for another message",
        lambda: History().sent("1-r", key="k").sent("2-r", key="l").add(e.DuplicateRejected(1000.0, "t", "k", "2-r")),
    ),
    (
        "U1",
        "its fingerprint and not the key that was named",
        lambda: History().sent("1-r", key=fingerprint("t", "p", None), deduplication_id="d"),
    ),
    ("C1", "beyond the limit", lambda: History(max_size=1).sent("1-r").sent("2-r")),
    (
        "C1",
        "refused below the limit",
        lambda: History().add(e.MessageRejected(1000.0, "t", RejectionReason.CAPACITY, "full")),
    ),
    (
        "C1",
        "dropped under another policy",
        lambda: History(max_size=1).sent("1-r").add(e.MessageDropped(1000.0, "1-r")),
    ),
    ("C1", "dropped below the limit", lambda: dropping(3).sent("1-r").add(e.MessageDropped(1000.0, "1-r"))),
    ("C1", "a younger one dropped", lambda: dropping(2).sent("1-r").sent("2-r").add(e.MessageDropped(1000.0, "2-r"))),
    (
        "C2",
        "one too many",
        lambda: History().joined("a", limit=1).sent("1-r").sent("2-r").delivered("1-r", "a").delivered("2-r", "a"),
    ),
    ("C3", "a lease outlives its process", lambda: held().left("a", unsubscribed=False)),
    (
        "C4",
        "delivered while paused",
        lambda: History().joined("a").sent("1-r").add(e.QueuePaused(1000.0)).delivered("1-r", "a"),
    ),
    ("I2", "finished twice", lambda: done("1-r").add(e.MessageExpired(1000.0, "1-r"))),
    ("I2", "finished and never accepted", lambda: History().add(e.MessagesPurged(1000.0, ("1-r",)))),
    ("I2", "purged twice at once", lambda: History().sent("1-r").add(e.MessagesPurged(1000.0, ("1-r", "1-r")))),
    ("I3", "delivered after its end", lambda: done("1-r").delivered("1-r", "a", 2)),
    ("I3", "delivered and never accepted", lambda: History().joined("a").delivered("1-r", "a")),
    ("I3", "created twice", lambda: History().add(e.QueueCreated(1000.0, "q", History().configuration))),
    ("I3", "deleted with messages in it", lambda: History().sent("1-r").add(e.QueueDeleted(1000.0))),
    ("I3", "accepted after the end", lambda: History().add(e.QueueDeleted(1000.0)).sent("1-r")),
    ("I3", "a subscription twice", lambda: History().joined("a").joined("a")),
    ("I3", "a subscription that never began", lambda: History().left("a")),
    ("I4", "an event the projections refuse", lambda: History().left("a")),
]


@pytest.mark.parametrize(("rule_id", "story"), [pytest.param(r, s, id=f"{r}-{n}") for r, n, s in BAD])
def test_a_history_that_breaks_a_rule_is_blamed(rule_id: str, story: Callable[[], History]) -> None:
    """Given a history that breaks one rule, then that rule says where, with the records that show it."""
    history = story()
    violation = history.breaks(rule_id)
    assert violation.stream == "queue:q"
    assert violation.position <= len(history.events)
    assert violation.evidence[-1].position <= violation.position
    assert rule_id in str(violation)
    assert violation.sentence in str(violation)


def test_every_rule_has_a_history_that_breaks_it() -> None:
    """Given all rules, then none is only believed to work."""
    assert {rule.id for rule in ALL_RULES} == {rule_id for rule_id, _, _ in BAD}
