"""docs/api.md is what the docstrings say, and lists all that is public."""

from __future__ import annotations

from pathlib import Path

from api_docs import render

PAGE = Path(__file__).resolve().parents[4] / "docs" / "api.md"


def test_the_page_is_current() -> None:
    assert PAGE.read_text("utf-8") == render(), "write it anew: make docs"
