"""The stack in containers, brought up once; only `make test-compose` collects these tests."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

import pytest
from containers import PROJECT, Compose, port_variables

from kstream_agg.stack.ports import free_ports

if TYPE_CHECKING:
    from collections.abc import Iterator

# run.sh sets it; without, there is no engine or no images.
if "COMPOSE_FILE" not in os.environ:
    collect_ignore_glob = ["test_*.py"]


@pytest.fixture(scope="session")
def compose(request: pytest.FixtureRequest) -> Iterator[Compose]:
    """The demo in containers, all of them healthy."""
    names = port_variables()
    ports = dict(zip(names, map(str, free_ports(len(names))), strict=True))
    clean = {name: text for name, text in os.environ.items() if not name.startswith("KSTREAM")}
    found = Compose({**clean, **ports, "STACK": "docker", "COMPOSE_PROJECT_NAME": PROJECT})
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


def report(config: pytest.Config, compose: Compose) -> None:
    """Show the figures that the documentation's table is made from."""
    terminal = config.pluginmanager.get_plugin("terminalreporter")
    if terminal is None:
        return
    terminal.write_line("")
    for name, value in compose.measured.items():
        lines = value if isinstance(value, list) else [str(value)]
        for line in lines:
            terminal.write_line(f"{name}: {line}")
