"""Every test of the actor runtime leaves the registry empty."""

from __future__ import annotations

from collections.abc import Iterator

import pykka
import pytest

from tests.support.loop_actors import LIMIT_SECONDS


@pytest.fixture(autouse=True)
def no_actor_is_left() -> Iterator[None]:
    """Every test starts and ends with an empty registry."""
    yield
    pykka.ActorRegistry.stop_all(timeout=LIMIT_SECONDS)
