"""What the fault suites share: a broker and a registry that a module may break."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from running import running_stack

from kstream_agg.stack.testing import LocalStack, open_folder

if TYPE_CHECKING:
    from collections.abc import Iterator

    from kstream_agg.stack.endpoints import StackEndpoints

# Names the data folder of a running stack that may be broken: faster, by hand.
_RUNNING = "KSTREAM_FAULT_STACK"


@pytest.fixture(scope="module")
def broken_stack() -> Iterator[StackEndpoints]:
    """Kafka and the registry, for a module's tests alone."""
    named = running_stack(_RUNNING)
    if named is not None:
        yield named
        return
    with (
        open_folder("kstream-faults-") as folder,
        LocalStack(folder, only=("kafka", "schema-registry")) as running,
    ):
        yield running.endpoints
