import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from diffusers_helper.generation import Done, Event, Progress, SectionFinished
from diffusers_helper.gradio import jobs
from diffusers_helper.gradio.jobs import Job, JobQueue, JobView, Status

VIDEO = Path("video.mp4")
PATIENCE = 10.0


def wait_until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "what was waited for did not come"
        time.sleep(0.002)


class Script:
    """A job's events under the test's control: it says what happened, and waits where told."""

    def __init__(self, *events: Event | Exception, gated: bool = False) -> None:
        self.stop = threading.Event()
        self.began = threading.Event()
        self.gate = threading.Event()
        self.steps = 0
        self._events = events
        if not gated:
            self.gate.set()

    def run(self) -> Iterator[Event]:
        self.began.set()
        for event in self._events:
            if isinstance(event, Exception):
                raise event
            yield event
        assert self.gate.wait(PATIENCE)
        yield Done(VIDEO, 37, stopped=False)

    def run_until_stopped(self) -> Iterator[Event]:
        """As `generate` does: looks at the flag after every step."""
        yield SectionFinished(VIDEO, 1, 9, 37)
        self.began.set()
        while not self.stop.wait(0.001):
            self.steps += 1
            yield Progress("Denoising", 2, 9, self.steps, 99)
        yield Done(VIDEO, 37, stopped=True)


class Preparation:
    """Fails as often as told, then succeeds."""

    def __init__(self, failures: int = 0) -> None:
        self.failures = failures
        self.calls = 0

    def __call__(self) -> None:
        self.calls += 1
        if self.calls <= self.failures:
            raise RuntimeError(f"no weights at try {self.calls}")


@pytest.fixture
def start_queue() -> Iterator[Callable[..., JobQueue]]:
    queues = []

    def start(prepare: Callable[[], object] = lambda: None) -> JobQueue:
        queue = JobQueue(prepare, explain=lambda error: f"explained: {error}")
        queues.append(queue)
        queue.start()
        return queue

    yield start
    for queue in queues:
        queue.close(PATIENCE)


@pytest.fixture
def queue(start_queue: Callable[..., JobQueue]) -> JobQueue:
    return start_queue()


def submit(queue: JobQueue, script: Script) -> Job:
    return queue.submit(script.run(), script.stop)


def submit_running(queue: JobQueue, script: Script) -> Job:
    job = submit(queue, script)
    assert script.began.wait(PATIENCE)
    return job


def wait_for_end(job: Job) -> Job:
    wait_until(lambda: job.view.status.ended)
    return job


# Taking turns


def test_jobs_run_one_at_a_time_in_order(queue: JobQueue):
    running, log = [], []

    def events(number: int) -> Iterator[Event]:
        running.append(number)
        log.append(list(running))
        yield Progress("Denoising")
        running.remove(number)
        yield Done(VIDEO, number, stopped=False)

    submitted = [queue.submit(events(i), threading.Event()) for i in range(5)]
    for job in submitted:
        wait_for_end(job)
    assert log == [[0], [1], [2], [3], [4]]
    assert [job.view.frames for job in submitted] == [0, 1, 2, 3, 4]
    assert {job.view.status for job in submitted} == {Status.FINISHED}


def test_waiting_jobs_know_their_place(queue: JobQueue):
    scripts = [Script(gated=True) for _ in range(3)]
    first = submit_running(queue, scripts[0])
    second, third = (submit(queue, script) for script in scripts[1:])
    assert [job.view.status for job in (first, second, third)] == [
        Status.RUNNING,
        Status.WAITING,
        Status.WAITING,
    ]
    assert (queue.place(second), queue.place(third)) == (1, 2)
    scripts[0].gate.set()
    assert scripts[1].began.wait(PATIENCE)
    assert queue.place(third) == 1
    queue.end(second.id)
    scripts[1].gate.set()
    wait_until(lambda: third.view.status is Status.RUNNING)
    scripts[2].gate.set()


def test_leaving_the_queue_moves_the_others_up(queue: JobQueue):
    running = Script(gated=True)
    submit_running(queue, running)
    second, third = submit(queue, Script()), submit(queue, Script())
    queue.end(second.id)
    assert queue.place(third) == 1
    running.gate.set()
    wait_for_end(third)


# Ending


def test_a_waiting_job_ends_at_once_and_never_runs(queue: JobQueue):
    running, waiting, last = Script(gated=True), Script(), Script()
    submit_running(queue, running)
    job = submit(queue, waiting)
    queue.end(job.id)
    assert job.view.status is Status.STOPPED
    assert job.view.frames == 0
    assert waiting.stop.is_set()
    running.gate.set()
    wait_for_end(submit(queue, last))
    assert last.began.is_set()
    assert not waiting.began.is_set()
    assert job.view.status is Status.STOPPED


