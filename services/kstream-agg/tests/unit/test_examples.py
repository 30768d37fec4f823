"""The examples: short, and shown in the README as they are. A broker runs them elsewhere."""

from __future__ import annotations

from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[4]


def test_the_readme_shows_the_example_as_it_is() -> None:
    example = (CHECKOUT / "examples" / "batch_and_print.py").read_text("utf-8")
    assert f"```python\n{example}```\n" in (CHECKOUT / "README.md").read_text("utf-8")


def test_the_example_has_about_thirty_lines_of_code() -> None:
    lines = (CHECKOUT / "examples" / "batch_and_print.py").read_text("utf-8").splitlines()
    assert sum(bool(line.strip()) for line in lines) <= 32
