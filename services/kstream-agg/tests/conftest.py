"""What all tests may ask for: the real local stack, started once a session when first needed."""

from __future__ import annotations

import os
import uuid
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from kstream_agg.stack.endpoints import find_running
from kstream_agg.stack.testing import LocalStack, open_folder

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from kstream_agg.stack.endpoints import StackEndpoints

# Names a running stack's data folder that is to be used instead of a new one: faster, by hand.
_RUNNING = "KSTREAM_TEST_STACK"


@pytest.fixture(scope="session")
def stack() -> Iterator[StackEndpoints]:
    """The addresses of a running base stack: Kafka, registry, Connect, Postgres, Zipkin."""
    named = os.environ.get(_RUNNING)
    if named:
        found = find_running(Path(named))
        if found is None:
            pytest.fail(f"{_RUNNING} names {named}, where no stack runs")
        yield found
        return
    with open_folder("kstream-tests-") as folder, LocalStack(folder) as running:
        yield running.endpoints


@pytest.fixture
def unique() -> Callable[[str], str]:
    """Makes names that no other test uses: `unique("trades")` → `trades-1f3a…`."""

    def make(stem: str) -> str:
        return f"{stem}-{uuid.uuid4().hex[:8]}"

    return make
