"""The steps' threads, and the bounded queues between them.

    batches ─► map lanes (partitions spread over them) ─► reduce 1 ─► … ─► reduce m ─► outputs

Each step has a thread and a queue in front of it that holds a bounded number of records. A step
whose output finds no room waits; the caller of `offer` is told that there is none. Nothing wakes
by itself: time is told by `tick`, so that with a clock of one's own all is repeatable.

All queues share one lock; what passes through them are batches, not records.

An epoch ends with `restart`: everything under way is discarded, and what a step that is still at
work has of an older epoch is thrown away when it comes.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from typing import TYPE_CHECKING, Final

from kstream_agg.core.errors import UnavailableError
from kstream_agg.core.logs import get_logger
from kstream_agg.pipeline.chunks import Batched, Chunk, Drain

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence
    from typing import TypeAlias

    from kstream_agg.core.clock import Clock
    from kstream_agg.pipeline.stages import Stage

    Job: TypeAlias = Batched | Chunk | Drain

__all__ = ["Chain"]

_log = get_logger(__name__)

# As the loop's: how long something that does not answer is left alone.
_RETRY_S: Final = 1.0


def _records(job: Job) -> int:
    return 0 if isinstance(job, Drain) else max(1, len(job.messages))


class _Queue:
    """Jobs in front of a step; used under the chain's lock."""

    def __init__(self, capacity: int) -> None:
        self.jobs: deque[Job] = deque()
        self.records = 0
        self._capacity = capacity

    def has_room(self, job: Job) -> bool:
        """Whether a job fits; into an empty queue any does."""
        return not self.records or self.records + _records(job) <= self._capacity

    def put(self, job: Job) -> None:
        self.jobs.append(job)
        self.records += _records(job)

    def take(self) -> Job:
        job = self.jobs.popleft()
        self.records -= _records(job)
        return job

    def clear(self) -> None:
        self.jobs.clear()
        self.records = 0


