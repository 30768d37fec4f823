"""Recordings: files in, wire trades out, clear errors otherwise."""

from __future__ import annotations

import gzip
import json
from collections import defaultdict
from typing import TYPE_CHECKING, Any

import pytest

from kstream_agg.core.errors import ContractError, KStreamError, SettingsError
from kstream_agg.deribit.recording import (
    Recording,
    in_time_order,
    read_recording,
    shift_trade,
    shipped_recording_path,
    tick_direction,
)

if TYPE_CHECKING:
    from pathlib import Path

HEADER = "trade_id,instrument_name,price,amount,direction,timestamp,index_price,mark_price,iv"


def write_csv(folder: Path, *rows: str, header: str = HEADER) -> Path:
    path = folder / "trades.csv.gz"
    path.write_bytes(gzip.compress("\n".join([header, *rows, ""]).encode()))
    return path


def write_jsonl(folder: Path, *lines: str) -> Path:
    path = folder / "frames.jsonl"
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def bare_trade(**changes: object) -> dict[str, Any]:
    return {
        "trade_id": "1",
        "instrument_name": "BTC-PERPETUAL",
        "timestamp": 1000,
        "price": 10.0,
        "amount": 1.0,
        "direction": "buy",
        **changes,
    }


def test_csv_rebuilds_what_the_recorder_dropped(tmp_path: Path) -> None:
    path = write_csv(
        tmp_path,
        "11,BTC-PERPETUAL,100.5,10,buy,1000,100,100.4,",
        "12,BTC-17AUG26-63000-P,0.002,0.1,sell,1000,100,0.0021,16.72",
        "13,BTC-PERPETUAL,101,10,buy,1001,100,100.4,",
        "14,BTC-PERPETUAL,101,10,buy,1001,100,100.4,",
        "15,BTC-PERPETUAL,99,10,sell,1002,100,100.4,",
        "16,BTC-PERPETUAL,99,10,sell,1002,100,100.4,",
    )
    trades = read_recording(path).trades
    assert trades[0] == {
        "trade_seq": 1,
        "trade_id": "11",
        "timestamp": 1000,
        "tick_direction": 1,
        "price": 100.5,
        "mark_price": 100.4,
        "instrument_name": "BTC-PERPETUAL",
        "index_price": 100.0,
        "direction": "buy",
        "amount": 10.0,
    }
    assert [trade["trade_seq"] for trade in trades] == [1, 1, 2, 3, 4, 5]
    assert [trade["tick_direction"] for trade in trades] == [1, 1, 0, 1, 2, 3]
    assert trades[1]["iv"] == 16.72


def test_csv_keeps_recorded_seq_and_tick(tmp_path: Path) -> None:
    path = write_csv(
        tmp_path,
        "7,1,BTC-PERPETUAL,5.0,1,buy,1000,3",
        header="trade_seq,trade_id,instrument_name,price,amount,direction,timestamp,tick_direction",
    )
    (trade,) = read_recording(path).trades
    assert (trade["trade_seq"], trade["tick_direction"]) == (7, 3)


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ("1,X,high,1,buy,1000,1,1,", "line 2: the line has a wrong price 'high'"),
        ("1,X,nan,1,buy,1000,1,1,", "line 2: the line has a wrong price 'nan'"),
        ("1,X,1,1,hold,1000,1,1,", "line 2: the line has a wrong direction 'hold'"),
        ("1,X,1,1,buy,10.5,1,1,", "line 2: the line has a wrong timestamp '10.5'"),
        ("1,,1,1,buy,1000,1,1,", "line 2: the line has no instrument_name"),
        ("1,X,1,1,buy", "line 2: the line has 5 cells, not 9"),
        ('"1,X', "line 2: the line is not CSV"),
    ],
)
def test_csv_names_the_wrong_line(tmp_path: Path, row: str, said: str) -> None:
    with pytest.raises(ContractError) as caught:
        read_recording(write_csv(tmp_path, row))
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("header", "said"),
    [
        ("trade_id,price", "lacks the columns instrument_name, timestamp, amount, direction"),
        (HEADER + ",colour", "has unknown columns colour"),
        (HEADER + ",iv", "has a column twice"),
        ("", "lacks the columns trade_id"),
    ],
)
def test_csv_checks_the_header(tmp_path: Path, header: str, said: str) -> None:
    with pytest.raises(ContractError, match="line 1") as caught:
        read_recording(write_csv(tmp_path, header=header))
    assert said in str(caught.value)


