"""`kstream-agg push-proxy`: HTTP in, Kafka out."""

# ruff: noqa: PLC0415 - asking for a key or a check must not load the server

from __future__ import annotations

from pathlib import Path

import click

__all__ = ["push_proxy"]


@click.command("push-proxy")
@click.option(
    "--config",
    type=click.Path(path_type=Path, dir_okay=False),
    help="The YAML file; default: config/push-proxy/default.yaml.",
)
@click.option("--check-config", is_flag=True, help="Check the settings and leave.")
@click.option("--make-key", metavar="NAME", help="Print a new API key and its settings, and leave.")
def push_proxy(*, config: Path | None, check_config: bool, make_key: str | None) -> None:
    """Run the push proxy: POST /push writes records to Kafka.

    Settings: config/push-proxy/default.yaml and KSTREAM__… variables.
    """
    if make_key is not None:
        from kstream_agg.proxy.access import new_key

        key, digest = new_key()
        click.echo(f"the key, shown once: {key}\n\nsecurity:\n  api_keys:")
        click.echo(f'    - name: "{make_key}"\n      hash: "{digest}"\n      topics: ["*"]')
        return
    from kstream_agg.proxy.configuration import load_proxy_settings
    from kstream_agg.proxy.service import check, run_push_proxy

    settings = load_proxy_settings(config)
    if check_config:
        check(settings)
        click.echo("the configuration is good")
        return
    run_push_proxy(settings)
