"""The workers' /metrics, /healthz and /readyz, as their supervisor serves them."""

from __future__ import annotations

import http.client
from typing import TYPE_CHECKING, Final

from prometheus_client import GC_COLLECTOR, PLATFORM_COLLECTOR, PROCESS_COLLECTOR
from prometheus_client.openmetrics.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from prometheus_client import CollectorRegistry, Metric

__all__ = ["WorkerHealth", "WorkersCollector", "merge_into"]

_TIMEOUT_S: Final = 2.0


class WorkerHealth:
    """Asks one worker.

    Args:
        number: The worker's.
    """

    def __init__(self, number: int) -> None:
        self.number = number
        self.port: int | None = None
        """Where it serves; None while it does not run."""

    def check(self) -> str | None:
        """None while it is healthy, else what is not."""
        status, body = self._get("/healthz")
        if status == http.HTTPStatus.OK:
            return None
        return "does not run" if status is None else body.strip()

    def is_ready(self) -> bool:
        """Whether it says so."""
        return self._get("/readyz")[0] == http.HTTPStatus.OK

    def metrics(self) -> str:
        """Its metrics as text; empty while it does not answer."""
        status, body = self._get("/metrics")
        return body if status == http.HTTPStatus.OK else ""

    def _get(self, path: str) -> tuple[int | None, str]:
        if self.port is None:
            return None, ""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=_TIMEOUT_S)
        try:
            connection.request("GET", path)
            answer = connection.getresponse()
            return answer.status, answer.read().decode()
        except OSError:
            return None, ""
        finally:
            connection.close()


class WorkersCollector(Collector):
    """The workers' metrics, each sample with the label `worker`.

    Args:
        workers: Whom to ask.
    """

    def __init__(self, workers: Sequence[WorkerHealth]) -> None:
        self._workers = workers

    def collect(self) -> Iterator[Metric]:
        """Ask all, and put what has one name together."""
        families: dict[str, Metric] = {}
        for worker in self._workers:
            label = {"worker": str(worker.number)}
            text = worker.metrics() or "# EOF\n"
            for family in text_string_to_metric_families(text):  # type: ignore[no-untyped-call]  # has no hints
                samples = [
                    sample._replace(labels={**sample.labels, **label}) for sample in family.samples
                ]
                if family.name in families:
                    families[family.name].samples += samples
                else:
                    family.samples = samples
                    families[family.name] = family
        yield from families.values()


def merge_into(registry: CollectorRegistry, collector: WorkersCollector) -> None:
    """Serve the workers' metrics from the supervisor's registry, instead of its own process's."""
    for own in (PROCESS_COLLECTOR, PLATFORM_COLLECTOR, GC_COLLECTOR):
        registry.unregister(own)
    registry.register(collector)
