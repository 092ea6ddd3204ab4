"""On what a run was made."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import sqlite3
import subprocess
from datetime import UTC, datetime
from pathlib import Path

CLIENTS = (
    "mpreg-mq",
    "msgspec",
    "pykka",
    "persist-queue",
    "litequeue",
    "huey",
    "redis",
    "hiredis",
    "nats-py",
    "aio-pika",
    "asyncpg",
    "eventsourcing",
)
"""Distributions whose versions belong to a result."""

MEASURED = ("mpreg_mq", "benchmarks", ":!benchmarks/history.jsonl")
"""What a result depends on, as git names paths."""

ROOT = Path(__file__).resolve().parents[2]


def processor() -> str:
    """The processor's name, as the system tells it."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def distribution_version(name: str) -> str | None:
    """Version of an installed distribution, or None."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def git(*arguments: str, directory: Path = ROOT) -> str | None:
    """What git answers about a checkout; None where it does not."""
    try:
        done = subprocess.run(["git", "-C", str(directory), *arguments], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def describe() -> dict[str, str]:
    """The machine, the interpreter and the moment, as names and texts."""
    commit = git("rev-parse", "--short", "HEAD") or "unknown"
    dirty = " with changes" if git("status", "--porcelain", "--", *MEASURED) else ""
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "commit": commit + dirty,
        "processor": f"{os.cpu_count()} cores of {processor()}",
        "system": f"{platform.system()} {platform.release()}",
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "sqlite": sqlite3.sqlite_version,
    }


def versions() -> dict[str, str]:
    """Versions of ours and of the peers' clients that are installed."""
    found = {name: distribution_version(name) for name in CLIENTS}
    return {name: version for name, version in found.items() if version is not None}
