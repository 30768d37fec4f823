"""The service `connectors-watch`: sinks that failed are brought back, without anybody's help.

Every few seconds it asks Connect how each sink is. A task that failed for a passing reason is
restarted, ever more slowly. Where the data is the reason, the row is found and set aside
(`sinks.rescue`); so many in an hour at most: a table that refuses everything is somebody's mistake,
not a bad row. A connector that was stopped or paused by hand is left alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from kstream_agg.core.errors import KStreamError, UnavailableError
from kstream_agg.core.logs import get_logger
from kstream_agg.core.metrics import SINK_RUNNING, SINK_STEPS
from kstream_agg.kafka.registry import SchemaRegistry
from kstream_agg.kafka.topic_reader import TopicReader
from kstream_agg.kafka.wire import RecordDecoder
from kstream_agg.sinks.cases import Action, Case
from kstream_agg.sinks.connect_api import ConnectClient
from kstream_agg.sinks.letters import LetterBox
from kstream_agg.sinks.narrowing import is_narrowed
from kstream_agg.sinks.patience import Patience
from kstream_agg.sinks.probe import RowProbe
from kstream_agg.sinks.rescue import Rescue, RescueTools, Verdict
from kstream_agg.sinks.settings import WATCH

if TYPE_CHECKING:
    from collections.abc import Sequence

    from kstream_agg.core.service import ServiceContext
    from kstream_agg.sinks.connect_api import ConnectorStatus
    from kstream_agg.sinks.connectors import Sink
    from kstream_agg.sinks.rescue import Outcome
    from kstream_agg.sinks.settings import WatchSettings

__all__ = ["Watch", "run_watch"]

_log = get_logger(__name__)
# Longer than a whole rescue takes: each of its steps has a bound of its own.
_STUCK_S: Final = 900.0
# Connect's state between two others; what it is then says nothing.
_ON_ITS_WAY: Final = frozenset({"UNASSIGNED", "RESTARTING"})


def run_watch(settings: WatchSettings, sinks: Sequence[Sink], context: ServiceContext) -> None:
    """Watch sinks until the service is asked to stop.

    Args:
        settings: Where everything is, and the policy.
        sinks: The connectors.
        context: What a service gets.
    """
    timeout_s = settings.watch.step_timeout_s
    with (
        ConnectClient(settings.connect.url, settings.connect.timeout_s) as client,
        SchemaRegistry(settings.registry) as registry,
        TopicReader(settings.kafka, WATCH) as reader,
    ):
        steps = context.metrics.counter(SINK_STEPS)
        tools = RescueTools(
            client,
            reader,
            RecordDecoder(registry.schema_by_id),
            RowProbe(settings.postgres),
            lambda: Patience(context.clock, context.stop, timeout_s),
            context.clock,
            lambda connector, step: steps.labels(connector, step).inc(),
            settings.watch.rows_per_hour,
        )
        watch = Watch(settings, sinks, tools, context)
        context.health.add_check("sinks", watch.trouble)
        while not context.stop.is_set():
            watch.look()
            context.stop.wait(settings.watch.every_s)


class Watch:
    """Looks at sinks, and does what their cases ask for.

    Args:
        settings: Where everything is, and the policy.
        sinks: The connectors.
        tools: What a rescue works with.
        context: What a service gets.
    """

    def __init__(
        self,
        settings: WatchSettings,
        sinks: Sequence[Sink],
        tools: RescueTools,
        context: ServiceContext,
    ) -> None:
        self._sinks = tuple(sinks)
        self._tools = tools
        self._context = context
        self._running = context.metrics.gauge(SINK_RUNNING)
        self._cases = {sink.name: Case(settings.watch) for sink in sinks}
        self._rescues = {
            sink.name: Rescue(
                sink,
                LetterBox(sink.dead_letter_topic, sink.name, settings.kafka, context.metrics),
                tools,
            )
            for sink in sinks
        }
        self._looked_at = context.clock.monotonic()
        self._waits = False

    def look(self) -> None:
        """Look at each sink once, and do what is due."""
        reasons = []
        for sink in self._sinks:
            if self._context.stop.is_set():
                return
            try:
                self._look_at(sink)
            except UnavailableError as error:
                reasons.append(str(error))
        self._note_absence(reasons)
        self._looked_at = self._context.clock.monotonic()

    def trouble(self) -> str | None:
        """What people should know of; None when all is well."""
        if self._context.clock.monotonic() - self._looked_at > _STUCK_S:
            return "stuck: no look at the sinks has ended for long"
        said = [f"{name}: {case.trouble}" for name, case in self._cases.items() if case.trouble]
        return "; ".join(said) or None

    def _look_at(self, sink: Sink) -> None:
        client, case = self._tools.client, self._cases[sink.name]
        status = client.status(sink.name)
        self._running.labels(sink.name).set(status.is_running)
        if status.state in _ON_ITS_WAY or status.state == "ABSENT":
            return
        config = client.config(sink.name)
        now = self._context.clock.monotonic()
        begun = config is not None and is_narrowed(config)
        action = case.judge(status, now, is_narrowed=begun)
        if action is Action.RESTART:
            self._restart(sink, case, status)
        elif action is Action.RESCUE:
            self._rescue(sink, case, status, is_begun=begun)

    def _restart(self, sink: Sink, case: Case, status: ConnectorStatus) -> None:
        self._tools.count(sink.name, "restart")
        self._tools.client.restart_failed(sink.name)
        wait_s = case.note_attempt(self._context.clock.monotonic())
        _log.warning(
            "failed tasks restarted",
            connector=sink.name,
            because=status.failure,
            not_again_within_s=wait_s,
        )

    def _rescue(self, sink: Sink, case: Case, status: ConnectorStatus, *, is_begun: bool) -> None:
        _log.warning(
            "a row is looked for",
            connector=sink.name,
            because="a rescue was ended before" if is_begun else status.failure,
        )
        try:
            outcome = self._rescues[sink.name].run()
        except KStreamError as error:
            if self._context.stop.is_set():
                return
            wait_s = case.note_attempt(self._context.clock.monotonic())
            case.trouble = f"it could not be got going: {error}"
            _log.error(
                "rescue not finished", connector=sink.name, error=str(error), again_in_s=wait_s
            )
            if isinstance(error, UnavailableError):
                raise
            return
        self._note(sink, case, outcome)

    def _note(self, sink: Sink, case: Case, outcome: Outcome) -> None:
        verdict = outcome.verdict
        rows = [str(place) for place in outcome.rows]
        if verdict in {Verdict.SET_ASIDE, Verdict.PASSED}:
            case.note_success()
            _log.info("sink goes on", connector=sink.name, verdict=verdict.value, rows=rows)
            return
        wait_s = case.note_attempt(self._context.clock.monotonic())
        if verdict is Verdict.LIMIT:
            case.trouble = (
                f"as many rows as allowed in an hour were set aside ({self._tools.rows_per_hour}, "
                f"watch.rows_per_hour): look at {sink.dead_letter_topic} and at the table"
            )
        else:
            case.trouble = f"it fails, and the database refuses no row: {outcome.reason}"
        _log.error(
            "sink does not run", connector=sink.name, because=case.trouble, again_in_s=wait_s
        )

    def _note_absence(self, reasons: list[str]) -> None:
        if not reasons:
            self._waits = False
            self._context.health.set_ready()
            return
        if not self._waits:
            _log.warning("waiting", because=reasons[0])
        self._waits = True
        self._context.health.set_not_ready(reasons[0])
