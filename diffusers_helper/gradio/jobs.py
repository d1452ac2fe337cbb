"""Jobs run one at a time, and each is seen only by who holds its id."""

import logging
import secrets
import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np

from diffusers_helper.generation import Done, Event, Progress, SectionFinished

logger = logging.getLogger(__name__)

_REMEMBERED = 100


class Status(Enum):
    """Where a job is in its life."""

    WAITING = "waiting"
    RUNNING = "running"
    FINISHED = "finished"
    STOPPED = "stopped"
    FAILED = "failed"

    @property
    def ended(self) -> bool:
        """Whether nothing more will happen."""
        return self not in (Status.WAITING, Status.RUNNING)


@dataclass(frozen=True, eq=False)
class JobView:
    """A job as it is at one moment."""

    id: str
    status: Status
    progress: Progress | None = None
    preview: np.ndarray | None = None
    """The latest there was."""
    video: Path | None = None
    frames: int = 0
    stopping: bool = False
    error: str | None = None
    """Why it failed, in a sentence for the user."""


class Job:
    """A source of events, and what has come of it."""

    def __init__(self, events: Iterator[Event], stop: threading.Event) -> None:
        self.events = events
        self.stop = stop
        self.view = JobView(secrets.token_urlsafe(16), Status.WAITING)

    @property
    def id(self) -> str:
        """Unguessable: whoever has it may watch and end the job."""
        return self.view.id


class JobQueue:
    """Runs jobs in the order of coming, in a thread of its own.

    Args:
        prepare: called before the first job, and before every further one until it succeeds once.
        explain: an error as a sentence for the user.
    """

    def __init__(
        self, prepare: Callable[[], object], explain: Callable[[BaseException], str]
    ) -> None:
        self._prepare = prepare
        self._explain = explain
        self._waiting: deque[Job] = deque()
        self._running: Job | None = None
        self._jobs: OrderedDict[str, Job] = OrderedDict()
        self._closing = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="jobs", daemon=True)

    def start(self) -> None:
        """Prepare, then run jobs."""
        self._thread.start()

    def close(self, timeout: float = 30.0) -> None:
        """End all jobs and the thread; waits up to `timeout` seconds for the current step."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        for job in list(self._jobs.values()):
            self.end(job.id)
        self._thread.join(timeout)

    def submit(self, events: Iterator[Event], stop: threading.Event) -> Job:
        """Add a job; `stop` ends it when set."""
        job = Job(events, stop)
        with self._changed:
            self._jobs[job.id] = job
            while len(self._jobs) > _REMEMBERED:
                oldest = next(iter(self._jobs.values()))
                if not oldest.view.status.ended:
                    break
                del self._jobs[oldest.id]
            self._waiting.append(job)
            self._changed.notify()
        return job

    def get(self, job_id: str | None) -> Job | None:
        """The job of an id, None if it is unknown (or long over)."""
        return self._jobs.get(job_id)

    def end(self, job_id: str | None) -> None:
        """Stop a job, or take it out of the queue; what it finished stays."""
        with self._changed:
            job = self._jobs.get(job_id)
            if job is None:
                return
            job.stop.set()
            self._show(job, stopping=True)
            if job in self._waiting:
                self._waiting.remove(job)
                job.events = iter(())  # lets go of its image
                self._show(job, status=Status.STOPPED)

    def place(self, job: Job) -> int:
        """How many jobs are run before this waiting one."""
        with self._changed:
            ahead = self._waiting.index(job) if job in self._waiting else 0
            return ahead + (self._running is not None)

    def _run(self) -> None:
        prepared = self._try(self._prepare) is None
        while True:
            with self._changed:
                self._running = None
                self._changed.wait_for(lambda: self._waiting or self._closing)
                if self._closing:
                    return
                job = self._running = self._waiting.popleft()
            self._show(job, status=Status.RUNNING)
            error = None if prepared else self._try(self._prepare)
            prepared = error is None
            if prepared:
                error = self._try(lambda job=job: self._follow(job))
            if error is not None:
                self._show(job, status=Status.FAILED, error=error)

    def _try(self, action: Callable[[], object]) -> str | None:
        """Why `action` failed, None if it did not."""
        try:
            action()
        except Exception as error:  # whatever it is, its user reads it and the next job runs
            logger.exception("A job failed")
            return self._explain(error)
        return None

    def _follow(self, job: Job) -> None:
        for event in job.events:
            match event:
                case Progress():
                    preview = job.view.preview if event.preview is None else event.preview
                    self._show(job, progress=event, preview=preview)
                case SectionFinished():
                    self._show(job, video=event.path, frames=event.frames)
                case Done():
                    status = Status.STOPPED if event.stopped else Status.FINISHED
                    self._show(job, status=status, frames=event.frames)

    def _show(self, job: Job, **changes: Any) -> None:
        with self._changed:  # ending comes from another thread than progress
            job.view = replace(job.view, **changes)
