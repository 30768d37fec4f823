"""Fetching a period on request, through the running producer and without one; finding gaps."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pytest
from click.testing import CliRunner
from exchange import numbers
from recordings import write_csv_gz, write_jsonl

from kstream_agg.cli.main import cli
from kstream_agg.core.errors import ContractError, SettingsError, UnavailableError
from kstream_agg.core.health import HealthServer
from kstream_agg.core.settings import HttpSettings
from kstream_agg.deribit.settings import SourceSettings
from kstream_agg.deribit.simulation.generator import generate_trades
from kstream_agg.deribit.simulator import simulator_in_thread
from kstream_agg.deribit.testing import Market, ProducerThread, play_unheard, wait_for

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from click.testing import Result

    from kstream_agg.deribit.recording_formats import WireTrade
    from kstream_agg.stack.endpoints import StackEndpoints

pytestmark = pytest.mark.stack


@pytest.fixture
def market(stack: StackEndpoints, monkeypatch: pytest.MonkeyPatch) -> Iterator[Market]:
    made = Market(stack.bootstrap_servers, stack.registry_url, instruments=20)
    for name, value in {
        "KAFKA__BOOTSTRAP_SERVERS": stack.bootstrap_servers,
        "REGISTRY__URL": stack.registry_url,
        "TRANSACTIONAL_ID": made.currency,
    }.items():
        monkeypatch.setenv(f"KSTREAM__{name}", value)
    yield made
    made.remove()


def iso(ms: int) -> str:
    return datetime.fromtimestamp(ms / 1000, UTC).isoformat()


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(cli, list(arguments))


def test_the_running_producer_fetches_a_period_and_repeats_are_not_written(market: Market) -> None:
    recording = generate_trades(seed=8, count=3_000, instruments=market.instruments)
    times = [trade["timestamp"] for trade in recording.trades]
    with simulator_in_thread(recording, loop=50) as simulator:
        play_unheard(simulator, market)
        settings = market.settings(simulator.websocket_url)
        with ProducerThread(settings) as producer:
            wait_for(lambda: producer.health.not_ready() is None, "the subscription")
            http = HttpSettings()
            with HealthServer(http, producer.metrics, producer.health) as server:
                url = f"http://127.0.0.1:{server.port}"
                middle = times[len(times) // 2]
                first = ("backfill", "--channel", market.channel, "--url", url)
                half = (*first, "--from", iso(times[0]), "--to", iso(middle))
                assert invoke(*half).exit_code == 0
                assert (
                    invoke(*first, "--from", iso(times[0]), "--to", iso(times[-1])).exit_code == 0
                )
                wrong = invoke("backfill", "--channel", "trades.spot.BTC.agg2", *half[3:])
                assert isinstance(wrong.exception, ContractError)
                assert "has no channel" in str(wrong.exception)
            wait_for(lambda: numbers(recording.trades) <= market.read().trades.keys(), "the period")
    assert producer.failure is None
    content = market.read()
    assert content.differences(content.without_holes()) == ""
    assert invoke("gaps", market.topic).exit_code == 0


def test_a_period_is_fetched_without_a_producer(market: Market) -> None:
    recording = generate_trades(seed=9, count=3_000, instruments=market.instruments)
    times = [trade["timestamp"] for trade in recording.trades]
    with simulator_in_thread(recording) as simulator:
        play_unheard(simulator, market)
        variables = {
            "KSTREAM__EXCHANGE__URL": simulator.websocket_url,
            "KSTREAM__CHANNELS": market.channel,
            "KSTREAM__HISTORY__REQUESTS_PER_S": "500",
        }
        arguments = ["backfill", "--alone", "--channel", market.channel]
        middle = times[len(times) // 2]
        for start, end in ((times[0], middle), (middle, times[-1])):
            period = ["--from", iso(start), "--to", iso(end)]
            result = CliRunner(env=variables).invoke(cli, arguments + period)
            assert result.exit_code == 0, result.output
    content = market.read()
    assert content.differences(numbers(recording.trades)) == ""
    assert content.backfilled == 3_000


def test_gaps_names_what_the_topic_lacks(market: Market) -> None:
    recording = generate_trades(seed=10, count=1_000, instruments=market.instruments[:2])
    name = market.instruments[0]
    kept = [
        trade
        for trade in recording.trades
        if not (trade["instrument_name"] == name and trade["trade_seq"] in {7, 8, 20})
    ]
    with (
        simulator_in_thread(kept) as simulator,
        ProducerThread(
            market.settings(simulator.websocket_url, history={"hole_attempts": 1})
        ) as producer,
    ):
        wait_for(
            lambda: producer.value("kstream_source_gaps_total", topic=market.topic) >= 3,
            "the gaps",
        )
    result = invoke("gaps", market.topic, "--json")
    assert result.exit_code == 1
    found = [json.loads(line) for line in result.stdout.splitlines()]
    assert [(line["first_seq"], line["last_seq"]) for line in found] == [(7, 8), (20, 20)]
    assert {line["instrument_name"] for line in found} == {name}
    table = invoke("gaps", "--channel", market.channel)
    assert "3 trades are missing" in table.stdout
    assert isinstance(invoke("gaps", "trades-no-such").exception, ContractError)
    recorded = invoke("gaps", market.topic, "--recorded", "--json")
    assert recorded.exit_code == 1
    lines = [json.loads(line) for line in recorded.stdout.splitlines()]
    assert [(line["first_seq"], line["last_seq"], line["filled"]) for line in lines] == [
        (7, 8, 0),
        (20, 20, 0),
    ]

    # The exchange gives two of the three after all.
    given = [trade for trade in recording.trades if trade["trade_seq"] != 8]
    begin, end = (recording.trades[place]["timestamp"] for place in (0, -1))
    with simulator_in_thread(given) as simulator:
        play_unheard(simulator, market)
        fetched = CliRunner(env={"KSTREAM__EXCHANGE__URL": simulator.websocket_url}).invoke(
            cli,
            [
                *("backfill", "--alone", "--channel", market.channel),
                *("--from", iso(begin), "--to", iso(end + 1)),
            ],
        )
    assert fetched.exit_code == 0, fetched.output
    table = invoke("gaps", market.topic, "--recorded")
    assert table.exit_code == 1
    assert "2 came after all, 1 lack" in table.stdout
    assert "no trade was given up" in invoke("gaps", f"{market.topic}-dlq", "--recorded").stdout


def test_a_wrong_request_is_told_in_a_sentence(market: Market) -> None:
    period = ("--channel", market.channel, "--from", "2026-11-20T08:00", "--to", "2026-11-20T09:00")
    nobody = invoke("backfill", *period, "--url", "http://127.0.0.1:9")
    assert isinstance(nobody.exception, UnavailableError)
    assert "does not answer" in str(nobody.exception)
    late = invoke("backfill", *period[:4], "--to", "2026-11-20T07:00")
    assert isinstance(late.exception, SettingsError)
    unreadable = invoke("backfill", *period[:4], "--to", "tomorrow")
    assert "is not a time" in str(unreadable.exception)


@pytest.mark.parametrize(
    ("name", "write"), [("session.jsonl", write_jsonl), ("session.csv.gz", write_csv_gz)]
)
def test_a_recorded_file_is_a_source_that_resumes_and_ends(
    market: Market, tmp_path: Path, name: str, write: Callable[[Path, tuple[WireTrade, ...]], Path]
) -> None:
    recording = generate_trades(seed=11, count=2_500, instruments=market.instruments)
    file = tmp_path / name
    settings = market.settings("ws://127.0.0.1:9/", source=SourceSettings(recording=file))
    repeated = 0.0
    for count in (1_000, 2_500):  # the second time it holds what the first one held, and more
        write(file, recording.trades[:count])
        with ProducerThread(settings) as producer:
            producer.join()
        assert producer.failure is None
        assert len(market.read().trades) == count
        repeated = producer.value("kstream_trades_repeated_total", topic=market.topic)
    assert repeated < 100
    content = market.read()
    assert content.differences(numbers(recording.trades)) == ""
    assert content.backfilled == 0
