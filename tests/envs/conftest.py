"""What tests of environments share."""

import pytest

from envs.physics.native import NativePhysics


@pytest.fixture
def stepped(monkeypatch):
    """How many states the native engine has advanced, call by call, while a test runs."""
    counts, advance = [], NativePhysics._advance_host

    def counted(self, packed, *rest):
        counts.append(len(packed))
        return advance(self, packed, *rest)

    monkeypatch.setattr(NativePhysics, "_advance_host", counted)
    return counts
