"""A user of the private cluster: `promof` commands, and a small campaign of both policies."""

from __future__ import annotations

import itertools
import json
import math
import subprocess
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import yaml

from promof_hpc.design.campaign.loop import Phase
from promof_hpc.store.budget import fold
from promof_hpc.store.claims import suspects
from promof_hpc.store.events import read_events
from promof_hpc.store.run_dir import RunDir
from promof_hpc.store.verify import verify
from tests.commands import COMMAND, ENVIRONMENT, ROOT
from tests.policies import libraries, policies
from tests.processes import wait_for

BUDGET = 64


def small_campaign(folder: Path, **changes: object) -> Path:
    """The configuration of a campaign with tiny policies under Lennard-Jones, some minutes of a few cores."""
    content = {
        "budget": BUDGET,
        "task": {"name": "pore", "pld_ang": 3.0},
        "reference": "none",
        "reward": {"stability_weight": 0},
        "rounds": {"targets": 1, "sets": 4, "assemblies": 4, "lookahead": 1, "proposals_per_evaluation": 40},
        "assembly": {"atom_cap": 50, "tries": 1},
        "sde": {"steps": 4},
        "learning": {"k": 2},
        "policy": {"weights": str(policies(folder / "weights")), "data": str(libraries(folder / "data"))},
        "evaluation": {
            "stages": "read,pores,relax,energy",
            "potential": {"name": "lennard-jones"},
            "relax": {"max_steps": 5},
        },
        "farm": {"ranks": 4, "batch_structures": 2, "meeting_s": 60},
        "training": {"tasks": 2},
        **changes,
    }
    path = folder / "design.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


class User:
    """Somebody who is logged in to the cluster."""

    def __init__(self, cluster, home: Path):
        """Live in `home`, where the cache of what the scheduler said is."""
        self.environment = {
            **ENVIRONMENT, **cluster.environment, "OMP_NUM_THREADS": "1", "XDG_CACHE_HOME": str(home / "cache")
        }  # fmt: skip

    def promof(self, *words: object, code: int | None = 0) -> str:
        """What a command printed; its exit code must be `code` unless that is None."""
        command = [*COMMAND, *map(str, words)]
        done = subprocess.run(command, env=self.environment, cwd=ROOT, capture_output=True, text=True, timeout=300)
        assert code is None or done.returncode == code, done.stderr + done.stdout
        assert "Traceback" not in done.stderr
        return done.stdout + done.stderr

    def python(self, code: str, *words: object) -> None:
        """Run a few lines in the user's environment."""
        command = [COMMAND[0], "-c", code, *map(str, words)]
        subprocess.run(command, env=self.environment, cwd=ROOT, check=True, timeout=300)

    def submit(self, config: Path | str, run: RunDir, *settings: str, command: str = "design") -> list[str]:
        """Submit a run of a configuration or a library; the ids of its jobs."""
        words = [word for setting in settings for word in ("--set", setting)]
        said = self.promof("submit", command, config, *words, "--site", "test-cluster", "--run", run.path)
        return [line.split()[-1].rstrip(".") for line in said.splitlines() if line.startswith("Submitted")]


def ended(run: RunDir) -> bool:
    return run.ended.exists()


def ends_exactly(run: RunDir, budget: int = BUDGET, seconds: float = 300) -> None:
    """The campaign comes to its end, every evaluation of its budget was committed once, and every file is sound."""
    wait_for(lambda: ended(run), seconds, f"the end of {run.path}")
    assert json.loads(run.ended.read_text())["ending"] == "SPENT"
    is_exact(run, budget)


def is_exact(run: RunDir, budget: int = BUDGET) -> None:
    ledger = fold(run, budget)
    assert (ledger.issued, ledger.committed, ledger.in_flight) == (budget, budget, 0)
    assert "crashed" not in ledger.outcomes
    found = verify(run)
    assert found.sound, found.findings
    assert not found.redo


def committed(run: RunDir) -> int:
    """Batches that were committed."""
    return sum(len(run.committed(n)) for n in run.round_numbers())


@dataclass(frozen=True)
class Lost:
    """Work that was done again.

    Attributes:
        batches: that were in hand when a rank died or was made to drop them.
        rounds: that were learned from again, of which one death may cost `most`: the one at work, and those that end
            within an interval between checkpoints (here rounds are shorter than that).
    """

    batches: int
    rounds: int
    most: int


def lost_work(run: RunDir) -> Lost:
    """By the run's own record."""
    events = list(read_events(run))
    learned = [e for e in events if e["event"] == "phase" and e["phase"] == Phase.LEARN]
    again = sum(count - 1 for count in Counter(e["round"] for e in learned).values())
    kept = sorted(float(e["time_s"]) for e in events if e["event"] == "checkpoint")
    times = sorted(float(e["time_s"]) for e in learned)
    between = [sum(a < t <= b for t in times) for a, b in itertools.pairwise([0.0, *kept, math.inf])]
    dropped = sum(e["event"] == "dropped" for e in events)
    return Lost(len(suspects(run)) + dropped, again, 1 + max(between))
