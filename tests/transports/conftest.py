"""What the suites of the transports share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from mistamover.testing.needs import require
from tests.sshd import PROGRAMS, Sshd, running_sshd


@pytest.fixture(scope="session")
def sshd_to_hurt(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sshd]:
    """A server whose sessions may be killed or frozen; leave it running and thawed."""
    require(*PROGRAMS)
    with running_sshd(tmp_path_factory.mktemp("sshd-to-hurt")) as server:
        yield server
