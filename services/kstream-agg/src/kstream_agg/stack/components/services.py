"""Our own services as components: the same programs, told by environment where the stack is."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Final

from kstream_agg.core.settings import ENV_PREFIX, load_settings
from kstream_agg.sinks.settings import AGG_SINK, RAW_SINK, WATCH
from kstream_agg.stack.component import Component
from kstream_agg.stack.endpoints import stack_endpoints
from kstream_agg.stack.probes import readiness_probe, sinks_probe

if TYPE_CHECKING:
    from kstream_agg.stack.context import StackContext

__all__ = [
    "agg_producer_component",
    "connectors_component",
    "connectors_watch_component",
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

_EXPORTER: Final = f"{ENV_PREFIX}TELEMETRY__EXPORTER"
_ENDPOINT: Final = f"{ENV_PREFIX}TELEMETRY__ENDPOINT"


def connectors_component(context: StackContext) -> Component:
    """One-shot: makes tables and topics, configures the sinks, which are watched from then on."""
    return Component(
        name="connectors",
        argv=_program("connectors", "apply"),
        probe=None,
        watch=sinks_probe(context.ports.connect, (RAW_SINK, AGG_SINK)),
        env=_environment(context),
        cwd=context.layout.folder,
        depends_on=("schema-registry", "connect", "postgres"),
    )


def connectors_watch_component(context: StackContext) -> Component:
    """Brings sinks back that failed; not behind `connectors`, which may wait for just that."""
    port = context.ports.connectors_watch_http
    return Component(
        name=WATCH,
        argv=_program("connectors", "watch"),
        probe=readiness_probe(port),
        env=_environment(context, {"HTTP__PORT": str(port)}),
        cwd=context.layout.folder,
        ports={"connectors_watch_http": port},
        depends_on=("kafka", "schema-registry", "connect", "postgres"),
        address=f"http://127.0.0.1:{port}/metrics",
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
    state = context.layout.simulator_state
    return Component(
        name="deribit-simulator",
        argv=_program("deribit-simulator", "--port", str(port), "--state", str(state)),
        probe=readiness_probe(http),
        env=_environment(context, changes | {"HTTP__PORT": str(http)}),
        check=lambda: _check_recording(context, chosen | {"state": str(state)}),
        cwd=context.layout.folder,
        ports={"simulator": port, "simulator_http": http},
        address=f"ws://127.0.0.1:{port}/ws/api/v2",
    )


def _check_recording(context: StackContext, chosen: dict[str, str]) -> None:
    """See that the recording can be played and is the one the folder's trades came from.

    Raises:
        SettingsError: It cannot be read, or another one was played into the folder.
        ContractError: What it holds is wrong.
    """
    # The supervisor builds this component too, and has no use for the whole simulator.
    from kstream_agg.deribit.simulation.options import (  # noqa: PLC0415 - see above
        change_options,
        choose_trades,
    )
    from kstream_agg.deribit.simulation.state import StateFile  # noqa: PLC0415 - see above
    from kstream_agg.deribit.simulator_service import (  # noqa: PLC0415 - see above
        SERVICE,
        SimulatorSettings,
        load_recording,
    )

    settings = load_settings(SimulatorSettings, SERVICE, folder=context.config)
    recording, options = load_recording(change_options(settings.simulator, chosen))
    played = choose_trades(recording, options)
    if context.layout.simulator_state.exists():
        StateFile(context.layout.simulator_state).load(played.name, len(played.trades))


def _program(*arguments: str) -> tuple[str, ...]:
    return (sys.executable, "-m", "kstream_agg", *arguments)


def _environment(context: StackContext, changes: dict[str, str] | None = None) -> dict[str, str]:
    """The user's environment, the stack's addresses over it, a service's own over both.

    Where spans go is the user's to say: the stack's Zipkin is only the default.
    """
    stack = stack_endpoints(context.layout, context.ports.model_dump(), context.options).environment
    if os.environ.get(_EXPORTER, stack[_EXPORTER]) != stack[_EXPORTER]:
        del stack[_ENDPOINT]
    spans = {name: os.environ[name] for name in (_EXPORTER, _ENDPOINT) if name in os.environ}
    own = {ENV_PREFIX + name: value for name, value in (changes or {}).items()}
    return {**os.environ, **stack, **spans, **own, "KSTREAM_CONFIG_DIR": str(context.config)}
