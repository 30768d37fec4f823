"""The hosts of the exchange's history, as the settings name them."""

from __future__ import annotations

from contextlib import asynccontextmanager
from importlib import metadata
from typing import TYPE_CHECKING

import httpx2

from kstream_agg.deribit.history import History
from kstream_agg.deribit.history_api import HistoryApi
from kstream_agg.deribit.rate import RateLimit

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from kstream_agg.core.service import ServiceContext
    from kstream_agg.deribit.settings import RawProducerSettings

__all__ = ["open_history"]


@asynccontextmanager
async def open_history(
    settings: RawProducerSettings, ctx: ServiceContext
) -> AsyncIterator[History]:
    """The history of the settings' exchange; each host has a rate of its own."""
    own = settings.history
    urls = dict.fromkeys(
        (own.rest_of(settings.exchange.url), own.archive_of(settings.exchange.url))
    )
    limits = httpx2.Limits(max_connections=own.concurrency)
    agent = {"User-Agent": f"kstream-agg/{metadata.version('kstream-agg')}"}
    async with httpx2.AsyncClient(timeout=own.timeout_s, limits=limits, headers=agent) as http:
        hosts = [
            HistoryApi(
                url,
                http,
                RateLimit(own.requests_per_s, max(1, round(own.requests_per_s * 2))),
                ctx.clock,
                ctx.metrics,
            )
            for url in urls
        ]
        yield History(hosts, ctx.clock, own.page_trades)
