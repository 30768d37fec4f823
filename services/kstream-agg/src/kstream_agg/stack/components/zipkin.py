"""Zipkin: keeps traces in memory and shows them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kstream_agg.stack.component import Component
from kstream_agg.stack.java import java_command, plain_environment
from kstream_agg.stack.probes import http_probe

if TYPE_CHECKING:
    from kstream_agg.stack.context import StackContext

__all__ = ["zipkin_component", "zipkin_url"]


def zipkin_url(port: int) -> str:
    """The address of its pages and its API."""
    return f"http://127.0.0.1:{port}"


def zipkin_component(context: StackContext) -> Component:
    """The Zipkin server."""
    port = context.ports.zipkin
    return Component(
        name="zipkin",
        argv=java_command(
            context.memory.zipkin_mb,
            "-jar",
            str(context.cache.files("zipkin")[0]),
            # A list is replaced as a whole: all three, or it listens on every address.
            "--armeria.ports[0].address=127.0.0.1",
            f"--armeria.ports[0].port={port}",
            "--armeria.ports[0].protocols[0]=http",
            "--zipkin.storage.type=mem",
            "--zipkin.storage.mem.max-spans=50000",
            "--zipkin.self-tracing.enabled=false",
        ),
        probe=http_probe(port, "/health"),
        env=plain_environment(),
        cwd=context.layout.folder,
        ports={"zipkin": port},
        stop_group=2,
        address=zipkin_url(port),
    )