class _Runner:
    """A step's thread."""

    def __init__(self, chain: Chain, stage: Stage, queue: _Queue, target: _Queue) -> None:
        self._chain = chain
        self.stage = stage
        self.queue = queue
        self.target = target
        self.lanes_arrived = 0
        # Under the chain's lock:
        self.epoch = 0
        self.job: Job | None = None  # in work, or held until something answers
        self.ticked = False
        self.due_at: float | None = None
        self.retry_at: float | None = None
        self.held_since: float | None = None
        self.working_since: float | None = None
        self.output: Chunk | Drain | None = None  # finds no room
        self.thread = threading.Thread(target=self._run, name=f"step {stage.name}", daemon=True)

    # --- under the lock ---------------------------------------------------------------------

    def is_ready(self) -> bool:
        """Whether there is something to do now."""
        if self.epoch != self._chain.epoch or self.ticked:
            return True
        return self.retry_at is None and bool(self.queue.jobs)

    def has_nothing(self) -> bool:
        """Whether no job waits, is held or in work."""
        return not self.queue.jobs and self.job is None and self.working_since is None

    def is_idle(self) -> bool:
        """Whether nothing moves before time passes or a queue gets room."""
        if self.working_since is None:
            return not self.is_ready()
        return self.output is not None and not self.target.has_room(self.output)

    def wants_tick(self, now: float) -> bool:
        if self.retry_at is not None:
            return now >= self.retry_at
        return self.due_at is not None and now >= self.due_at

    # --- the thread -------------------------------------------------------------------------

    def _run(self) -> None:
        chain = self._chain
        while True:
            with chain.changed:
                chain.changed.wait_for(lambda: chain.ended or self.is_ready())
                if chain.ended:
                    return
                self._begin()
            try:
                self._work()
            except UnavailableError as error:
                self._hold(error)
            except Exception as error:  # noqa: BLE001 - it is raised again in the loop's thread
                chain.fail(error)
            else:
                self._finish()

    def _begin(self) -> None:
        self.working_since = self._chain.clock.monotonic()
        self.ticked = False
        if self.epoch != self._chain.epoch:
            self.epoch = self._chain.epoch
            self.job = self.retry_at = self.held_since = None
            self.lanes_arrived = 0
            self.stage.reset()
        elif self.retry_at is None and self.job is None and self.queue.jobs:
            self.job = self.queue.take()
            self._chain.changed.notify_all()
            if not self._is_last_lane(self.job):
                self.job = None
            else:
                self.stage.offer(self.job)

    def _is_last_lane(self, job: Job) -> bool:
        """Whether a drain has come through all lanes that lead here; True for other jobs."""
        if not isinstance(job, Drain) or self.queue is not self._chain.joint:
            return True
        self.lanes_arrived += 1
        if self.lanes_arrived < job.lanes:
            return False
        self.lanes_arrived = 0
        return True

    def _work(self) -> None:
        chain = self._chain
        while True:
            output = self.stage.next_output(chain.clock.monotonic())
            if output is None:
                break
            if not self._forward(output):
                return
        if isinstance(self.job, Drain):
            self._forward(self.job)

    def _forward(self, output: Chunk | Drain) -> bool:
        """Hand on, waiting for room; False when it is of an epoch that has ended."""
        chain = self._chain
        with chain.changed:
            self.output = output
            chain.changed.notify_all()
            chain.changed.wait_for(
                lambda: chain.ended or output.epoch != chain.epoch or self.target.has_room(output)
            )
            self.output = None
            self.working_since = chain.clock.monotonic()
            if chain.ended or output.epoch != chain.epoch:
                return False
            self.target.put(output)
            chain.changed.notify_all()
            return True

    def _finish(self) -> None:
        with self._chain.changed:
            self.job = self.retry_at = self.held_since = self.working_since = None
            self.due_at = self.stage.due_at
            self._chain.changed.notify_all()

    def _hold(self, error: UnavailableError) -> None:
        now = self._chain.clock.monotonic()
        with self._chain.changed:
            if self.held_since is None:
                self.held_since = now
                _log.warning("step waits", step=self.stage.name, reason=str(error))
            self.retry_at = now + _RETRY_S
            self.working_since = None
            self._chain.changed.notify_all()


