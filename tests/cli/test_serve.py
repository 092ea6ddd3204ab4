"""``mpreg-mq serve`` where there is no MPREG, and where its settings are bad; a server that runs is in tests/mpreg."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from mpreg_mq.cli.commands import root
from tests.support.exchanges import HAS_MPREG


@pytest.mark.skipif(HAS_MPREG, reason="MPREG can be imported here")
def test_without_mpreg_it_says_how_to_get_it() -> None:
    """Given no MPREG, when a server is asked for, then the error says what to install."""
    result = CliRunner().invoke(root, ["serve"])
    assert result.exit_code == 1
    assert "pip install" in result.stderr


def test_a_bad_settings_file_is_an_error(tmp_path: Path) -> None:
    """Given settings with an unknown key, then the error names it."""
    path = tmp_path / "server.toml"
    path.write_text("[mpreg-mq]\nlogg = 'x'\n")
    result = CliRunner().invoke(root, ["serve", "--settings", str(path)])
    assert result.exit_code == 1
    assert "unknown keys logg" in result.stderr