def test_jsonl_takes_trades_from_frames_and_counts_the_rest(tmp_path: Path) -> None:
    frame = {
        "jsonrpc": "2.0",
        "method": "subscription",
        "params": {
            "channel": "trades.future.BTC.100ms",
            "data": [
                bare_trade(trade_seq=5, tick_direction=0, starbase_match_id=225046781992378368),
                bare_trade(trade_seq=6, tick_direction=1),
            ],
        },
    }
    other = {"method": "subscription", "params": {"channel": "ticker.BTC-PERPETUAL.raw", "data": 1}}
    recording = read_recording(
        write_jsonl(
            tmp_path,
            '{"jsonrpc":"2.0","id":1,"result":[]}',
            json.dumps(frame),
            "",
            json.dumps(other),
            json.dumps({"kind": "wrapped", "message": bare_trade(trade_id="2")}),
            json.dumps(frame),
        )
    )
    assert [trade["trade_seq"] for trade in recording.trades] == [5, 6, 7]
    assert recording.trades[0]["starbase_match_id"] == 225046781992378368
    assert (recording.ignored, recording.repeated) == (2, 2)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", "line 2: the line is not a JSON object"),
        ("[]", "line 2: the line is not a JSON object"),
        (json.dumps(bare_trade(price="1")), "line 2: the line holds a trade with a missing or"),
        (
            '{"params":{"channel":"trades.X.raw","data":[1]}}',
            "line 2: the line holds a trade that is no JSON object",
        ),
    ],
)
def test_jsonl_names_the_wrong_line(tmp_path: Path, line: str, said: str) -> None:
    with pytest.raises(ContractError) as caught:
        read_recording(write_jsonl(tmp_path, json.dumps(bare_trade()), line))
    assert said in str(caught.value)


def test_damaged_archives_are_said_to_be_damaged(tmp_path: Path) -> None:
    whole = shipped_recording_path().read_bytes()
    cut = tmp_path / "cut.csv.gz"
    cut.write_bytes(whole[:20_000])
    flipped = tmp_path / "flipped.csv.gz"
    flipped.write_bytes(whole[:20_000] + b"\xff" * 100 + whole[20_100:])
    plain = tmp_path / "plain.csv.gz"
    plain.write_text(HEADER)
    for path in (cut, flipped, plain):
        with pytest.raises(KStreamError) as caught:
            read_recording(path)
        assert path.name in str(caught.value)


def test_text_that_is_not_utf8(tmp_path: Path) -> None:
    path = tmp_path / "latin.jsonl"
    path.write_bytes(b'{"a": "\xe9"}\n')
    with pytest.raises(ContractError, match="not UTF-8"):
        read_recording(path)


def test_paths_that_are_no_recordings(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="is not a file"):
        read_recording(tmp_path / "absent.csv.gz")
    other = tmp_path / "trades.parquet"
    other.touch()
    with pytest.raises(SettingsError, match=r"none of the endings \.csv"):
        read_recording(other)


def test_shipped_recording() -> None:
    recording = read_recording(shipped_recording_path())
    assert len(recording.trades) == 7264
    assert recording.instruments["BTC-PERPETUAL"] == 6273
    assert recording.instruments["BTC-25JUN27"] == 461
    seqs: dict[str, list[int]] = defaultdict(list)
    for trade in recording.trades:
        seqs[trade["instrument_name"]].append(trade["trade_seq"])
    assert all(seq == list(range(1, len(seq) + 1)) for seq in seqs.values())


@pytest.mark.parametrize(
    ("price", "previous", "expected"),
    [
        (5.0, None, 1),
        (6.0, (5.0, 3), 0),
        (4.0, (5.0, 0), 2),
        (5.0, (5.0, 0), 1),
        (5.0, (5.0, 1), 1),
        (5.0, (5.0, 2), 3),
        (5.0, (5.0, 3), 3),
    ],
)
def test_tick_direction_rule(
    price: float, previous: tuple[float, int] | None, expected: int
) -> None:
    assert tick_direction(price, previous) == expected


def test_shifting_moves_every_time_in_a_trade() -> None:
    trade = bare_trade(
        starbase_timestamp=1_789_344_933_994_718_924, legs=[bare_trade(timestamp=1001), {}]
    )
    moved = shift_trade(trade, 250)
    assert moved["timestamp"] == 1250
    assert moved["starbase_timestamp"] == 1_789_344_934_244_718_924
    assert moved["legs"] == [bare_trade(timestamp=1251), {}]
    assert trade["timestamp"] == 1000


def test_a_recording_can_end_at_a_given_time() -> None:
    recording = Recording.of([bare_trade(), bare_trade(trade_id="2", timestamp=1700)])
    assert [trade["timestamp"] for trade in recording.ending_at(9000).trades] == [8300, 9000]


def test_only_some_instruments() -> None:
    recording = Recording.of([bare_trade(), bare_trade(instrument_name="BTC-25JUN27")])
    assert recording.only(["BTC-25JUN27"]).instruments == {"BTC-25JUN27": 1}


def test_a_table_written_instrument_after_instrument_is_played_in_the_order_of_time() -> None:
    trades = [
        {"instrument_name": "A", "timestamp": 10},
        {"instrument_name": "A", "timestamp": 30},
        {"instrument_name": "A", "timestamp": 29},
        {"instrument_name": "B", "timestamp": 5},
        {"instrument_name": "B", "timestamp": 30},
    ]
    played = [(trade["instrument_name"], trade["timestamp"]) for trade in in_time_order(trades)]
    assert played == [("B", 5), ("A", 10), ("A", 30), ("A", 29), ("B", 30)]


def test_the_shipped_recording_mixes_its_instruments_as_a_session_does() -> None:
    stamps = [trade["timestamp"] for trade in read_recording(shipped_recording_path()).trades]
    assert stamps == sorted(stamps)
