"""Where a stack's components are reached, and the environment that tells our programs."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from kstream_agg.core.errors import SettingsError
from kstream_agg.core.settings import ENV_PREFIX
from kstream_agg.stack.components.connect import connect_url
from kstream_agg.stack.components.postgres import DATABASE, USER
from kstream_agg.stack.components.registry import registry_url
from kstream_agg.stack.components.zipkin import zipkin_url
from kstream_agg.stack.layout import Layout
from kstream_agg.stack.plan import read_plan
from kstream_agg.stack.ports import bootstrap_servers
from kstream_agg.stack.settings import PortSettings, cluster_data_dir, default_data_dir
from kstream_agg.stack.state import is_alive, read_state

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["StackEndpoints", "find_running", "stack_endpoints"]

_FOLDER_VARIABLE: Final = "KSTREAM_STACK_DIR"


@dataclass(frozen=True, slots=True)
class StackEndpoints:
    """A stack's addresses, all on this machine.

    Attributes:
        data_dir: Its data folder.
        bootstrap_servers: Kafka.
        registry_url: The registry's Confluent-compatible API.
        connect_url: Connect's REST API.
        zipkin_url: Zipkin's pages and API.
        postgres_port: The database server.
        postgres_password_file: Where the password of its user stands.
        channels: What its raw-producer subscribes to, with commas; empty when unknown.
    """

    data_dir: Path
    bootstrap_servers: str
    registry_url: str
    connect_url: str
    zipkin_url: str
    postgres_port: int
    postgres_password_file: Path
    channels: str = ""

    @property
    def environment(self) -> dict[str, str]:
        """The `KSTREAM__…` variables that point our programs at this stack."""
        values = {
            "KAFKA__BOOTSTRAP_SERVERS": self.bootstrap_servers,
            "REGISTRY__URL": self.registry_url,
            "CONNECT__URL": self.connect_url,
            "POSTGRES__HOST": "127.0.0.1",
            "POSTGRES__PORT": str(self.postgres_port),
            "POSTGRES__DATABASE": DATABASE,
            "POSTGRES__USER": USER,
            "POSTGRES__PASSWORD_FILE": str(self.postgres_password_file),
            "TELEMETRY__EXPORTER": "zipkin",
            "TELEMETRY__ENDPOINT": f"{self.zipkin_url}/api/v2/spans",
        }
        if self.channels:
            values["CHANNELS"] = self.channels
        return {ENV_PREFIX + name: value for name, value in values.items()}


def stack_endpoints(
    layout: Layout, ports: Mapping[str, int], options: Mapping[str, str], brokers: int = 1
) -> StackEndpoints:
    """The addresses that a plan's ports, options and number of brokers stand for."""
    return StackEndpoints(
        data_dir=layout.folder,
        bootstrap_servers=bootstrap_servers(PortSettings(**ports), brokers),
        registry_url=registry_url(ports["registry"]),
        connect_url=connect_url(ports["connect"]),
        zipkin_url=zipkin_url(ports["zipkin"]),
        postgres_port=ports["postgres"],
        postgres_password_file=layout.postgres_password,
        channels=options.get("channels", ""),
    )


def find_running(data_dir: Path | None = None) -> StackEndpoints | None:
    """The stack that runs here.

    Args:
        data_dir: Look at this folder only; default `$KSTREAM_STACK_DIR`, else the checkout's live,
            demo and cluster folders.

    Returns:
        Its addresses; None when no stack runs.
    """
    for folder in _candidates(data_dir):
        layout = Layout(folder)
        state = read_state(layout.state)
        if state is None or state.supervisor is None or not is_alive(state.supervisor):
            continue
        plan = read_plan(layout.plan)
        if plan is not None:
            return stack_endpoints(layout, plan.ports, plan.options, plan.brokers)
    return None


def _candidates(data_dir: Path | None) -> list[Path]:
    if data_dir is not None:
        return [data_dir]
    named = os.environ.get(_FOLDER_VARIABLE)
    if named:
        return [Path(named).absolute()]
    try:
        return [default_data_dir("live"), default_data_dir("demo"), cluster_data_dir()]
    except SettingsError:  # outside any checkout
        return []
