"""What every section of a configuration has in common, and how an error names the key that was meant."""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import BaseModel, BeforeValidator, ConfigDict

Optional_ = BeforeValidator(lambda value: None if value in ("", "null", "none", "~", None) else value)


class Section(BaseModel):
    """A part of a configuration: unknown keys are refused, values never change."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, validate_default=True)


def digest(content: Mapping[str, Any]) -> str:
    """SHA-256 (hex) of plain values."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def nearest(word: str, known: Iterable[str]) -> str:
    """A hint at the known word that was probably meant; empty where none is near."""
    near = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f" (did you mean '{near[0]}'?)" if near else ""
