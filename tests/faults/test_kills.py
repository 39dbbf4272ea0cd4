"""How many kill points were hit is told when the tests end."""

from __future__ import annotations

from pathlib import Path

import pytest

HOOKS = "from tests.faults.conftest import pytest_runtest_makereport, pytest_terminal_summary"
TESTS = """
    from tests.faults import kills

    def test_one():
        kills.note("sftp")
        kills.note("sftp")

    def test_other():
        kills.note("sftp")
        kills.note("ftp")

    def test_that_kills_nobody():
        pass
"""


def test_parallel_workers_add_them_up_by_protocol(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    pytester.makeconftest(HOOKS)
    pytester.makepyfile(test_it=TESTS)
    result = pytester.runpytest_subprocess("-p", "no:cacheprovider", "-p", "xdist", "-n", "1")
    result.assert_outcomes(passed=3)
    result.stdout.fnmatch_lines(["*kill points*", "ftp: 1", "sftp: 3"])
