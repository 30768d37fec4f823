"""Which stack is taken, and what is read from the `docker` command; a script plays it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from kstream_agg.core.errors import PrerequisiteError, SettingsError
from kstream_agg.stack.compose_guard import refuse_open_doors
from kstream_agg.stack.docker import (
    ComposeProject,
    choose_stack,
    find_project,
    has_volumes,
    look_for_engine,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@pytest.fixture
def docker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[str, str]], None]:
    """Puts a `docker` on the PATH that gives prepared answers and fails at everything else."""

    def make(answers: dict[str, str]) -> None:
        script = tmp_path / "docker"
        cases = [
            f"'{arguments}') cat <<'END'\n{answer}\nEND\n;;"
            for arguments, answer in answers.items()
        ]
        script.write_text(f'#!/bin/sh\ncase "$*" in\n{"".join(cases)}\n*) exit 1 ;;\nesac\n')
        script.chmod(0o755)
        monkeypatch.setenv("PATH", str(tmp_path), prepend=":")

    return make


VERSION = "compose version --short"
INFO = "info --format {{.ServerVersion}} {{.MemTotal}}"
GOOD = {VERSION: "2.29.7", INFO: "27.3.1 8200000000"}


def test_an_engine_that_answers_is_taken(docker: Callable[[dict[str, str]], None]) -> None:
    docker(GOOD)
    engine = look_for_engine()
    assert (engine.problem, engine.version, engine.memory_mb) == (None, "27.3.1", 8200)
    assert choose_stack({}).where == "docker"
    assert "27.3.1" in choose_stack({}).why
    assert choose_stack({"STACK": "local"}).where == "local"


@pytest.mark.parametrize(
    ("answers", "problem"),
    [
        ({VERSION: "2.29.7"}, "no Docker engine answers"),
        ({INFO: "27.3.1 1"}, "Docker Compose is missing"),
        ({VERSION: "1.29.2", INFO: "27.3.1 1"}, "Docker Compose is 1.29.2; 2.24 is needed"),
        ({VERSION: "v2.24.6", INFO: "20.10.24 1"}, "the Docker engine is 20.10.24; 25 is needed"),
    ],
)
def test_without_a_good_engine_local_processes_are_taken(
    docker: Callable[[dict[str, str]], None], answers: dict[str, str], problem: str
) -> None:
    docker(answers)
    choice = choose_stack({})
    assert choice.where == "local"
    assert problem in choice.why
    with pytest.raises(PrerequisiteError, match=problem):
        choose_stack({"STACK": "docker"})


def test_a_wrong_choice_is_refused_and_one_that_cannot_be_says_why() -> None:
    with pytest.raises(SettingsError, match="STACK is 'podman'"):
        choose_stack({"STACK": "podman"})
    assert choose_stack({}, only_local="a data folder is named").why == "a data folder is named"
    with pytest.raises(SettingsError, match="a data folder is named"):
        choose_stack({"STACK": "docker"}, only_local="a data folder is named")


def test_addresses_are_read_from_the_containers(
    docker: Callable[[dict[str, str]], None], tmp_path: Path
) -> None:
    def row(service: str, **more: object) -> dict[str, object]:
        common = {"Name": f"p-{service}-1", "Service": service, "State": "running"}
        return {**common, "Health": "healthy", "ExitCode": 0, "Status": "Up", **more}

    rows = [
        row("kafka", Publishers=[{"TargetPort": 9092, "PublishedPort": 19092}]),
        row("postgres", Publishers=[{"TargetPort": 5432, "PublishedPort": 15432}]),
        row("schema-registry", Publishers=[{"TargetPort": 8080, "PublishedPort": 0}]),
        row("connectors", State="exited", Health="", ExitCode=1, Publishers=None),
        row("clickhouse", Publishers=[{"TargetPort": 8123, "PublishedPort": 18123}]),
        row("raw-producer"),
    ]
    variables = json.dumps(["POSTGRES_PASSWORD=a=b", "KSTREAM__LOG__LEVEL"])
    inspect = "inspect --format {{json .Config.Env}}"
    docker(
        {
            "compose -p p ps --all --format json": "\n".join(map(json.dumps, rows)),
            f"{inspect} p-postgres-1": variables,
            f"{inspect} p-clickhouse-1": json.dumps(["CLICKHOUSE_DB=d", "CLICKHOUSE_PASSWORD=c"]),
            f"{inspect} p-raw-producer-1": json.dumps(["KSTREAM__CHANNELS=trades.x.100ms"]),
        }
    )
    project = ComposeProject("p", tmp_path, "live")
    found = project.environment()
    assert found["KSTREAM__KAFKA__BOOTSTRAP_SERVERS"] == "127.0.0.1:19092"
    assert found["KSTREAM__POSTGRES__PORT"] == "15432"
    assert found["KSTREAM__POSTGRES__PASSWORD"] == "a=b"
    assert found["KSTREAM__CLICKHOUSE__URL"] == "http://127.0.0.1:18123"
    assert found["KSTREAM__CLICKHOUSE__DATABASE"] == "d"
    assert found["KSTREAM__CLICKHOUSE__PASSWORD"] == "c"
    assert found["KSTREAM__CHANNELS"] == "trades.x.100ms"
    assert "KSTREAM__REGISTRY__URL" not in found
    well = {each.service: each.is_healthy for each in project.containers()}
    assert well.pop("connectors") is False
    assert all(well.values())


def test_a_running_project_of_another_checkout_is_not_taken(
    docker: Callable[[dict[str, str]], None],
) -> None:
    row = {
        "Name": "kstream-agg",
        "Status": "running(9)",
        "ConfigFiles": "/other/docker-compose.yml",
    }
    docker({"compose ls --format json": json.dumps([row])})
    assert find_project({}) is None
    assert find_project({"STACK": "local"}) is None


def test_volumes_are_seen(docker: Callable[[dict[str, str]], None]) -> None:
    docker({})
    assert not has_volumes({})
    label = "label=com.docker.compose.project=kstream-agg-demo"
    docker({f"volume ls --quiet --filter {label}": "kstream-agg-demo_kafka"})
    assert has_volumes({})
    assert not has_volumes({"STACK": "local"})


ANYWHERE = "0.0.0.0"  # noqa: S104 - it is to be refused
OWN = {"POSTGRES_PASSWORD": "x", "GRAFANA_PASSWORD": "y", "CLICKHOUSE_PASSWORD": "z"}
LOCKED = {"GRAFANA_ANONYMOUS": "false", "PGADMIN_SERVER_MODE": "True"}


@pytest.mark.parametrize("address", ["127.0.0.1", "::1", "[::1]", "localhost", "127.0.0.9"])
def test_development_passwords_may_stand_on_loopback(address: str) -> None:
    assert address.strip("[]") in refuse_open_doors({"BIND_ADDRESS": address})


@pytest.mark.parametrize("address", [ANYWHERE, "::", "192.0.2.7", "example.org", ""])
def test_elsewhere_own_passwords_and_logins_are_demanded(address: str) -> None:
    given = {"BIND_ADDRESS": address}
    for more in ({}, {"POSTGRES_PASSWORD": "kstream-development"}, {"POSTGRES_PASSWORD": "x"}):
        with pytest.raises(SettingsError, match="_PASSWORD is a development password"):
            refuse_open_doors(given | more)
    with pytest.raises(SettingsError, match="GRAFANA_ANONYMOUS"):
        refuse_open_doors(given | OWN)
    with pytest.raises(SettingsError, match="PGADMIN_SERVER_MODE"):
        refuse_open_doors(given | OWN | {"GRAFANA_ANONYMOUS": "false"})
    assert "no password" in refuse_open_doors(given | OWN | LOCKED)
