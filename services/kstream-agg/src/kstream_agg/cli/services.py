"""The services of the pipeline as subcommands; each imports its parts when it is called."""

# ruff: noqa: PLC0415 - a command must not pay for the imports of the others

from __future__ import annotations

import click

__all__ = ["agg_producer", "raw_producer"]


@click.command("raw-producer")
def raw_producer() -> None:
    """Run the raw producer: trades from the exchange into Kafka.

    Settings: config/raw-producer/default.toml and KSTREAM__… variables.
    """
    from kstream_agg.core.service import run_service
    from kstream_agg.core.settings import load_settings
    from kstream_agg.deribit.raw_producer import run_raw_producer
    from kstream_agg.deribit.settings import RawProducerSettings

    settings = load_settings(RawProducerSettings, "raw-producer")
    with run_service("raw-producer", settings) as context:
        run_raw_producer(settings, context)


@click.command("agg-producer")
def agg_producer() -> None:
    """Run the aggregator: averages over windows of the raw topics.

    Settings: config/agg-producer/default.toml and KSTREAM__… variables.
    """
    from kstream_agg.aggregate.agg_producer import run_agg_producer
    from kstream_agg.aggregate.settings import AggProducerSettings
    from kstream_agg.core.service import run_service
    from kstream_agg.core.settings import load_settings
    from kstream_agg.pipeline.memory import collect_less_often
    from kstream_agg.pipeline.workers import announce_worker, is_worker, run_workers

    settings = load_settings(AggProducerSettings, "agg-producer")
    if settings.workers > 1 and not is_worker():
        run_workers(settings.workers, settings, "agg-producer")
        return
    with run_service("agg-producer", settings) as context:
        announce_worker(context)
        collect_less_often()
        run_agg_producer(settings, context)
