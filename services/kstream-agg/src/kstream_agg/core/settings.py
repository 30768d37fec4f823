"""Settings: `config/<service>/default.toml`, overridden by `KSTREAM__…` environment variables.

A nested key is joined with two underscores: `[kafka] bootstrap_servers` is
`KSTREAM__KAFKA__BOOTSTRAP_SERVERS`. Lists are written with commas. A secret can also stand in a
file: `<key>_file` names it.

`channels` stands once, in `config/raw-producer/default.toml`; every service reads it there, so
that one setting moves topic, aggregator, sinks and tables.
"""

from __future__ import annotations

import difflib
import os
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, SecretStr
from pydantic import ValidationError as PydanticValidationError
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from kstream_agg.core.errors import SettingsError
from kstream_agg.core.names import channel_topic, parse_period
from kstream_agg.core.settings_errors import ENV_PREFIX, explain_settings

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pydantic_settings import PydanticBaseSettingsSource

__all__ = [
    "ENV_PREFIX",
    "TOP_LEVEL_KEYS",
    "HttpSettings",
    "KafkaSettings",
    "LayeredSettings",
    "LogSettings",
    "PostgresSettings",
    "RegistrySettings",
    "Seconds",
    "ServiceSettings",
    "SettingsGroup",
    "TelemetrySettings",
    "TopicSettings",
    "WholeSeconds",
    "config_dir",
    "load_settings",
    "read_secret",
]

TOP_LEVEL_KEYS: Final = frozenset(
    [
        "artifacts",
        "channels",
        "clickhouse",
        "commit",
        "connect",
        "consume",
        "data_dir",
        "ewma",
        "exchange",
        "group_by",
        "group_id",
        "history",
        "guarantee",
        "http",
        "kafka",
        "log",
        "memory",
        "pipeline",
        "ports",
        "postgres",
        "registry",
        "restart",
        "simulator",
        "sink",
        "source",
        "telemetry",
        "topic",
        "transactional_id",
        "watch",
        "window",
        "workers",
    ]
)
"""First parts of all services' variables: what is none of them is a mistyped one."""
_CONFIG_DIR_VARIABLE = "KSTREAM_CONFIG_DIR"


def _seconds(value: object) -> object:
    """Seconds of a number, or of a text such as `5min`, `2s`, `0.5`."""
    if not isinstance(value, str):
        return value
    try:
        return float(value)
    except ValueError:
        pass
    try:
        return parse_period(value)
    except SettingsError as error:
        raise ValueError(f"{error}; {error.remedy}") from error


Seconds = Annotated[float, BeforeValidator(_seconds)]
"""Seconds, written as a number or as a text such as `5min`."""
WholeSeconds = Annotated[int, BeforeValidator(_seconds)]


def _split_commas(value: object) -> object:
    if isinstance(value, str):
        return tuple(part.strip() for part in value.split(",") if part.strip())
    return value


def _check_channels(channels: object) -> object:
    parts = _split_commas(channels)
    if isinstance(parts, (tuple, list)):
        for channel in parts:
            try:
                channel_topic(str(channel))
            except SettingsError as error:
                raise ValueError(f"{error}; {error.remedy}") from error
    return parts


Channels = Annotated[
    tuple[str, ...], NoDecode, BeforeValidator(_check_channels), Field(min_length=1)
]


class SettingsGroup(BaseModel):
    """A table of settings; unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)


class KafkaSettings(SettingsGroup):
    """`[kafka]`: where the brokers are and how to reach them."""

    bootstrap_servers: str = "127.0.0.1:9092"
    security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = "PLAINTEXT"
    sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512", "OAUTHBEARER"] | None = None
    sasl_username: str | None = None
    sasl_password: SecretStr | None = None
    sasl_password_file: Path | None = None
    ssl_ca_location: Path | None = None
    properties: dict[str, str | int | float | bool] = Field(default_factory=dict)
    """Any further librdkafka property, by its own name."""

    def client_config(self) -> dict[str, str | int | float | bool]:
        """The librdkafka properties these settings stand for."""
        config: dict[str, str | int | float | bool] = {
            "bootstrap.servers": self.bootstrap_servers,
            "security.protocol": self.security_protocol,
        }
        password = read_secret(self.sasl_password, self.sasl_password_file)
        optional = {
            "sasl.mechanism": self.sasl_mechanism,
            "sasl.username": self.sasl_username,
            "sasl.password": password,
            "ssl.ca.location": str(self.ssl_ca_location) if self.ssl_ca_location else None,
        }
        config.update({key: value for key, value in optional.items() if value is not None})
        config.update(self.properties)
        return config


class RegistrySettings(SettingsGroup):
    """`[registry]`: the schema registry's Confluent-compatible API."""

    url: str = "http://127.0.0.1:8081/apis/ccompat/v7"
    username: str | None = None
    password: SecretStr | None = None
    password_file: Path | None = None
    ca_location: Path | None = None
    timeout_s: float = Field(default=10.0, gt=0)


class PostgresSettings(SettingsGroup):
    """`[postgres]`: the database the sinks write to."""

    host: str = "127.0.0.1"
    port: int = Field(default=5432, gt=0, lt=65536)
    database: str = "raw"
    user: str = "kstream"
    password: SecretStr | None = None
    password_file: Path | None = None
    sslmode: Literal["disable", "prefer", "require", "verify-ca", "verify-full"] = "prefer"


class TopicSettings(SettingsGroup):
    """`[topic]`: how topics are created; an existing topic is not changed."""

    partitions: int = Field(default=4, ge=1)
    replication_factor: int = Field(default=1, ge=1)
    retention_hours: float = Field(default=24 * 30, gt=0)


