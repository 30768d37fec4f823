"""`kstream-agg backfill`: fetch a period of a channel from the exchange's history."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

import click
import httpx2
from rich.console import Console
from rich.progress import Progress

from kstream_agg.cli.tools import open_tools
from kstream_agg.core.errors import ContractError, SettingsError, UnavailableError
from kstream_agg.core.service import run_service
from kstream_agg.core.settings import load_settings
from kstream_agg.deribit.backfill import BACKFILL_PATH
from kstream_agg.deribit.progress import Period
from kstream_agg.deribit.raw_producer import run_backfill
from kstream_agg.deribit.settings import RawProducerSettings
from kstream_agg.stack.control import read_status
from kstream_agg.stack.endpoints import find_running

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["backfill", "parse_time"]

_LOOK_S: Final = 0.5
_AWAY_S: Final = 120.0  # a raw-producer that is restarted comes back sooner
_SERVICE: Final = "raw-producer"


@click.command()
@click.option("--channel", required=True, help="E.g. trades.option.BTC.100ms.")
@click.option("--from", "start", required=True, help="ISO 8601, e.g. 2026-11-20T08:00; UTC.")
@click.option("--to", "end", required=True, help="ISO 8601; UTC.")
@click.option("--url", help="The raw-producer's HTTP address; default: the running local stack's.")
@click.option(
    "--alone",
    is_flag=True,
    help="Fetch it here, in place of the raw-producer: a running one would be ended.",
)
def backfill(channel: str, start: str, end: str, url: str | None, *, alone: bool) -> None:
    """Fetch a period of a channel's trades and write those that its topic lacks.

    The running raw-producer does it and goes on with it after a restart; this command asks for it
    and shows how far it is. Ended early, it can be called again: nothing is written twice.
    """
    settings, _ = open_tools("backfill")
    from_ms, to_ms = parse_time(start), parse_time(end)
    if from_ms >= to_ms:
        raise SettingsError("--from must be before --to")
    period = Period(from_ms, to_ms, from_ms)
    with Progress(console=Console(stderr=True)) as progress:
        task = progress.add_task(channel, total=to_ms - from_ms)

        def show(found: Period) -> None:
            progress.update(task, completed=found.at_ms - found.from_ms)

        if alone:
            _fetch_alone(channel, period, show)
        else:
            token = settings.http.read_action_token()
            _ask(url or _running_url(), token, channel, period, show)


def parse_time(text: str) -> int:
    """Milliseconds since the epoch of an ISO 8601 time; without an offset it is UTC.

    Raises:
        SettingsError: The text is no time.
    """
    try:
        found = datetime.fromisoformat(text)
    except ValueError as error:
        raise SettingsError(
            f"'{text}' is not a time", remedy="write it as 2026-11-20T08:00:00"
        ) from error
    return round((found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp() * 1000)


def _ask(
    url: str, token: str | None, channel: str, period: Period, show: Callable[[Period], None]
) -> None:
    """Ask the raw-producer until it has fetched the period."""
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    wanted = {"channel": channel, "from_ms": period.from_ms, "to_ms": period.to_ms}
    away_since: float | None = None
    with httpx2.Client(timeout=15.0, headers=headers) as http:
        while True:
            try:
                answer = http.post(url.rstrip("/") + BACKFILL_PATH, json=wanted)
            except httpx2.HTTPError as error:
                away_since = away_since or time.monotonic()
                if period.at_ms == period.from_ms or time.monotonic() - away_since > _AWAY_S:
                    raise UnavailableError(
                        f"the raw-producer does not answer at {url}: {error}",
                        remedy="is it running (make status)? its address: --url; without it: "
                        "--alone",
                    ) from error
            else:
                away_since = None
                period = _read(answer)
                show(period)
                if period.at_ms >= period.to_ms:
                    return
            time.sleep(_LOOK_S)


def _read(answer: httpx2.Response) -> Period:
    content: dict[str, Any] = answer.json()
    if answer.status_code != httpx2.codes.OK:
        raise ContractError(str(content.get("error")), remedy=content.get("remedy"))
    return Period(content["from_ms"], content["to_ms"], content["at_ms"])


def _fetch_alone(channel: str, period: Period, show: Callable[[Period], None]) -> None:
    settings = load_settings(RawProducerSettings, _SERVICE)
    settings = settings.model_copy(update={"channels": (channel,)})
    with run_service("backfill", settings) as context:
        run_backfill(settings, context, period, show)


def _running_url() -> str:
    running = find_running()
    component = read_status(running.data_dir).component(_SERVICE) if running else None
    if component is None or not component.address:
        raise UnavailableError(
            "no running raw-producer is found",
            remedy="name its HTTP address with --url, or fetch without it: --alone",
        )
    return component.address.removesuffix("/metrics")
