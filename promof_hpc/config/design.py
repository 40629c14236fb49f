"""The configuration of a design campaign: target, strategy, how structures are assembled, and how policies learn."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from promof_hpc.config.evaluation import EvaluationSettings, Stage, registered_potential, require_trained_stress
from promof_hpc.config.run import RunConfig
from promof_hpc.config.section import Optional_, Section, nearest

STRATEGIES = ("promof", "sample", "sample_filter", "genetic", "random", "external")
TASKS = ("pore", "energy")


class TaskSettings(Section):
    """What is looked for."""

    name: str = "pore"
    """pore: a pore limiting diameter in a range; energy: the lowest energy. (co2 comes with the adsorption stage.)"""
    pld_ang: float = Field(6.0, gt=0)
    """Wanted pore limiting diameter in Å (pore)."""
    width_ang: float = Field(0.2, gt=0)
    """Half width of the range that counts as met (pore); the reward is not narrower for it."""
    best_percent: float = Field(10.0, gt=0, lt=100)
    """An energy below this percentile of the reference set counts as met (energy)."""

    @field_validator("name")
    @classmethod
    def _known(cls, name: str) -> str:
        if name == "co2":
            raise ValueError("co2 needs adsorption, which this version does not compute yet; known: pore, energy")
        if name not in TASKS:
            raise ValueError(f"unknown task '{name}'{nearest(name, TASKS)}; known: {', '.join(TASKS)}")
        return name


class RewardSettings(Section):
    """How a result becomes a number."""

    energy: Literal["e_rel", "e_form"] = "e_rel"
    """Which energy is judged; e_form rewards oxygen- and fluorine-rich chemistry."""
    stability_weight: float = Field(1.0, ge=0)
    """Weight of -log(energy above the lowest reference)."""
    property_weight: float = Field(1.0, ge=0)
    """Weight of the task's property."""
    floor: float = -10.0
    """Reward of an evaluation that failed; rejects of the gate get less, by how far off they are."""
    displacement_cost_per_ang: float = Field(0.0, ge=0)
    """Charged for every Å that snap moved the atoms (root mean square)."""
    duplicate_cost: float = Field(0.0, ge=0)
    """Charged for a material that the campaign has already evaluated, for every earlier one in its bucket."""
    duplicate_bucket: int = Field(3, ge=1)
    """Materials of one kind that are taken before duplicates cost."""
    norm: Literal["joint", "separate"] = "joint"
    """separate: energy and property are normalised in their group before they are added."""


class RoundSettings(Section):
    """How many proposals a round has: targets x sets x assemblies."""

    targets: int = Field(4, ge=1)
    """Targets a round (B)."""
    sets: int = Field(4, ge=1)
    """Component sets for each target (m)."""
    assemblies: int = Field(16, ge=1)
    """Structures assembled of each component set (n)."""
    lookahead: int = Field(0, ge=0)
    """Rounds proposed ahead of what has been learned."""
    proposals_per_evaluation: int = Field(20, ge=1)
    """A campaign ends as incomplete after so many proposals for each evaluation of its budget."""


class AssemblySettings(Section):
    """How blocks become a crystal. Every compared system gets the same finisher."""

    start: Literal["noise", "net", "mixed"] = "net"
    """noise: the prior, as in the paper; net: nets of known MOFs; mixed: nets for every other assembly."""
    flow: bool = True
    """Whether the engineer's flow runs between start and finisher; without, assembly is policy-free."""
    snap: bool = True
    """Whether contacts are closed by the deterministic finisher; raw (noise, no snap) is the paper's assembly."""
    start_time: float = Field(0.6, ge=0, lt=1)
    """Flow time to which a net start is noised, and from where the flow runs."""
    tries: int = Field(4, ge=1)
    """Starts that snap may use for one assembly (the first, then the same with jittered contacts)."""
    contact_weight: float = Field(5.0, ge=0)
    """Weight in Å² of the contact head's logits in the cost of who meets whom, and in the order of nets; 0: off."""
    atom_cap: int = Field(150, ge=4)
    """Component sets with more atoms are not assembled."""
    conformer_seed: int = 0
    """Seed of the linkers' conformers."""