def test_ending_a_running_job_keeps_what_it_finished(queue: JobQueue):
    script, other = Script(), Script()
    job = queue.submit(script.run_until_stopped(), script.stop)
    assert script.began.wait(PATIENCE)
    assert not job.view.stopping
    waiting = submit(queue, other)
    queue.end(job.id)
    assert script.stop.is_set()
    wait_for_end(job)
    assert job.view.status is Status.STOPPED
    assert (job.view.video, job.view.frames) == (VIDEO, 37)
    assert job.view.error is None
    assert wait_for_end(waiting).view.status is Status.FINISHED
    assert not other.stop.is_set()


def test_a_job_that_is_being_ended_says_so_until_it_has(queue: JobQueue):
    script = Script(Progress("Denoising"), gated=True)
    job = submit_running(queue, script)
    wait_until(lambda: job.view.progress is not None)
    queue.end(job.id)
    assert (job.view.status, job.view.stopping) == (Status.RUNNING, True)
    script.gate.set()
    wait_for_end(job)


def test_ending_a_job_that_is_over_changes_nothing_of_it(queue: JobQueue):
    job = wait_for_end(submit(queue, Script()))
    queue.end(job.id)
    assert (job.view.status, job.view.frames) == (Status.FINISHED, 37)
    assert wait_for_end(submit(queue, Script())).view.status is Status.FINISHED


@pytest.mark.parametrize("unknown", ["", "nobody's", None])
def test_an_unknown_id_ends_nothing(queue: JobQueue, unknown: str | None):
    script = Script(gated=True)
    job = submit_running(queue, script)
    waiting = submit(queue, Script())
    assert queue.get(unknown) is None
    queue.end(unknown)
    assert not job.stop.is_set()
    assert not waiting.stop.is_set()
    script.gate.set()
    assert wait_for_end(job).view.status is Status.FINISHED
    assert wait_for_end(waiting).view.status is Status.FINISHED


def test_closing_ends_everything_within_a_step(start_queue: Callable[..., JobQueue]):
    before = set(threading.enumerate())
    queue = start_queue()
    threads = set(threading.enumerate()) - before
    running, waiting = Script(), [Script() for _ in range(3)]
    job = queue.submit(running.run_until_stopped(), running.stop)
    assert running.began.wait(PATIENCE)
    others = [submit(queue, script) for script in waiting]
    queue.close(PATIENCE)
    assert not any(thread.is_alive() for thread in threads)
    assert job.view.status is Status.STOPPED
    assert (job.view.video, job.view.frames) == (VIDEO, 37)
    assert {other.view.status for other in others} == {Status.STOPPED}
    assert not any(script.began.is_set() for script in waiting)


def test_closing_an_idle_queue_ends_its_thread(start_queue: Callable[..., JobQueue]):
    before = set(threading.enumerate())
    queue = start_queue()
    threads = set(threading.enumerate()) - before
    assert threads
    queue.close(PATIENCE)
    assert not any(thread.is_alive() for thread in threads)


def test_closing_waits_no_longer_than_told(start_queue: Callable[..., JobQueue]):
    queue = start_queue()
    deaf = Script(gated=True)
    submit_running(queue, deaf)
    began = time.monotonic()
    queue.close(timeout=0.05)
    assert time.monotonic() - began < PATIENCE / 2
    deaf.gate.set()


# Failing


@pytest.mark.parametrize("error", [RuntimeError("shapes differ"), OSError(28, "disk full")])
def test_a_failing_job_tells_why_and_the_next_works(queue: JobQueue, error: Exception):
    script = Script(SectionFinished(VIDEO, 1, 2, 19), error)
    view = wait_for_end(submit(queue, script)).view
    assert (view.status, view.error) == (Status.FAILED, f"explained: {error}")
    assert (view.video, view.frames) == (VIDEO, 19)
    following = wait_for_end(submit(queue, Script())).view
    assert (following.status, following.error) == (Status.FINISHED, None)


def test_every_job_prepares_until_it_succeeds_once(start_queue: Callable[..., JobQueue]):
    prepare = Preparation(failures=3)  # the first is the start's own
    queue = start_queue(prepare)
    scripts = [Script() for _ in range(4)]
    views = [wait_for_end(submit(queue, script)).view for script in scripts]
    assert [view.error for view in views] == [
        "explained: no weights at try 2",
        "explained: no weights at try 3",
        None,
        None,
    ]
    assert [view.status for view in views[:2]] == [Status.FAILED] * 2
    assert [view.status for view in views[2:]] == [Status.FINISHED] * 2
    assert [script.began.is_set() for script in scripts] == [False, False, True, True]
    assert prepare.calls == 4


def test_preparing_does_not_wait_for_a_job(start_queue: Callable[..., JobQueue]):
    prepare = Preparation()
    queue = start_queue(prepare)
    wait_until(lambda: prepare.calls == 1)
    wait_for_end(submit(queue, Script()))
    assert prepare.calls == 1


