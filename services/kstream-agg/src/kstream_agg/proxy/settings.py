"""The push proxy's settings: the reference's YAML keys and defaults, and our additions.

The keys `kafka.brokers` … `kafka.request_required_acks`, `http.port`, `http.metrics_port`,
`output_file` and `ratelimit.enabled|rules` are those of kafka-proxy (kprf), with its defaults, so
that its file can be handed over as it is.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import BeforeValidator, Field, SecretStr, field_validator, model_validator
from pydantic_settings import NoDecode

from kstream_agg.core.settings import (
    KafkaSettings,
    LayeredSettings,
    LogSettings,
    RegistrySettings,
    SettingsGroup,
    TelemetrySettings,
    TopicSettings,
    read_secret,
)

if TYPE_CHECKING:
    from typing import Self

__all__ = [
    "ApiKey",
    "ProxyHttpSettings",
    "ProxyKafkaSettings",
    "ProxySettings",
    "RateLimitSettings",
    "TopicRule",
    "WalSettings",
]

_MEBIBYTE = 1 << 20
_KEY_HASH = re.compile(r"sha256:[0-9a-f]{64}")


def _split_commas(value: object) -> object:
    if isinstance(value, str):
        return tuple(part.strip() for part in value.split(",") if part.strip())
    return value


class ProxyKafkaSettings(SettingsGroup):
    """`kafka`: the producer. Names and defaults of the first block are the reference's."""

    brokers: Annotated[tuple[str, ...], NoDecode, BeforeValidator(_split_commas)] = ()
    user: str = ""
    password: SecretStr = SecretStr("")
    message_max_bytes: int = Field(default=_MEBIBYTE, ge=1000, le=1_000_000_000)
    queue_buffering_max_messages: int = Field(default=100_000, ge=1, le=2_147_483_647)
    queue_buffering_max_ms: float = Field(default=10, ge=0, le=900_000)
    queue_buffering_max_kbytes: int = Field(default=1_048_576, ge=1, le=2_147_483_647)
    retries: int = Field(default=3, ge=0, le=2_147_483_647)
    message_timeout_ms: int = Field(default=2000, ge=0, le=2_147_483_647)
    request_timeout_ms: int = Field(default=30_000, ge=1, le=900_000)
    request_required_acks: int = Field(default=-1, ge=-1, le=1000)

    bootstrap_servers: str | None = None
    """The name the other services use; goes before `brokers`."""
    linger_ms: float = Field(default=1, ge=0, le=900_000)
    """How long a record waits for others, never longer than `queue_buffering_max_ms`."""
    security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] | None = None
    sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512", "OAUTHBEARER"] | None = None
    sasl_username: str | None = None
    sasl_password: SecretStr | None = None
    sasl_password_file: Path | None = None
    ssl_ca_location: Path | None = None
    properties: dict[str, str | int | float | bool] = Field(default_factory=dict)
    """Any further librdkafka property, by its own name; goes before everything above."""

    def client_settings(self) -> KafkaSettings:
        """How to reach the brokers, as the other services say it. A user alone means SASL."""
        user = self.sasl_username or self.user or None
        protocol = self.security_protocol or ("SASL_PLAINTEXT" if user else "PLAINTEXT")
        mechanism = self.sasl_mechanism or ("PLAIN" if user else None)
        password = self.sasl_password or (self.password if self.user else None)
        return KafkaSettings(
            bootstrap_servers=self.bootstrap_servers or ",".join(self.brokers),
            security_protocol=protocol,
            sasl_mechanism=mechanism,
            sasl_username=user,
            sasl_password=password,
            sasl_password_file=self.sasl_password_file,
            ssl_ca_location=self.ssl_ca_location,
            properties=self.properties,
        )

    def producer_config(
        self, *, workers: int, memory_mbytes: int
    ) -> dict[str, str | int | float | bool]:
        """The librdkafka properties of one worker's producer.

        Args:
            workers: How many share the queue's limits.
            memory_mbytes: Most that may wait in all queues together, in MiB.
        """
        kbytes = min(self.queue_buffering_max_kbytes, memory_mbytes * 1024)
        config: dict[str, str | int | float | bool] = {
            "message.max.bytes": self.message_max_bytes,
            "queue.buffering.max.messages": max(1, self.queue_buffering_max_messages // workers),
            "queue.buffering.max.ms": min(self.linger_ms, self.queue_buffering_max_ms),
            "queue.buffering.max.kbytes": max(1, kbytes // workers),
            "retries": self.retries,
            "message.timeout.ms": self.message_timeout_ms,
            "request.timeout.ms": self.request_timeout_ms,
            "request.required.acks": self.request_required_acks,
            # Behind these records wait for a slow broker, and make batches without any linger.
            "max.in.flight.requests.per.connection": 20,
            "partitioner": "murmur2_random",  # where Java clients would put the same key
            "allow.auto.create.topics": False,  # metadata requests would create them
            "statistics.interval.ms": 1000,
            "reconnect.backoff.max.ms": 1000,  # a broker that is back is seen within a second
        }
        chosen = self.client_settings().client_config()
        if str(chosen.get("enable.idempotence", False)).lower() == "true":
            # librdkafka refuses others than its own, which are `all` and 5.
            for name in ("request.required.acks", "max.in.flight.requests.per.connection"):
                del config[name]
        return config | chosen


class ProxyHttpSettings(SettingsGroup):
    """`http`: the server. `port` and `metrics_port` are the reference's."""

    port: int = Field(default=4242, ge=0, lt=65536)
    metrics_port: int = Field(default=8088, ge=0, lt=65536)
    host: str = "127.0.0.1"
    metrics_host: str = "127.0.0.1"
    status_codes: Literal["honest", "reference"] = "honest"
    workers: int | Literal["auto"] = "auto"
    """Processes; `auto`: one for two cores, four at most: librdkafka and the kernel need theirs."""
    max_body_bytes: int = Field(default=16 * _MEBIBYTE, ge=1)
    max_header_bytes: int = Field(default=32 * 1024, ge=1024)
    max_records: int = Field(default=10_000, ge=1)
    max_connections: int = Field(default=4096, ge=1)
    request_timeout_s: float = Field(default=30.0, gt=0)
    """How long a client may take to send one request."""
    keep_alive_s: float = Field(default=75.0, gt=0)
    queue_memory_mbytes: int = Field(default=64, ge=1)
    """Most that may wait for Kafka in memory, over all workers."""
    queue_wait_ms: int = Field(default=500, ge=0)
    """How long a request waits for room in a full queue before it is answered 503."""
    cors_origins: Annotated[tuple[str, ...], NoDecode, BeforeValidator(_split_commas)] = ()
    """Origins whose pages may push from a browser, `*` for all."""
    shutdown_timeout_s: int = Field(default=20, ge=1)
    tls_certificate: Path | None = None
    tls_key: Path | None = None
    tls_key_password: SecretStr | None = None

    @field_validator("workers")
    @classmethod
    def _at_least_one(cls, workers: int | str) -> int | str:
        if isinstance(workers, int) and workers < 1:
            raise ValueError("must be 'auto' or at least 1")
        return workers

    @model_validator(mode="after")
    def _both_or_none(self) -> Self:
        if (self.tls_certificate is None) != (self.tls_key is None):
            raise ValueError("tls_certificate and tls_key belong together: one of them is missing")
        return self

    @property
    def worker_count(self) -> int:
        """How many worker processes serve."""
        if isinstance(self.workers, int):
            return self.workers
        return max(1, min(4, (os.cpu_count() or 1) // 2))


class WalSettings(SettingsGroup):
    """`wal`: the log that keeps accepted records until Kafka has them."""

    enabled: bool = True
    directory: Path = Path(".data/push-proxy")
    max_mbytes: int = Field(default=1024, ge=1)
    """Most that all workers' logs together may hold, in MiB of records."""
    sync_interval_ms: float = Field(default=20, ge=1, le=1000)
    """A record that Kafka has not confirmed for one to two of these is written to disk."""


class TopicRule(SettingsGroup):
    """One of `ratelimit.rules`."""

    topic_name: str
    max_requests_per_minute: int = Field(ge=1)


class ClientLimit(SettingsGroup):
    """`ratelimit.clients`: a token bucket for each API key, or address without one."""

    records_per_second: float = Field(gt=0)
    burst: int = Field(ge=1)


class RateLimitSettings(SettingsGroup):
    """`ratelimit`: limits of topics (as the reference) and of clients."""

    enabled: bool = False
    rules: tuple[TopicRule, ...] = ()
    clients: ClientLimit | None = None

    @field_validator("rules", mode="before")
    @classmethod
    def _no_rules(cls, rules: object) -> object:
        return () if rules is None else rules  # `rules:` with nothing behind it


class ApiKey(SettingsGroup):
    """One of `security.api_keys`."""

    name: str = Field(min_length=1)
    hash: str
    """`sha256:` and 64 hexadecimal digits, as `push-proxy --make-key` prints it."""
    topics: tuple[str, ...] = ("*",)

    @field_validator("hash")
    @classmethod
    def _well_formed(cls, value: str) -> str:
        if not _KEY_HASH.fullmatch(value):
            raise ValueError(
                "must be 'sha256:' and 64 hexadecimal digits; make one: push-proxy --make-key NAME"
            )
        return value


class SecuritySettings(SettingsGroup):
    """`security`: who may push what; without keys everybody may."""

    api_keys: tuple[ApiKey, ...] = ()


class ProxyTopicSettings(TopicSettings):
    """`topic`: whether unknown topics are created, and how."""

    create: bool = False


class ProxySettings(LayeredSettings):
    """All settings of the push proxy."""

    kafka: ProxyKafkaSettings = ProxyKafkaSettings()
    http: ProxyHttpSettings = ProxyHttpSettings()
    output_file: Path = Path("/dev/stdout")
    ratelimit: RateLimitSettings = RateLimitSettings()
    wal: WalSettings = WalSettings()
    security: SecuritySettings = SecuritySettings()
    topic: ProxyTopicSettings = ProxyTopicSettings()
    registry: RegistrySettings = RegistrySettings()
    telemetry: TelemetrySettings = TelemetrySettings()
    log: LogSettings = LogSettings()

    @model_validator(mode="after")
    def _brokers_named(self) -> Self:
        if not (self.kafka.bootstrap_servers or self.kafka.brokers):
            raise ValueError("kafka.brokers is empty: name at least one broker as host:port")
        return self

    def producer_config(self) -> dict[str, str | int | float | bool]:
        """The librdkafka properties of one worker's producer."""
        return self.kafka.producer_config(
            workers=self.http.worker_count, memory_mbytes=self.http.queue_memory_mbytes
        )

    def tls_key_password(self) -> str | None:
        """The password of the TLS key, None when it has none."""
        return read_secret(self.http.tls_key_password, None)
