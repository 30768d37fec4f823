"""`kstream-agg setup`: what a stack of containers needs done once, before and between its parts.

The local stack does the same from its supervisor; in Docker Compose each step is a container that
ends, and that others wait for.
"""

# ruff: noqa: PLC0415 - the check of the environment must not load the Kafka client

from __future__ import annotations

import os

import click

__all__ = ["setup"]


@click.group()
def setup() -> None:
    """One-off steps of a containerised stack; running them again changes nothing."""


@setup.command()
def environment() -> None:
    """Refuse development passwords where ports are bound beyond this machine.

    Reads BIND_ADDRESS and the variables of .env.example that hold passwords.
    """
    from kstream_agg.stack.compose_guard import refuse_open_doors

    click.echo(refuse_open_doors(os.environ))


@setup.command()
def journal() -> None:
    """Make the schema registry's journal topic, before the registry starts."""
    from kstream_agg.cli.tools import open_tools
    from kstream_agg.stack.components.registry import create_journal

    settings, _ = open_tools("setup")
    create_journal(settings.kafka.client_config(), settings.topic.replication_factor)
    click.echo("the registry's journal topic is there")


@setup.command()
def registry() -> None:
    """Make BACKWARD the registry's global compatibility, before anything is registered."""
    from kstream_agg.cli.tools import open_tools
    from kstream_agg.stack.components.registry import demand_compatibility

    settings, _ = open_tools("setup")
    demand_compatibility(settings.registry.url)
    click.echo("the registry demands BACKWARD compatibility")
