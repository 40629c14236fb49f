"""How a structure is evaluated: stages, gates, potential, relaxation. Its digest is part of every evaluation id."""

from __future__ import annotations

import math
import operator
import re
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from promof_hpc.config.section import Optional_, Section, digest, nearest
from promof_hpc.physics.registry import NAMES as POTENTIALS


class Stage(StrEnum):
    """What is done with a structure, in this order."""

    READ = "read"
    VALIDITY = "validity"
    PORES = "pores"
    RELAX = "relax"
    ENERGY = "energy"


STAGES = tuple(Stage)
COLUMNS_OF_STAGE = {
    Stage.READ: ("atoms", "volume_ang3", "density_g_per_cm3"),
    Stage.VALIDITY: ("h_complete",),
    Stage.PORES: ("lcd_ang", "pld_ang", "pore_dimensionality"),
}
OPERATORS = {
    "<=": operator.le,
    ">=": operator.ge,
    "==": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    ">": operator.gt,
}


class Threshold(Section):
    """A gate such as `pld_ang > 3.3`."""

    column: str
    """A column known before relaxation."""
    relation: str
    """One of <= >= == != < >."""
    value: float
    """The number to compare with."""

    @model_validator(mode="before")
    @classmethod
    def _parse(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        match = re.fullmatch(r"\s*(\w+)\s*(<=|>=|==|!=|<|>)\s*(\S+)\s*", value)
        if match is None:
            raise ValueError(f"'{value}' is not a threshold; write for instance \"pld_ang > 3.3\"")
        return {"column": match[1], "relation": match[2], "value": match[3]}

    @field_validator("column")
    @classmethod
    def _known(cls, column: str) -> str:
        known = [c for columns in COLUMNS_OF_STAGE.values() for c in columns]
        if column not in known:
            raise ValueError(
                f"'{column}' cannot be a gate{nearest(column, known)}; "
                f"known before relaxation: {', '.join(known)} (filter the finished table for the rest)"
            )
        return column

    def holds(self, value: float) -> bool:
        """Whether `value` passes; a value that was not computed does not."""
        return not math.isnan(value) and bool(OPERATORS[self.relation](value, self.value))

    def __str__(self) -> str:
        return f"{self.column} {self.relation} {self.value:g}"


def registered_potential(name: str) -> str:
    """A potential's name, unchanged.

    Raises:
        ValueError: it is neither registered nor of the form module:Class.
    """
    if name not in POTENTIALS and ":" not in name:
        raise ValueError(f"unknown potential '{name}'{nearest(name, POTENTIALS)}; known: {', '.join(POTENTIALS)}")
    return name


class PotentialSettings(Section):
    """Which potential judges."""

    name: str = "sevennet-0"
    """sevennet-0, chgnet-0.3.0 (weights in a wheel), uma (needs `weights`), lennard-jones (tests), or module:Class."""
    weights: Annotated[Path | None, Optional_] = None
    """Checkpoint file of uma, on a file system that compute nodes see."""
    task: Literal["omat", "odac", "omol", "omc", "oc20"] = "omat"
    """UMA's task head; only omat and omc were trained on stress, so only they relax the cell."""
    device: str = "cpu"
    """Torch device, for instance cpu or cuda."""

    @field_validator("name")
    @classmethod
    def _registered(cls, name: str) -> str:
        return registered_potential(name)


class RelaxSettings(Section):
    """How a structure is relaxed."""

    cell: Literal["relaxed", "fixed"] = "relaxed"
    """Whether the cell moves with the atoms."""
    optimizer: Literal["lbfgs", "fire"] = "lbfgs"
    """lbfgs needs about half the calls; starts above `fire_above_ev_per_ang` begin with fire whatever stands here."""
    fmax_ev_per_ang: float = Field(0.05, gt=0)
    """Converged when no force is larger ..."""
    stress_gpa: float = Field(0.2, gt=0)
    """... and no component of the stress (not asked of a fixed cell)."""
    max_steps: int = Field(300, ge=0)
    """Steps after which the outcome is max_steps."""
    max_step_ang: float = Field(0.2, gt=0)
    """Longest move of an atom in one step (ASE's maxstep)."""
    fire_above_ev_per_ang: float = Field(20.0, gt=0)
    """lbfgs is unreliable above this force; fire takes over until the force is below it."""
    wall_s: Annotated[float | None, Optional_] = Field(None, gt=0)
    """Seconds after which a structure ends as timed_out; none keeps results independent of the machine's load."""
    max_volume_change: float = Field(0.5, gt=0)
    """Beyond this relative change of the volume a structure has collapsed or exploded."""

    def digest(self) -> str:
        """SHA-256 (hex) of all of them."""
        return digest(self.model_dump(mode="json"))


class EvaluationSettings(Section):
    """Everything that an evaluation's numbers depend on; its digest is part of every evaluation id."""

    stages: tuple[Stage, ...] = STAGES
    """What is done, in order; leave relax out to score structures as they are."""
    where: tuple[Threshold, ...] = ()
    """Gates: a structure that fails one goes no further, is not charged, and says why."""
    potential: PotentialSettings = PotentialSettings()
    relax: RelaxSettings = RelaxSettings()

    @field_validator("stages", mode="before")
    @classmethod
    def _split(cls, value: Any) -> Any:
        names = [n.strip() for n in value.split(",")] if isinstance(value, str) else value
        for name in names:
            if name not in list(Stage):
                raise ValueError(f"unknown stage '{name}'{nearest(str(name), list(Stage))}; known: {', '.join(Stage)}")
        return tuple(s for s in STAGES if s in names or s is Stage.READ)

    @model_validator(mode="after")
    def _gates_are_computed(self) -> EvaluationSettings:
        for gate in self.where:
            stage = next(s for s, columns in COLUMNS_OF_STAGE.items() if gate.column in columns)
            if stage not in self.stages:
                raise ValueError(f"'{gate}' needs stage '{stage}', which `stages` leaves out")
        require_trained_stress(self)
        return self

    def digest(self) -> str:
        """SHA-256 (hex) over everything but where the weights lie and which device computes."""
        return digest(self.model_dump(mode="json", exclude={"potential": {"weights", "device"}}))


def require_trained_stress(settings: EvaluationSettings) -> None:
    """See to it that no cell is relaxed by a stress that was never trained.

    Raises:
        ValueError: it would be.
    """
    untrained = settings.potential.name == "uma" and settings.potential.task not in ("omat", "omc")
    if untrained and Stage.RELAX in settings.stages and settings.relax.cell == "relaxed":
        raise ValueError(
            f"UMA's task '{settings.potential.task}' has no trained stress; use task omat, or relax.cell: fixed"
        )
