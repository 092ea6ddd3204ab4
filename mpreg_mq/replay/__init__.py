"""Finding out from an event log what happened: it reads logs, and needs neither actors nor MPREG."""

from mpreg_mq.replay.source import LogInfo, StreamInfo, log_info, open_history

__all__ = ["LogInfo", "StreamInfo", "log_info", "open_history"]
