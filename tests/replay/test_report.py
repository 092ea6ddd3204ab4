"""The report: its figures, its page, and what a browser makes of it at a desk and on a phone."""

from __future__ import annotations

import re
import shutil
import struct
import subprocess
import zlib
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpreg_mq.errors import EventLogError
from mpreg_mq.events import Append, EventLog, MemoryEventLog
from mpreg_mq.replay import Moment, ReadingStoppedError
from mpreg_mq.replay.report import collect, render, report
from mpreg_mq.replay.report.charts import nice_top
from mpreg_mq.replay.report.page import depth_lines, depth_svg
from mpreg_mq.replay.report.series import MAX_BUCKETS, Distribution, TimeSeries
from tests.support.history import History
from tests.support.incident import START

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


def test_the_figures_are_those_of_the_log(log: EventLog) -> None:
    """Given the incident, then counts, attempts, reasons, refusals and subscribers are what happened."""
    found = collect(log)
    orders = found.queues["orders"]
    assert (found.events, found.first_at, found.last_at) == (124, START, START + 340)
    assert orders.attempts == {1: 10, 3: 1}
    assert orders.reasons == {"KeyError: 'sku'": 1}
    assert orders.refusals == {"duplicate": 1}
    warehouse = orders.subscribers["warehouse"]
    assert (warehouse.delivered, warehouse.acknowledged, warehouse.failed, warehouse.circuits_opened) == (14, 10, 4, 1)
    assert orders.latency.total == 10
    assert 0.05 <= orders.latency.percentile(0.5) <= 0.18
    assert orders.latency.most == pytest.approx(0.17, rel=0.01)
    assert found.slowest[0].message_id == "11-00a1"
    assert [bucket.pending for bucket in orders.series.buckets][-1] == 4
    assert sum(bucket.sent for bucket in orders.series.buckets) == 15
    assert sum(bucket.failed_attempts for bucket in orders.series.buckets) == 4


def test_a_pile_that_waits_is_drawn_without_holes(log: EventLog) -> None:
    """Given messages that wait from some moment on, then their line does not fall to zero after it."""
    times, width, lines = depth_lines(collect(log))
    (orders,) = [line for line in lines if line.name == "orders"]
    first = next(number for number, at in enumerate(times) if at + width > START + 321)
    assert all(value >= 3 for value in orders.values[first:])


def test_one_queue_up_to_a_moment(log: EventLog) -> None:
    """Given a queue and a moment, then only those; an unknown queue is an error."""
    found = collect(log, queue="mail", until=Moment(time=START + 60))
    assert list(found.queues) == ["mail"]
    assert found.queues["mail"].statistics.messages_acknowledged == 3
    with pytest.raises(EventLogError, match="there is no queue 'nope'"):
        collect(log, queue="nope")


def test_a_log_that_contradicts_itself_is_an_error() -> None:
    """Given a contradiction, then the report says how far the log is good instead of drawing something."""
    log = MemoryEventLog()
    log.append([Append("queue:q", 0, History().delivered("nobody", "a").events)])
    with pytest.raises(ReadingStoppedError, match="readable up to position 1"):
        collect(log)


@given(st.lists(st.floats(0, 1e7), min_size=1, max_size=300).map(sorted))
def test_a_series_counts_everything_in_few_buckets(moments: list[float]) -> None:
    """For any moments in order, each is counted once, in a bucket of its time, and there are never too many."""
    series = TimeSeries()
    for moment in moments:
        series.at(moment).sent += 1
    assert sum(bucket.sent for bucket in series.buckets) == len(moments)
    assert len(series.buckets) <= MAX_BUCKETS
    for at, bucket in zip(series.times(), series.buckets, strict=True):
        inside = sum(at <= moment < at + series.width for moment in moments)
        assert abs(inside - bucket.sent) <= sum(
            abs(m - at) < 1e-3 or abs(m - at - series.width) < 1e-3 for m in moments
        )


