"""What a user may set: one typed class an idea, units in the names, one docstring a key.

Validation, the commented file of `promof init` and the error messages all come from these classes.
YAML scalars are taken as text and typed by the field, so that `NO`, `0123`, `1e-4` and `12:30:00`
mean what their field says and never what YAML 1.1 makes of them.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import math
import operator
import re
from collections.abc import Iterable, Mapping
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator, model_validator

from promof_hpc.errors import UsageError
from promof_hpc.physics.registry import NAMES as POTENTIALS

ModelT = TypeVar("ModelT", bound=BaseModel)
Optional_ = BeforeValidator(lambda value: None if value in ("", "null", "none", "~", None) else value)


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, validate_default=True)


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


class Threshold(_Section):
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
                f"'{column}' cannot be a gate{_nearest(column, known)}; "
                f"known before relaxation: {', '.join(known)} (filter the finished table for the rest)"
            )
        return column

    def holds(self, value: float) -> bool:
        """Whether `value` passes; a value that was not computed does not."""
        return not math.isnan(value) and bool(OPERATORS[self.relation](value, self.value))

    def __str__(self) -> str:
        return f"{self.column} {self.relation} {self.value:g}"


class PotentialSettings(_Section):
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
        if name not in POTENTIALS and ":" not in name:
            raise ValueError(f"unknown potential '{name}'{_nearest(name, POTENTIALS)}; known: {', '.join(POTENTIALS)}")
        return name


class RelaxSettings(_Section):
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
        return _digest(self.model_dump(mode="json"))


class EvaluationSettings(_Section):
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
                raise ValueError(f"unknown stage '{name}'{_nearest(str(name), list(Stage))}; known: {', '.join(Stage)}")
        return tuple(s for s in STAGES if s in names or s is Stage.READ)

    @model_validator(mode="after")
    def _gates_are_computed(self) -> EvaluationSettings:
        for gate in self.where:
            stage = next(s for s, columns in COLUMNS_OF_STAGE.items() if gate.column in columns)
            if stage not in self.stages:
                raise ValueError(f"'{gate}' needs stage '{stage}', which `stages` leaves out")
        untrained_stress = self.potential.name == "uma" and self.potential.task not in ("omat", "omc")
        if untrained_stress and Stage.RELAX in self.stages and self.relax.cell == "relaxed":
            raise ValueError(
                f"UMA's task '{self.potential.task}' has no trained stress; use task omat, or relax.cell: fixed"
            )
        return self

    def digest(self) -> str:
        """SHA-256 (hex) over everything but where the weights lie and which device computes."""
        return _digest(self.model_dump(mode="json", exclude={"potential": {"weights", "device"}}))


class ReadSettings(_Section):
    """How a library is read."""

    primitive: bool = True
    """Reduce each structure to its primitive cell (nothing is symmetrised)."""
    max_atoms: int = Field(600, ge=1)
    """Structures with more atoms in the cell to be relaxed are refused as too large."""
    limit: Annotated[int | None, Optional_] = Field(None, ge=1)
    """Take only so many entries, drawn with `seed`."""
    names: Annotated[Path | None, Optional_] = None
    """Take only the entries listed in this file, one name a line."""
    seed: int = 0
    """Seed of every random choice of the run."""


class FarmSettings(_Section):
    """How the work is spread."""

    ranks: int = Field(1, ge=1)
    """MPI ranks; one a core on CPUs (each with one thread), one a device on GPUs."""
    batch_structures: int = Field(4, ge=1)
    """Structures in a batch, the unit that is committed or lost; small on CPUs, 32 or more on a GPU."""
    batch_atoms: int = Field(20_000, ge=1)
    """Atoms in a batch at most."""
    hang_s: float = Field(1800.0, gt=0)
    """A rank that has not taken a step for so long is ended, and its batch becomes a suspect."""
    drain_s: float = Field(30.0, ge=0)
    """After a stop signal ranks finish the batch in hand if it takes no longer than this, else drop it uncharged."""
    claim_expiry_s: float = Field(300.0, gt=0)
    """A claim by another job that was not renewed for so long is void."""


class ScreenConfig(_Section):
    """Screening: a library in, a ranked table out."""

    library: str = "demo"
    """A folder or archive of CIFs, an extxyz file, an ASE database, our shards, coremof:2019-ASR, or demo."""
    budget: Annotated[int | None, Optional_] = Field(None, ge=1)
    """Evaluations at most; none takes the whole library."""
    read: ReadSettings = ReadSettings()
    evaluation: EvaluationSettings = EvaluationSettings()
    reference: str = "shipped"
    """Reference set for e_form and e_rel: shipped, none, or a file made by `promof reference build`."""
    farm: FarmSettings = FarmSettings()


def load_config(model: type[ModelT], path: Path | None, overrides: Iterable[str] = ()) -> ModelT:
    """Read a YAML file, apply `--set key=value` overrides, validate.

    Raises:
        UsageError: every mistake of the file at once, each with its line and key.
    """
    problems: list[str] = []
    data, lines = _read_yaml(path, problems) if path else ({}, {})
    for override in overrides:
        key, equals, value = override.partition("=")
        if not equals:
            problems.append(f"--set {override}: write key=value, for instance --set relax.max_steps=100")
            continue
        _assign(data, key.strip().split("."), _scalar_or_list(value))
    try:
        result = model.model_validate(data)
    except ValidationError as error:
        problems += [_describe(e, model, lines) for e in error.errors()]
        result = None
    if problems or result is None:
        where = f" in {path}" if path else ""
        raise UsageError(f"{len(problems)} mistake{'s' * (len(problems) > 1)}{where}:\n  " + "\n  ".join(problems))
    return result


def dump_config(config: BaseModel) -> str:
    """The resolved configuration as YAML."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def commented(model: type[BaseModel], indent: int = 0) -> str:
    """A YAML file with every key of `model`, its default and its docstring as a comment."""
    pad, out = "  " * indent, []
    for name, info in model.model_fields.items():
        if info.description:
            out.append(f"{pad}# {info.description}")
        default = info.get_default(call_default_factory=True)
        if isinstance(default, BaseModel):
            out += [f"{pad}# {type(default).__doc__}", f"{pad}{name}:", commented(type(default), indent + 1)]
        else:
            plain = ", ".join(map(str, default)) if isinstance(default, tuple) else default
            out.append(
                f"{pad}{name}: [{plain}]" if isinstance(default, tuple) else f"{pad}{name}: {_yaml_word(default)}"
            )
    return "\n".join(out)


