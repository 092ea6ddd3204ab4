"""A report on a log: one self-contained page with pictures, readable without a network."""

from mpreg_mq.replay.report.collect import LogFigures, QueueReport, collect
from mpreg_mq.replay.report.page import render, report

__all__ = ["LogFigures", "QueueReport", "collect", "render", "report"]
