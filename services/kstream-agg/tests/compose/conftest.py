"""The stack in containers, brought up once; only `make test-compose` collects these tests."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

import pytest
from containers import PROJECT, ROOT, Compose, project_environment

if TYPE_CHECKING:
    from collections.abc import Iterator

# One service of each of our images.
BUILT = ("environment-check", "kafka", "connect")

# run.sh sets it; without, there is no engine or no images.
if "COMPOSE_FILE" not in os.environ:
    collect_ignore_glob = ["test_*.py"]


@pytest.fixture(scope="session")
def compose(request: pytest.FixtureRequest) -> Iterator[Compose]:
    """The demo in containers, all of them healthy."""
    found = Compose(project_environment(PROJECT))
    keep = "KSTREAM_COMPOSE_KEEP" in os.environ  # by hand: the next run finds it as it is
    if not keep:
        found("down", "--volumes", "--remove-orphans", check=False)
    try:
        begin = time.monotonic()
        found("build")
        found.measured["build_s"] = round(time.monotonic() - begin)
        begin = time.monotonic()
        # What `make demo DETACH=1` runs.
        said = found.cli("demo", "--detach")
        found.measured["first_start_s"] = round(time.monotonic() - begin)
        assert "Docker Compose" in said
        yield found
    finally:
        report(request.config, found)
        if not keep:
            found("down", "--volumes", "--remove-orphans", check=False)


@pytest.fixture(scope="session")
def cluster(request: pytest.FixtureRequest) -> Iterator[Compose]:
    """The demo on three brokers and two Connect workers, all of them healthy."""
    environment = project_environment(f"{PROJECT}-cluster")
    files = environment["COMPOSE_FILE"].split(os.pathsep)
    # Behind the two that Compose reads by itself.
    files.insert(2, str(ROOT / "docker-compose.cluster.yaml"))
    found = Compose({**environment, "COMPOSE_FILE": os.pathsep.join(files)})
    found("down", "--volumes", "--remove-orphans", check=False)
    try:
        found("build", *BUILT)
        begin = time.monotonic()
        found("up", "--detach", "--no-build", "--wait", "--wait-timeout", "300")
        found.measured["cluster_first_start_s"] = round(time.monotonic() - begin)
        yield found
    finally:
        report(request.config, found)
        found("down", "--volumes", "--remove-orphans", check=False)


def report(config: pytest.Config, compose: Compose) -> None:
    """Show the figures that the documentation's table is made from."""
    terminal = config.pluginmanager.get_plugin("terminalreporter")
    capture = config.pluginmanager.get_plugin("capturemanager")
    if terminal is None or capture is None:
        return
    with capture.global_and_fixture_disabled():
        terminal.write_line("")
        for name, value in compose.measured.items():
            lines = value if isinstance(value, list) else [str(value)]
            for line in lines:
                terminal.write_line(f"{name}: {line}")
