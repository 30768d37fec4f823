from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING

import pytest

from kstream_agg.stack.layout import make_private
from kstream_agg.stack.properties import format_properties

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize(
    ("value", "written"),
    [
        ("/a b/c=d:e#f!", "/a b/c=d:e#f!"),
        ("né à", "n\\u00e9 \\u00e0"),
        ("a\\nb", "a\\\\nb"),
        (" b\n", "\\u0020b\\u000a"),
        ("😀", "\\ud83d\\ude00"),
        (1, "1"),
    ],
)
def test_values_are_read_by_java_as_they_are(value: object, written: str) -> None:
    assert format_properties({"log.dirs": value, "x": "y"}) == f"log.dirs={written}\nx=y\n"


def test_private_folder_is_closed_though_it_was_open(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        make_private(tmp_path / "new" / "home")
    finally:
        os.umask(before)
    (tmp_path / "old").mkdir()
    (tmp_path / "old").chmod(0o755)
    make_private(tmp_path / "old")
    for folder in (tmp_path / "new" / "home", tmp_path / "old"):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
