"""`kstream-agg temp-gen` and `average-temp`: the tutorial's producer and consumer."""

from __future__ import annotations

import os
import random
import signal
import sys
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final
from uuid import uuid4

import click
from confluent_kafka import TopicPartition

from kstream_agg.cli.tools import open_cluster, open_tools
from kstream_agg.core.settings import load_settings
from kstream_agg.kafka.record import Record
from kstream_agg.kafka.sessions import add_topic
from kstream_agg.pipeline import Each, Pipeline, PipelineSettings, WriteTo, run_pipeline

if TYPE_CHECKING:
    from collections.abc import Iterator

    from confluent_kafka import Message

__all__ = ["Mean", "average_temp", "temp_gen", "temperatures"]

_TOPIC: Final = "temperatures"
_PARTITIONS: Final = 3
_MEAN_C: Final = 20.0


def temperatures(seed: int | None) -> Iterator[float]:
    """Random temperatures around 20 °C for ever; the same for the same seed."""
    chance = random.Random(seed)  # noqa: S311 - weather, not a secret
    while True:
        # The difference of two: values near the middle are more frequent than far ones.
        yield round(_MEAN_C + 5 * (chance.random() - chance.random()), 2)


@dataclass(slots=True)
class Mean:
    """An incremental mean: each value moves it by its share, and no sum grows without bound.

    Welford, B. P. (1962), Note on a method for calculating corrected sums of squares and products,
    https://doi.org/10.1080/00401706.1962.10490022
    """

    count: int = 0
    value: float = 0.0

    def add(self, number: float) -> None:
        """Take a value into account."""
        self.count += 1
        self.value += (number - self.value) / self.count


@click.command("temp-gen")
@click.argument("topic", default=_TOPIC)
@click.option("--count", type=click.IntRange(min=1), help="End after so many; else at Ctrl-C.")
@click.option("--rate", type=click.FloatRange(min=0), default=10.0, show_default=True,
              help="Temperatures a second; 0: as fast as they are taken.")  # fmt: skip
@click.option("--seed", type=int, help="The same temperatures at each start.")
def temp_gen(topic: str, count: int | None, rate: float, seed: int | None) -> None:
    """Write random temperatures (°C, as text) to TOPIC, to its partitions in turn.

    The topic is made with three partitions where it does not exist.
    """
    settings, _ = open_tools("temp-gen")
    cluster = open_cluster(settings, "temp-gen")
    if topic not in cluster.topics():
        add_topic(cluster, topic, _PARTITIONS)
    parts = range(cluster.describe_topic(topic).partitions)
    writers = [cluster.writer_for_partition(TopicPartition(topic, part)) for part in parts]
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sent, began = 0, time.monotonic()
    try:
        for celsius in temperatures(seed):
            writers[sent % len(writers)].produce(Record(f"{celsius:.2f}".encode()))
            sent += 1
            if sent == count:
                break
            if rate:
                time.sleep(max(0.0, began + sent / rate - time.monotonic()))
    except KeyboardInterrupt:
        pass
    for writer in writers:
        writer.close()
    acknowledged = sum(writer.delivered for writer in writers)
    click.echo(f"{acknowledged} temperatures are acknowledged")


@click.command("average-temp")
@click.argument("topic", default=_TOPIC)
@click.option("--group", help="The consumer group; default: one of its own, which sees all.")
@click.option("--every", type=click.IntRange(min=1), default=1, help="Print each n-th mean.")
@click.option("--count", type=click.IntRange(min=1), help="End after so many temperatures.")
@click.option("--until-idle", type=click.FloatRange(min=0.1),
              help="End when so many seconds have brought none, after the first.")  # fmt: skip
def average_temp(
    topic: str, group: str | None, every: int, count: int | None, until_idle: float | None
) -> None:
    """Print the mean of TOPIC's temperatures as they come, from the oldest on, until Ctrl-C.

    What is no temperature is told on standard error, and passed over.
    """
    settings, _ = open_tools("average-temp")
    open_cluster(settings, "average-temp").describe_topic(topic)
    printer = _Printer(every, count)
    own = load_settings(PipelineSettings, "average-temp").model_copy(update={"log": settings.log})
    if "level" not in settings.log.model_fields_set:
        own = own.model_copy(update={"log": settings.log.model_copy(update={"level": "warning"})})
    pipeline = (
        Pipeline(topic, group=group or f"average-temp-{uuid4().hex[:8]}")
        .map(_celsius)
        .reduce(Each(printer.add))
        .on_error(WriteTo(sys.stderr))
    )
    if until_idle is not None:
        threading.Thread(target=printer.end_when_idle, args=(until_idle,), daemon=True).start()
    run_pipeline(pipeline, own, name="average-temp")
    printer.tell_last()


def _celsius(message: Message) -> float:
    value: Any = message.value()
    return float(value or b"")


class _Printer:
    """Prints the mean, and asks the program to end when it has seen enough."""

    def __init__(self, every: int, count: int | None) -> None:
        self._every = every
        self._left = count
        self._mean = Mean()
        self._told = 0
        self._last: float | None = None

    def add(self, celsius: float) -> None:
        if self._left == 0:
            return
        self._mean.add(celsius)
        self._last = time.monotonic()
        if self._mean.count % self._every == 0:
            self._tell()
        if self._left is not None:
            self._left -= 1
            if self._left == 0:
                _end()

    def tell_last(self) -> None:
        """Print the mean of all, if it was not printed."""
        if self._told != self._mean.count:
            self._tell()

    def end_when_idle(self, seconds: float) -> None:
        while self._last is None or time.monotonic() - self._last < seconds:
            time.sleep(0.1)
        _end()

    def _tell(self) -> None:
        self._told = self._mean.count
        click.echo(f"{self._mean.count} temperatures, mean {self._mean.value:.2f} °C")


def _end() -> None:
    """As SIGTERM from outside: what was seen is committed first."""
    os.kill(os.getpid(), signal.SIGTERM)
