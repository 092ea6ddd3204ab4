"""What Hypothesis runs when it is imported, so that ``st.from_type`` and type hints know our types."""

from __future__ import annotations

from typing import Any


def register() -> None:
    """Register strategies for the public types; called through the entry point ``hypothesis``.

    The strategies themselves are imported when one is first asked for.
    """
    from hypothesis import strategies as st

    from mpreg_mq.configuration import QueueConfiguration
    from mpreg_mq.model import MessageId, MessageOptions

    def configurations(_: Any) -> st.SearchStrategy[QueueConfiguration]:
        from mpreg_mq.testing import strategies

        return strategies.configurations()

    def message_options(_: Any) -> st.SearchStrategy[MessageOptions]:
        from mpreg_mq.testing import strategies

        return strategies.message_options()

    def message_ids(_: Any) -> st.SearchStrategy[MessageId]:
        return st.builds(MessageId, st.uuids().map(str), st.floats(0, 2e9), st.just(""))

    st.register_type_strategy(QueueConfiguration, configurations)
    st.register_type_strategy(MessageOptions, message_options)
    st.register_type_strategy(MessageId, message_ids)
