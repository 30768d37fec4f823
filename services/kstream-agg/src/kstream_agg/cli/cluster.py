"""`kstream-agg cluster`: the local stack with several Kafka brokers, and what to try on it."""

from __future__ import annotations

import os
import re
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click
from rich.table import Table

from kstream_agg.cli.stack import shift_ports
from kstream_agg.cli.tools import output
from kstream_agg.stack import control
from kstream_agg.stack.brokers import Brokers, Watcher
from kstream_agg.stack.components.kafka import broker_name
from kstream_agg.stack.plan import make_plan
from kstream_agg.stack.settings import MAX_BROKERS, cluster_data_dir, load_stack_settings
from kstream_agg.stack.table import DownloadBar

if TYPE_CHECKING:
    from kstream_agg.stack.brokers import BrokersStatus
    from kstream_agg.stack.settings import Profile

__all__ = ["cluster"]

_LOOK_S: Final = 0.5
# The stack in Docker with three brokers is an overlay, and a project of its own.
_COMPOSE: Final = "docker compose -p kstream-agg-cluster"
_OVERLAY: Final = " ".join(
    f"-f docker-compose.{part}" for part in ("yml", "override.yaml", "cluster.yaml")
)

_data_dir = click.option(
    "--data-dir",
    type=click.Path(path_type=Path, file_okay=False),
    help="The stack's data folder; default: .data/cluster.",
)


class _Broker(click.ParamType[int]):
    """A broker's number: `2`, or by its component `kafka-2`."""

    name = "broker"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> int:
        found = re.fullmatch(r"(?:kafka-?)?(\d*)", str(value))
        if found is None or not str(value):
            self.fail(f"'{value}' is no broker: 1, 2, 3 or kafka, kafka-2, kafka-3", param, ctx)
        return int(found[1] or 1)


@click.group()
def cluster() -> None:
    """A Kafka cluster of several brokers on this machine: start, look, kill, heal, end.

    It is the local stack (kstream-agg stack) with more than one broker, in a folder of its own.
    With STACK=docker these commands print what does the same to the stack in Docker.
    """


@cluster.command()
@click.option("--brokers", type=click.IntRange(1, MAX_BROKERS), default=3, show_default=True)
@click.option(
    "--profile",
    type=click.Choice(["kafka", "base", "live", "demo"]),
    default="kafka",
    show_default=True,
    help="The brokers alone, or the whole stack around them.",
)
@click.option("--port-offset", type=int, default=0, help="Add this to every port.")
@click.option("--timeout", type=float, default=300.0, help="Seconds to wait until all is ready.")
@_data_dir
def up(
    *, brokers: int, profile: str, port_offset: int, timeout: float, data_dir: Path | None
) -> None:
    """Start the brokers and wait until all partitions are in sync."""
    if _in_docker(f"docker compose {_OVERLAY} up --wait"):
        return
    settings = shift_ports(load_stack_settings(), port_offset)
    folder = _folder(data_dir)
    only = ("kafka",) if profile == "kafka" else ()
    stack_profile: Profile = "base" if profile == "kafka" else profile  # type: ignore[assignment]  # click has checked it
    plan = make_plan(stack_profile, settings, only=only, brokers=brokers)
    with DownloadBar() as bar:
        control.up(folder, plan, progress=bar)
    control.wait_ready(folder, timeout_s=timeout)
    found = Brokers(folder)
    _show(found.wait_whole(timeout))
    click.echo(f"KAFKA_BROKERS={found.bootstrap_servers}")


@cluster.command()
@_data_dir
def down(*, data_dir: Path | None) -> None:
    """End the brokers; their data stays."""
    if _in_docker(f"{_COMPOSE} stop"):
        return
    folder = _folder(data_dir)
    if not control.read_status(folder).components:
        click.echo(f"no cluster runs on {folder}")
        return
    for name in control.down(folder):
        click.echo(f"{name} had to be killed", err=True)
    click.echo(f"the cluster on {folder} is down")


