"""What people and machines do to a stack in containers; trades and windows stay right."""

from __future__ import annotations

import os
import signal
import time
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from containers import Compose

pytestmark = pytest.mark.timeout(900)

KEYS = "SELECT instrument_name, trade_seq FROM trades_btc_perpetual"


@pytest.mark.parametrize("service", ["kafka", "connect"])
def test_a_restart_loses_nothing(compose: Compose, service: str) -> None:
    compose("restart", service)
    compose.until_healthy(service)
    compose.until_new_rows()
    assert "all equal" in compose.cli("verify", "--wait")


@pytest.mark.parametrize("service", ["raw-producer", "agg-producer", "push-proxy"])
def test_a_service_that_is_killed_comes_back(compose: Compose, service: str) -> None:
    before = compose.inspect(service)
    # From the host, as the kernel does it when memory is short: `docker kill` counts as a stop.
    os.kill(before["State"]["Pid"], signal.SIGKILL)
    compose.until(
        f"{service} started again",
        lambda: compose.inspect(service)["RestartCount"] > before["RestartCount"],
    )
    compose.until_healthy(service)
    compose.until_new_rows()


def test_three_aggregators_share_the_work_and_one_takes_it_back(compose: Compose) -> None:
    scale = ("up", "--detach", "--no-recreate", "--wait", "--scale")
    compose(*scale, "agg-producer=3")
    compose.until_healthy("agg-producer", 3)
    compose.until_new_rows()
    assert "all equal" in compose.cli("verify", "--wait")
    compose(*scale, "agg-producer=1")
    compose.until_healthy("agg-producer", 1)
    compose.until_new_rows()
    assert "all equal" in compose.cli("verify", "--wait")


def test_a_stopping_service_ends_by_itself(compose: Compose) -> None:
    for service in ("push-proxy", "agg-producer"):
        compose("stop", service)
        (container,) = compose.containers(service)
        assert container.exit_code == 0, service
        compose("start", service)
        compose.until_healthy(service)


def test_down_and_up_again_with_its_volumes_loses_nothing(compose: Compose) -> None:
    compose.until_new_rows()
    before = set(compose.rows(KEYS))
    compose.cli("stop")
    begin = time.monotonic()
    compose.cli("demo", "--detach")
    compose.measured["warm_start_s"] = round(time.monotonic() - begin)
    compose.until_new_rows()
    assert before <= set(compose.rows(KEYS))
    assert "all equal" in compose.cli("verify", "--wait")
