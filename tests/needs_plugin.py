"""The pytest plugin behind ``needs``: the marker, and the list of what was not run and why."""

from __future__ import annotations

from collections import defaultdict

import pytest

from tests.needs import REASON, require

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