class SdeSettings(Section):
    """The stochastic sampler that makes the engineer a policy (SCIENCE: the SDE)."""

    steps: int = Field(12, ge=2)
    """Steps from noise to structure."""
    translation: float = Field(0.3, ge=0)
    """Noise level a of translations."""
    rotation: float = Field(0.15, ge=0)
    """Noise level a of rotations; above 0.2 the sampler's marginals drift."""
    torsion: float = Field(0.15, ge=0)
    """Noise level a of torsions."""
    lattice: float = Field(0.15, ge=0)
    """Noise level a of the lattice."""
    window: Annotated[int | None, Optional_] = Field(None, ge=1)
    """Steps with noise and loss (MixGRPO); the others are deterministic. none: all steps."""


class LearningSettings(Section):
    """How the policies learn from the rewards of a round."""

    estimator: Literal["pass_at_k", "group"] = "pass_at_k"
    """Advantage inside a group: of the best of k, or plain group normalisation (the paper's printed form)."""
    k: int = Field(3, ge=1)
    """k of pass_at_k; 1 is plain GRPO."""
    k_final: Annotated[int | None, Optional_] = Field(None, ge=1)
    """k at the end of the budget, reached in even steps; none keeps k."""
    k_sets: int = Field(1, ge=1)
    """k of the best of k among the component sets of a target, which keeps them diverse (6 of 16 does, see
    docs/results/toy-world.md); 1 compares them by plain GRPO, the paper's form."""
    credit: Literal["max", "mean", "max_at_k"] = "max"
    """What a component set earns from its assemblies: the best, their mean, or the unbiased best of k."""
    clip: float = Field(0.2, gt=0)
    """Ratios are clipped to 1 ± this, for each modality at `reference_dof` degrees of freedom."""
    reference_dof: float = Field(12.0, gt=0)
    """Degrees of freedom that a modality's summed log-ratio is scaled to."""
    kl_engineer: float = Field(0.01, ge=0)
    """Weight of the step KL to the pretrained engineer."""
    kl_chemist: float = Field(0.05, ge=0)
    """Weight of the token KL to the pretrained chemist."""
    entropy: float = Field(0.0, ge=0)
    """Weight of the chemist's entropy bonus."""
    learning_rate_engineer: float = Field(1e-4, gt=0)
    """Adam's learning rate (1e-5 at released size)."""
    learning_rate_chemist: float = Field(1e-4, gt=0)
    """Adam's learning rate (1e-5 at released size)."""
    gradient_norm: float = Field(1.0, gt=0)
    """Gradients are clipped to this norm."""
    rows_at_once: Annotated[int | None, Optional_] = Field(None, ge=1)
    """Assemblies or component sets in one backward pass of a process; their gradients add up. none: all."""
    epochs: int = Field(1, ge=1)
    """Passes over a round's data."""
    anneal: Literal["advantage", "reward", "none"] = "advantage"
    """What the warm-up scales. Scaling rewards changes nothing after normalisation; it is here to show that."""
    warmup_rounds: int = Field(0, ge=0)
    """Rounds over which the warm-up rises to 1."""
    advantage_clip: float = Field(5.0, gt=0)
    """Advantages are clipped to ± this."""
    replay: int = Field(0, ge=0)
    """Best earlier component sets that the chemist learns again each round."""
    freeze: Literal["none", "chemist", "engineer"] = "none"
    """A policy that does not learn."""


