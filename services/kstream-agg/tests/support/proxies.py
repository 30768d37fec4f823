"""Push proxies for tests in which Kafka is there."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from kstream_agg.proxy.testing import RunningProxy

if TYPE_CHECKING:
    from pathlib import Path

# The default, 2 s, is what clients want; a broker on a loaded machine may take longer.
_MESSAGE_TIMEOUT_MS: Final = 60_000


def patient_proxy(
    folder: Path, servers: str, settings: dict[str, dict[str, Any]] | None = None
) -> RunningProxy:
    """A proxy that waits for Kafka as long as the test would."""
    given = settings or {}
    kafka = {"message_timeout_ms": _MESSAGE_TIMEOUT_MS, **given.get("kafka", {})}
    return RunningProxy(folder, servers, {**given, "kafka": kafka})
