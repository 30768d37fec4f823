"""The compose files against the lock, the local stack, .env.example and the documentation."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from kstream_agg.core import metrics
from kstream_agg.core.metrics import CounterDef, GaugeDef, HistogramDef
from kstream_agg.stack.artifacts import read_lock
from kstream_agg.stack.compose_guard import DEVELOPMENT_PASSWORDS
from kstream_agg.stack.programs import find_postgres

ROOT = Path(__file__).resolve().parents[4]
ONCE = {"environment-check", "journal-setup", "registry-setup", "connectors"}
VARIABLE = re.compile(r"\$\{([A-Z0-9_]+):-([^}]*)\}")


class Loader(yaml.SafeLoader):
    """Knows Compose's own tags."""


def _override(loader: Loader, node: yaml.Node) -> list[Any]:
    assert isinstance(node, yaml.SequenceNode)
    return list(loader.construct_sequence(node))


Loader.add_constructor("!override", _override)
Loader.add_constructor("!reset", lambda _loader, _node: None)


def load(name: str) -> dict[str, Any]:
    found: dict[str, Any] = yaml.load((ROOT / name).read_text("utf-8"), Loader)  # noqa: S506 - a SafeLoader
    return found


@pytest.fixture(scope="module")
def services() -> dict[str, dict[str, Any]]:
    return dict(load("docker-compose.yml")["services"])


@pytest.fixture(scope="module")
def changed() -> dict[str, dict[str, Any]]:
    return dict(load("docker-compose.override.yaml")["services"])


def test_versions_are_those_of_the_local_stack(services: dict[str, dict[str, Any]]) -> None:
    paths = {artifact.path for group in read_lock().values() for artifact in group}
    kafka = services["kafka"]["build"]["args"]["KAFKA_IMAGE"].split(":")[1]
    assert f"org/apache/kafka/kafka_2.13/{kafka}/kafka_2.13-{kafka}.jar" in paths
    assert services["kafka"]["image"].endswith(f":{kafka}")
    assert services["connect"]["image"].endswith(f":{kafka}")
    registry = services["schema-registry"]["image"].split(":")[1]
    assert any(f"/apicurio-registry-app/{registry}/" in path for path in paths)
    zipkin = services["zipkin"]["image"].split(":")[1]
    assert any(f"/zipkin-server/{zipkin}/" in path for path in paths)
    said = subprocess.run(
        [find_postgres(), "--version"], capture_output=True, text=True, check=True
    ).stdout
    assert services["postgres"]["image"] == f"postgres:{said.split()[-1]}-trixie"


def test_dockerfiles_name_the_same_bases(services: dict[str, dict[str, Any]]) -> None:
    build = services["kafka"]["build"]
    for file in ("services/kstream-agg/Dockerfile", "services/connect/Dockerfile"):
        text = (ROOT / file).read_text("utf-8")
        for name, image in re.findall(r"^ARG (\w+)=(\S+)$", text, re.MULTILINE):
            assert build["args"][name] == image


def test_every_image_of_ours_is_built_by_one_service(services: dict[str, dict[str, Any]]) -> None:
    builders = [service["image"] for service in services.values() if "build" in service]
    used = {s["image"] for s in services.values() if s["image"].startswith("kstream-agg/")}
    assert sorted(builders) == sorted(used)
    for name, service in load("docker-compose.cluster.yaml")["services"].items():
        assert service.get("build") is None, name
        assert "extends" not in service or "build" in service, f"{name}: another one builds it"


def test_every_image_is_pinned(services: dict[str, dict[str, Any]]) -> None:
    for name, service in services.items():
        tag = service["image"].rpartition(":")[2]
        assert re.search(r"\d+\.\d+", tag), name


def test_every_service_has_a_check_that_starts_no_java(
    services: dict[str, dict[str, Any]],
) -> None:
    for name, service in services.items():
        check = service["healthcheck"]
        if name in ONCE:
            assert check == {"disable": True}
            continue
        assert check["start_interval"] == "2s", name
        words = str(check.get("test", "the image's own"))
        assert "java" not in words
        assert ".sh" not in words, "Kafka's scripts start a JVM"


def test_what_others_wait_for_ends_or_is_checked(services: dict[str, dict[str, Any]]) -> None:
    waited_for: dict[str, set[str]] = {}
    for service in services.values():
        for name, how in service.get("depends_on", {}).items():
            waited_for.setdefault(name, set()).add(how["condition"])
    for name in ONCE:
        # Else `up --wait` takes its end for a failure.
        assert waited_for[name] == {"service_completed_successfully"}
    for name in waited_for.keys() - ONCE:
        assert waited_for[name] == {"service_healthy"}


