"""One setting, the channel, moves topic, aggregator, both sinks and tables."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import pytest

from kstream_agg.deribit.recording import read_recording, shipped_recording_path
from kstream_agg.stack.testing import LocalStack, open_folder

if TYPE_CHECKING:
    from collections.abc import Iterator

    from kstream_agg.stack.endpoints import StackEndpoints

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(400)]


@pytest.fixture(scope="module")
def stack() -> Iterator[StackEndpoints]:
    options = {"channels": "trades.future.BTC.100ms", "loop": "0", "instruments": "BTC-.*"}
    with (
        open_folder("kstream-channel-") as folder,
        LocalStack(folder / "data", profile="demo", options=options) as running,
    ):
        yield running.endpoints


def kstream(stack: StackEndpoints, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "kstream_agg", *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        env=os.environ | {"KSTREAM_STACK_DIR": str(stack.data_dir)},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def wait_for_trades(stack: StackEndpoints, expected: int) -> dict[str, dict[str, Any]]:
    """The checks of `verify`, once it has compared all trades of the recording."""
    deadline = time.monotonic() + 180
    while True:
        report = json.loads(kstream(stack, "verify", "--wait", "--json"))
        checks = {check["check"]: check for check in report["checks"]}
        if checks["trades: topic = Postgres"]["compared"] >= expected:
            return checks
        assert time.monotonic() < deadline, report


def test_the_futures_channel_has_its_own_topics_tables_and_averages(stack: StackEndpoints) -> None:
    futures = [
        trade
        for trade in read_recording(shipped_recording_path()).trades
        if not trade["instrument_name"].endswith(("-C", "-P"))
    ]
    checks = wait_for_trades(stack, len(futures))
    assert {check["topic"] for check in checks.values()} == {
        "trades-future-btc",
        "trades-future-btc-ewma-5min",
    }
    assert checks["trades: topic = Postgres"]["compared"] == len(futures)
    assert checks["windows: topic = Postgres"]["compared"] > 0
    query = "SELECT DISTINCT instrument_name FROM {} ORDER BY 1"
    for table in ("trades_future_btc", "trades_future_btc_ewma_5min"):
        rows = kstream(stack, "sql", "--csv", query.format(table)).split()
        assert rows == ["instrument_name", "BTC-25JUN27", "BTC-PERPETUAL"]
    assert "trades-option-btc" not in kstream(stack, "topics")
