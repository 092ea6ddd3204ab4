"""The event log in an SQLite file."""

from mpreg_mq.events.sqlite.log import SYNCHRONOUS_MODES, SQLiteEventLog
from mpreg_mq.events.sqlite.repair import Damage, Repair, check_log, repair_log
from mpreg_mq.events.sqlite.schema import APPLICATION_ID, SCHEMA_VERSION

__all__ = [
    "APPLICATION_ID",
    "SCHEMA_VERSION",
    "SYNCHRONOUS_MODES",
    "Damage",
    "Repair",
    "SQLiteEventLog",
    "check_log",
    "repair_log",
]