@given(st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=200), st.sampled_from([0.5, 0.95, 0.99, 1.0]))
def test_percentiles_are_within_one_per_cent(values: list[float], share: float) -> None:
    """For any durations, a percentile is within one per cent of one of the exact ones beside it."""
    found = Distribution()
    for value in values:
        found.add(value)
    ordered = sorted(values)
    exact = ordered[max(0, -(-int(share * 1000) * len(values) // 1000) - 1)]
    assert found.percentile(share) == pytest.approx(exact, rel=0.0101)
    merged = Distribution()
    merged.merge(found)
    assert merged.percentile(share) == found.percentile(share)
    assert sum(count for _, _, count in found.coarse()) == len(values)


@given(st.floats(1e-9, 1e12))
def test_the_top_of_an_axis_is_a_round_number_above_all_values(most: float) -> None:
    """For any value, the axis ends at or above it, and not above two and a half times it."""
    assert most * (1 - 1e-6) <= nice_top(most) <= most * 2.5


def test_nothing_was_counted() -> None:
    """Given nothing, then percentiles are zero and there is nothing to draw."""
    assert (Distribution().percentile(0.5), Distribution().coarse(), nice_top(0.0)) == (0.0, [], 1.0)
    page = render(collect(MemoryEventLog()))
    assert "0 events of 0 queues" in page


class _Links(HTMLParser):
    """Collects everything that a page would load, and its tags."""

    def __init__(self) -> None:
        super().__init__()
        self.loaded: list[str] = []
        self.open: list[str] = []
        self.balanced = True

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.loaded += [value or "" for name, value in attrs if name in ("src", "href", "xlink:href", "srcset")]
        if tag not in ("meta", "br", "link", "img"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.loaded += [value or "" for name, value in attrs if name in ("src", "href")]

    def handle_endtag(self, tag: str) -> None:
        self.balanced = self.balanced and bool(self.open) and self.open.pop() == tag


def test_the_page_needs_nothing_else(log: EventLog) -> None:
    """Given a page, then it loads nothing, runs no script, and its tags are balanced."""
    page = report(log, message="12-00a1")
    parser = _Links()
    parser.feed(page)
    assert parser.loaded == []
    assert parser.balanced
    assert parser.open == []
    assert "<script" not in page
    assert not re.search(r"url\(|@import", page)
    assert "Life of message 12-00a1" in page
    assert "KeyError: &#x27;sku&#x27;" in page


def test_names_with_markup_are_text(tmp_path: Path) -> None:
    """Given names and errors with markup in them, then the page shows them and does not follow them."""
    evil = "<script>alert(1)</script>"
    history = History(max_retries=0).joined(evil).sent(evil, topic="a<b").delivered(evil, evil)
    history.failed(evil, evil, error=evil).dead(evil, evil, error=evil)
    log = MemoryEventLog()
    log.append([Append("queue:q", 0, history.events)])
    assert "<script" not in report(log)


def test_the_depth_alone_is_a_picture(log: EventLog) -> None:
    """Given figures, then the chart of pending messages is an SVG document with its own style."""
    picture = depth_svg(collect(log))
    assert picture.startswith("<svg")
    assert picture.rstrip().endswith("</svg>")
    assert "<style>" in picture


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine (apt-get install chromium)")
@pytest.mark.parametrize(("width", "height"), [(1280, 800), (500, 800)], ids=["desk", "phone"])
def test_a_browser_shows_it_without_scrolling_sideways(log: EventLog, tmp_path: Path, width: int, height: int) -> None:
    """Given a browser at desktop and phone width, then the page is as wide as the window and its charts are drawn."""
    assert CHROMIUM is not None
    page = tmp_path / "report.html"
    drawn = "[...document.querySelectorAll('svg.chart')].filter(c => c.getBoundingClientRect().width > 0).length"
    sizes = f"innerWidth, document.documentElement.scrollWidth, document.body.scrollHeight, {drawn}"
    measure = f"<script>document.title = [{sizes}].join(' ')</script>"
    page.write_text(report(log).replace("</body>", measure + "</body>"), encoding="utf-8")
    picture = tmp_path / "page.png"
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]
    flags += ["--disable-background-networking", "--disable-component-update", "--disable-sync", "--hide-scrollbars"]
    flags += [f"--user-data-dir={tmp_path / 'profile'}", f"--window-size={width},{height}"]
    base = [CHROMIUM, *flags]
    dumped = subprocess.run(
        [*base, "--dump-dom", page.as_uri()], capture_output=True, text=True, timeout=120, check=True
    )
    title = re.search(r"<title>(\d+) (\d+) (\d+) (\d+)</title>", dumped.stdout)
    assert title is not None
    inner, scroll, tall, charts = map(int, title.groups())
    assert scroll <= inner, "the page scrolls sideways"
    assert charts == 4, "each chart is shown once"
    assert tall > 1500
    subprocess.run([*base, f"--screenshot={picture}", page.as_uri()], capture_output=True, timeout=120, check=True)
    colours = _colours(picture)
    assert len(colours) > 20, "something was drawn"
    assert (37, 99, 235) in colours, "the first line of the charts is blue"


def _colours(path: Path) -> set[tuple[int, int, int]]:
    """The colours of a PNG of 8-bit RGB or RGBA pixels."""
    content = path.read_bytes()
    place, body, width, depth = 8, b"", 0, 0
    while place < len(content):
        size, kind = struct.unpack(">I4s", content[place : place + 8])
        chunk = content[place + 8 : place + 8 + size]
        if kind == b"IHDR":
            width, depth = struct.unpack(">I", chunk[:4])[0], {2: 3, 6: 4}[chunk[9]]
        elif kind == b"IDAT":
            body += chunk
        place += size + 12
    raw, stride, before = zlib.decompress(body), width * depth, bytes(width * depth)
    colours: set[tuple[int, int, int]] = set()
    for row in range(len(raw) // (stride + 1)):
        line = bytearray(raw[row * (stride + 1) + 1 : (row + 1) * (stride + 1)])
        _unfilter(raw[row * (stride + 1)], line, before, depth)
        before = bytes(line)
        if row % 4 == 0:
            colours.update(zip(line[0::depth], line[1::depth], line[2::depth], strict=True))
    return colours


def _unfilter(kind: int, line: bytearray, before: bytes, depth: int) -> None:
    for number in range(len(line)):
        left = line[number - depth] if number >= depth else 0
        up = before[number]
        corner = before[number - depth] if number >= depth else 0
        if kind == 1:
            add = left
        elif kind == 2:
            add = up
        elif kind == 3:
            add = (left + up) // 2
        elif kind == 4:
            guess = left + up - corner
            add = min((left, up, corner), key=lambda value: abs(guess - value))
        else:
            return
        line[number] = (line[number] + add) & 255
