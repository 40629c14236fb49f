"""Reading a configuration: YAML as text, overrides, all mistakes at once with line and key; and writing one.

YAML scalars are taken as text and typed by the field, so that `NO`, `0123`, `1e-4` and `12:30:00`
mean what their field says and never what YAML 1.1 makes of them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from promof_hpc.config.section import nearest
from promof_hpc.errors import UsageError

ModelT = TypeVar("ModelT", bound=BaseModel)


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
            out += [f"{pad}# {line.strip()}" for line in info.description.splitlines()]
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
        return f"{place}unknown key '{key}'{nearest(at[-1], _keys(model, at[:-1]))}"
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
