"""The examples of docs/mpreg.md and the programs in examples/ run where MPREG can be imported."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from mpreg_mq.mpreg import PluginConfiguration
from tests.support.exchanges import HAS_MPREG

ROOT = Path(__file__).parent.parent.parent
DOCUMENT = (ROOT / "docs" / "mpreg.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python mpreg\n(.*?)```", DOCUMENT, re.DOTALL)
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))

needs_mpreg = pytest.mark.skipif(not HAS_MPREG, reason="mpreg cannot be imported; make test-mpreg MPREG_SOURCE=dir")


def _run(arguments: list[str], directory: Path) -> str:
    done = subprocess.run(
        [sys.executable, *arguments], cwd=directory, capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@needs_mpreg
@pytest.mark.parametrize("block", [pytest.param(block, id=str(n)) for n, block in enumerate(BLOCKS, 1)])
def test_documented_code_runs(block: str, tmp_path: Path) -> None:
    """Given a block of the document, when it is run as a script, then it ends without an error."""
    (tmp_path / "block.py").write_text(block, encoding="utf-8")
    _run(["block.py"], tmp_path)


@needs_mpreg
@pytest.mark.parametrize("example", [pytest.param(path, id=path.stem) for path in EXAMPLES])
def test_examples_run_twice(example: Path, tmp_path: Path) -> None:
    """Given an example, when it is run again where it ran, then it ends without an error both times."""
    first, second = (_run([str(example)], tmp_path) for _ in range(2))
    assert "orders" in first
    assert "orders" in second


def test_there_is_something_to_run() -> None:
    """Given the document and the examples, then the tests above find them, and every block compiles."""
    assert len(BLOCKS) >= 4
    assert {path.name for path in EXAMPLES} == {"mpreg_server.py", "federated_orders.py"}
    for code in (*BLOCKS, *(path.read_text(encoding="utf-8") for path in EXAMPLES)):
        compile(code, "document", "exec")


def test_the_documented_settings_are_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Given the settings file of the document, then the plugin takes it as it stands."""
    monkeypatch.setenv("SHIPPING_TOKEN", "a-token-of-some-length")
    (settings,) = re.findall(r"```toml\n(.*?)```", DOCUMENT, re.DOTALL)
    (tmp_path / "server.toml").write_text(settings, encoding="utf-8")
    config, log = PluginConfiguration.from_path(tmp_path / "server.toml")
    assert log == "sqlite:///queues.db"
    assert [queue.name for queue in config.queues] == ["shipping"]
    assert config.manager.publish_queue_events
    assert config.rpc is not None
    assert config.rpc.allows("send", "shipping.eu", "a-token-of-some-length")
