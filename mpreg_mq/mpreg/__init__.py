"""Event-sourced queues for an MPREG server.

Importing this does not import MPREG, which takes over a second: the plugin is handed a server, and finds MPREG's
classes by it.
"""

from mpreg_mq.mpreg.access import AccessPolicy, AccessRule
from mpreg_mq.mpreg.client import QueueClient, QueueCommandError, ReceivedMessage
from mpreg_mq.mpreg.configuration import PluginConfiguration
from mpreg_mq.mpreg.outgoing import RemoteClusterStatistics
from mpreg_mq.mpreg.plugin import MessageQueuePlugin

__all__ = [
    "AccessPolicy",
    "AccessRule",
    "MessageQueuePlugin",
    "PluginConfiguration",
    "QueueClient",
    "QueueCommandError",
    "ReceivedMessage",
    "RemoteClusterStatistics",
]