class TrainingSettings(Section):
    """The processes that propose and learn, where there are several."""

    tasks: int = Field(1, ge=1)
    """Processes; one a GPU. More than one need Slurm and DeepSpeed."""
    engine: Literal["auto", "torch", "deepspeed"] = "auto"
    """auto: torch for one process, DeepSpeed for more."""
    device: str = "cpu"
    """cpu or cuda: where the policies are."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """bf16: products of matrices in the policies' layers, in sampling as in learning. Weights, Adam, geometry and
    log-probabilities are fp32 in both."""
    zero_stage: int = Field(1, ge=0, le=2)
    """What DeepSpeed spreads over processes: 0 nothing, 1 Adam, 2 gradients too. Never the weights (3), which processes
    that sample by turns need whole, as does a checkpoint."""
    meeting_min: float = Field(30.0, gt=0)
    """A process that waits longer than this for another gives up."""


class PolicySettings(Section):
    """Where the policies and the libraries they need come from."""

    weights: str = "shipped"
    """Folder with chemist, engineer and their cards made by `promof pretrain`, or shipped."""
    data: str = "shipped"
    """Folder made by `promof prep`: node, linker and net libraries and the training sets; or shipped."""
    blocks: Literal["known", "open"] = "known"
    """known: the chemist writes sets of blocks of that folder, in order and below the atom cap; open: any SMILES."""


class DesignConfig(RunConfig):
    """Design: a target in, new materials out, under a fixed number of evaluations."""

    budget: Annotated[int | None, Optional_] = Field(10_000, ge=1)
    """Evaluations at most."""
    strategy: str = "promof"
    """promof, sample, sample_filter, genetic, random, or external."""
    seed: int = 0
    """Every random number follows from it."""
    external: str = ""
    """Folder of CIFs that strategy external proposes."""
    task: TaskSettings = TaskSettings()
    reward: RewardSettings = RewardSettings()
    rounds: RoundSettings = RoundSettings()
    assembly: AssemblySettings = AssemblySettings()
    sde: SdeSettings = SdeSettings()
    learning: LearningSettings = LearningSettings()
    policy: PolicySettings = PolicySettings()
    training: TrainingSettings = TrainingSettings()
    second_opinion: Annotated[str | None, Optional_] = None
    """A second potential that is asked about successes at the end, for instance chgnet-0.3.0; not charged."""

    @field_validator("strategy")
    @classmethod
    def _registered(cls, name: str) -> str:
        if name not in STRATEGIES and ":" not in name:
            raise ValueError(f"unknown strategy '{name}'{nearest(name, STRATEGIES)}; known: {', '.join(STRATEGIES)}")
        return name

    @field_validator("second_opinion")
    @classmethod
    def _known_potential(cls, name: str | None) -> str | None:
        return name and registered_potential(name)

    @property
    def second_evaluation(self) -> EvaluationSettings:
        """How the second potential judges a success: relaxed as in the campaign, without its thresholds and pores.

        Raises:
            ValueError: there is no second opinion.
        """
        if self.second_opinion is None:
            raise ValueError("this campaign asks for no second opinion")
        potential = self.evaluation.potential.model_copy(update={"name": self.second_opinion})
        stages = (Stage.READ, Stage.RELAX, Stage.ENERGY)
        return self.evaluation.model_copy(update={"stages": stages, "where": (), "potential": potential})

    @model_validator(mode="after")
    def _second_opinion_is_another(self) -> DesignConfig:
        if self.second_opinion is None:
            return self
        if self.second_opinion == self.evaluation.potential.name:
            raise ValueError(
                f"second_opinion is {self.second_opinion}, the potential of the campaign itself, which would only "
                "repeat what it has said; name another one, or none"
            )
        require_trained_stress(self.second_evaluation)
        return self

    @model_validator(mode="after")
    def _consistent(self) -> DesignConfig:
        if self.budget is None:
            raise ValueError("a campaign needs a budget")
        if self.strategy == "promof":
            for key, k in (("learning.k", self.learning.k), ("learning.k_final", self.learning.k_final)):
                if k is not None and k >= self.rounds.assemblies:
                    raise ValueError(
                        f"{key} is {k}, but a group has {self.rounds.assemblies} assemblies: with n <= k all "
                        "advantages are zero; lower k or raise rounds.assemblies"
                    )
            if 1 < self.learning.k_sets >= self.rounds.sets:
                raise ValueError(
                    f"learning.k_sets is {self.learning.k_sets}, but a target has {self.rounds.sets} component sets: "
                    "none would be better than another; lower k_sets or raise rounds.sets"
                )
            if not self.assembly.flow:
                raise ValueError("assembly.flow is off: the engineer of strategy promof would have nothing to decide")
        if self.strategy == "external" and not self.external:
            raise ValueError("strategy external needs `external`, a folder of CIFs")
        wanted = {Stage.RELAX, Stage.ENERGY} | ({Stage.PORES} if self.task.name == "pore" else set())
        absent = sorted(wanted - set(self.evaluation.stages))
        if absent:
            raise ValueError(f"task {self.task.name} needs the stages {', '.join(absent)} in evaluation.stages")
        if self.reference == "none" and self.reward.stability_weight > 0:
            raise ValueError("the stability reward needs a reference set; `promof reference build` makes one")
        return self
