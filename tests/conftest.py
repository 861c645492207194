"""What all tests share: on a busy machine an example may take long, and is right all the same."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

settings.register_profile("navarch", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("navarch")
