"""The documentation builds as a site, without a warning, and is complete in itself."""
import re
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent


def test_every_document_is_in_the_navigation():
    listed = set(re.findall(r"[\w-]+\.md", (REPOSITORY / "mkdocs.yml").read_text(encoding="utf-8")))
    assert {path.name for path in (REPOSITORY / "docs").glob("*.md")} == listed


def test_the_site_builds_without_a_warning_and_loads_nothing_from_elsewhere(tmp_path):
    for name in ("mkdocs", "pymdownx", "latex2mathml"):
        pytest.importorskip(name, reason=f"no {name}: pip install 'vitrea[docs]'")
    built = subprocess.run([sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")],
                           cwd=REPOSITORY, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    theory = (tmp_path / "site" / "theory" / "index.html").read_text(encoding="utf-8")
    assert "<math" in theory
    assert "arithmatex" not in theory
    for page in (tmp_path / "site").rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        loaded = re.findall(r'<(?:script|link|img)[^>]* (?:src|href)="(https?:[^"]*)"', text)
        assert not loaded, page
