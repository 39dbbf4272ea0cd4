"""What the suites of the transports share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.needs import require
from tests.sshd import PROGRAMS, Sshd, running_sshd


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Give each test of a suite that wants a crowd those of its class."""
    crowds = getattr(metafunc.cls, "crowds", None)
    own = {name for marker in metafunc.definition.iter_markers("parametrize") for name in marker.args[0]}
    if crowds and "crowd" in metafunc.fixturenames and "crowd" not in own:
        metafunc.parametrize("crowd", crowds, ids=lambda crowd: f"crowd{crowd}")


@pytest.fixture(scope="session")
def sshd_to_hurt(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sshd]:
    """A server whose sessions may be killed or frozen; leave it running and thawed."""
    require(*PROGRAMS)
    with running_sshd(tmp_path_factory.mktemp("sshd-to-hurt")) as server:
        yield server
