"""Rate limits and API keys."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from kstream_agg.proxy.access import Access, Client, new_key
from kstream_agg.proxy.limits import Bucket, Limits, SharedBuckets
from kstream_agg.proxy.outcomes import Failure
from kstream_agg.proxy.settings import ApiKey, RateLimitSettings

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

PER_MINUTE = Bucket(60.0, 1.0)


@pytest.fixture
def buckets(tmp_path: Path) -> Iterator[SharedBuckets]:
    SharedBuckets.create(tmp_path / "buckets")
    made = SharedBuckets(tmp_path / "buckets")
    yield made
    made.close()


def test_a_bucket_gives_its_burst_then_its_rate(buckets: SharedBuckets) -> None:
    taken = [buckets.take("a", PER_MINUTE, 1, 1000.0).allowed for _ in range(61)]
    assert taken == [True] * 60 + [False]
    refused = buckets.take("a", PER_MINUTE, 1, 1000.25)
    assert not refused.allowed
    assert refused.wait_s == pytest.approx(0.75)
    assert buckets.take("a", PER_MINUTE, 1, 1001.0).allowed
    assert not buckets.take("a", PER_MINUTE, 1, 1001.0).allowed
    assert buckets.take("b", PER_MINUTE, 60, 1001.0).allowed


def test_tokens_are_taken_all_or_none(buckets: SharedBuckets) -> None:
    assert not buckets.take("a", PER_MINUTE, 61, 1000.0).allowed
    assert buckets.take("a", PER_MINUTE, 60, 1000.0).allowed


def test_a_clock_that_goes_back_gives_nothing(buckets: SharedBuckets) -> None:
    assert buckets.take("a", PER_MINUTE, 60, 1000.0).allowed
    assert not buckets.take("a", PER_MINUTE, 1, 900.0).allowed
    assert not buckets.take("a", PER_MINUTE, 1, 900.9).allowed


def test_a_full_table_forgets_whom_it_saw_longest_ago(buckets: SharedBuckets) -> None:
    for number in range(40_000):
        assert buckets.take(f"client {number}", PER_MINUTE, 60, 1000.0 + number).allowed
    assert not buckets.take("client 39999", PER_MINUTE, 60, 41_000.0).allowed


_TAKE_MANY = """
import sys
from pathlib import Path
from kstream_agg.proxy.limits import Bucket, SharedBuckets
buckets = SharedBuckets(Path(sys.argv[1]))
print(sum(buckets.take("a", Bucket(1000, 1e-9), 1, 5.0).allowed for _ in range(900)))
"""


def test_workers_share_a_bucket_to_the_token(buckets: SharedBuckets, tmp_path: Path) -> None:
    del buckets  # it has made the file
    command = [sys.executable, "-c", _TAKE_MANY, str(tmp_path / "buckets")]
    workers = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    granted = [int(worker.communicate(timeout=60)[0]) for worker in workers]
    assert sum(granted) == 1000


def test_rules_limit_their_topic_only(buckets: SharedBuckets) -> None:
    settings = RateLimitSettings.model_validate(
        {"enabled": True, "rules": [{"topic_name": "a", "max_requests_per_minute": 2}]}
    )
    limits = Limits(settings, buckets)
    assert limits.topics == {"a"}
    assert [limits.topic("a", 100.0).allowed for _ in range(3)] == [True, True, False]
    assert limits.topic("a", 100.0).wait_s == pytest.approx(30)
    assert limits.topic("b", 100.0).allowed
    assert Limits(settings.model_copy(update={"enabled": False}), buckets).topics == frozenset()


def test_a_clients_limit_is_told_in_headers(buckets: SharedBuckets) -> None:
    settings = RateLimitSettings.model_validate(
        {"enabled": True, "clients": {"records_per_second": 10, "burst": 100}}
    )
    limits = Limits(settings, buckets)
    verdict = limits.take_client("shop", 70, 100.0)
    assert limits.client_headers(verdict) == (
        ("ratelimit-policy", '"client";q=100;w=10'),
        ("ratelimit", '"client";r=30;t=7'),
    )
    refused = limits.take_client("shop", 31, 100.0)
    assert not refused.allowed
    assert refused.wait_s == pytest.approx(0.1)


def test_keys_are_known_by_their_hash_and_bound_to_topics() -> None:
    (mine, digest), (other, _) = new_key(), new_key()
    access = Access(
        [ApiKey(name="shop", hash=digest, topics=("orders-*", "clicks")), ApiKey(name="x", hash=_)]
    )
    assert not access.is_open
    for header in ((f"Bearer {mine}".encode(), None), (b"bearer " + mine.encode(), b"nonsense")):
        client = access.client(*header)
        assert isinstance(client, Client)
        assert client.name == "shop"
    client = access.client(None, mine.encode())
    assert isinstance(client, Client)
    assert client.refused("orders-eu") is None
    assert client.refused("clicks") is None
    refused = client.refused("clicks-eu")
    assert refused is not None
    assert refused.status == 403
    assert isinstance(access.client(None, other.encode()), Client)
    for wrong in (
        (None, None),
        (None, mine[:-1].encode()),
        (b"Basic abc", None),
        (b"Bearer ", None),
    ):
        failure = access.client(*wrong)
        assert isinstance(failure, Failure)
        assert failure.status == 401


def test_without_keys_everybody_may() -> None:
    assert Access([]).is_open
