"""Strategy `random`, and the example of how to add one.

A strategy is a class that is called with the run's configuration and has four methods (`design/strategy.py`):
`propose` makes the structures of a round, `learn` sees what became of them, `save` and `load` carry its state over a
restart. Two rules keep campaigns repeatable: random numbers come from `asked.generator(purpose, ...)` only, and
`propose` changes no state, since after a restart it is not called again for rounds that are stored already. Budget,
gate, scorer, rewards and metrics are the campaign's. Run it as `strategy: my_module:MyStrategy`; to make it part of
this package, name it in `design/registry.py` and `config/design.py`.

This one learns nothing: component sets of known MOFs, every other one with a linker or a node exchanged for another
that offers the same contacts, assembled on nets of known MOFs.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from promof_hpc.assembly.components import Components
from promof_hpc.config import DesignConfig
from promof_hpc.design.libraries import Libraries
from promof_hpc.design.proposing.by_net import NetAssembly
from promof_hpc.design.proposing.sharing import shared
from promof_hpc.design.strategies.exchange import Exchange, bites_fit
from promof_hpc.design.strategy import Judged, Proposal, Proposals, Round
from promof_hpc.errors import Refused
from promof_hpc.store.checkpoint import Write

MOST_DRAWS = 50  # component sets tried for one group; beyond, the libraries hold nothing below the atom cap


class RandomSearch:
    """Random component sets on random nets."""

    def __init__(self, config: DesignConfig):
        self._rounds = config.rounds
        self._assembly = NetAssembly(config, Libraries.read(config.policy.data))
        self._exchange = Exchange(self._assembly.libraries)

    def propose(self, asked: Round) -> Proposals:
        """So many component sets for every target, each assembled so many times."""
        groups = range(len(asked.targets) * self._rounds.sets)
        return Proposals(tuple(shared([p for g in groups for p in self._group(asked, g)])))

    def learn(self, asked: Round, proposals: Proposals, judged: Sequence[Judged]) -> dict[str, float]:
        """Nothing is learned."""
        return {}

    def save(self, folder: Path) -> Write:
        """There is no state."""
        return lambda: None

    def load(self, folder: Path) -> None:
        """There is no state."""

    def _group(self, asked: Round, group: int) -> list[Proposal]:
        generator = asked.generator("random", group)
        for _ in range(MOST_DRAWS):
            components = self._draw(generator)
            if components is not None:
                done = self._assembly.assemble(components, self._rounds.assemblies, generator)
                if done:
                    return self._assembly.proposals(asked, group, group // self._rounds.sets, components, done)
        return []

    def _draw(self, generator: np.random.Generator) -> Components | None:
        """Components of a known set or of a neighbour of one; None where they cannot be built."""
        chosen = self._exchange.known_set(generator)
        if generator.random() < 0.5:
            chosen = self._exchange.neighbour(chosen, generator) or chosen
        try:
            components = self._assembly.realise(chosen, generator)
        except Refused:
            return None
        return components if bites_fit(components) else None
