"""The flag that says that an actor has stopped does what an event of the library does, and is small until it is waited
for."""

from __future__ import annotations

import threading

from mpreg_mq.actors.stopped import StoppedFlag
from tests.support.loop_actors import Recorder, actor_of, run_in_threads


def test_it_is_set_and_unset_like_an_event() -> None:
    """Given a new flag, then it is unset, and set and unset as it is told, with or without somebody who waited."""
    flag, event = StoppedFlag(), threading.Event()
    assert isinstance(flag, threading.Event)
    for waited in (False, True):
        for one in (flag, event):
            assert not one.is_set()
            if waited:
                assert not one.wait(0.0)
            one.set()
            assert one.is_set()
            assert one.wait(0.0)
            assert one.wait()
            one.clear()
            assert not one.is_set()
            assert not one.wait(0.0)
    assert repr(flag) == "<StoppedFlag: unset>"
    flag.set()
    assert repr(flag) == "<StoppedFlag: set>"


def test_setting_it_wakes_every_thread_that_waits() -> None:
    """Given threads that wait for a flag, however early or late they come, when it is set, then all go on."""
    for _ in range(20):
        flag = StoppedFlag()
        woken: list[bool] = []

        def wait_or_set(number: int, flag: StoppedFlag = flag, woken: list[bool] = woken) -> None:
            if number == 2:
                flag.set()
            else:
                woken.append(flag.wait(30))

        run_in_threads(4, wait_or_set)
        assert woken == [True] * 3


def test_an_actor_and_its_reference_share_one() -> None:
    """Given a loop actor, then its own flag is its reference's, unset while it lives and set once it has stopped."""
    ref = Recorder.start()
    assert isinstance(ref.actor_stopped, StoppedFlag)
    assert ref.actor_stopped is actor_of(ref).actor_stopped
    assert ref.is_alive()
    ref.stop()
    assert ref.actor_stopped.wait(30)
    assert not ref.is_alive()
