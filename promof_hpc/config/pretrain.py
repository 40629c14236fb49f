"""The configuration of pretraining: how long and how fast a policy learns, and what is particular to each policy."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from promof_hpc.config.section import Optional_, Section

FREE_KEYS = frozenset({"steps", "minutes", "checkpoint_s", "device"})  # a resumed training may change these


class TrainingSettings(Section):
    """What the training of both policies has in common."""

    steps: Annotated[int | None, Optional_] = Field(None, ge=1)
    """Optimiser steps; repeating the command gives the same bits. Exclusive with minutes."""
    minutes: Annotated[float | None, Optional_] = Field(None, gt=0)
    """Training time over all starts, validation included; how far it comes depends on the machine."""
    seed: int = 0
    """Data order, noise and the first weights follow from it."""
    learning_rate: float = Field(1e-3, gt=0)
    """AdamW's highest learning rate; it rises over `warmup_steps` and falls as a cosine to nearly zero."""
    warmup_steps: int = Field(100, ge=0)
    """Steps of the linear rise."""
    weight_decay: float = Field(0.01, ge=0)
    """AdamW's decay of the weights."""
    gradient_norm: float = Field(1.0, gt=0)
    """Gradients are clipped to this norm."""
    ema: float = Field(0.999, ge=0, lt=1)
    """Decay of the averaged weights, which are those that are validated and kept."""
    validate_every: int = Field(200, ge=1)
    """Steps between two looks at the validation part; the best averaged weights are kept."""
    checkpoint_s: float = Field(120.0, ge=0)
    """Seconds between two checkpoints."""
    device: Literal["cpu", "cuda"] = "cpu"
    """Where the policy learns."""

    @model_validator(mode="after")
    def _one_length(self) -> TrainingSettings:
        if (self.steps is None) == (self.minutes is None):
            raise ValueError("give either steps or minutes")
        return self

    def identity(self) -> dict[str, Any]:
        """Everything that a resumed training must share with its beginning."""
        return {k: v for k, v in self.model_dump(mode="json").items() if k not in FREE_KEYS}


class ChemistTraining(TrainingSettings):
    """Pretraining of the chemist: next-token likelihood of the component sets of known MOFs."""

    learning_rate: float = Field(2e-3, gt=0)
    """AdamW's highest learning rate."""
    width: int = Field(128, ge=8)
    """Width of the residual stream."""
    depth: int = Field(4, ge=1)
    """Blocks."""
    heads: int = Field(4, ge=1)
    """Attention heads of 64 dimensions."""
    max_tokens: int = Field(300, ge=8)
    """Longer component sets are left out."""
    batch_tokens: int = Field(2000, ge=1)
    """Tokens of a batch, padding included."""
    dropout: float = Field(0.1, ge=0, lt=1)
    """Share of zeros in what each block adds."""
    null_share: float = Field(0.15, ge=0, le=1)
    """Sequences shown without any condition, so that the chemist can also write unconditionally."""
    drop_share: float = Field(0.3, ge=0, le=1)
    """Each single condition is hidden with this probability, so that any of them may be asked for alone."""
    condition_noise: float = Field(0.05, ge=0)
    """Gaussian noise on normalised conditions, in standard deviations: exact values would name single MOFs."""
    energies: str = "shipped"
    """Where E_rel of known MOFs comes from: shipped, none, or a file made by `promof reference build`."""
    validation_samples: int = Field(200, ge=0)
    """Sequences written at each look at the validation part; the weights with the largest share of valid, new and
    unique ones are kept. 0: those with the best likelihood of held-out MOFs."""
    swap_share: float = Field(0.5, ge=0, le=1)
    """Share of component sets that are shown with each linker drawn anew among those that bind alike."""
    random_smiles: float = Field(0.1, ge=0, le=1)
    """Share of sequences whose linkers are written from a random atom instead of canonically."""


class EngineerTraining(TrainingSettings):
    """Pretraining of the engineer: flow matching from noise to the crystals of known MOFs."""

    learning_rate: float = Field(5e-4, gt=0)
    """AdamW's highest learning rate."""
    ema: float = Field(0.9995, ge=0, lt=1)
    """Decay of the averaged weights."""
    validate_every: int = Field(250, ge=1)
    """Steps between two looks at the validation part."""
    width: int = Field(128, ge=8)
    """Width of a token."""
    layers: int = Field(4, ge=1)
    """Layers of the trunk."""
    heads: int = Field(4, ge=1)
    """Attention heads."""
    gaussians: int = Field(32, ge=2)
    """Gaussians that distances are smeared over."""
    geometry: Literal["crystal", "matched", "mixed"] = "mixed"
    """Blocks with the crystal's own geometry, with conformers and templates as in a campaign, or either by chance."""
    max_atoms: int = Field(120, ge=4)
    """Component sets with more atoms are left out."""
    batch_pairs: int = Field(80_000, ge=1)
    """Atom pairs of a batch, padding included: the sum of atoms²."""
