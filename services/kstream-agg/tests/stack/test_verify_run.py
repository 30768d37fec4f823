"""`verify` on real topics, sinks and tables; the aggregator's records are written by hand."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from kstream_agg.core.errors import UnavailableError
from kstream_agg.core.names import average_topic, dead_letter_topic, late_topic
from kstream_agg.core.settings import KafkaSettings, PostgresSettings, RegistrySettings
from kstream_agg.kafka.dlq import Origin, error_headers, failure_headers, late_headers
from kstream_agg.sinks.settings import AggregatorView, ConnectSettings, ToolSettings
from kstream_agg.verify.reading import TopicReader
from kstream_agg.verify.run import TRADES_CHECK, WINDOW_ROWS_CHECK, WINDOWS_CHECK, verify
from kstream_agg.verify.testing import SinkBench, average_record, running_sinks, trade_record

if TYPE_CHECKING:
    from collections.abc import Iterator

    from kstream_agg.stack.endpoints import StackEndpoints
    from kstream_agg.verify.report import Check, Report

pytestmark = [pytest.mark.stack, pytest.mark.timeout(300)]

START_MS = 1_760_000_100_000  # begin of a five-minute window
MIN_MS = 60_000
PLACES = ("equal", "rows", "refused", "records", "missing", "empty", "behind", "unclosed")
NAME = "V-PERPETUAL"


@pytest.fixture(scope="module")
def bench(stack: StackEndpoints, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SinkBench]:
    folder = tmp_path_factory.mktemp("connectors")
    name = f"v{folder.stat().st_ino}"
    common: dict[str, Any] = {
        "channels": tuple(f"trades.{place}-{name}.100ms" for place in PLACES),
        "kafka": KafkaSettings(bootstrap_servers=stack.bootstrap_servers),
        "registry": RegistrySettings(url=stack.registry_url),
    }
    settings = ToolSettings(
        **common,
        connect=ConnectSettings(url=stack.connect_url),
        postgres=PostgresSettings(
            port=stack.postgres_port, password_file=stack.postgres_password_file
        ),
    )
    aggregator = AggregatorView(**common, group_id=f"agg-{name}")
    with running_sinks(settings, aggregator, folder, name) as running:
        yield running


def raw_topic(bench: SinkBench, place: str) -> str:
    return bench.aggregator.raw_topics[PLACES.index(place)]


def run(bench: SinkBench, place: str, seconds: float = 60.0, *, wait: bool = False) -> Report:
    channel = bench.aggregator.channels[PLACES.index(place)]
    view = bench.aggregator.model_copy(update={"channels": (channel,)})
    patience = bench.patience(seconds)
    return verify(bench.settings, view, bench.sinks, patience, wait_for_window=wait)


def check_of(report: Report, name: str) -> Check:
    return next(check for check in report.checks if check.name == name)


def write_a_closed_window(bench: SinkBench, place: str, **fields: Any) -> None:  # noqa: ANN401 - any of the schema's fields
    """One trade in a window, its record, and a trade that closes the window."""
    topic = raw_topic(bench, place)
    trades = [trade_record(NAME, 1, START_MS), trade_record(NAME, 2, START_MS + 10 * MIN_MS)]
    bench.write_trades(topic, trades)
    bench.write_averages(average_topic(topic, 300), [average_record(NAME, START_MS, **fields)])
    bench.commit_aggregator(topic)
    for sink in bench.sinks:
        bench.wait_written(sink)


def test_equal_topics_and_tables_pass_with_all_that_is_not_compared(bench: SinkBench) -> None:
    topic = raw_topic(bench, "equal")
    trades = [
        trade_record(NAME, 2, START_MS + 7, price=2.0, amount=3.0),
        trade_record(NAME, 1, START_MS + 9, price=4.0, amount=1.0),  # lower seq later: opens
        trade_record(NAME, 2, START_MS + 7, price=2.0, amount=3.0),  # a repeat
        trade_record(NAME, 3, START_MS + 10 * MIN_MS, price=8.0),  # closes the first window
        trade_record(NAME, 4, START_MS + 11, price=64.0),  # late
        trade_record(NAME, 5, START_MS + 11 * MIN_MS, price=16.0),  # after idle closing
        trade_record(NAME, 6, START_MS + 15 * MIN_MS, price=32.0),  # its window is still open
        trade_record(NAME, 7, START_MS + 999 * MIN_MS),  # refused: moves no watermark either
    ]
    bench.write_trades(topic, trades)
    bench.write(topic, [(NAME, b"no avro")])
    with TopicReader(bench.settings.kafka) as reader:
        records = [r for r in reader.read(reader.spans([topic])) if r.key == NAME.encode()]
    late = records[4]
    origin = Origin(topic, late.part.partition, late.offset, START_MS)
    bench.write(late_topic(topic), [(NAME, late.value)], late_headers("late", 1, origin))
    origin = Origin(topic, records[7].part.partition, records[7].offset, START_MS)
    error = error_headers(ValueError("not finite"), "validate", origin)
    bench.write(dead_letter_topic(topic), [(NAME, records[7].value)], error)
    first = average_record(
        NAME, START_MS, seed=1.0, alpha=0.5, current=0.5 * 4.0 + 0.5 * (0.5 * 2.0 + 0.5 * 1.0),
        sma=3.0, vwap=10.0 / 4.0, open=4.0, close=2.0, high=4.0, low=2.0, volume=4.0,
        trade_count=2, first_trade_seq=1, last_trade_seq=2,
    )  # fmt: skip
    shown = average_record(
        NAME, START_MS + 10 * MIN_MS, seed=2.75, alpha=0.5, current=5.375, sma=8.0, vwap=8.0,
        open=8.0, close=8.0, high=8.0, low=8.0, first_trade_seq=3, last_trade_seq=3,
        closed_by="idle",
    )  # fmt: skip
    bench.write_averages(average_topic(topic, 300), [first | {"current": 0.0}, first, shown])
    bench.commit_aggregator(topic)

    report = run(bench, "equal")

    assert report.exit_code == 0, report.as_dict()
    assert check_of(report, TRADES_CHECK).compared == 7
    assert check_of(report, WINDOWS_CHECK).compared == 2
    assert check_of(report, WINDOW_ROWS_CHECK).compared == 2
    assert check_of(report, WINDOWS_CHECK).notes == {
        "windows still open": 1,
        "records in -late or -dlq": 2,
        "repeats of a trade in a window": 1,
    }
    assert json.loads(json.dumps(report.as_dict()))["equal"] is True


def test_rows_that_differ_are_missing_or_unaccounted_for_are_named(bench: SinkBench) -> None:
    write_a_closed_window(bench, "rows")
    topic = raw_topic(bench, "rows")
    averages = average_topic(topic, 300)
    assert run(bench, "rows").exit_code == 0
    bench.execute("UPDATE {} SET price = price + 1e-15 WHERE trade_seq = 1", topic)
    bench.execute("UPDATE {} SET trade_seq = 9007199254740993 WHERE trade_seq = 2", topic)
    bench.execute("UPDATE {} SET window_end = window_end + interval '1 ms'", averages)

    report = run(bench, "rows")

    assert report.exit_code == 1
    assert sorted(check_of(report, TRADES_CHECK).examples) == [
        f"{NAME} trade_seq 1: price is 1.000000000000001 in Postgres, 1.0 in the topic",
        f"{NAME} trade_seq 2: in the topic, not in Postgres",
        f"{NAME} trade_seq 9007199254740993: in Postgres, not in the topic",
    ]
    assert check_of(report, WINDOW_ROWS_CHECK).differences == 1
    assert check_of(report, WINDOWS_CHECK).differences == 0


def test_a_row_that_postgres_refused_is_named_and_no_difference(bench: SinkBench) -> None:
    write_a_closed_window(bench, "refused")
    topic = raw_topic(bench, "refused")
    bench.execute("DELETE FROM {} WHERE trade_seq = 2", topic)
    assert run(bench, "refused").exit_code == 1
    headers = failure_headers("CheckViolation", "no", "write", Origin(topic, 0, 1, START_MS))
    value = bench.encode(topic, trade_record(NAME, 2, START_MS + 10 * MIN_MS))
    bench.write(bench.sinks[0].dead_letter_topic, [(NAME, value)], headers)

    report = run(bench, "refused")

    assert report.exit_code == 0, report.as_dict()
    notes = check_of(report, TRADES_CHECK).notes
    assert notes == {"rows that Postgres refused, in the sink's dead-letter topic": 1}


@pytest.mark.parametrize("place", ["records"])
def test_a_wrong_record_of_a_window_is_named(bench: SinkBench, place: str) -> None:
    write_a_closed_window(bench, place, current=1.0 + 1e-6)
    report = run(bench, place)
    assert report.exit_code == 1
    (example,) = check_of(report, WINDOWS_CHECK).examples
    assert example.endswith("current is 1.000001, not 1.0")


def test_a_closed_window_without_a_record_is_a_difference(bench: SinkBench) -> None:
    topic = raw_topic(bench, "missing")
    trades = [trade_record(NAME, 1, START_MS), trade_record(NAME, 2, START_MS + 10 * MIN_MS)]
    bench.write_trades(topic, trades)
    bench.commit_aggregator(topic)
    report = run(bench, "missing")
    assert report.exit_code == 1
    (example,) = check_of(report, WINDOWS_CHECK).examples
    assert example.endswith("it is closed and missing, with 1 trades")


def test_nothing_to_compare_is_a_failure_of_its_own(bench: SinkBench) -> None:
    report = run(bench, "empty")
    assert report.exit_code == 2
    with pytest.raises(UnavailableError, match="no closed window yet"):
        run(bench, "empty", 0.0, wait=True)


def test_trades_without_a_closed_window_are_not_enough(bench: SinkBench) -> None:
    topic = raw_topic(bench, "unclosed")
    bench.write_trades(topic, [trade_record(NAME, 1, START_MS)])
    bench.commit_aggregator(topic)
    report = run(bench, "unclosed")
    assert check_of(report, TRADES_CHECK).compared == 1
    assert report.exit_code == 2


def test_an_aggregator_that_stays_behind_is_named(bench: SinkBench) -> None:
    topic = raw_topic(bench, "behind")
    bench.write_trades(topic, [trade_record(NAME, 1, START_MS)])
    bench.wait_written(bench.sinks[0])
    with pytest.raises(UnavailableError, match=r"group 'agg-.*' has not read .* no offset yet"):
        run(bench, "behind", 0.0)
