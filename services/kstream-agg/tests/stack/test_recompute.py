"""An old hole is filled, its windows are made again, and `verify` agrees."""

from __future__ import annotations

import json
import threading
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner
from market import RunningAggregator
from prometheus_client import CollectorRegistry

from kstream_agg.aggregate.settings import AggProducerSettings, ConsumeSettings, WindowSettings
from kstream_agg.cli.main import cli
from kstream_agg.core.errors import ContractError, DeliveryError, SettingsError
from kstream_agg.core.metrics import Metrics
from kstream_agg.core.names import average_topic, late_topic
from kstream_agg.core.settings import PostgresSettings, TopicSettings
from kstream_agg.deribit.simulation.generator import generate_trades
from kstream_agg.deribit.simulator import simulator_in_thread
from kstream_agg.deribit.testing import Market, play_unheard, wait_for
from kstream_agg.kafka.transactions import TransactionWriter
from kstream_agg.sinks.settings import AggregatorView, ConnectSettings, ToolSettings, WindowView
from kstream_agg.verify.reading import TopicReader
from kstream_agg.verify.run import WINDOWS_CHECK, verify
from kstream_agg.verify.testing import SinkBench, running_sinks

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from click.testing import Result

    from kstream_agg.deribit.simulator import SimulatorThread
    from kstream_agg.stack.endpoints import StackEndpoints

pytestmark = [pytest.mark.stack, pytest.mark.timeout(300)]

MINUTE = 60_000


@pytest.fixture
def market(stack: StackEndpoints) -> Iterator[Market]:
    made = Market(stack.bootstrap_servers, stack.registry_url, instruments=20)
    yield made
    made.remove()


@pytest.fixture
def bench(stack: StackEndpoints, market: Market, tmp_path: Path) -> Iterator[SinkBench]:
    common: dict[str, Any] = {
        "channels": (market.channel,),
        "kafka": market.kafka,
        "registry": market.registry,
        "topic": TopicSettings(partitions=2),
    }
    password = stack.postgres_password_file
    tools = ToolSettings(
        **common,
        connect=ConnectSettings(url=stack.connect_url),
        postgres=PostgresSettings(port=stack.postgres_port, password_file=password),
    )
    view = AggregatorView(**common, group_id=market.currency, window=WindowView(period=60))
    with running_sinks(tools, view, tmp_path, market.currency.lower()) as running:
        yield running


@pytest.fixture
def aggregator(market: Market) -> AggProducerSettings:
    return AggProducerSettings(
        channels=(market.channel,),
        group_id=market.currency,
        kafka=market.kafka,
        registry=market.registry,
        topic=TopicSettings(partitions=2),
        window=WindowSettings(period=60, idle_timeout=600, retention=60),
        consume=ConsumeSettings(commit_interval_s=0.1),
    )


def invoke(market: Market, *arguments: str, **more: str) -> Result:
    variables = {
        "KAFKA__BOOTSTRAP_SERVERS": market.kafka.bootstrap_servers,
        "REGISTRY__URL": market.registry.url,
        "CHANNELS": market.channel,
        "GROUP_ID": market.currency,
        "TRANSACTIONAL_ID": market.currency,
        "TOPIC__PARTITIONS": "2",
        **more,
    }
    environment = {f"KSTREAM__{name}": value for name, value in variables.items()}
    return CliRunner(env=environment).invoke(cli, list(arguments))


def iso(ms: int) -> str:
    return datetime.fromtimestamp(ms / 1000, UTC).isoformat()


def backfill(market: Market, simulator: SimulatorThread, from_ms: int, to_ms: int) -> None:
    result = invoke(
        market,
        *("backfill", "--alone", "--channel", market.channel),
        *("--from", iso(from_ms), "--to", iso(to_ms)),
        EXCHANGE__URL=simulator.websocket_url,
        HISTORY__REQUESTS_PER_S="500",
    )
    assert result.exit_code == 0, result.output


def recompute(market: Market, from_ms: int, to_ms: int, *options: str) -> Result:
    period = ("--from", iso(from_ms), "--to", iso(to_ms))
    window = {
        "WINDOW__PERIOD": "1min",
        "WINDOW__RETENTION": "60",
        "WINDOW__IDLE_TIMEOUT": "600",
    }
    return invoke(market, "recompute", *period, *options, **window)


