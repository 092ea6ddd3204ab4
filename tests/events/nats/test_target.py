"""Addresses of logs on NATS, and what happens without nats-py."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from mpreg_mq.errors import ConfigurationError
from mpreg_mq.events import open_log
from mpreg_mq.events.nats.subjects import event_stream_of, events_subject, token


def target_of(url: str) -> Any:
    pytest.importorskip("nats", reason="nats-py is not installed (pip install 'mpreg-mq[nats]')")
    from mpreg_mq.events.nats import NatsTarget

    return NatsTarget.parse(url)


def test_an_address_names_servers_stream_and_options() -> None:
    """Given hosts with and without ports, a login and options, then each is where it belongs."""
    target = target_of(
        "nats://app:secret@one,two:5222/ORDERS?replicas=3&storage=memory&append_timeout_seconds=2.5"
        "&connect_timeout_seconds=1&credentials=/c.creds&monitor=http://one:8222,http://two:8222"
    )
    assert target.servers == ("nats://app:secret@one:4222", "nats://app:secret@two:5222")
    assert (target.stream, target.replicas, target.storage) == ("ORDERS", 3, "memory")
    assert (target.append_timeout_seconds, target.connect_timeout_seconds) == (2.5, 1.0)
    assert (target.credentials, target.monitors) == ("/c.creds", ("http://one:8222", "http://two:8222"))


def test_the_location_shows_no_password() -> None:
    """Given a login, then what error messages and logs show of the address is without it."""
    assert target_of("nats://app:secret@one,two:5222/ORDERS?replicas=3").location == "nats://one:4222,two:5222/ORDERS"


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("nats://", "expected nats://host:4222/STREAM"),
        ("nats://host", "expected nats://host:4222/STREAM"),
        ("nats:///STREAM", "expected nats://host:4222/STREAM"),
        ("nats://host:port/STREAM", "Port could not be cast"),
        ("nats://host/a.b", "stream: got 'a.b', expected 1 to 64 letters"),
        ("nats://host/a/b", "stream: got 'a/b'"),
        ("nats://host/S?replicas=none", "replicas: got 'none', expected a number"),
        ("nats://host/S?replicas=9", "replicas: got 9"),
        ("nats://host/S?storage=tape", "storage: got 'tape', expected file or memory"),
        ("nats://host/S?replica=3", "unknown option 'replica'"),
        ("nats://host/S?append_timeout_seconds=0", "append_timeout_seconds: got 0.0"),
    ],
)
def test_a_bad_address_is_refused_with_the_reason(url: str, reason: str) -> None:
    """Given an address that is incomplete or has a bad option, then the error says which and what is expected."""
    pytest.importorskip("nats", reason="nats-py is not installed (pip install 'mpreg-mq[nats]')")
    with pytest.raises(ConfigurationError, match=reason):
        open_log(url)


@pytest.mark.parametrize("name", ["", " ", "queue:a.b", "queue:Zoë's", "a*b>c", "%", "%2E", "a\nb", "очередь", "🐟"])
def test_any_stream_name_becomes_one_token_and_comes_back(name: str) -> None:
    """For all names: the subject has one token for it, which NATS takes, and gives the name again."""
    subject = events_subject("S", name)
    assert subject.count(".") == 3
    assert not set(token(name)) & set(" .*>\r\n\t")
    assert event_stream_of(subject) == name


def test_without_nats_py_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """Given no nats-py, when a log on NATS is opened, then the error names the extra."""
    monkeypatch.setitem(sys.modules, "nats", None)
    for name in [name for name in sys.modules if name.startswith(("nats.", "mpreg_mq.events.nats"))]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(ConfigurationError, match=r'needs nats-py: pip install "mpreg-mq\[nats\]"'):
        open_log("nats://host/STREAM")


def test_importing_the_package_imports_no_nats() -> None:
    """Given a fresh interpreter, when mpreg_mq and its logs are imported, then nats-py is not."""
    code = "import sys, mpreg_mq.events; print(any(name.split('.')[0] == 'nats' for name in sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"
