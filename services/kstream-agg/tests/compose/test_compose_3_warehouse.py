"""The profile `clickhouse` beside the demo: what Kafka has is in ClickHouse, too."""

from __future__ import annotations

import json
import time
import urllib.parse
import urllib.request
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from containers import Compose

pytestmark = pytest.mark.timeout(600)

# Named on the command line, they stand in place of the demo's own.
PROFILES = ("--profile", "demo", "--profile", "clickhouse")
TABLE = "trades_btc_perpetual"


def ask(compose: Compose, query: str) -> str:
    """The answer of ClickHouse, as the user of the compose file."""
    port = compose.port("clickhouse", 8123)
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/?database=kstream&query={urllib.parse.quote(query)}",
        headers={
            "X-ClickHouse-User": "kstream",
            "X-ClickHouse-Key": "kstream-development",
        },
    )
    with urllib.request.urlopen(request, timeout=30) as answer:  # noqa: S310 - http to this machine
        text: str = answer.read().decode()
        return text.strip()


def test_the_profile_clickhouse_has_every_trade_once(compose: Compose) -> None:
    begin = time.monotonic()
    compose(*PROFILES, "up", "--detach", "--no-recreate", "--wait", "clickhouse", "batch-sink")
    compose.measured["clickhouse_start_s"] = round(time.monotonic() - begin)
    rows = f"SELECT count() FROM {TABLE} FINAL"

    def some() -> bool:
        return TABLE in ask(compose, "SHOW TABLES").split() and int(ask(compose, rows)) > 0

    compose.until("rows in ClickHouse", some)
    # Trades of now, and after a restart on its own volume with all that it had.
    before = int(ask(compose, rows))
    compose.until("more rows", lambda: int(ask(compose, rows)) > before)
    before = int(ask(compose, rows))
    compose(*PROFILES, "restart", "clickhouse")
    compose.until_healthy("clickhouse")
    compose.until("more rows after a restart", lambda: int(ask(compose, rows)) > before)
    # What Postgres had of a time is what ClickHouse has of it.
    compose("stop", "raw-producer")
    wanted = f"SELECT count(*) FROM {TABLE}"
    compose.until(
        "as many as in Postgres",
        lambda: [(int(ask(compose, rows)),)] == compose.rows(wanted),
    )
    assert "no offset is missing" in compose.cli("batch-sink", "check")
    compose("start", "raw-producer")
    compose.until_healthy("raw-producer")


def test_its_containers_are_measured_and_confined(compose: Compose) -> None:
    for service in ("clickhouse", "batch-sink"):
        found = compose.inspect(service)
        rows = compose.docker("top", found["Name"], "-eo", "pid,uid").splitlines()[1:]
        assert "0" not in {row.split()[1] for row in rows}
        stats = compose.docker("stats", "--no-stream", "--format", "{{json .}}", found["Name"])
        compose.measured[f"memory of {service}"] = json.loads(stats)["MemUsage"]
    compose(*PROFILES, "rm", "--stop", "--force", "clickhouse", "batch-sink")