class TelemetrySettings(SettingsGroup):
    """`[telemetry]`: where spans go and how many of them."""

    exporter: Literal["zipkin", "otlp", "none"] = "none"
    endpoint: str | None = None
    """Default: `http://127.0.0.1:9411/api/v2/spans` (zipkin), `…:4318/v1/traces` (otlp)."""
    sample_ratio: float = Field(default=0.05, ge=0, le=1)


class HttpSettings(SettingsGroup):
    """`[http]`: where /metrics, /healthz and /readyz are served; port 0 takes a free one."""

    host: str = "127.0.0.1"
    port: int = Field(default=0, ge=0, lt=65536)
    action_token: SecretStr | None = None
    """What `POST` calls must carry as `Authorization: Bearer …`; without one they are taken on
    loopback addresses only."""
    action_token_file: Path | None = None

    def read_action_token(self) -> str | None:
        """The token, from its setting or its file.

        Raises:
            SettingsError: The file cannot be read, or the token is empty.
        """
        token = read_secret(self.action_token, self.action_token_file)
        if token is not None and not token.strip():
            raise SettingsError("http.action_token is empty", remedy="set a long random text")
        return token


class LogSettings(SettingsGroup):
    """`[log]`: to standard error, for people or machines."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["auto", "console", "json"] = "auto"
    """`auto`: console on a terminal, json otherwise."""


class LayeredSettings(BaseSettings):
    """Settings of a file, overridden by the environment; an unknown key is an error."""

    model_config = SettingsConfigDict(
        env_prefix=ENV_PREFIX,
        env_nested_delimiter="__",
        extra="forbid",
        frozen=True,
        hide_input_in_errors=True,
    )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """The environment goes before the file, which is handed in as init values."""
        del settings_cls, dotenv_settings, file_secret_settings
        return env_settings, init_settings


class ServiceSettings(LayeredSettings):
    """What every service has. Subclasses add their own tables."""

    channels: Channels = ("trades.option.BTC.100ms",)
    kafka: KafkaSettings = KafkaSettings()
    registry: RegistrySettings = RegistrySettings()
    topic: TopicSettings = TopicSettings()
    telemetry: TelemetrySettings = TelemetrySettings()
    http: HttpSettings = HttpSettings()
    log: LogSettings = LogSettings()

    @property
    def raw_topics(self) -> tuple[str, ...]:
        """The raw topics of the channels, each once, in their order."""
        return tuple(dict.fromkeys(channel_topic(channel) for channel in self.channels))


SettingsT = TypeVar("SettingsT", bound=ServiceSettings)


def read_secret(value: SecretStr | None, file: Path | None) -> str | None:
    """A secret from its setting or from the file that another setting names.

    Raises:
        SettingsError: The file cannot be read.
    """
    if value is not None:
        return value.get_secret_value()
    if file is None:
        return None
    try:
        return file.read_text(encoding="utf-8").strip()
    except OSError as error:
        raise SettingsError(f"the secret file '{file}' cannot be read: {error.strerror}") from error


def config_dir() -> Path:
    """The configuration folder.

    `KSTREAM_CONFIG_DIR`, else the nearest `config/` above the working directory that has a
    `raw-producer` folder, else the checkout's own.

    Raises:
        SettingsError: There is none.
    """
    named = os.environ.get(_CONFIG_DIR_VARIABLE)
    if named:
        folder = Path(named)
        if not folder.is_dir():
            raise SettingsError(f"{_CONFIG_DIR_VARIABLE} names '{named}', which is no folder")
        return folder.resolve()
    for start in (Path.cwd(), Path(__file__).resolve()):
        for parent in (start, *start.parents):
            if (parent / "config" / "raw-producer").is_dir():
                return parent / "config"
    raise SettingsError(
        "no configuration folder found",
        remedy=f"run inside the checkout or set {_CONFIG_DIR_VARIABLE}",
    )


def load_settings(
    settings_type: type[SettingsT], service: str, *, folder: Path | None = None
) -> SettingsT:
    """Read a service's settings from its file and the environment.

    Args:
        settings_type: The settings class of the service.
        service: Its token: the folder's name under `config/`.
        folder: The configuration folder; default `config_dir()`.

    Raises:
        SettingsError: A file is not TOML, or a key is unknown or has a wrong value.
    """
    _refuse_mistyped(os.environ)
    folder = folder or config_dir()
    path = folder / service / "default.toml"
    values = _read_toml(path)
    shared = _read_toml(folder / "raw-producer" / "default.toml")
    if "channels" in shared:
        values.setdefault("channels", shared["channels"])
    try:
        return settings_type(**values)
    except PydanticValidationError as error:
        raise SettingsError(explain_settings(error, settings_type, values, path)) from error


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path} is not valid TOML: {error}") from error
    except OSError as error:
        raise SettingsError(f"{path} cannot be read: {error.strerror}") from error


def _refuse_mistyped(environ: Mapping[str, str]) -> None:
    for variable in environ:
        if not variable.startswith(ENV_PREFIX):
            continue
        first = variable.removeprefix(ENV_PREFIX).partition("__")[0].lower()
        if first not in TOP_LEVEL_KEYS:
            near = difflib.get_close_matches(first, TOP_LEVEL_KEYS, n=1)
            raise SettingsError(
                f"environment variable {variable}: no service has a setting '{first}'",
                remedy=f"did you mean {ENV_PREFIX}{near[0].upper()}?" if near else None,
            )
