"""Strategy `promof`: two policies that learn from one reward, each by group-relative policy gradient (PRO-MOF).

    low level   the n assemblies of a component set are a group: advantage of the best of k (or plain GRPO) -> engineer
    high level  a set earns its best assembly, and is compared with the other sets of its target:
                advantage of plain GRPO, or of the best of `k_sets`                                       -> chemist

Taken from GRPO: no critic, advantages relative to a group, clipped ratios, KL to a frozen reference. Left out: nothing
is learned from groups without variance, and from those that the budget cut. Every group of the engineer, and the sets
of every target of the chemist, are one optimiser step. What is learned from is what the round's shard holds, so a
restart learns the same.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch

from promof_hpc.config import DesignConfig, RewardSettings
from promof_hpc.design.learning.advantage import Advantages, annealed, credit, k_at, separately_normalised, warm_up
from promof_hpc.design.learning.chemist_learner import ChemistLearner
from promof_hpc.design.learning.chemist_learner import Lesson as WrittenSet
from promof_hpc.design.learning.engineer_learner import EngineerLearner
from promof_hpc.design.learning.engineer_learner import Lesson as FlownGroup
from promof_hpc.design.learning.team import ALONE, Team
from promof_hpc.design.proposing.chain import Proposing
from promof_hpc.design.proposing.trace import Trace
from promof_hpc.design.strategy import Judged, Proposals, Round
from promof_hpc.policy.host_buffers import HostBuffers
from promof_hpc.policy.weights import copy_chemist, copy_engineer, load_chemist, load_engineer
from promof_hpc.store.checkpoint import Write
from promof_hpc.store.shard import replace_text

MEMORY = "memory.json"


@dataclass(frozen=True)
class Remembered:
    """A good earlier component set: tokens, their log-probs when sampled, what it was written for and earned."""

    tokens: tuple[int, ...]
    log_probs: tuple[float, ...]
    target: Mapping[str, float]
    earned: float


class Promof:
    """Hierarchical GRPO over a chemist and an engineer."""

    def __init__(self, config: DesignConfig, team: Team = ALONE):
        """Learn with the other processes of a team, each of which has made this object."""
        self._config, self._settings, self._team = config, config.learning, team
        self.proposing = Proposing(config, team=team)
        policies, before = self.proposing.policies, self.proposing.engineer_before
        self.chemist = ChemistLearner(policies.chemist, config.learning, self.proposing.grammar, team)
        self.engineer = EngineerLearner(policies.engineer.network, before, config.learning, team)
        self.memory: tuple[Remembered, ...] = ()
        self._buffers = [
            HostBuffers(network.state_dict().values() if team.rank == 0 else ())
            for network in (policies.chemist.network, policies.engineer.network)
        ]

    def propose(self, asked: Round) -> Proposals:
        """Structures for a round."""
        items, trace = self.proposing.propose(asked)
        return Proposals(tuple(items), trace.columns())

    def learn(self, asked: Round, proposals: Proposals, judged: Sequence[Judged]) -> dict[str, float]:
        """Update both policies; see `strategy.Strategy`."""
        trace, settings = Trace.read(proposals.trace), self._settings
        members: list[list[Judged]] = [[] for _ in trace.drafts]
        for item, verdict in zip(proposals.items, judged, strict=True):
            members[item.group].append(verdict)
        k = k_at(asked.spent / max(1, self._config.budget or 1), settings)
        low = annealed([learned_rewards(m, self._config.reward) for m in members], settings, k, asked.number)
        high, dead_targets = self._compared_sets(trace, members, k, asked.number)
        signals = _rewards(judged) | {"k": float(k), "warm_up": warm_up(asked.number, settings.warmup_rounds)}
        signals |= {"dead_groups_share": low.dead_share, "dead_targets_share": dead_targets}
        if settings.freeze != "chemist":
            signals |= self.chemist.learn(self._written(asked, trace, high), self._remembered(asked))
        if settings.freeze != "engineer":
            signals |= self.engineer.learn(self._flown(asked, trace, low))
        self._remember(asked, trace, members, k)
        return signals

    def save(self, folder: Path) -> Write:
        """Optimisers, and from the first process of a team weights and memory, which all have alike."""
        optimisers = [self.chemist.engine.save(folder), self.engineer.engine.save(folder)]
        if self._team.rank > 0:
            return lambda: [write() for write in optimisers]
        chemist, engineer = self.proposing.policies.chemist, self.proposing.policies.engineer
        policies = [
            copy_chemist(chemist.network, chemist.vocabulary, chemist.conditions, self._buffers[0]),
            copy_engineer(engineer.network, self._buffers[1]),
        ]
        memory = json.dumps([asdict(m) for m in self.memory])

        def write_all() -> None:
            for copied in policies:
                copied.save(folder)
            for write in optimisers:
                write()
            replace_text(folder / MEMORY, memory)

        return write_all

    def load(self, folder: Path) -> None:
        """Go on from what `save` wrote; the references stay what the campaign began with."""
        self.chemist.network.load_state_dict(load_chemist(folder).network.state_dict())
        self.engineer.network.load_state_dict(load_engineer(folder).network.state_dict())
        self.chemist.engine.load(folder)
        self.engineer.engine.load(folder)
        stored = json.loads((folder / MEMORY).read_text(encoding="utf-8"))
        self.memory = tuple(
            Remembered(tuple(m["tokens"]), tuple(m["log_probs"]), m["target"], m["earned"]) for m in stored
        )

    def _compared_sets(
        self, trace: Trace, members: Sequence[Sequence[Judged]], k: int, number: int
    ) -> tuple[dict[int, float], float]:
        """Advantages of component sets among those of their target, by group; and the share of targets without any."""
        groups_of: dict[int, list[int]] = {d.target: [] for d in trace.drafts}
        for draft in trace.drafts:
            if _whole(members[draft.group]):
                groups_of[draft.target].append(draft.group)
        earned = [self._earned([members[g] for g in groups], k) for groups in groups_of.values()]
        found = annealed(earned, self._settings, self._settings.k_sets, number, estimator="pass_at_k")
        high: dict[int, float] = {}
        for groups, values in zip(groups_of.values(), found.values, strict=True):
            if values is not None:
                high.update(zip(groups, values.tolist(), strict=True))
        return high, found.dead_share

    def _earned(self, sets: Sequence[Sequence[Judged]], k: int) -> np.ndarray:
        """What each of a target's sets earned from its assemblies, [m]; parts are brought to the target's scale."""
        rewards = learned_rewards([j for members in sets for j in members], self._config.reward)
        cuts = np.cumsum([0, *[len(members) for members in sets]])
        return np.array([credit(rewards[a:b], self._settings.credit, k) for a, b in itertools.pairwise(cuts)])

    def _written(self, asked: Round, trace: Trace, high: Mapping[int, float]) -> list[list[WrittenSet]]:
        """Batches for the chemist: the sets of each target."""
        batches: dict[int, list[WrittenSet]] = {}
        for draft in trace.drafts:
            if draft.group in high:
                lesson = WrittenSet(draft.tokens, draft.log_probs, asked.targets[draft.target], high[draft.group])
                batches.setdefault(draft.target, []).append(lesson)
        return list(batches.values())

    def _remembered(self, asked: Round) -> list[WrittenSet]:
        """The best sets of earlier rounds, each as good as one standard deviation above its group."""
        weight = warm_up(asked.number, self._settings.warmup_rounds) if self._settings.anneal == "advantage" else 1.0
        return [
            WrittenSet(np.array(m.tokens), np.array(m.log_probs, np.float32), m.target, weight) for m in self.memory
        ]

    def _flown(self, asked: Round, trace: Trace, low: Advantages) -> list[FlownGroup]:
        """Groups for the engineer."""
        lessons = []
        for flight in trace.flights:
            values = low.values[flight.group]
            if values is not None:
                fixed = self.proposing.rebuilt(asked, trace.drafts[flight.group], flight)
                device = self._team.device
                advantages = torch.from_numpy(values).to(fixed.local)
                lessons.append(FlownGroup(fixed, flight.rollout.to(device), advantages))
        return lessons

    def _remember(self, asked: Round, trace: Trace, members: Sequence[Sequence[Judged]], k: int) -> None:
        """Keep the best different sets of all rounds, by their own reward."""
        best = {m.tokens: m for m in self.memory}
        for draft in trace.drafts:
            judged = members[draft.group]
            if not _whole(judged):
                continue
            earned = credit(np.array([j.reward for j in judged]), self._settings.credit, k)
            tokens = tuple(draft.tokens.tolist())
            if earned > self._config.reward.floor and (tokens not in best or best[tokens].earned < earned):
                target = dict(asked.targets[draft.target])
                best[tokens] = Remembered(tokens, tuple(draft.log_probs.tolist()), target, earned)
        self.memory = tuple(sorted(best.values(), key=lambda m: (-m.earned, m.tokens))[: self._settings.replay])


def _whole(members: Sequence[Judged]) -> bool:
    """Whether every assembly of a set has a reward."""
    return bool(members) and all(np.isfinite(j.reward) for j in members)


def learned_rewards(members: Sequence[Judged], settings: RewardSettings) -> np.ndarray:
    """Rewards [n] of what is compared: as they are, or with energy and property brought to one scale first.

    What failed has no parts; both are then set so that their weighted sum is its reward. Costs belong to the energy.
    """
    rewards = np.array([j.reward for j in members])
    energy_weight, property_weight = settings.stability_weight, settings.property_weight
    if settings.norm == "joint" or not (energy_weight and property_weight) or not np.isfinite(rewards).all():
        return rewards
    alone = rewards / (energy_weight + property_weight)
    rewarded = np.array([np.isfinite(j.stability) and np.isfinite(j.property) for j in members], bool)
    prop = np.where(rewarded, [j.property for j in members], alone)
    energy = (rewards - property_weight * prop) / energy_weight
    return separately_normalised(energy, prop, energy_weight, property_weight)


def _rewards(judged: Sequence[Judged]) -> dict[str, float]:
    """What the round's rewards were like; NaN where none may be learned from."""
    rewards = np.array([j.reward for j in judged], float)
    rewards = rewards[np.isfinite(rewards)]
    some = len(rewards) > 0
    return {"reward_mean": float(rewards.mean()) if some else float("nan"),
            "reward_max": float(rewards.max()) if some else float("nan")}  # fmt: skip