@cluster.command()
@_data_dir
def status(*, data_dir: Path | None) -> None:
    """Show brokers, controller, leaders and replicas; exits 0 only when all is in sync."""
    if _in_docker(f"{_COMPOSE} ps", "kstream-agg topics describe TOPIC"):
        return
    found = Brokers(_folder(data_dir)).status()
    _show(found)
    if not found.is_whole:
        raise click.exceptions.Exit(1)


@cluster.command()
@click.argument("broker", type=_Broker())
@click.option("--lose-data", is_flag=True, help="Remove its data too, as a broken disk does.")
@_data_dir
def kill(*, broker: int, lose_data: bool, data_dir: Path | None) -> None:
    """Kill BROKER (SIGKILL) and leave it dead: `watch --replace-dead` or `start` bring it back."""
    if _in_docker(f"{_COMPOSE} kill {broker_name(broker)}"):
        return
    found = Brokers(_folder(data_dir))
    found.kill(broker)
    click.echo(f"broker {broker} is dead")
    if lose_data:
        found.lose_data(broker)
        click.echo(f"the data of broker {broker} is gone")


@cluster.command()
@click.argument("broker", type=_Broker())
@_data_dir
def start(*, broker: int, data_dir: Path | None) -> None:
    """Start a dead BROKER on its data, or on an empty log that fills from the others."""
    if _in_docker(f"{_COMPOSE} start {broker_name(broker)}"):
        return
    Brokers(_folder(data_dir)).start(broker)
    click.echo(f"broker {broker} is ready")


@cluster.command()
@click.option("--replace-dead", is_flag=True, help="Start brokers anew that stay dead.")
@click.option("--after", default=10.0, show_default=True, help="Seconds until one counts as dead.")
@click.option("--until-whole", is_flag=True, help="End when all partitions are in sync.")
@_data_dir
def watch(*, replace_dead: bool, after: float, until_whole: bool, data_dir: Path | None) -> None:
    """Tell what happens to the brokers, until Ctrl-C; with --replace-dead, heal it."""
    if _in_docker(f"{_COMPOSE} events", f"docker compose {_OVERLAY} up --wait"):
        return

    def say(text: str) -> None:
        click.echo(f"{time.strftime('%H:%M:%S')} {text}")

    watcher = Watcher(Brokers(_folder(data_dir)), after, say)
    pause = threading.Event()
    try:
        while not (watcher.look(replace=replace_dead).is_whole and until_whole):
            pause.wait(_LOOK_S)
    except KeyboardInterrupt:
        return


def _folder(data_dir: Path | None) -> Path:
    return (data_dir or load_stack_settings().data_dir or cluster_data_dir()).absolute()


def _in_docker(*commands: str) -> bool:
    """Whether the stack is Docker's; says then what does the same there."""
    if os.environ.get("STACK") != "docker":
        return False
    for command in commands:
        click.echo(command)
    return True


def _show(found: BrokersStatus) -> None:
    table = Table("broker", "state", "address")
    for title in ("leads", "not in sync", "restarts"):
        table.add_column(title, justify="right")
    for number, component in found.components.items():
        name = f"{number} (controller)" if number == found.controller else str(number)
        known = found.description is not None
        table.add_row(
            name,
            component.state,
            component.address,
            str(found.leads(number)) if known else "?",
            str(found.lags(number)) if known else "?",
            str(component.restarts),
        )
    output().print(table)
    if found.description is None:
        click.echo("no broker answers")
        return
    behind = found.description.under_replicated
    if not behind:
        click.echo("all partitions are in sync")
        return
    click.echo(f"{len(behind)} partitions are under-replicated:")
    for topic in found.description.topics:
        for part in topic.details:
            if part.is_under_replicated:
                leader = "no leader" if part.leader is None else f"leader {part.leader}"
                in_sync = ", ".join(map(str, part.in_sync)) or "nobody"
                click.echo(f"  {topic.name}/{part.number}: {leader}, in sync: {in_sync}")
