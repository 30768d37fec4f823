"""Our own services as components: the same programs, told by environment where the stack is."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Final

from kstream_agg.core.settings import ENV_PREFIX
from kstream_agg.stack.component import Component
from kstream_agg.stack.endpoints import stack_endpoints
from kstream_agg.stack.probes import readiness_probe

if TYPE_CHECKING:
    from kstream_agg.stack.context import StackContext

__all__ = [
    "agg_producer_component",
    "connectors_component",
    "raw_producer_component",
    "simulator_component",
]

_PLAYBACK: Final = (
    "recording",
    "speed",
    "loop",
    "instruments",
    "shift_to_now",
    "past_at_once",
    "seed",
)


def connectors_component(context: StackContext) -> Component:
    """One-shot: makes tables and topics and configures the sinks."""
    return Component(
        name="connectors",
        argv=_program("connectors", "apply"),
        probe=None,
        env=_environment(context),
        cwd=context.layout.folder,
        depends_on=("schema-registry", "connect", "postgres"),
    )


def raw_producer_component(context: StackContext) -> Component:
    """Trades from the exchange, or in a demo from the simulator, into Kafka."""
    port = context.ports.raw_producer_http
    changes = {"HTTP__PORT": str(port)}
    source: tuple[str, ...] = ()
    if context.profile == "demo":
        base = f"ws://127.0.0.1:{context.ports.simulator}"
        changes |= {"EXCHANGE__URL": f"{base}/ws/api/v2", "EXCHANGE__COMPRESSION": "false"}
        source = ("deribit-simulator",)
    return Component(
        name="raw-producer",
        argv=_program("raw-producer"),
        probe=readiness_probe(port),
        env=_environment(context, changes),
        cwd=context.layout.folder,
        ports={"raw_producer_http": port},
        depends_on=("kafka", "schema-registry", *source),
        address=f"http://127.0.0.1:{port}/metrics",
    )


def agg_producer_component(context: StackContext) -> Component:
    """Averages over windows of the raw topics."""
    port = context.ports.agg_producer_http
    return Component(
        name="agg-producer",
        argv=_program("agg-producer"),
        probe=readiness_probe(port),
        env=_environment(context, {"HTTP__PORT": str(port)}),
        cwd=context.layout.folder,
        ports={"agg_producer_http": port},
        depends_on=("kafka", "schema-registry"),
        address=f"http://127.0.0.1:{port}/metrics",
    )


def simulator_component(context: StackContext) -> Component:
    """The simulated exchange of a demo; options of the plan are settings of its own."""
    port, http = context.ports.simulator, context.ports.simulator_http
    chosen = {name: context.options[name] for name in _PLAYBACK if name in context.options}
    changes = {f"SIMULATOR__{name.upper()}": value for name, value in chosen.items()}
    # With it a second start goes on numbering trades where the first one ended.
    state = context.layout.folder / "deribit-simulator.json"
    return Component(
        name="deribit-simulator",
        argv=_program("deribit-simulator", "--port", str(port), "--state", str(state)),
        probe=readiness_probe(http),
        env=_environment(context, changes | {"HTTP__PORT": str(http)}),
        cwd=context.layout.folder,
        ports={"simulator": port, "simulator_http": http},
        address=f"ws://127.0.0.1:{port}/ws/api/v2",
    )


def _program(*arguments: str) -> tuple[str, ...]:
    return (sys.executable, "-m", "kstream_agg", *arguments)


def _environment(context: StackContext, changes: dict[str, str] | None = None) -> dict[str, str]:
    """The user's environment, the stack's addresses over it, a service's own over both."""
    stack = stack_endpoints(context.layout, context.ports.model_dump(), context.options)
    own = {ENV_PREFIX + name: value for name, value in (changes or {}).items()}
    return {**os.environ, **stack.environment, **own, "KSTREAM_CONFIG_DIR": str(context.config)}
