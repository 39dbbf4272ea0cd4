import pytest

# Its assertions are the suite's; pytest would else explain only those in files called test_*.
pytest.register_assert_rewrite("tests.transports.contract", "tests.transports.rig")
