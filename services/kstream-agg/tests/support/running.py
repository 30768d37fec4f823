"""A stack that runs already, named by a variable: faster, by hand."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from kstream_agg.stack.endpoints import find_running

if TYPE_CHECKING:
    from kstream_agg.stack.endpoints import StackEndpoints


def running_stack(variable: str) -> StackEndpoints | None:
    """The stack of the data folder that the variable names; None where it names none."""
    named = os.environ.get(variable)
    if not named:
        return None
    found = find_running(Path(named))
    if found is None:
        pytest.fail(f"{variable} names {named}, where no stack runs")
    return found
