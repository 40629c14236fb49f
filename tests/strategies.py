"""Small deterministic strategies for tests: used as `tests.strategies:NAME` with the repository in PYTHONPATH."""

import json
import time

import numpy as np

from promof_hpc.config import DesignConfig
from promof_hpc.design.strategy import Proposal, Proposals
from promof_hpc.errors import PromofError, UsageError
from promof_hpc.screen.library import scan
from promof_hpc.structure import Structure

CELL_ANG = np.diag([4.2, 4.4, 6.5])  # small, because measuring pores takes long in large cells


def dimer(kind: int) -> Structure:
    """Two noble gas atoms in a small cell; no two kinds are alike."""
    numbers = np.array([(10, 10), (10, 18), (18, 18), (18, 36)][kind % 4], np.int32)
    return Structure(numbers, np.array([[0.0, 0, 0], [2.1, 2.2, 3.25 + 0.05 * (kind // 4)]]), CELL_ANG)


class Drift:
    """Perturbs crystals by a strength that follows the rewards, and refuses every fifth proposal.

    Its state is a number and a history, so that a lost or doubled round shows in everything that comes later.
    """

    refused_every = 5

    def __init__(self, config: DesignConfig):
        self._config = config
        self.strength, self.history = 0.05, []

    def propose(self, asked):
        items, noises = [], []
        sizes = self._config.rounds
        for group in range(len(asked.targets) * sizes.sets):
            base = self.base(group)
            for member in range(sizes.assemblies):
                rng = asked.generator("drift", group, member)
                noise = rng.normal(0, self.strength, base.positions.shape)
                noises.append(noise.std())
                name = f"r{asked.number:05d}-s{group:02d}-a{member:02d}"
                refused = self.refused_every and len(items) % self.refused_every == self.refused_every - 1
                structure = None if refused else self.structure(asked, base, noise, member)
                items.append(
                    Proposal(
                        name,
                        group,
                        group // sizes.sets,
                        f"set {group}",
                        structure,
                        "clash" if refused else "",
                        "two blocks overlap" if refused else "",
                        0.5 if refused else 1.0,
                        "noise",
                    )
                )
        strength = np.full(len(items), self.strength, np.float32)
        return Proposals(
            tuple(items), {"noise": np.array(noises), "strength": strength, "set": [i.sequence for i in items]}
        )

    def base(self, group):
        return dimer(group)

    def structure(self, asked, base, noise, member):
        return Structure(base.numbers, base.positions + noise, base.cell)

    def learn(self, asked, proposals, judged):
        rewards = np.array([j.reward for j in judged])
        assert len(proposals.trace["noise"]) == len(judged)
        mean = float(np.nanmean(rewards)) if np.isfinite(rewards).any() else 0.0
        self.strength = float(0.02 + 0.05 * abs(np.sin(mean + self.strength)))
        self.history.append([asked.number, asked.room, asked.spent, mean])
        return {"strength": self.strength, "rounds_seen": float(len(self.history))}

    def save(self, folder):
        text = json.dumps([self.strength, self.history])
        return lambda: (folder / "state.json").write_text(text)

    def load(self, folder):
        self.strength, self.history = json.loads((folder / "state.json").read_text())


class Repeating(Drift):
    """Proposes the same structures again and again: only the first round has new ones."""

    def structure(self, asked, base, noise, member):
        return dimer(member)


class Rejected(Drift):
    """Nothing of it ever passes the gate."""

    refused_every = 1


class Exhausted(Drift):
    """Has nothing to propose after two rounds."""

    def propose(self, asked):
        return super().propose(asked) if asked.number < 2 else Proposals(())


class Unbuildable(Drift):
    """Cannot be built."""

    def __init__(self, config):
        raise UsageError("No weights in nowhere; `promof pretrain` makes them.")


class Thinking(Drift):
    """Takes long to learn."""

    def learn(self, asked, proposals, judged):
        time.sleep(15)
        return super().learn(asked, proposals, judged)


class Broken(Drift):
    """Fails when it learns."""

    def learn(self, asked, proposals, judged):
        raise PromofError("This strategy cannot learn this; try another.")


class Shaken(Drift):
    """Shakes real MOFs of 22 to 36 atoms, a group each."""

    names = ("LIKFOB_clean", "UXEDEH_clean", "jp102463p_si_004_clean")

    def __init__(self, config):
        super().__init__(config)
        self.strength = 0.02
        entries = {e.name: e for e in scan("demo").entries}
        self.mofs = [entries[name].read() for name in self.names]

    def base(self, group):
        return self.mofs[group % len(self.mofs)]
