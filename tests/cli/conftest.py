"""What the tests of the command line look into."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from mpreg_mq.cli.commands import root
from tests.support.incident import incident

Runner = Callable[..., Result]


@pytest.fixture(scope="session")
def incident_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The incident's log in a file; read-only."""
    return incident(tmp_path_factory.mktemp("incident") / "orders.db")


@pytest.fixture
def run(incident_path: Path) -> Runner:
    """Runs ``mpreg-mq`` as a shell would; ``LOG`` among the arguments is the incident's log."""

    def invoke(*arguments: str) -> Result:
        given = [str(incident_path) if argument == "LOG" else argument for argument in arguments]
        return CliRunner().invoke(root, given, prog_name="mpreg-mq")

    return invoke
