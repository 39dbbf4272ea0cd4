"""A transport of another package, as docs/transports.rst shows how to write one: the page's own text is tried."""

from __future__ import annotations

import re
import textwrap
from pathlib import Path

import pytest

from tests.program import ROOT, Local

PAGE = (ROOT / "docs" / "transports.rst").read_text()
METADATA = "Metadata-Version: 2.1\nName: mover-checked\nVersion: 1\n"


def block(begin: str) -> str:
    """The one literal block of the page that begins so, as a person would copy it."""
    (found,) = re.findall(rf"::\n\n((?: {{4}}{re.escape(begin)}.*\n)(?: {{4}}.*\n|\n)*)", PAGE)
    return textwrap.dedent(found)


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A directory of installed packages that holds the page's transport and its entry point."""
    site = tmp_path / "site"
    info = site / "mover_checked-1.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(METADATA)
    group, _, entry = block("# pyproject.toml").partition('entry-points."')[2].partition('"]\n')
    (info / "entry_points.txt").write_text(f"[{group}]\n{entry.splitlines()[0].replace(chr(34), '')}\n")
    (site / "mover_checked.py").write_text(block('"""mover_checked'))
    return site


def stream(top: Path, packages: Path | None = None) -> Local:
    top.mkdir()
    local = Local(top, packages)
    local.ini.write_text(local.ini.read_text().replace("= local", "= checked"))
    return local


def test_it_moves(site: Path, tmp_path: Path) -> None:
    local = stream(tmp_path / "stream", site)
    local.put("a/b")
    result = local.once()
    assert result.code == 0, result.err
    assert (local.target / "a/b").read_bytes() == b"some bytes"
    assert local.names(local.spool) == set()


def test_what_it_refuses_is_set_aside(site: Path, tmp_path: Path) -> None:
    local = stream(tmp_path / "stream", site)
    module = site / "mover_checked.py"
    module.write_text(module.read_text().replace('"cksum"', '"false"'))
    local.put("a")
    assert local.once().code == 1
    assert local.names(local.target) == set()
    assert "false does not accept it" in local.run("quarantine", "list", local.ini).out


def test_without_its_package_it_is_unknown(tmp_path: Path) -> None:
    result = stream(tmp_path / "stream").once()
    assert result.code == 2
    assert "'checked' is no transport here" in result.err


def test_the_suite_is_there_for_it(site: Path, pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CI", raising=False)
    monkeypatch.setenv("PYTHONPATH", str(site))
    conftest, _, test = block("# conftest.py").partition("# test_checked.py\n")
    pytester.makeconftest(conftest)
    pytester.makepyfile(test_checked=test)
    some = "test_a_tree_arrives or test_verify_finds or test_a_missing_target or test_a_bad_unit"
    result = pytester.runpytest_subprocess("-p", "no:cacheprovider", "-q", "-k", some, timeout=100)
    outcomes = result.parseoutcomes()
    assert outcomes.get("passed", 0) >= 8, result.outlines
    assert outcomes.keys() <= {"passed", "deselected"}
