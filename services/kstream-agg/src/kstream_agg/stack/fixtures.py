"""A pytest fixture: a Kafka cluster of three brokers, for the tests of a module.

    pytest_plugins = ["kstream_agg.stack.fixtures"]  # in conftest.py

    def test_mine(local_cluster: LocalCluster) -> None: ...

pytest is not among this package's requirements: who uses this has it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from kstream_agg.stack.testing import LocalCluster

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["local_cluster"]


@pytest.fixture(scope="module")
def local_cluster() -> Iterator[LocalCluster]:
    """Three brokers of a module's own; a test that kills one starts it again."""
    with LocalCluster(brokers=3) as cluster:
        yield cluster