class Chain:
    """Map lanes and reduce steps, running.

    Args:
        lanes: One map stage for each lane, alike.
        reduces: The reduce stages, in sequence.
        capacity: Most records in front of a step.
        clock: Monotonic time is used.
    """

    def __init__(
        self, lanes: Sequence[Stage], reduces: Sequence[Stage], *, capacity: int, clock: Clock
    ) -> None:
        self.clock = clock
        self.changed = threading.Condition()
        self.epoch = 0
        self.ended = False
        self.failure: Exception | None = None
        self._outputs = _Queue(capacity)
        self._inputs = [_Queue(capacity) for _ in lanes]
        between = [_Queue(capacity) for _ in reduces]
        targets = [*between, self._outputs]
        self.joint = targets[0]
        """Where the lanes come together."""
        self._runners = [
            _Runner(self, stage, queue, self.joint)
            for stage, queue in zip(lanes, self._inputs, strict=True)
        ]
        self._runners += [
            _Runner(self, stage, queue, target)
            for stage, queue, target in zip(reduces, between, targets[1:], strict=True)
        ]
        for runner in self._runners:
            runner.thread.start()

    def fail(self, error: Exception) -> None:
        """A step cannot go on: the chain ends."""
        with self.changed:
            if self.failure is None and not self.ended:
                self.failure = error
            self.ended = True
            self.changed.notify_all()

    def offer(self, lane: int, batch: Batched, patience_s: float) -> bool:
        """Hand a batch in; False when there was no room for `patience_s` seconds."""
        queue = self._inputs[lane % len(self._inputs)]
        with self.changed:
            if not self.changed.wait_for(
                lambda: self.ended or queue.has_room(batch) or self._outputs.jobs, patience_s
            ) or not queue.has_room(batch):
                return False
            queue.put(batch)
            self.changed.notify_all()
            return True

    def can_pass(self, lane: int, batch: Batched) -> bool:
        """Whether the lane has nothing under way, and what stands behind it has room."""
        with self.changed:
            runner = self._runners[lane % len(self._inputs)]
            return runner.has_nothing() and self.joint.has_room(batch)

    def pass_by(self, chunk: Chunk) -> None:
        """Hand in what was mapped outside, behind the lanes, once `can_pass` has allowed it."""
        with self.changed:
            self.joint.put(chunk)
            self.changed.notify_all()

    def has_idle_lane(self, lanes: Collection[int]) -> bool:
        """Whether one of these lanes has nothing to do."""
        with self.changed:
            return any(not self._inputs[lane].records for lane in lanes)

    def restart(self, batches: Sequence[tuple[int, Batched]] = ()) -> None:
        """Begin a new epoch with these batches, which find room in any case."""
        with self.changed:
            self.epoch += 1
            for queue in (*self._inputs, *(r.target for r in self._runners)):
                queue.clear()
            for lane, batch in batches:
                batch.epoch = self.epoch
                self._inputs[lane % len(self._inputs)].put(batch)
            self.changed.notify_all()

    def tick(self, now: float) -> None:
        """Wake the steps for which it is time."""
        with self.changed:
            for runner in self._runners:
                if runner.working_since is None and runner.wants_tick(now):
                    runner.ticked = True
                    self.changed.notify_all()

    def drain(self) -> None:
        """Send a drain behind everything that was handed in."""
        with self.changed:
            for queue in self._inputs:
                queue.put(Drain(self.epoch, len(self._inputs)))
            self.changed.notify_all()

    def outputs(self, wait_s: float = 0.0) -> list[Chunk | Drain]:
        """What has come out since the last call, waiting for it up to `wait_s` seconds."""
        with self.changed:
            if wait_s > 0:
                self.changed.wait_for(lambda: self.ended or self._outputs.jobs, wait_s)
            found = [job for job in self._outputs.jobs if not isinstance(job, Batched)]
            if found:
                self._outputs.clear()
                self.changed.notify_all()
            return found

    @property
    def has_outputs(self) -> bool:
        """Whether `outputs` would find some."""
        with self.changed:
            return bool(self._outputs.jobs)

    def wait_idle(self, within_s: float) -> bool:
        """Wait until nothing moves before time passes, a batch comes or outputs are taken."""
        with self.changed:
            return self.changed.wait_for(
                lambda: self.ended or all(runner.is_idle() for runner in self._runners), within_s
            )

    def stuck(self, after_s: float) -> str | None:
        """A sentence on a step that has been at work, or has waited, for too long."""
        now = self.clock.monotonic()
        with self.changed:
            for runner in self._runners:
                began, name = runner.working_since, runner.stage.name
                if runner.output is None and began is not None and now - began > after_s:
                    return f"step '{name}' has been in work for {now - began:.0f} s"
                if runner.held_since is not None and now - runner.held_since > after_s:
                    return f"step '{name}' has waited for {now - runner.held_since:.0f} s"
        return None

    def waiting(self) -> dict[str, int]:
        """Records in front of each step, by its name."""
        found: dict[str, int] = {}
        with self.changed:
            for runner in self._runners:
                found[runner.stage.name] = found.get(runner.stage.name, 0) + runner.queue.records
        return found

    def close(self, within_s: float) -> list[str]:
        """End the threads; the names of steps that are still at work after `within_s` seconds."""
        with self.changed:
            self.ended = True
            self.changed.notify_all()
        deadline = time.monotonic() + within_s
        for runner in self._runners:
            runner.thread.join(max(0.0, deadline - time.monotonic()))
        return [r.stage.name for r in self._runners if r.thread.is_alive()]
