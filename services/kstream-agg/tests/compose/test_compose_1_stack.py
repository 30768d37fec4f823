"""The stack in containers: complete, confined, and right."""

from __future__ import annotations

import json
import os
import subprocess
import urllib.parse
import urllib.request
from typing import TYPE_CHECKING, Any

import pytest
from containers import ROOT

if TYPE_CHECKING:
    from containers import Compose

pytestmark = pytest.mark.timeout(900)

OURS = (
    "raw-producer",
    "agg-producer",
    "connectors-watch",
    "push-proxy",
    "deribit-simulator",
)
FILES = {
    "alone": ["docker-compose.yml"],
    "as it is": ["docker-compose.yml", "docker-compose.override.yaml"],
    "cluster": [
        "docker-compose.yml",
        "docker-compose.override.yaml",
        "docker-compose.cluster.yaml",
    ],
}


@pytest.mark.parametrize("files", FILES.values(), ids=list(FILES))
@pytest.mark.parametrize("env_file", ["/dev/null", "config/compose/demo.env", ".env.example"])
def test_every_combination_of_files_is_valid(files: list[str], env_file: str) -> None:
    given = [part for file in files for part in ("-f", file)]
    command = [
        "docker",
        "compose",
        "--env-file",
        env_file,
        *given,
        "--profile",
        "*",
        "config",
        "-q",
    ]
    environment = {name: text for name, text in os.environ.items() if name != "COMPOSE_FILE"}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_status_shows_healthy_containers_and_figures(compose: Compose) -> None:
    said = compose.cli("status")
    assert "trades received" in said
    assert "rows in trades_btc_perpetual" in said
    assert "zipkin" in said
    assert "aggregating" in compose.cli("logs", "agg-producer")
    assert "kstream-agg-test-agg-producer-1" in compose.cli("ps")


def test_trades_arrive_and_verify_finds_every_window_right(compose: Compose) -> None:
    compose.until_new_rows()
    assert "all equal" in compose.cli("verify", "--wait")
    one = json.loads(compose.cli("consume", "trades-option-btc", "--count", "1"))
    assert one["@"]["headers"]["simulated"] == "true"


def test_connectors_applied_from_the_host_are_unchanged(compose: Compose) -> None:
    said = compose.cli("connectors", "status")
    assert said.count("RUNNING") == 4


def test_the_push_proxy_takes_a_record(compose: Compose) -> None:
    body = {"records": [{"topic": "trades-option-btc-dlq", "data": "x"}], "wait_for_send": True}
    request = urllib.request.Request(
        f"http://127.0.0.1:{compose.port('push-proxy', 4242)}/push",
        json.dumps(body).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=30) as answer:  # noqa: S310 - http to this machine
        assert json.load(answer) == {"status": "ok", "errors": []}


@pytest.mark.parametrize("service", OURS)
def test_our_containers_can_do_nothing_but_their_work(compose: Compose, service: str) -> None:
    found = compose.inspect(service)
    host = found["HostConfig"]
    assert host["ReadonlyRootfs"]
    assert host["CapDrop"] == ["ALL"]
    assert host["CapAdd"] is None
    assert "no-new-privileges:true" in host["SecurityOpt"]
    assert found["Config"]["User"] == "10001:10001"


def test_nothing_runs_as_root_without_limits_or_bound_beyond_this_machine(
    compose: Compose,
) -> None:
    for line in compose("ps", "--format", "json").splitlines():
        row = json.loads(line)
        found = json.loads(compose.docker("inspect", row["Name"]))[0]
        rows = compose.docker("top", row["Name"], "-eo", "pid,uid").splitlines()[1:]
        assert "0" not in {row.split()[1] for row in rows}
        host = found["HostConfig"]
        assert 0 < host["Memory"] <= 1 << 30, row["Service"]
        assert host["NanoCpus"] > 0, row["Service"]
        assert host["LogConfig"]["Config"] == {"max-size": "10m", "max-file": "3"}
        assert host["RestartPolicy"]["Name"] == "unless-stopped"
        for bindings in (host["PortBindings"] or {}).values():
            assert {each["HostIp"] for each in bindings} == {"127.0.0.1"}


def test_development_passwords_are_refused_beyond_this_machine(compose: Compose) -> None:
    compose.environment["BIND_ADDRESS"] = "0.0.0.0"  # noqa: S104 - it is to be refused
    try:
        compose("run", "--rm", "--no-deps", "environment-check", check=False)
        with pytest.raises(AssertionError, match="POSTGRES_PASSWORD is a development password"):
            compose("run", "--rm", "--no-deps", "environment-check")
    finally:
        del compose.environment["BIND_ADDRESS"]
    compose("run", "--rm", "--no-deps", "environment-check")


def panels() -> list[tuple[str, str]]:
    """Title and query of each of the dashboard's panels."""
    dashboard = json.loads((ROOT / "config/grafana/dashboards/pipeline.json").read_text("utf-8"))
    return [
        (panel["title"], target["expr"])
        for panel in dashboard["panels"]
        for target in panel["targets"]
    ]


def test_every_panel_of_the_dashboard_shows_data(compose: Compose) -> None:
    compose(
        "exec", "-T", "prometheus", "promtool", "check", "config", "/etc/prometheus/prometheus.yml"
    )
    port = compose.port("prometheus", 9090)

    def ask(path: str) -> Any:  # noqa: ANN401 - JSON
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/api/v1/{path}", timeout=10) as answer:
            return json.load(answer)["data"]

    wanted = {*OURS, "kafka", "connect", "zipkin", "prometheus"}

    def all_are_scraped() -> bool:
        up = ask("targets")["activeTargets"]
        return {each["labels"]["job"] for each in up if each["health"] == "up"} == wanted

    compose.until("all targets up", all_are_scraped)
    compose.until(
        "a rate over a minute",
        lambda: bool(ask("query?query=" + urllib.parse.quote(panels()[0][1]))["result"]),
    )
    empty = [
        (title, query)
        for title, query in panels()
        if not ask("query?query=" + urllib.parse.quote(query))["result"]
    ]
    assert empty == []


def test_what_is_measured(compose: Compose) -> None:
    """Keeps the figures for docs/compose.md; sees that our image stays small."""
    names = [json.loads(line)["Name"] for line in compose("ps", "--format", "json").splitlines()]
    stats = compose.docker("stats", "--no-stream", "--format", "{{.Name}} {{.MemUsage}}", *names)
    compose.measured["memory"] = sorted(stats.splitlines())
    images = compose.docker("images", "--format", "{{.Repository}}:{{.Tag}} {{.Size}}")
    compose.measured["images"] = sorted(images.splitlines())
    size = compose.docker(
        "image", "inspect", "--format", "{{.Size}}", "kstream-agg/kstream-agg:0.1.0"
    )
    compose.measured["our_image_mb"] = round(int(size) / 1e6)
