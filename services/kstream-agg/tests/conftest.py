"""What all tests may ask for: the real local stack, started once a session when first needed.

Under pytest-xdist all workers share that stack: the first that needs it starts it, the process that
hands out the tests ends it. A module's tests stay on one worker, so that its fixtures are made
once; so do modules of which one takes a component of the shared stack away.
"""

from __future__ import annotations

import fcntl
import shutil
import tempfile
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import pytest
from running import running_stack
from xdist.scheduler import (  # type: ignore[import-untyped] # it has no types
    LoadScopeScheduling,
)

from kstream_agg.stack import control
from kstream_agg.stack.endpoints import find_running
from kstream_agg.stack.fixtures import local_cluster
from kstream_agg.stack.testing import LocalStack, open_folder

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from xdist.remote import Producer  # type: ignore[import-untyped] # as above

    from kstream_agg.stack.endpoints import StackEndpoints

__all__ = ["local_cluster"]

# Names a running stack's data folder that is to be used instead of a new one: faster, by hand.
_RUNNING = "KSTREAM_TEST_STACK"
# One suspends the shared Postgres, the others query it; three brokers are started once for all.
_TOGETHER = dict.fromkeys(
    (
        "test_recompute",
        "test_sinks_postgres",
        "test_sinks_watch",
        "test_tools_cli",
        "test_verify_run",
    ),
    "postgres",
) | dict.fromkeys(
    ("test_kafka_api", "test_kafka_cli", "test_kafka_cluster", "test_kafka_groups"), "brokers"
)
_SHARED = pytest.StashKey[Path]()


class _Node(Protocol):
    """What pytest-xdist hands over of a worker that it is about to start."""

    config: pytest.Config
    workerinput: dict[str, object]


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: _Node) -> None:
    """Tell a worker the folder of the stack that all share."""
    if _SHARED not in node.config.stash:
        folder = Path(tempfile.mkdtemp(prefix="kstream-tests-"))
        folder.chmod(0o711)
        node.config.stash[_SHARED] = folder
    node.workerinput["shared_stack"] = str(node.config.stash[_SHARED])


def pytest_unconfigure(config: pytest.Config) -> None:
    """End the workers' common stack, after all of them."""
    folder = config.stash.get(_SHARED, None)
    if folder is not None:
        control.down(folder / "data")
        shutil.rmtree(folder, ignore_errors=True)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> LoadScopeScheduling:
    """Keep a module's tests on one worker, which makes its fixtures once."""
    return _ByModule(config, log)


class _ByModule(LoadScopeScheduling):  # type: ignore[misc] # as above
    """Hands out modules, those that belong together as one."""

    def _split_scope(self, nodeid: str) -> str:
        module = Path(nodeid.partition("::")[0]).stem
        return _TOGETHER.get(module, module)


@pytest.fixture(scope="session")
def stack(request: pytest.FixtureRequest) -> Iterator[StackEndpoints]:
    """The addresses of a running base stack: Kafka, registry, Connect, Postgres, Zipkin."""
    named = running_stack(_RUNNING)
    if named is not None:
        yield named
        return
    shared = getattr(request.config, "workerinput", {}).get("shared_stack")
    if shared is not None:
        yield _started_once(Path(shared))
        return
    with open_folder("kstream-tests-") as folder, LocalStack(folder) as running:
        yield running.endpoints


def _started_once(folder: Path) -> StackEndpoints:
    """The workers' common stack; whoever comes second waits until the first has started it."""
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        own = LocalStack(folder / "data")
        if find_running(folder / "data") is None:
            own.start()
        return own.endpoints


@pytest.fixture
def unique() -> Callable[[str], str]:
    """Makes names that no other test uses: `unique("trades")` → `trades-1f3a…`."""

    def make(stem: str) -> str:
        return f"{stem}-{uuid.uuid4().hex[:8]}"

    return make