def test_jobs_wait_for_the_preparation(start_queue: Callable[..., JobQueue]):
    prepared = threading.Event()
    queue = start_queue(lambda: prepared.wait(PATIENCE))
    script = Script()
    job = submit(queue, script)
    assert (job.view.status, queue.place(job)) == (Status.WAITING, 0)
    assert not script.began.is_set()
    prepared.set()
    assert wait_for_end(job).view.status is Status.FINISHED


# Being looked at


def test_the_last_preview_stays_while_an_event_has_none(queue: JobQueue):
    first, second = (np.full((2, 2, 3), value, dtype=np.uint8) for value in (1, 2))
    gates = [threading.Event() for _ in range(3)]

    def events() -> Iterator[Event]:
        for gate, preview in zip(gates, (first, None, second), strict=True):
            yield Progress(f"{preview is None}", preview=preview)
            assert gate.wait(PATIENCE)
        yield SectionFinished(VIDEO, 1, 1, 37)
        yield Done(VIDEO, 37, stopped=False)

    job = queue.submit(events(), threading.Event())
    wait_until(lambda: job.view.preview is first)
    gates[0].set()
    wait_until(lambda: job.view.progress.stage == "True")
    assert job.view.preview is first
    gates[1].set()
    wait_until(lambda: job.view.preview is second)
    gates[2].set()
    assert wait_for_end(job).view.preview is second


def test_a_job_shows_its_latest_progress_and_video(queue: JobQueue):
    script = Script(Progress("Denoising", 1, 2, 3, 4), SectionFinished(VIDEO, 1, 2, 19), gated=True)
    job = submit_running(queue, script)
    wait_until(lambda: job.view.video is not None)
    view = job.view
    assert (view.status, view.frames) == (Status.RUNNING, 19)
    assert (view.progress.section, view.progress.step) == (1, 3)
    script.gate.set()
    assert wait_for_end(job).view.frames == 37


def test_ids_are_distinct_and_cannot_be_guessed(queue: JobQueue):
    ids = [queue.submit(iter(()), threading.Event()).id for _ in range(50)]
    assert len(set(ids)) == 50
    assert min(map(len, ids)) >= 20
    common = set.intersection(*({*enumerate(one)} for one in ids))
    assert not common, "a place of the id is the same in all"


def test_a_job_is_found_by_its_id(queue: JobQueue):
    one, two = submit(queue, Script()), submit(queue, Script())
    assert queue.get(one.id) is one
    assert queue.get(two.id) is two


def test_old_finished_jobs_are_forgotten(queue: JobQueue, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(jobs, "_REMEMBERED", 3)
    finished = [wait_for_end(submit(queue, Script())) for _ in range(5)]
    assert [queue.get(job.id) for job in finished] == [None, None, *finished[2:]]


def test_no_live_job_is_forgotten(queue: JobQueue, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(jobs, "_REMEMBERED", 2)
    script = Script(gated=True)
    running = submit_running(queue, script)
    waiting = [submit(queue, Script()) for _ in range(5)]
    live = [running, *waiting]
    assert [queue.get(job.id) for job in live] == live
    script.gate.set()
    for job in waiting:
        assert wait_for_end(job).view.status is Status.FINISHED
    newest = submit(queue, Script())
    assert [queue.get(job.id) for job in live] == [None] * 5 + [waiting[-1]]
    assert queue.get(newest.id) is newest


# Two threads write a job's view: the queue's, and that of whoever ends it.


@pytest.fixture
def slow_writes(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], threading.Event]:
    """Makes writing one field of a view slow; the event says that it has begun."""
    replace = jobs.replace

    def slow_down(field: str) -> threading.Event:
        begun = threading.Event()

        def replace_slowly(view: JobView, **changes: Any) -> JobView:
            replaced = replace(view, **changes)
            if field in changes:
                begun.set()
                # Time for the other thread's write; where that is locked out, nothing can tell.
                time.sleep(0.1)
            return replaced

        monkeypatch.setattr(jobs, "replace", replace_slowly)
        return begun

    return slow_down


def test_a_job_that_finishes_while_it_is_being_ended_is_over(queue: JobQueue, slow_writes):
    script = Script(gated=True)
    job = submit_running(queue, script)
    ending = slow_writes("stopping")
    end = threading.Thread(target=queue.end, args=(job.id,))
    end.start()
    assert ending.wait(PATIENCE)
    script.gate.set()
    following = submit(queue, Script())
    end.join(PATIENCE)
    wait_for_end(following)
    assert job.view.status is Status.FINISHED


def test_progress_does_not_undo_the_end(queue: JobQueue, slow_writes):
    script = Script()
    job = queue.submit(script.run_until_stopped(), script.stop)
    assert script.began.wait(PATIENCE)
    progressing = slow_writes("progress")
    assert progressing.wait(PATIENCE)
    queue.end(job.id)
    assert wait_for_end(job).view.stopping
