"""What cannot run is refused when it is put together, with a sentence that names the step."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from kstream_agg.core.errors import PipelineError
from kstream_agg.pipeline import Batch, DeadLetterTopic, Each, Fold, Pipeline, StopAfter
from kstream_agg.pipeline.testing import PipelineBench
from kstream_agg.pipeline.worker_health import WorkerHealth, WorkersCollector

if TYPE_CHECKING:
    from collections.abc import Callable

    from confluent_kafka import Message


def pipeline() -> Pipeline[Message]:
    return Pipeline("topic", group="group")


def total(left: int, right: Any) -> int:  # noqa: ANN401 - anything can be counted
    del right
    return left + 1


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Pipeline(group="g"), "at least one topic"),
        (lambda: Pipeline("t", group=""), "needs a consumer group"),
        (Batch, "give count, seconds or bytes"),
        (lambda: Batch(0), "count must be more than 0, not 0"),
        (lambda: Batch(seconds=-1), "seconds must be more than 0"),
        (lambda: Fold(int, total), "give count or seconds"),
        (lambda: Fold(int, total, count=0), "Fold: count must be more than 0"),
        (StopAfter, "give count or ratio"),
        (lambda: StopAfter(count=-1), "count must not be negative"),
        (lambda: StopAfter(ratio=1), "less than 1, it is 1"),
        (lambda: pipeline().reduce(Batch(1)).map(len), "map: stands behind a reduce step"),
        (lambda: pipeline().map_batch(id).map(abs), "or a batch map"),
        (lambda: pipeline().map(id).map_batch(id), "must be the first step"),
        (lambda: pipeline().produce(lambda _: ()).produce(lambda _: ()), "behind produce"),
    ],
)
def test_a_wrong_pipeline_is_refused(make: Callable[[], object], says: str) -> None:
    with pytest.raises(PipelineError, match=says):
        make()


def test_a_reducer_is_one_step_only() -> None:
    step: Each[Message] = Each(print)
    with pytest.raises(PipelineError, match="a reducer can be one step only"):
        pipeline().reduce(step).reduce(step)


def test_each_call_gives_a_new_pipeline() -> None:
    first = pipeline()
    first.map(len).on_error(DeadLetterTopic())
    assert first.mapper.name == "messages"
    assert first.dead_letter_topics == []
    assert first.on_error(DeadLetterTopic()).dead_letter_topics == ["topic-dlq"]
    assert first.on_error(DeadLetterTopic("bad")).dead_letter_topics == ["bad"]


def test_the_kit_names_a_pipeline_that_does_not_come_to_rest() -> None:
    def feed(_message: Message) -> None:
        bench.send("topic", b"again")

    bench = PipelineBench(lambda: pipeline().map(feed))
    with bench:
        bench.send("topic", b"first")
        with pytest.raises(AssertionError, match="does not come to rest"):
            bench.run(most_rounds=50)


METRICS = """# HELP kstream_x X.
# TYPE kstream_x counter
kstream_x_total{topic="a"} %d
# EOF
"""


def test_workers_metrics_are_told_apart_by_a_label() -> None:
    class Answering(WorkerHealth):
        def metrics(self) -> str:
            return METRICS % self.number if self.number else ""

    workers = [Answering(number) for number in (0, 1, 2)]
    [family] = WorkersCollector(workers).collect()
    assert [(sample.labels, sample.value) for sample in family.samples] == [
        ({"topic": "a", "worker": "1"}, 1.0),
        ({"topic": "a", "worker": "2"}, 2.0),
    ]


def test_a_worker_that_does_not_run_is_unhealthy() -> None:
    health = WorkerHealth(0)
    assert health.check() == "does not run"
    assert not health.is_ready()
    assert health.metrics() == ""
