"""From what is wanted to structures: the chain that every policy strategy shares, with everything that learning needs.

    targets -> chemist writes m component sets each -> parsed and realised with geometry -> n starts (noise, net)
            -> flow as SDE (the engineer's decisions) -> snap -> gate -> proposals

An invalid component set becomes one refused proposal; it still teaches the chemist. Nothing after the engineer's
actions depends on parameters that learn: the contact head that snap and the order of nets ask is a frozen copy.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from promof_hpc.assembly.assembler import Assembled, finish
from promof_hpc.assembly.components import Components
from promof_hpc.assembly.net_start import NetStart
from promof_hpc.assembly.stack import Stack, stack
from promof_hpc.chem.sequence import parse_sequence
from promof_hpc.config import DesignConfig, SdeSettings
from promof_hpc.design.learning.team import ALONE, Team, in_turn
from promof_hpc.design.libraries import Libraries
from promof_hpc.design.proposing.by_net import finish_settings, proposal_of
from promof_hpc.design.proposing.sharing import shared
from promof_hpc.design.proposing.starts import chosen_nets, launch
from promof_hpc.design.proposing.trace import Draft, Flight, Trace, components_digest
from promof_hpc.design.strategy import Proposal, Round
from promof_hpc.errors import PromofError, Refused, UsageError
from promof_hpc.policy import sde
from promof_hpc.policy.grammar import Grammar
from promof_hpc.policy.sampling import sample
from promof_hpc.policy.state import State
from promof_hpc.policy.weights import Policies, load_policies

NOISE = "noise"
FINISHED = 1.0  # flow time at which the contact head is asked about poses that the flow has left


class Proposing:
    """The chain with the policies, libraries and settings of a run.

    Attributes:
        policies: what samples; learning changes their networks in place.
        engineer_before: frozen copy of the engineer as it was loaded: the environment's contact head, and the
            reference of the KL.
        libraries: of the training set.
        grammar: what the chemist may write; None where every SMILES may be tried.
    """

    def __init__(self, config: DesignConfig, *, noise: SdeSettings | None = None, team: Team = ALONE):
        """Load the policies and libraries that the configuration names.

        Args:
            noise: in place of the configuration's, for instance without any.
            team: processes that take turns with the groups of a round.

        Raises:
            UsageError: weights or libraries are missing.
        """
        self._config, self._noise, self._team = config, config.sde if noise is None else noise, team
        self.policies: Policies = load_policies(config.policy.weights)
        for network in (self.policies.chemist.network, self.policies.engineer.network):
            network.to(team.device)
            network.bf16 = config.training.precision == "bf16"
        self.engineer_before = copy.deepcopy(self.policies.engineer.network).requires_grad_(False).eval()
        self.libraries = Libraries.read(config.policy.data)
        self._realiser = self.libraries.realiser(config.assembly.atom_cap)
        self.grammar = self._grammar()
        self._finishing = finish_settings(config.assembly)

    def _grammar(self) -> Grammar | None:
        """What the chemist may write; None where every SMILES may be tried.

        Raises:
            UsageError: no node and linker that the chemist can spell fit under the cap.
        """
        if self._config.policy.blocks == "open":
            return None
        nodes, linkers = self.libraries.nodes.by_key, self.libraries.linkers.linkers
        cap = self._config.assembly.atom_cap
        try:
            return Grammar(self.policies.chemist.vocabulary, nodes, linkers, cap)
        except ValueError as error:
            raise UsageError(f"{error}; raise assembly.atom_cap or prepare another library.") from error

    def propose(self, asked: Round) -> tuple[list[Proposal], Trace]:
        """Proposals of a round, members of a group together, and what is needed to learn from them.

        Assemblies that ended as the same crystal share one structure.
        """
        drafts = self._team.gather(self.drafts(asked))[0]  # rounding may differ between devices: one draft counts
        own = [(draft.group, *self.assemble(asked, draft)) for draft in in_turn(drafts, self._team)]
        made = sorted((group for part in self._team.gather(own) for group in part), key=lambda g: g[0])
        proposals = [p for _, members, _ in made for p in members]
        flights = tuple(flight for _, _, flight in made if flight is not None)
        return shared(proposals), Trace(tuple(drafts), flights)

    @torch.no_grad()
    def drafts(self, asked: Round) -> list[Draft]:
        """m component sets for every target, groups numbered through."""
        chemist, each = self.policies.chemist, self._config.rounds.sets
        conditions = chemist.conditions.encode([t for t in asked.targets for _ in range(each)]).to(self._team.device)
        generator = torch_generator(asked, "chemist")
        written = sample(chemist.network, chemist.vocabulary, conditions, generator, grammar=self.grammar)
        tokens, log_probs = written.tokens.cpu().numpy(), written.log_probs.cpu().numpy()
        lengths = written.lengths.tolist()
        return [Draft(g, g // each, tokens[g, :n], log_probs[g, :n]) for g, n in enumerate(lengths)]

    def text(self, draft: Draft) -> str:
        """What a draft says."""
        return self.policies.chemist.vocabulary.decode(draft.tokens.tolist())

    def realise(self, asked: Round, draft: Draft) -> Components:
        """The blocks of a draft with geometry, the same whenever this round is asked for them.

        Raises:
            Refused: not a component set, a block that cannot be built, contacts that do not add up, or too many atoms.
        """
        chosen = parse_sequence(self.text(draft), self.libraries.nodes.by_key)
        generator = asked.generator("realise", draft.group)
        return self._realiser.realise(chosen, generator, self._config.assembly.conformer_seed)

    def assemble(self, asked: Round, draft: Draft) -> tuple[list[Proposal], Flight | None]:
        """The proposals of one group and the flight that led to them; one refusal and no flight for an invalid set."""
        name = f"r{asked.number:05d}-s{draft.group:02d}"
        try:
            components = self.realise(asked, draft)
        except Refused as refused:
            invalid = Proposal(f"{name}-a00", draft.group, draft.target, self.text(draft), None, str(refused.reason))
            return [replace(invalid, detail=refused.detail, gate_score=0.0)], None
        count, settings = self._config.rounds.assemblies, self._config.assembly
        draws = asked.generator("nets", draft.group)
        nets = chosen_nets(components, self.libraries.nets, count, settings, self.engineer_before, draws)
        fixed = stack([components] * count).to(self._team.device)
        generator = torch_generator(asked, "flight", draft.group)
        begin = launch(fixed, nets, settings.start_time if settings.flow else 1.0, generator)
        flight, final = None, begin.x0
        if settings.flow:
            engineer = self.policies.engineer.network
            first = self._first_noisy(asked.number)
            rollout = sde.rollout(engineer, fixed, begin.x0, begin.times, self._noise, generator, first=first)
            flight, final = Flight(draft.group, components_digest(fixed), rollout.to("cpu")), rollout.final
        seed = int(asked.generator("snap", draft.group).integers(2**31))
        logits = self._contact_logits(fixed, final)
        ends = finish(fixed, final.poses(), self._finishing, starts=begin.nets, logits=logits, seed=seed)
        proposals = [
            proposal_of(f"{name}-a{k:02d}", draft.group, draft.target, components.sequence, end)
            for k, end in enumerate(_with_noise(ends, begin.nets))
        ]
        return proposals, flight

    def _first_noisy(self, number: int) -> int:
        """First step of the window of noise, which slides by a step a round; the last step never has noise."""
        steps, window = self._noise.steps, self._noise.window
        return 0 if window is None else number % max(1, steps - window)

    @torch.no_grad()
    def _contact_logits(self, fixed: Stack, state: State) -> Tensor | None:
        """What the frozen contact head says about who meets whom, [B, E, E]."""
        if self._config.assembly.contact_weight <= 0 or not self._config.assembly.snap:
            return None
        before = self.engineer_before
        if before.contact_head is None:
            return None
        times = torch.full((len(fixed),), FINISHED, device=fixed.local.device)
        return before.contact_logits(before.prepare(fixed), state, times)

    def rebuilt(self, asked: Round, draft: Draft, flight: Flight) -> Stack:
        """The fixed part of a flight, made again from its draft.

        Raises:
            PromofError: it is not what it was, so nothing can be learned from the stored actions.
        """
        fixed = stack([self.realise(asked, draft)] * len(flight.rollout.final)).to(self._team.device)
        if components_digest(fixed) != flight.digest:
            raise PromofError(
                f"The components of round {asked.number}, set {draft.group} are not those that were proposed: another "
                "version of RDKit, or other libraries; resume with what the run was begun with (provenance.json)."
            )
        return fixed


def torch_generator(asked: Round, purpose: str, *numbers: int) -> torch.Generator:
    """Random numbers of a round for torch."""
    return torch.Generator().manual_seed(int(asked.generator(purpose, *numbers).integers(2**62)))


def _with_noise(ends: Sequence[Assembled], nets: Sequence[NetStart | None]) -> list[Assembled]:
    """Assemblies that say where they began also where that was noise."""
    return [end if net is not None else replace(end, start=NOISE) for end, net in zip(ends, nets, strict=True)]
