"""The kernel syncs a file meanwhile, where it can, and tells when it has."""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import select
from collections.abc import Iterator
from pathlib import Path

import pytest

from mpreg_mq.events.sqlite.kernel_sync import MOST_UNDER_WAY, KernelSync

PATIENCE_MILLISECONDS = 60_000


@pytest.fixture
def file(path: Path) -> Path:
    path.write_bytes(b"content")
    return path


@pytest.fixture
def sync(file: Path) -> Iterator[KernelSync]:
    made = KernelSync.of(file)
    if made is None:
        pytest.skip("the kernel takes no request to sync a file of this file system")
    yield made
    made.close()


def is_readable(sync: KernelSync, milliseconds: int = 0) -> bool:
    """Whether an event loop would be told, at the latest after so long."""
    poll = select.poll()
    poll.register(sync.descriptor, select.POLLIN)
    return bool(poll.poll(milliseconds))


def open_files(path: Path) -> int:
    """How often this process has the file open."""
    return sum(
        os.path.exists(entry.path) and os.path.samestat(os.stat(entry.path), path.stat())
        for entry in os.scandir("/proc/self/fd")
    )


# --- asking and hearing -------------------------------------------------------------------------------------


def test_the_end_of_a_sync_makes_the_descriptor_readable_until_it_is_heard(file: Path, sync: KernelSync) -> None:
    """Given a request, then its descriptor becomes readable when it has ended, its number is told then, and after
    ``heard`` the descriptor is quiet until the next one has ended."""
    assert not is_readable(sync)
    for _ in range(3):
        file.write_bytes(b"other content")
        sync.begin()
        assert sync.under_way == 1
        assert is_readable(sync, PATIENCE_MILLISECONDS)
        sync.heard()
        assert not is_readable(sync)
        assert sync.ended(wait=False) == sync.made
        assert sync.under_way == 0


def test_ends_are_told_in_the_order_of_the_requests(sync: KernelSync) -> None:
    """Given requests under way, then waiting tells of one more at least each time, in order, until there are no more;
    then there is nothing to wait for."""
    for _ in range(300):
        told = sync.made
        for _ in range(MOST_UNDER_WAY):
            sync.begin()
        while sync.under_way:
            ended = sync.ended(wait=True)
            assert told < ended <= sync.made - sync.under_way
            told = ended
        assert told == sync.made
    assert sync.ended(wait=True) == sync.made


def test_more_than_it_takes_is_refused(sync: KernelSync) -> None:
    """Given as many requests as may be under way, then one more is refused and changes nothing for them; when one has
    ended there is room again."""
    for _ in range(MOST_UNDER_WAY):
        sync.begin()
    made = sync.made
    with pytest.raises(OSError, match="under way") as refused:
        sync.begin()
    assert refused.value.errno == errno.EAGAIN
    assert (sync.made, sync.under_way) == (made, MOST_UNDER_WAY)
    while sync.under_way:
        sync.ended(wait=True)
    assert sync.ended(wait=False) == made
    for _ in range(10):
        sync.begin()
        assert sync.ended(wait=True) == sync.made


def test_each_request_under_way_hears_of_the_disk_by_itself(file: Path, sync: KernelSync) -> None:
    """Given a file that is synced, then it is open once for each request that may be under way: the system tells each
    open file only once that the disk refused, so one request could hear in another's place."""
    assert open_files(file) == MOST_UNDER_WAY
    sync.reopen(file)
    assert open_files(file) == MOST_UNDER_WAY
    sync.end()
    assert open_files(file) == 0


def test_what_the_kernel_refuses_is_an_error_and_counts_for_nothing(sync: KernelSync) -> None:
    """Given a file that cannot be synced any more, then a request for it raises, and none is under way."""
    made = sync.made
    sync.reopen(Path("/dev/null"))
    with pytest.raises(OSError, match="Invalid argument"):
        sync.begin()
    assert (sync.made, sync.under_way) == (made, 0)
    assert sync.ended(wait=False) == made


# --- waiting instead ----------------------------------------------------------------------------------------


def test_a_sync_that_is_waited_for_counts_among_the_requests(file: Path, sync: KernelSync) -> None:
    """Given syncs that are waited for among those that are asked for, then each has ended when it returns, the numbers
    go on, and the descriptor tells nothing of it."""
    for _ in range(3):
        file.write_bytes(b"other content")
        made = sync.made
        sync.here()
        assert (sync.made, sync.under_way, sync.ended(wait=True)) == (made + 1, 0, made + 1)
        assert not is_readable(sync)
        sync.begin()
        assert sync.ended(wait=True) == made + 2
        sync.heard()


def test_a_sync_that_is_refused_has_not_ended(file: Path, sync: KernelSync) -> None:
    """Given a file that cannot be synced, then waiting raises, and neither that one nor a later one has ended well
    until the file is opened again."""
    made = sync.made
    sync.reopen(Path("/dev/null"))
    with pytest.raises(OSError, match="Invalid argument"):
        sync.here()
    sync._files, null = [os.open(file, os.O_RDWR) for _ in range(MOST_UNDER_WAY)], sync._files
    for descriptor in null:
        os.close(descriptor)
    sync.here()
    assert sync.ended(wait=False) == made
    sync.reopen(file)
    sync.here()
    assert sync.ended(wait=False) == sync.made == made + 3