def _yaml_word(value: Any) -> str:
    if value is None:
        return "none"
    return str(value).lower() if isinstance(value, bool) else str(value)


def _digest(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _nearest(word: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f" (did you mean '{near[0]}'?)" if near else ""


def _scalar_or_list(value: str) -> Any:
    node = yaml.compose(value, Loader=yaml.BaseLoader)
    return _plain(node, (), {}, []) if node is not None else ""


def _assign(data: dict[str, Any], keys: list[str], value: Any) -> None:
    for key in keys[:-1]:
        nested = data.setdefault(key, {})
        if not isinstance(nested, dict):
            nested = data[key] = {}
        data = nested
    data[keys[-1]] = value


def _read_yaml(path: Path, problems: list[str]) -> tuple[dict[str, Any], dict[tuple[str, ...], int]]:
    """The file as nested dicts of text, and the line of every key."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"Cannot read the configuration {path}: {error}.") from error
    for number, line in enumerate(text.splitlines(), 1):
        if "\t" in line[: len(line) - len(line.lstrip())]:
            problems.append(f"line {number}: a tab indents this line; YAML wants spaces")
    lines: dict[tuple[str, ...], int] = {}
    try:
        node = yaml.compose(text.replace("\t", "  "), Loader=yaml.BaseLoader)
    except yaml.MarkedYAMLError as error:
        place = error.problem_mark.line + 1 if error.problem_mark else "?"
        problems.append(f"line {place}: not YAML, {error.problem}")
        raise UsageError(f"Cannot read {path}:\n  " + "\n  ".join(problems)) from error
    data = _plain(node, (), lines, problems) if node is not None else {}
    if not isinstance(data, dict):
        raise UsageError(f"{path} must be a mapping of keys to values; `promof init` writes an example.")
    return data, lines


def _plain(node: yaml.Node, at: tuple[str, ...], lines: dict[tuple[str, ...], int], problems: list[str]) -> Any:
    if isinstance(node, yaml.ScalarNode):
        return node.value
    if isinstance(node, yaml.SequenceNode):
        return [_plain(item, (*at, str(k)), lines, problems) for k, item in enumerate(node.value)]
    result: dict[str, Any] = {}
    for key, value in node.value:
        here = (*at, key.value)
        line = key.start_mark.line + 1
        if key.value in result:
            problems.append(f"line {line}: '{'.'.join(here)}' stands twice (first on line {lines[here]})")
            continue
        lines[here] = line
        result[key.value] = _plain(value, here, lines, problems)
    return result


def _describe(error: Mapping[str, Any], model: type[BaseModel], lines: Mapping[tuple[str, ...], int]) -> str:
    """One pydantic error as a line with place, key and hint."""
    at = tuple(str(part) for part in error["loc"])
    line = next((lines[at[:n]] for n in range(len(at), 0, -1) if at[:n] in lines), None)
    place = f"line {line}: " if line else ""
    key = ".".join(at)
    if error["type"] == "extra_forbidden":
        return f"{place}unknown key '{key}'{_nearest(at[-1], _keys(model, at[:-1]))}"
    message = str(error["msg"]).removeprefix("Value error, ")
    given = error.get("input")
    if isinstance(given, str) and re.fullmatch(r"[\d.]*,\d+", given):
        message += " (write a decimal point, not a comma)"
    shown = f" (given: {given})" if isinstance(given, str | int | float) and str(given) not in message else ""
    return f"{place}{key}: {message}{shown}" if key else f"{place}{message}"


def _keys(model: type[BaseModel], at: tuple[str, ...]) -> list[str]:
    current: Any = model
    for part in at:
        info = getattr(current, "model_fields", {}).get(part)
        current = info.annotation if info is not None else None
    return list(getattr(current, "model_fields", {}))
