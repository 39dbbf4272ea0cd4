"""What a transport of another package is tested with: the suite that our own have to pass (docs/transports.rst).

Needs pytest: ``pip install mistamover[testing]``.
"""

import pytest

# Their assertions are those of tests; pytest would explain only those in files called test_*.
pytest.register_assert_rewrite("mistamover.testing.contract", "mistamover.testing.rig")

from mistamover.testing.contract import (  # noqa: E402 - after what makes them tell more
    ConnectionContract,
    SendingContract,
    Server,
    TransportContract,
)
from mistamover.testing.rig import Rig  # noqa: E402

__all__ = ["ConnectionContract", "Rig", "SendingContract", "Server", "TransportContract"]
