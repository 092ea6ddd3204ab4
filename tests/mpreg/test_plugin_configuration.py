"""The plugin's configuration, and the ``[mpreg-mq]`` table it comes from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mpreg_mq import ConfigurationError, QueueType
from mpreg_mq.configuration import RetentionPolicy
from mpreg_mq.mpreg import PluginConfiguration

WHOLE = """
[mpreg]
name = "orders-server"

[mpreg-mq]
log = "sqlite:///queues.db"
default_max_retries = 5
advert_ttl_seconds = 60

[[mpreg-mq.queues]]
name = "orders"
queue_type = "priority"

[[mpreg-mq.routes]]
topic_pattern = "order.#"
queue_name = "orders"
overflow_policy = "wait"

[mpreg-mq.retention]
keep_seconds = 86400

[mpreg-mq.rpc]
beyond_loopback = true

[[mpreg-mq.rpc.rules]]
queues = "orders*"
operations = ["produce", "stats"]
token = "a-token-of-some-length"
"""


def test_a_table_says_everything(tmp_path: Path) -> None:
    """Given a table with every key, then the configuration has what it says."""
    path = tmp_path / "settings.toml"
    path.write_text(WHOLE)
    config, log = PluginConfiguration.from_path(path)
    assert log == "sqlite:///queues.db"
    assert config.manager.default_max_retries == 5
    assert config.manager.retention == RetentionPolicy(keep_seconds=86400)
    assert config.advert_ttl_seconds == 60
    (queue,) = config.queues
    assert (queue.name, queue.queue_type) == ("orders", QueueType.PRIORITY)
    assert config.routes == ({"topic_pattern": "order.#", "queue_name": "orders", "overflow_policy": "wait"},)
    assert config.rpc is not None
    assert config.rpc.allows("send", "orders.eu", "a-token-of-some-length")
    assert config.rpc_beyond_loopback


def test_without_a_table_there_are_the_defaults(tmp_path: Path) -> None:
    """Given a file without the table, then no command is offered, and no log is named."""
    path = tmp_path / "settings.toml"
    path.write_text("[mpreg]\nname = 'x'\n")
    assert PluginConfiguration.from_path(path) == (PluginConfiguration(), None)
    assert PluginConfiguration().rpc is None


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("[mpreg-mq]\nlogg = 'x'", "unknown keys logg"),
        ("[mpreg-mq]\nlog = 7", "log: got 7"),
        ("[mpreg-mq]\nmax_queues = 0", "max_queues"),
        ("[mpreg-mq]\nadvert_ttl_seconds = 0", "advert_ttl_seconds"),
        ("[[mpreg-mq.queues]]\nname = 'q'\nsize = 1", "unknown keys size"),
        ("[[mpreg-mq.queues]]\nmax_size = 1", "no name"),
        ("[mpreg-mq]\nqueues = ['q']", "queues: got 'q'"),
        ("[[mpreg-mq.routes]]\nqueue_name = 'q'", "topic_pattern and queue_name"),
        ("[mpreg-mq.retention]\nkeep = 1", r"\[mpreg-mq\.retention\]"),
        ("[mpreg-mq]\nretention = 7", r"\[mpreg-mq\.retention\]"),
        ("[mpreg-mq]\nrpc = true", "rules and beyond_loopback"),
        ("[mpreg-mq.rpc]\nopen = true", "rules and beyond_loopback"),
        ("[[mpreg-mq.rpc.rules]]\nqueues = 'q'\noperations = '*'", "exactly one"),
        ("[mpreg-mq]\nqueues = 5", r"queues: got 5, expected a list, as of \[\[mpreg-mq\.queues\]\]"),
        ("[mpreg-mq]\nroutes = true", "routes: got True, expected a list"),
        ("[mpreg-mq.rpc]\nrules = 1.5", r"rpc\.rules: got 1\.5, expected a list"),
        ("[mpreg-mq.rpc]\nrules = [5]", "access rule: got 5, expected a table"),
        ("[[mpreg-mq.rpc.rules]]\nqueues = 'q'\noperations = 5\nanybody = true", "operations: got 5"),
        (
            "[[mpreg-mq.rpc.rules]]\nqueues = 'q'\noperations = [['send']]\nanybody = true",
            r"operations: got \['send'\]",
        ),
        ("mpreg-mq = 7", "expected a table"),
        ("[mpreg-mq", "is not TOML"),
    ],
)
def test_a_bad_table_is_refused(tmp_path: Path, text: str, named: str) -> None:
    """Given a bad file, then the error names what is bad in it."""
    path = tmp_path / "settings.toml"
    path.write_text(text)
    with pytest.raises(ConfigurationError, match=named):
        PluginConfiguration.from_path(path)


@pytest.mark.parametrize("values", [{"rpc": "everybody"}, {"rpc_beyond_loopback": "yes"}])
def test_a_bad_value_is_refused(values: dict[str, Any]) -> None:
    """Given values of the wrong type, then there is no configuration."""
    with pytest.raises((ConfigurationError, TypeError)):
        PluginConfiguration(**values)
