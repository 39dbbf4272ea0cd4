"""The pytest plugin of the suite: its crowds, the marker ``needs``, and the list of what was not run and why."""

from __future__ import annotations

from collections import defaultdict

import pytest

from mistamover.testing.needs import REASON, require

_SKIPPED = "Skipped: "


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers",
        "needs(*programs): skip where a program is missing (fail under CI); 'root' asks for root's rights",
    )


@pytest.hookimpl(tryfirst=True)  # before the test's fixtures start servers
def pytest_runtest_setup(item: pytest.Item) -> None:
    for marker in item.iter_markers("needs"):
        require(*marker.args)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    tests = _skipped_for_needs(terminalreporter)
    if not tests:
        return
    terminalreporter.section("not run, for what this machine lacks")
    for reason, names in sorted(tests.items()):
        terminalreporter.write_line(f"{reason} ({len(names)})")
        for name in names:
            terminalreporter.write_line(f"    {name}")


def _skipped_for_needs(reporter: pytest.TerminalReporter) -> dict[str, list[str]]:
    tests = defaultdict(list)
    for report in reporter.getreports("skipped"):
        # A skip's longrepr is (file, line, reason); the text is what survives the way from an xdist worker.
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else ""
        if reason.startswith(_SKIPPED + REASON):
            tests[reason.removeprefix(_SKIPPED)].append(report.nodeid)
    return tests


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Give each test of a suite that wants a crowd those of its class."""
    crowds = getattr(metafunc.cls, "crowds", None)
    own = {name for marker in metafunc.definition.iter_markers("parametrize") for name in marker.args[0]}
    if crowds and "crowd" in metafunc.fixturenames and "crowd" not in own:
        metafunc.parametrize("crowd", crowds, ids=lambda crowd: f"crowd{crowd}")