def test_limits_and_ports_stand_in_the_override_file(
    services: dict[str, dict[str, Any]], changed: dict[str, dict[str, Any]]
) -> None:
    assert set(changed) == set(services)
    for name, service in changed.items():
        assert set(service) <= {"mem_limit", "cpus", "ports"}, name
        assert "mem_limit" in service, name
        assert "cpus" in service, name
        for port in service.get("ports", ()):
            assert port.startswith("${BIND_ADDRESS:-127.0.0.1}:"), name
    assert not any("ports" in service for service in services.values())


def test_the_documented_sum_of_limits_is_right(changed: dict[str, dict[str, Any]]) -> None:
    def megabytes(name: str) -> int:
        text = VARIABLE.sub(r"\2", changed[name]["mem_limit"])
        return int(text[:-1]) * {"m": 1, "g": 1024}[text[-1]]

    optional = {"deribit-simulator", "clickhouse", "batch-sink"}
    live = [name for name in changed if name not in ONCE | optional]
    total = sum(map(megabytes, live))
    page = (ROOT / "docs" / "compose.md").read_text("utf-8")
    assert f"{total:,} MB" in page
    # An 8 GB laptop keeps something for its owner.
    assert total <= 7 * 1024
    for name in changed.keys() - ONCE:
        assert re.search(rf"^\| `{name}` \|.*\| {megabytes(name):,} \|", page, re.MULTILINE), name


def test_the_example_of_an_environment_names_every_variable_and_its_default() -> None:
    text = (ROOT / ".env.example").read_text("utf-8")
    documented = dict(re.findall(r"^(?:# )?([A-Z0-9_]+)=(.*)$", text, re.MULTILINE))
    used: dict[str, str] = {}
    for name in (
        "docker-compose.yml",
        "docker-compose.override.yaml",
        "docker-compose.cluster.yaml",
    ):
        content = (ROOT / name).read_text("utf-8")
        assert content.count("${") == len(VARIABLE.findall(content)), (
            f"{name}: a default is missing"
        )
        used |= dict(VARIABLE.findall(content))
        passed_on = re.findall(r"^ +(KSTREAM__[A-Z_]+):$", content, re.MULTILINE)
        used |= {variable: documented.get(variable, "missing") for variable in passed_on}
    assert documented == used


def test_development_passwords_are_those_the_guard_knows() -> None:
    text = (ROOT / "docker-compose.yml").read_text("utf-8")
    defaults = {name: value for name, value in VARIABLE.findall(text) if name.endswith("PASSWORD")}
    assert defaults == DEVELOPMENT_PASSWORDS


def test_connects_worker_is_set_up_as_the_local_stacks() -> None:
    text = (ROOT / "config/connect/worker.properties").read_text("utf-8")
    ours = dict(line.split("=", 1) for line in text.splitlines() if "=" in line and line[0] != "#")
    source = (ROOT / "services/kstream-agg/src/kstream_agg/stack/components/connect.py").read_text()
    local = dict(re.findall(r'^ +"([a-z.]+)": "?([^",]+)"?,$', source, re.MULTILINE))
    differing = {"bootstrap.servers", "listeners", "rest.advertised.host.name", "plugin.path"}
    differing |= {name for name in local if name.endswith("replication.factor")}
    assert {name: ours.get(name) for name in local if name not in differing} == {
        name: value for name, value in local.items() if name not in differing
    }


def test_the_broker_is_set_up_as_the_local_stacks(services: dict[str, dict[str, Any]]) -> None:
    source = (ROOT / "services/kstream-agg/src/kstream_agg/stack/components/kafka.py").read_text()
    local = dict(re.findall(r'^ +"([a-z.]+)": "?([a-z0-9]+)"?,$', source, re.MULTILINE))
    assert local
    environment = services["kafka"]["environment"]
    # Recovery's threads are the local stack's own matter: it is started far more often.
    own = {"num.recovery.threads.per.data.dir", "log.dirs", "node.id"}
    # Of one broker; Kafka's own default is 1, too.
    own |= {"default.replication.factor", "min.insync.replicas"}
    for name in local.keys() - own:
        wanted = "1" if local[name] in {"replicas", "in_sync"} else local[name]
        assert str(environment["KAFKA_" + name.replace(".", "_").upper()]) == wanted, name


def test_the_dashboard_asks_for_metrics_that_exist() -> None:
    dashboard = json.loads((ROOT / "config/grafana/dashboards/pipeline.json").read_text("utf-8"))
    kinds = (CounterDef, GaugeDef, HistogramDef)
    ours = {each.name for each in vars(metrics).values() if isinstance(each, kinds)}
    exported = "".join(
        (ROOT / f"config/jmx-exporter/{name}.yaml").read_text("utf-8")
        for name in ("kafka", "connect")
    )
    asked = 0
    for panel in dashboard["panels"]:
        assert panel["datasource"]["uid"] == "prometheus"
        for target in panel["targets"]:
            for name in re.findall(r"\b(?:kstream|kafka)_[a-z_]+", target["expr"]):
                asked += 1
                known = re.sub(r"_(total|bucket)$", "", name) in ours
                assert known or f"name: {name}\n" in exported, name
    assert asked > 10
