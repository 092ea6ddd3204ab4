"""Hypothesis profiles: ``default`` at the desk, ``ci`` on every change, ``soak`` overnight.

``HYPOTHESIS_PROFILE`` names the one to use. How often other long tests repeat: :mod:`tests.support.effort`.
"""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

settings.register_profile("default", max_examples=100, deadline=None)
# On a shared machine slowness is noise, and a run that fails must fail again when it is repeated.
settings.register_profile(
    "ci",
    max_examples=100,
    deadline=None,
    derandomize=True,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.register_profile(
    "soak", max_examples=2000, deadline=None, print_blob=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))
