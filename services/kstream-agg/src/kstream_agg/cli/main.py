"""The `kstream-agg` command: each subcommand is a module, imported when it is called."""

from __future__ import annotations

import importlib
import os
import signal
import sys
import traceback
from typing import Final

import click

from kstream_agg.core.errors import KStreamError

__all__ = ["cli", "main"]

# Subcommand → the module of `kstream_agg.cli` that holds its click command as `command`, and
# its line in --help (here, so that help imports nothing).
_COMMANDS: Final[dict[str, tuple[str, str]]] = {
    "doctor": ("doctor", "Check what this machine lacks to run the local stack."),
    "stack": ("stack", "The local stack: real components as local processes."),
    "cluster": ("cluster", "A Kafka cluster of several brokers: start, look, kill, heal."),
    "backfill": ("backfill", "Fetch a period of a channel from the exchange's history."),
    "gaps": ("gaps", "List the trades that a raw topic lacks."),
    "batch-sink": ("batch_sink", "Run the sink to ClickHouse, or check what it has written."),
    "agg-producer": ("services", "Run the aggregator: averages over windows of a raw topic."),
    "connectors": ("connectors", "Apply, look at and watch the sinks to Postgres."),
    "consume": ("consume", "Print a topic's records as JSON lines."),
    "dlq": ("dlq", "Look at dead letters, and send chosen ones back."),
    "deribit-simulator": (
        "deribit_simulator",
        "Run a simulated exchange that plays a recording.",
    ),
    "recompute": ("recompute", "Emit old windows again from the raw topic."),
    "raw-producer": ("services", "Run the raw producer: trades from the exchange into Kafka."),
    "groups": ("groups", "List, describe and move consumer groups, and their lag."),
    "temp-gen": ("temperatures", "Write random temperatures: the tutorial's producer."),
    "average-temp": ("temperatures", "Print their mean as it goes: the tutorial's consumer."),
    "consumer": ("consumer", "Read topics, alone or in a group, at a prompt or by a command."),
    "producer": ("producer", "Make topics and send records, at a prompt or by a command."),
    "demo": ("run", "Play a recorded session through the whole stack."),
    "logs": ("logs", "Show the end of a service's log."),
    "ps": ("logs", "List the parts of the running stack, and how they are."),
    "push": ("push", "Push lines from standard input through the push proxy."),
    "push-proxy": ("push_proxy", "Run the push proxy: HTTP in, Kafka out."),
    "reset": ("run", "Remove the data of the live and the demo stack."),
    "run": ("run", "Stream live trades through the whole stack."),
    "status": ("run", "Show components and figures; exits 0 only when all is healthy."),
    "setup": ("setup", "One-off steps of a containerised stack."),
    "stop": ("run", "Stop the running stack; its data stays."),
    "sql": ("sql", "Query the stack's Postgres, or open psql on it."),
    "topics": ("topics", "List, create, delete, describe and alter topics."),
    "verify": ("verify", "Recompute everything from the raw topic and compare."),
}


class _LazyGroup(click.Group):
    """A group whose commands are imported only when they are named."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        del ctx
        return sorted(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        del ctx
        entry = _COMMANDS.get(cmd_name)
        if entry is None:
            return None
        module = importlib.import_module(f"kstream_agg.cli.{entry[0]}")
        command = getattr(module, cmd_name.replace("-", "_"))
        if not isinstance(command, click.Command):
            raise TypeError(f"{module.__name__} defines no command {cmd_name}")
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, _COMMANDS[name][1]) for name in self.list_commands(ctx)])


@click.group(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--debug", is_flag=True, help="Show tracebacks of errors.")
@click.version_option(package_name="kstream-agg")
@click.pass_context
def cli(ctx: click.Context, *, debug: bool) -> None:
    """Stream trades through Kafka into exact, explainable aggregates."""
    ctx.obj = {"debug": debug}


def main() -> None:
    """Entry point: runs the command and turns our errors into one sentence and an exit code."""
    debug = "--debug" in sys.argv[1:]
    if os.getpid() == 1:
        # The kernel keeps signals without a handler from the first process of a container.
        signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    try:
        cli.main(prog_name="kstream-agg", standalone_mode=True)
    except KStreamError as error:
        if debug:
            traceback.print_exc()
        click.echo(f"error: {error}", err=True)
        if error.remedy:
            click.echo(f"remedy: {error.remedy}", err=True)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
