"""Whether somebody evaluates for a trainer that waits in vain, and others where they left for want of work."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

from hpc.cluster.batch_script import Role
from hpc.cluster.job_state import JobState
from hpc.cluster.overview import JobView, jobs_of
from hpc.cluster.site import Site
from hpc.cluster.steering import missing_jobs
from hpc.cluster.submission import no_other_submits, submit
from hpc.kinds import is_done
from hpc.preemption import Asked
from promof_hpc.config import load_config
from promof_hpc.errors import PromofError
from promof_hpc.store.events import read_events
from promof_hpc.store.run_dir import RunDir


@dataclass
class Evaluators:
    """The jobs that evaluate for a training job.

    Attributes:
        trainer: id of the training job.
        tell: told what a person should know.
    """

    run: RunDir
    site: Site
    trainer: str
    tell: Callable[[str], None]
    clock: Callable[[], float] = time.monotonic
    _alive_s: float | None = None

    def why_nobody(self, idle_s: float) -> str:
        """Why nobody will evaluate any more; empty where a job waits or works, or it is too early to say.

        Ranks that left for want of work are submitted again.

        Args:
            idle_s: for so long nobody has evaluated anything.
        """
        jobs, now, left = self._jobs(), self.clock(), self._why_left_beside()
        if not left and any(_is_alive(job) for job in jobs):
            self._alive_s = now
            return ""
        if _has_idled(jobs) and not (left := self._submit()):
            self._alive_s = now
            return ""
        alone_s = idle_s if self._alive_s is None else min(idle_s, now - self._alive_s)
        if alone_s < self.site.idle_min * 60:
            return ""
        why = f" ({left})" if left else ""
        return (
            f"no rank has evaluated anything for {self.site.idle_min:g} min, and no evaluate job is known to wait or "
            f"work{why}"
        )

    def call_back(self) -> None:
        """Have the ranks that left for want of work do what is left when training has ended: ask a second potential."""
        if not is_done(self.run) and _has_idled(self._jobs()) and (why := self._submit()):
            self.tell(why)

    def _jobs(self) -> list[JobView]:
        return [job for job in jobs_of(self.run) if Role.EVALUATE in job.submitted.role.split(" and ")]

    def _submit(self) -> str:
        """Have others evaluate; why they cannot."""
        with ExitStack() as stack:
            try:
                stack.enter_context(no_other_submits(self.run))
            except PromofError:
                return ""  # somebody resumes the run just now: the next look shows what came of it
            missing = missing_jobs(self.run, jobs_of(self.run, anew=True))
            evaluate = [one for one in missing if one.request.role is Role.EVALUATE]
            try:
                # by the profile as it is now: somebody may have submitted with another since this job began
                for submitted in submit(self.run, load_config(Site, self.run.site), evaluate):
                    self.tell(f"the ranks had left for want of work: submitted {submitted.name} as job {submitted.job}")
            except PromofError as error:
                return f"the ranks have left for want of work, and others could not be submitted: {error}"
        return ""

    def _why_left_beside(self) -> str:
        """Why the ranks in the trainer's own allocation left of their own accord; empty where they did not."""
        said = [e for e in read_events(self.run) if (e.get("job"), e.get("role")) == (self.trainer, Role.EVALUATE)]
        last = said[-1] if said else {}
        return str(last["why"]) if last.get("asked") == Asked.LEAVE.name else ""


def _has_idled(jobs: Sequence[JobView]) -> bool:
    """Whether the newest of these left for want of work."""
    return bool(jobs) and jobs[-1].left == Asked.IDLE.name


def _is_alive(job: JobView) -> bool:
    """Whether it waits or works as far as the scheduler knows."""
    return not job.over and job.seen.state is not JobState.UNKNOWN
