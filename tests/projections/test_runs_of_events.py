"""Events that are folded many at a time come to what they come to one by one (I4)."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from mpreg_mq.projections import QueueState
from mpreg_mq.testing.strategies import histories
from tests.support.given import by_handlers


@given(st.data())
def test_wherever_a_history_is_cut_into_runs_the_state_is_the_same(data: st.DataObject) -> None:
    """For all histories and all ways to cut them into runs: the state is that of the handlers, event by event."""
    events = [record.event for record in data.draw(histories())]
    cuts = sorted(data.draw(st.sets(st.integers(0, len(events)))))
    state = QueueState()
    for first, last in zip([0, *cuts], [*cuts, len(events)], strict=True):
        state.apply_all(events[first:last])
        assert state.version == last
        state.check()
    assert state.dump() == by_handlers(events).dump()
