"""The stack in containers as its tests drive it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg

from kstream_agg.stack.docker import Container, find_project
from kstream_agg.stack.ports import free_ports

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT = Path(__file__).resolve().parents[4]
PROJECT = "kstream-agg-test"


class Compose:
    """The project under test, driven as its users drive it."""

    def __init__(self, environment: dict[str, str]) -> None:
        self.environment = environment
        self.project = environment["COMPOSE_PROJECT_NAME"]
        self.measured: dict[str, Any] = {}

    def __call__(self, *arguments: str, check: bool = True) -> str:
        """`docker compose …`; gives what it prints."""
        env_file = str(ROOT / "config" / "compose" / "demo.env")
        command = ["docker", "compose", "--env-file", env_file, "-p", self.project, *arguments]
        return self._run(command, check=check)

    def docker(self, *arguments: str) -> str:
        """`docker …`; gives what it prints."""
        return self._run(["docker", *arguments], check=True)

    def cli(self, *arguments: str, check: bool = True) -> str:
        """`kstream-agg …` on the host; gives what it prints."""
        return self._run([sys.executable, "-m", "kstream_agg", *arguments], check=check)

    def containers(self, service: str) -> list[Container]:
        """The containers of a service."""
        project = find_project(self.environment)
        assert project is not None, "the project does not run"
        return [each for each in project.containers() if each.service == service]

    def inspect(self, service: str) -> dict[str, Any]:
        """All that Docker knows of a service's only container."""
        (container,) = self.containers(service)
        found: dict[str, Any] = json.loads(self.docker("inspect", container.name))[0]
        return found

    def port(self, service: str, inside: int) -> int:
        """The port on this machine of a service's only container."""
        (container,) = self.containers(service)
        return container.ports[inside]

    def rows(self, query: str) -> list[tuple[Any, ...]]:
        """The answer of Postgres."""
        with psycopg.connect(
            host="127.0.0.1",
            port=self.port("postgres", 5432),
            user="kstream",
            password="kstream-development",
            dbname="raw",
        ) as connection:
            return connection.execute(query.encode()).fetchall()

    def until(self, what: str, holds: Callable[[], bool], seconds: float = 120) -> None:
        """Wait until something holds."""
        end = time.monotonic() + seconds
        while not holds():
            assert time.monotonic() < end, f"{what}: not within {seconds:.0f} s"
            time.sleep(0.5)

    def until_healthy(self, service: str, number: int = 1) -> None:
        """Wait until so many containers of a service are all healthy."""

        def holds() -> bool:
            found = self.containers(service)
            return len(found) == number and all(each.health == "healthy" for each in found)

        self.until(f"{number} healthy {service}", holds)

    def until_new_rows(self, count: int = 20) -> None:
        """Wait until trades of now have travelled to Postgres."""
        query = "SELECT count(*) FROM trades_btc_perpetual"
        before = self.rows(query)[0][0]
        self.until("new rows", lambda: self.rows(query)[0][0] >= before + count)

    def _run(self, command: list[str], *, check: bool) -> str:
        done = subprocess.run(
            command,
            env=self.environment,
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
            timeout=900,
        )
        if check:
            assert done.returncode == 0, f"{command}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
        return done.stdout


def port_variables() -> list[str]:
    """The variables that stand for ports on this machine."""
    files = ("docker-compose.override.yaml", "docker-compose.cluster.yaml")
    text = "".join((ROOT / file).read_text("utf-8") for file in files)
    return sorted(set(re.findall(r"\$\{([A-Z_0-9]+_PORT):-", text)))


def project_environment(name: str) -> dict[str, str]:
    """The environment for a project of the tests: ports that are free, nobody's settings."""
    names = port_variables()
    ports = dict(zip(names, map(str, free_ports(len(names))), strict=True))
    clean = {name: text for name, text in os.environ.items() if not name.startswith("KSTREAM")}
    return {**clean, **ports, "STACK": "docker", "COMPOSE_PROJECT_NAME": name}
