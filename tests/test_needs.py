"""What happens to a test whose server this machine does not have."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from mistamover.testing import needs

PLUGIN = ("-p", "mistamover.testing.plugin", "-p", "no:cacheprovider")
LACKING = """
    import pytest

    @pytest.mark.needs("no-such-server")
    def test_lacking():
        raise AssertionError("must not run")

    def test_plain():
        pass
"""


@pytest.fixture(autouse=True)
def _plain_pytest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    monkeypatch.delenv("CI", raising=False)
    monkeypatch.delenv("CI", raising=False)


def test_a_missing_server_skips_and_is_named_at_the_end(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(test_it=LACKING)
    result = pytester.runpytest(*PLUGIN)
    result.assert_outcomes(passed=1, skipped=1)
    result.stdout.fnmatch_lines(
        [
            "*not run, for what this machine lacks*",
            "needs no-such-server: apt-get install no-such-server (1)",
            "    test_it.py::test_lacking",
        ]
    )


def test_the_names_survive_the_way_from_a_parallel_worker(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[1]))
    pytester.makepyfile(test_it=LACKING)
    result = pytester.runpytest_subprocess(*PLUGIN, "-p", "xdist", "-n", "1")
    result.assert_outcomes(passed=1, skipped=1)
    result.stdout.fnmatch_lines(["needs no-such-server: *(1)", "    test_it.py::test_lacking"])


def test_under_ci_a_missing_server_is_a_failure(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CI", "true")
    pytester.makepyfile(test_it=LACKING)
    result = pytester.runpytest(*PLUGIN)
    result.assert_outcomes(passed=1, errors=1)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(["*needs no-such-server*a skip is a failure under CI*"])


def test_nothing_is_said_where_nothing_lacks(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(test_it=LACKING.replace("no-such-server", "sh").replace("raise AssertionError", "str"))
    result = pytester.runpytest(*PLUGIN)
    result.assert_outcomes(passed=2)
    assert "machine lacks" not in result.stdout.str()


def test_a_fixture_may_ask_too(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        import pytest
        from mistamover.testing.needs import require

        @pytest.fixture
        def server():
            require("sh", "no-such-server")

        def test_it(server):
            raise AssertionError("must not run")
        """
    )
    pytester.runpytest(*PLUGIN).assert_outcomes(skipped=1)


def test_root_is_a_need(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert needs.lacking("root") == "needs root: run the tests as root"
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert needs.lacking("root") is None


def test_a_server_outside_the_path_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(needs, "SBIN", ("/bin",))
    monkeypatch.setenv("PATH", "/nowhere")
    assert needs.find("sh") == "/bin/sh"


def test_strace_that_may_not_trace_is_lacking(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(needs, "find", lambda program: "/bin/false")
    needs._may_trace.cache_clear()
    reason = needs.lacking("strace")
    needs._may_trace.cache_clear()
    assert reason is not None
    assert "does not let" in reason
