"""Whether somebody evaluates for a trainer that waits in vain, and others where they left for want of work."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass

from hpc.cluster.batch_script import Role
from hpc.cluster.job_state import JobState
from hpc.cluster.overview import JobView, jobs_of
from hpc.cluster.site import Site
from hpc.cluster.steering import missing_jobs
from hpc.cluster.submission import no_other_submits, submit
from hpc.preemption import Asked
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
        jobs = [job for job in jobs_of(self.run) if Role.EVALUATE in job.submitted.role.split(" and ")]
        now, left = self.clock(), self._why_left_beside()
        if not left and any(_is_alive(job) for job in jobs):
            self._alive_s = now
            return ""
        if jobs and jobs[-1].left == Asked.IDLE.name:
            return self._submit()
        alone_s = idle_s if self._alive_s is None else min(idle_s, now - self._alive_s)
        if alone_s < self.site.idle_min * 60:
            return ""
        why = f" ({left})" if left else ""
        return f"no rank has evaluated anything for {self.site.idle_min:g} min and no evaluate job is left{why}"

    def _submit(self) -> str:
        """Have others evaluate; why they cannot."""
        with ExitStack() as stack:
            try:
                stack.enter_context(no_other_submits(self.run))
            except PromofError:
                return ""  # somebody resumes the run just now: the next look shows what came of it
            missing = missing_jobs(self.run, jobs_of(self.run, anew=True))
            try:
                for submitted in submit(self.run, self.site, [m for m in missing if m.request.role is Role.EVALUATE]):
                    self.tell(f"the ranks had left for want of work: submitted {submitted.name} as job {submitted.job}")
            except PromofError as error:
                return f"the ranks have left for want of work, and others could not be submitted: {error}"
        return ""

    def _why_left_beside(self) -> str:
        """Why the ranks in the trainer's own allocation left of their own accord; empty where they did not."""
        said = [e for e in read_events(self.run) if (e.get("job"), e.get("role")) == (self.trainer, Role.EVALUATE)]
        last = said[-1] if said else {}
        return str(last["why"]) if last.get("asked") == Asked.LEAVE.name else ""


def _is_alive(job: JobView) -> bool:
    """Whether it waits or works as far as the scheduler knows."""
    return not job.over and job.seen.state is not JobState.UNKNOWN
