"""What a round's learning needs, as columns of its shard: the chemist's tokens and the engineer's stored rollouts."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from promof_hpc.assembly.stack import Stack
from promof_hpc.store.shard import Column, ragged

if TYPE_CHECKING:
    from promof_hpc.policy.sde import Rollout

ROLLOUT = "rollout_"
SHAPE = "_shape"


@dataclass(frozen=True)
class Draft:
    """A component set as the chemist wrote it.

    Attributes:
        group: its number in the round; `target` the number of the target that it was written for.
        tokens: as sampled, from `<BOS>` to `<EOS>` (missing where it was cut off), int64 [L].
        log_probs: of each token when it was sampled, float32 [L]; 0 for `<BOS>`.
    """

    group: int
    target: int
    tokens: np.ndarray
    log_probs: np.ndarray


@dataclass(frozen=True)
class Flight:
    """What the engineer did with the assemblies of one group.

    Attributes:
        group: of the assemblies.
        digest: of the components, which are made again before anything is learned.
        rollout: stored states, actions and log-probs of the group, in its order.
    """

    group: int
    digest: str
    rollout: Rollout


@dataclass(frozen=True)
class Trace:
    """Drafts in the order of the groups, and flights."""

    drafts: tuple[Draft, ...]
    flights: tuple[Flight, ...]

    def columns(self) -> dict[str, Column]:
        """As columns; `read` gives an equal trace back."""
        tokens, token_ptr = ragged([d.tokens for d in self.drafts])
        columns: dict[str, Column] = {
            "draft_target": np.array([d.target for d in self.drafts], np.int64),
            "draft_token": tokens.astype(np.int32),
            "draft_log_prob": ragged([d.log_probs for d in self.drafts])[0].astype(np.float32),
            "draft_ptr": token_ptr,
            "flight_group": np.array([f.group for f in self.flights], np.int64),
            "flight_digest": [f.digest for f in self.flights],
        }
        stored = [f.rollout.columns() for f in self.flights]
        for name in stored[0] if stored else ():
            columns |= _packed(ROLLOUT + name, [np.asarray(s[name]) for s in stored])
        return columns

    @classmethod
    def read(cls, columns: Mapping[str, Column]) -> Trace:
        """The inverse of `columns`."""
        from promof_hpc.policy.sde import Rollout

        a = {name: np.asarray(c) for name, c in columns.items() if not isinstance(c, list)}
        spans = list(zip(a["draft_ptr"][:-1], a["draft_ptr"][1:], strict=True))
        drafts = tuple(
            Draft(g, int(target), a["draft_token"][s:e].astype(np.int64), a["draft_log_prob"][s:e])
            for g, ((s, e), target) in enumerate(zip(spans, a["draft_target"], strict=True))
        )
        names = [n.removeprefix(ROLLOUT) for n in a if n.startswith(ROLLOUT) and not n.endswith(SHAPE)]
        parts = {n: _unpacked(ROLLOUT + n, a) for n in names}
        flights = tuple(
            Flight(int(group), str(columns["flight_digest"][k]), Rollout.from_columns({n: parts[n][k] for n in names}))
            for k, group in enumerate(a["flight_group"])
        )
        return cls(drafts, flights)


def components_digest(fixed: Stack) -> str:
    """Digest of the first assembly of a stack: elements, geometry and torsions, to the last bit."""
    digest = hashlib.sha256()
    for tensor in (fixed.numbers, fixed.block_of, fixed.local, fixed.quads, fixed.base_angles):
        digest.update(np.ascontiguousarray(tensor[0].cpu().numpy()).tobytes())
    return digest.hexdigest()[:32]


def _packed(name: str, arrays: Sequence[np.ndarray]) -> dict[str, Column]:
    """Arrays of one type and number of axes, whatever their shapes, as a flat column beside their shapes."""
    shapes = np.array([x.shape for x in arrays], np.int64)
    return {name: np.concatenate([x.ravel() for x in arrays]), name + SHAPE: shapes}


def _unpacked(name: str, columns: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    """The inverse of `_packed`."""
    shapes = columns[name + SHAPE]
    ends = np.cumsum(shapes.prod(1)).tolist()
    return [columns[name][e - n : e].reshape(s) for e, n, s in zip(ends, shapes.prod(1), shapes.tolist(), strict=True)]
