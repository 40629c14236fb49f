"""Assembly without a policy, as the strategies use it: component sets realised, put on nets of known MOFs, proposed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from promof_hpc.assembly.assembler import Assembled, FinishSettings, assemble_by_net
from promof_hpc.assembly.components import Components
from promof_hpc.assembly.snap import MODEL_BLOCK_ERROR_ANG, SnapSettings
from promof_hpc.chem.sequence import ComponentSet
from promof_hpc.config import AssemblySettings, DesignConfig
from promof_hpc.design.libraries import Libraries
from promof_hpc.design.strategy import Proposal, Round


class NetAssembly:
    """The libraries and the finisher of a run.

    Attributes:
        libraries: of the run's training set.
        finisher: the same for every compared system.
    """

    def __init__(self, config: DesignConfig, libraries: Libraries):
        self.libraries = libraries
        self.finisher = finish_settings(config.assembly)
        self._realiser = libraries.realiser(config.assembly.atom_cap)
        self._conformer_seed = config.assembly.conformer_seed

    def realise(self, chosen: ComponentSet, generator: np.random.Generator) -> Components:
        """The blocks of a set with geometry.

        Raises:
            Refused: they cannot be built.
        """
        return self._realiser.realise(chosen, generator, self._conformer_seed)

    def assemble(self, components: Components, count: int, generator: np.random.Generator) -> list[Assembled]:
        """At most `count` assemblies on nets of known MOFs; none where no known net has the signature."""
        return assemble_by_net(components, self.libraries.nets, count, self.finisher, generator)

    def proposals(
        self, asked: Round, group: int, target: int, components: Components, done: Sequence[Assembled]
    ) -> list[Proposal]:
        """The proposals of one group."""
        return [
            proposal_of(f"r{asked.number:05d}-s{group:02d}-a{k:02d}", group, target, components.sequence, assembled)
            for k, assembled in enumerate(done)
        ]


def proposal_of(name: str, group: int, target: int, sequence: str, assembled: Assembled) -> Proposal:
    """An assembly as a proposal; the first failure of the gate is the reason of a refusal."""
    failures = assembled.gate.failures
    return Proposal(
        name=name,
        group=group,
        target=target,
        sequence=sequence,
        structure=assembled.structure if assembled.gate.passed else None,
        refusal="" if assembled.gate.passed else str(failures[0].reason),
        detail="" if assembled.gate.passed else failures[0].detail,
        gate_score=assembled.gate.score,
        start=assembled.start,
        misfit=assembled.misfit,
        snap_energy_ang2=assembled.snap_energy_ang2,
        displacement_ang=assembled.displacement_ang,
    )


def finish_settings(assembly: AssemblySettings) -> FinishSettings:
    """The finisher that a configuration asks for."""
    snap = SnapSettings(
        tries=assembly.tries, contact_weight=assembly.contact_weight, block_error_ang=MODEL_BLOCK_ERROR_ANG
    )
    return FinishSettings(snap=snap if assembly.snap else None, atom_cap=assembly.atom_cap)
