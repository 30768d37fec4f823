"""`kstream-agg push`: lines from standard input through the push proxy into Kafka."""

from __future__ import annotations

import sys

import click

__all__ = ["push"]


@click.command("push")
@click.argument("topic")
@click.option(
    "--url",
    envvar="KSTREAM_PUSH_URL",
    default="http://127.0.0.1:4242",
    show_default=True,
    help="The push proxy.",
)
@click.option("--api-key", envvar="KSTREAM_PUSH_API_KEY", help="Its API key, where one is needed.")
@click.option("--key-separator", help="Divides each line into the record's key and data.")
@click.option("--wait/--no-wait", default=True, help="Wait until Kafka has confirmed the records.")
@click.option(
    "--batch", type=click.IntRange(1, 10_000), default=500, show_default=True,
    help="Records in a request at most.",
)  # fmt: skip
@click.option(
    "--patience", "patience_s", type=click.FloatRange(min=0), default=60.0, show_default=True,
    help="Seconds to try again while the proxy says 'later'.",
)  # fmt: skip
def push(  # noqa: PLR0913 - each option of a command is an argument
    *,
    topic: str,
    url: str,
    api_key: str | None,
    key_separator: str | None,
    wait: bool,
    batch: int,
    patience_s: float,
) -> None:
    """Push each line of standard input to TOPIC as a record."""
    from kstream_agg.proxy.client import PushClient, PushOptions  # noqa: PLC0415 - help needs none

    options = PushOptions(topic, wait, batch, key_separator, patience_s)
    with PushClient(url, api_key) as client:
        pushed = sum(client.push_lines(sys.stdin, options))
    click.echo(f"{pushed} records pushed to {topic}", err=True)
