"""`kstream-agg topics`: what topics there are and how much stands in them."""

from __future__ import annotations

from collections import defaultdict

import click
from rich.table import Table

from kstream_agg.cli.tools import open_cluster, open_tools, output
from kstream_agg.verify.reading import TopicReader

__all__ = ["topics"]


@click.command()
def topics() -> None:
    """List the topics: partitions, offsets in use, cleanup policy.

    Offsets in use are those between a partition's begin and end; compaction and the marks of
    transactions leave some of them without a record.
    """
    settings, _ = open_tools("topics")
    cluster = open_cluster(settings, "topics")
    found = cluster.topics()
    counts: dict[str, int] = defaultdict(int)
    with TopicReader(settings.kafka) as reader:
        for part, span in reader.spans(found).items():
            counts[part.topic] += span.end - span.begin
    table = Table("topic")
    table.add_column("partitions", justify="right")
    table.add_column("records", justify="right")
    table.add_column("cleanup")
    for name in sorted(found):
        policy = cluster.topic_config(name).get("cleanup.policy", "")
        table.add_row(name, str(found[name].partitions), str(counts[name]), policy)
    output().print(table)