# --- another file, and the end ------------------------------------------------------------------------------


def test_another_file_can_be_synced_from_then_on(file: Path, sync: KernelSync) -> None:
    """Given a request under way when the file is replaced, then it still ends, later ones sync the new file, and the
    numbers go on."""
    other = file.with_name("other")
    other.write_bytes(b"")
    sync.begin()
    sync.reopen(other)
    sync.begin()
    assert open_files(file) == 0
    assert open_files(other) == MOST_UNDER_WAY
    while sync.under_way:
        sync.ended(wait=True)
    assert sync.ended(wait=False) == sync.made


def test_a_file_that_is_not_there_leaves_the_one_before(file: Path, sync: KernelSync) -> None:
    """Given a path without a file, then reopening raises, and the file before is still synced."""
    with pytest.raises(FileNotFoundError):
        sync.reopen(file.with_name("missing"))
    sync.begin()
    assert sync.ended(wait=True) == sync.made


def test_after_the_end_everything_is_refused_at_once(file: Path, sync: KernelSync) -> None:
    """Given a request under way at the end, then nobody waits for it afterwards, everything is refused, and ending and
    closing again do nothing, whatever has the numbers of the descriptors by then."""
    sync.begin()
    sync.end()
    assert sync.under_way == 0
    for use in (sync.begin, sync.here, lambda: sync.ended(wait=True), lambda: sync.ended(wait=False)):
        with pytest.raises(OSError, match="not synced any more"):
            use()
    sync.heard()
    sync.close()
    others = [os.open(file, os.O_RDONLY) for _ in range(8)]
    sync.heard()
    sync.close()
    for other in others:
        assert os.read(other, 100) == b"content"
        os.close(other)


# --- where it cannot ----------------------------------------------------------------------------------------


def test_there_is_none_where_there_is_no_file(file: Path) -> None:
    """Given a path without a file, then there is no sync for it, and nothing stays open."""
    before = len(os.listdir("/dev/fd"))
    assert KernelSync.of(file.with_name("missing")) is None
    assert len(os.listdir("/dev/fd")) == before


def test_there_is_none_where_the_file_cannot_be_synced_so() -> None:
    """Given something that the kernel refuses to sync, then that is found out at once, and nothing stays open."""
    before = len(os.listdir("/dev/fd"))
    assert KernelSync.of(Path("/dev/null")) is None
    assert len(os.listdir("/dev/fd")) == before


@pytest.mark.parametrize("machine", ["ppc64le", "i686", ""])
def test_there_is_none_on_a_machine_whose_system_calls_are_not_known(
    file: Path, monkeypatch: pytest.MonkeyPatch, machine: str
) -> None:
    """Given another kind of machine, then no system call is tried."""
    monkeypatch.setattr(platform, "machine", lambda: machine)
    assert KernelSync.of(file) is None


@pytest.mark.parametrize(("name", "value"), [("platform", "darwin"), ("byteorder", "big")])
def test_there_is_none_on_another_system(file: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    """Given another system than Linux, or another order of bytes, then no system call is tried."""
    monkeypatch.setattr(f"mpreg_mq.events.sqlite.kernel_sync.sys.{name}", value)
    assert KernelSync.of(file) is None


def test_there_is_none_without_a_descriptor_to_tell(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Given a process without room for another descriptor, then there is none, and nothing stays open."""

    def refuse(*_: int) -> int:
        raise OSError(errno.EMFILE, "too many open files")

    before = len(os.listdir("/dev/fd"))
    monkeypatch.setattr(os, "eventfd", refuse)
    assert KernelSync.of(file) is None
    assert len(os.listdir("/dev/fd")) == before


@pytest.mark.parametrize("call", ["submit", "getevents"])
def test_an_interruption_right_after_a_system_call_loses_count_of_nothing(
    file: Path, sync: KernelSync, call: str
) -> None:
    """Given Ctrl-C right after the kernel was asked for a sync, or has told of its end, then both are known of: nothing
    is waited for in vain, and no later request is taken for an earlier one."""
    made, at_once = sync.made, sync._at_once

    def interrupted(number: ctypes.c_long, *arguments: object) -> int:
        result = at_once(number, *arguments)
        if number is getattr(sync._calls, call) and (call == "submit" or result > 0):
            sync._at_once = at_once
            raise KeyboardInterrupt
        return result

    sync._at_once = interrupted

    def until_interrupted() -> None:
        sync.begin()
        while True:
            sync.ended(wait=False)

    with pytest.raises(KeyboardInterrupt):
        until_interrupted()
    assert sync.ended(wait=True) == made + 1
    assert sync.under_way == 0
    sync.begin()
    assert sync.ended(wait=True) == made + 2