def counts(result: Result) -> dict[str, Any]:
    assert result.exception is None or isinstance(result.exception, SystemExit), result.output
    [line] = json.loads(result.stdout)
    return {name: line[name] for name in ("written", "same", "lacking")}


def wait_until_taken(bench: SinkBench, topic: str) -> None:
    """Until the aggregator has committed what stands in the raw topic."""

    def is_taken() -> bool:
        with TopicReader(bench.settings.kafka) as reader:
            ends, found = reader.spans([topic]), reader.positions(bench.aggregator.group_id)
        return all(part in found and found[part].offset >= ends[part].end for part in ends)

    wait_for(is_taken, "the aggregator")


def averages(bench: SinkBench, topic: str) -> list[tuple[Any, ...]]:
    return bench.query(
        "SELECT closed_by, revision, count(*) FROM {} GROUP BY 1, 2 ORDER BY 1, 2", topic
    )


def test_an_old_hole_is_filled_its_windows_emitted_again_and_verified(
    market: Market, bench: SinkBench, aggregator: AggProducerSettings
) -> None:
    recording = generate_trades(seed=21, count=3_000, instruments=market.instruments)
    begin, end = (recording.trades[place]["timestamp"] for place in (0, -1))
    middle = (begin + end) // 2 // MINUTE * MINUTE + MINUTE // 2  # within a window
    topic = average_topic(market.topic, 60)

    with simulator_in_thread(recording) as simulator:
        play_unheard(simulator, market)
        with RunningAggregator(aggregator):
            backfill(market, simulator, middle, end)
            wait_until_taken(bench, market.topic)
            backfill(market, simulator, begin, middle)  # the old hole
            wait_until_taken(bench, market.topic)
            assert market.count(late_topic(market.topic)) > 1_000

            still_kept = recompute(market, begin, end)
            assert isinstance(still_kept.exception, ContractError)
            assert "still keeps windows of this period" in str(still_kept.exception)
            assert "--to 20" in (still_kept.exception.remedy or "")

            # What an earlier run left behind in the middle of its work.
            dead = TransactionWriter(
                market.kafka, Metrics(CollectorRegistry()), "t", f"{market.currency}-recompute"
            )
            dead.start(threading.Event())
            dead.produce(topic, b"never committed", key=b"X|0")

            one = market.instruments[0]
            first = counts(recompute(market, begin, middle, "--instrument", one, "--json"))
            assert first["written"] > 3
            rest = counts(recompute(market, begin, middle, "--topic", market.topic, "--json"))
            assert rest["written"] > first["written"]
            assert rest["same"] == first["written"]
            with pytest.raises(DeliveryError, match="has taken over"):
                dead.commit(lambda: True)

            before = market.count(topic)
            again = recompute(market, begin, middle)
            assert again.exit_code == 0
            assert "nothing is emitted" in again.stdout
            assert market.count(topic) == before
    report = verify(bench.settings, bench.aggregator, bench.sinks, bench.patience())
    assert report.exit_code == 0, report.as_dict()
    [windows] = [check for check in report.checks if check.name == WINDOWS_CHECK]
    assert windows.compared >= rest["written"] + rest["same"]
    found = {(closed_by, revision) for closed_by, revision, _ in averages(bench, topic)}
    # Windows that had no record, and the one that the hole had cut in two.
    assert {("recompute", 0), ("recompute", 1), ("watermark", 0)} <= found


def test_what_cannot_be_recomputed_is_told_in_a_sentence(
    market: Market, aggregator: AggProducerSettings
) -> None:
    never = recompute(market, 0, MINUTE)
    assert isinstance(never.exception, ContractError)
    assert "there is no topic" in str(never.exception)
    other = recompute(market, 0, MINUTE, "--topic", "trades-no-such")
    assert isinstance(other.exception, SettingsError)
    assert market.topic in (other.exception.remedy or "")
    assert isinstance(recompute(market, MINUTE, 0).exception, SettingsError)
    with RunningAggregator(aggregator):
        wait_for(lambda: f"{market.currency}-{market.topic}-changelog" in market.topics(), "it")
        nothing = recompute(market, 0, MINUTE)
    assert nothing.exit_code == 2
    assert "there is no trade in this period" in nothing.stdout
