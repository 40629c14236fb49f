"""The chemist: a rotary decoder-only Transformer that writes component sets, conditioned by one token.

Names and shapes of parameters are those of x-transformers as MOFFlow-2 configured it (ScaleNorm whose gain is stored
as an offset, rotary positions on the first 32 dimensions of a head in interleaved pairs, exact GELU, no bias in
attention), so that released weights load. Attention to a single condition token is its value whatever the query is;
the query's parameters therefore have no effect and are left out.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

ROTARY_DIMS = 32
ROTARY_BASE = 10_000.0
FREQUENCY_SPREAD = 0.5  # of the condition's cosines, for values of unit spread
NEVER_SAID = (0, 1, 2)  # <PAD>, <UNK>, <BOS>


@dataclass(frozen=True)
class ChemistSettings:
    """Size of a chemist.

    Attributes:
        tokens: size of the vocabulary.
        conditions: properties that it is conditioned on; 0 for an unconditional one.
        width: of the residual stream; `heads` of `head_width` dimensions; `depth` blocks; `feed_forward` times wider.
        never_said: token numbers that are masked: their probability is zero.
    """

    tokens: int
    conditions: int
    width: int = 192
    depth: int = 4
    heads: int = 4
    head_width: int = 64
    feed_forward: int = 4
    never_said: tuple[int, ...] = NEVER_SAID


@dataclass(frozen=True)
class Dropout:
    """Random zeros in training: the share, and where the random numbers come from (on the CPU)."""

    share: float
    generator: torch.Generator

    def __call__(self, x: Tensor) -> Tensor:
        """x with zeros, scaled so that its mean stays."""
        kept = torch.rand(x.shape, generator=self.generator).to(x) >= self.share
        return x * kept / (1.0 - self.share)


class Cache:
    """Keys and values of the tokens so far, in buffers that are allocated once.

    Attributes:
        keys, values: [depth, B, heads, room, head_width].
        length: tokens held.
    """

    def __init__(self, settings: ChemistSettings, rows: int, room: int, like: Tensor):
        shape = (settings.depth, rows, settings.heads, room, settings.head_width)
        self.keys, self.values = like.new_empty(shape), like.new_empty(shape)
        self.length = 0

    def add(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Store a layer's new keys and values [B, heads, T, c] and return all of them."""
        end = self.length + keys.shape[2]
        self.keys[layer, :, :, self.length : end] = keys
        self.values[layer, :, :, self.length : end] = values
        return self.keys[layer, :, :, :end], self.values[layer, :, :, :end]


class ScaleNorm(nn.Module):
    """x / |x| scaled by sqrt(width) (1 + g): Nguyen & Salazar (2019), the gain stored as an offset from 1."""

    def __init__(self, width: int):
        super().__init__()
        self.g = nn.Parameter(torch.zeros(1))
        self.scale = math.sqrt(width)

    def forward(self, x: Tensor) -> Tensor:
        """Of rows [..., width]."""
        return F.normalize(x, dim=-1) * (self.scale * (1.0 + self.g))


class Attention(nn.Module):
    """Causal self-attention with rotary positions."""

    def __init__(self, settings: ChemistSettings):
        super().__init__()
        self.heads, inner = settings.heads, settings.heads * settings.head_width
        self.to_q, self.to_k, self.to_v = (nn.Linear(settings.width, inner, bias=False) for _ in range(3))
        self.to_out = nn.Linear(inner, settings.width, bias=False)

    def forward(self, x: Tensor, turns: tuple[Tensor, Tensor], cache: Cache | None, layer: int) -> Tensor:
        """[B, T, width]; with a cache T new tokens see those before them, and T is 1 where there are any."""
        q, k, v = (to(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for to in (self.to_q, self.to_k, self.to_v))
        q, k = rotate(q, *turns), rotate(k, *turns)
        if cache is not None:
            k, v = cache.add(layer, k, v)
        out = F.scaled_dot_product_attention(q, k, v, is_causal=x.shape[1] > 1)
        return self.to_out(out.transpose(1, 2).flatten(2))


class OneTokenAttention(nn.Module):
    """Attention to a single token: its softmax is 1, so what comes out is the token's value."""

    def __init__(self, settings: ChemistSettings):
        super().__init__()
        inner = settings.heads * settings.head_width
        self.to_v = nn.Linear(settings.width, inner, bias=False)
        self.to_out = nn.Linear(inner, settings.width, bias=False)

    def forward(self, token: Tensor) -> Tensor:
        """Of a condition token [B, width]: the same addition to every position, [B, 1, width]."""
        return self.to_out(self.to_v(token))[:, None]


class FeedForward(nn.Module):
    """Linear, exact GELU, linear."""

    def __init__(self, settings: ChemistSettings):
        super().__init__()
        inner = settings.feed_forward * settings.width
        first = nn.Sequential(nn.Linear(settings.width, inner), nn.GELU())
        self.ff = nn.Sequential(first, nn.Identity(), nn.Linear(inner, settings.width))  # "ff.0.0" and "ff.2"

    def forward(self, x: Tensor) -> Tensor:
        """[..., width]."""
        return self.ff(x)


class ConditionToken(nn.Module):
    """Values of properties as one token: linear + cosines where a value is given, a learned null where not.

    For one property and no null this is MOFFlow-2's token, Linear(p) + cos(2 pi (p f + phase)).
    """

    def __init__(self, conditions: int, width: int):
        super().__init__()
        self.prop_linear = nn.Linear(conditions, width)
        self.prop_fourier = nn.Module()
        self.prop_fourier.register_buffer("frequencies", FREQUENCY_SPREAD * _normal(conditions, width, seed=1))
        self.prop_fourier.register_buffer("phases", torch.frac(_normal(conditions, width, seed=2).abs()))
        self.null = nn.Parameter(0.02 * _normal(conditions, width, seed=3))

    def forward(self, conditions: Tensor) -> Tensor:
        """Token [B, width] of normalised values [B, P], NaN where none is given."""
        given = ~conditions.isnan()
        value = torch.where(given, conditions, 0.0)[..., None]  # [B, P, 1]
        waves = torch.cos(2 * torch.pi * (value * self.prop_fourier.frequencies + self.prop_fourier.phases))
        each = torch.where(given[..., None], value * self.prop_linear.weight.T + waves, self.null)
        return each.sum(1) + self.prop_linear.bias


class Chemist(nn.Module):
    """Probabilities of the next token of a component set.

    Attributes:
        bf16: whether products of matrices inside the blocks are taken in bfloat16; off when it is made.
    """

    allowed: Tensor

    def __init__(self, settings: ChemistSettings):
        super().__init__()
        self.settings, self.bf16 = settings, False
        self.token_emb = nn.Module()
        self.token_emb.emb = nn.Embedding(settings.tokens, settings.width)
        self.condition = ConditionToken(settings.conditions, settings.width) if settings.conditions else None
        self.attn_layers = nn.Module()
        self.attn_layers.layers = nn.ModuleList(list(_layers(settings)))
        self.attn_layers.final_norm = ScaleNorm(settings.width)
        self.attn_layers.rotary_pos_emb = nn.Module()
        inverse = ROTARY_BASE ** (-torch.arange(0, ROTARY_DIMS, 2).float() / ROTARY_DIMS)
        self.attn_layers.rotary_pos_emb.register_buffer("inv_freq", inverse)
        self.to_logits = nn.Linear(settings.width, settings.tokens, bias=False)
        allowed = torch.ones(settings.tokens, dtype=torch.bool)
        allowed[list(settings.never_said)] = False
        self.register_buffer("allowed", allowed, persistent=False)
        nn.init.normal_(self.token_emb.emb.weight, std=0.02)

    def forward(
        self, tokens: Tensor, conditions: Tensor, dropout: Dropout | None = None, cache: Cache | None = None
    ) -> Tensor:
        """Log-probabilities of the token after each of `tokens`, float32 [B, T, V]; -inf where never said.

        Args:
            tokens: int64 [B, T], beginning with `<BOS>`; with a cache, the tokens after those it holds.
            conditions: normalised values [B, P], NaN for null (`Conditions.encode`).
            dropout: only in training; what is sampled and learned from in a campaign has none.
        """
        x = self.token_emb.emb(tokens)
        start = cache.length if cache is not None else 0
        angles = torch.arange(start, start + tokens.shape[1], device=x.device)[:, None]
        angles = angles * self.attn_layers.rotary_pos_emb.inv_freq
        turns = (angles.cos(), angles.sin())
        token = self.condition(conditions) if self.condition is not None else None
        layer = 0
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self.bf16):
            for norm, block in self.attn_layers.layers:
                if isinstance(block, Attention):
                    out = block(norm[0](x), turns, cache, layer)
                    layer += 1
                elif isinstance(block, OneTokenAttention):
                    out = block(token)
                else:
                    out = block(norm[0](x))
                x = x + (dropout(out) if dropout is not None else out)
        if cache is not None:
            cache.length += tokens.shape[1]
        logits = self.to_logits(self.attn_layers.final_norm(x)).float()
        return logits.masked_fill(~self.allowed, -torch.inf).log_softmax(-1)


def rotate(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Rotary positions (Su et al. 2021) on the first dimensions of [B, heads, T, c] in interleaved pairs."""
    n = 2 * cosine.shape[-1]
    a, b = x[..., 0:n:2], x[..., 1:n:2]
    turned = torch.stack([a * cosine - b * sine, b * cosine + a * sine], -1).flatten(-2)
    return torch.cat([turned, x[..., n:]], -1)


def released_state(state: Mapping[str, Tensor], prefix: str = "model.") -> dict[str, Tensor]:
    """Our state dict from one of MOFFlow-2's sequence module, unconditional or with one property.

    The queries and keys of its attention to the one condition token and the norm before it are dropped: they have no
    effect. Its conditional model has no null; ours starts at zero.
    """
    plain = {name.removeprefix(prefix): value for name, value in state.items()}
    crossed = {name.split(".")[2] for name in plain if name.endswith(".1.to_v.weight")}
    if "prop_linear.weight" in plain:
        width = plain["prop_linear.weight"].shape[0]
        for name in ("frequencies", "phases"):
            plain[f"prop_fourier.{name}"] = plain[f"prop_fourier.{name}"].reshape(1, width)
        plain["null"] = torch.zeros(1, width)
        cross = {k for k in crossed if int(k) % 3 == 1}
        dead = {f"attn_layers.layers.{k}.{name}" for k in cross for name in ("0.0.g", "1.to_q.weight", "1.to_k.weight")}
        plain = {name: value for name, value in plain.items() if name not in dead}
    return {(f"condition.{n}" if n.startswith(("prop_", "null")) else n): value for n, value in plain.items()}


def _layers(settings: ChemistSettings) -> Iterator[nn.ModuleList]:
    """Of every block: self-attention, attention to the condition where there is one, feed-forward; each with a norm."""
    for _ in range(settings.depth):
        yield nn.ModuleList([nn.ModuleList([ScaleNorm(settings.width)]), Attention(settings)])
        if settings.conditions:
            yield nn.ModuleList([nn.ModuleList([nn.Identity()]), OneTokenAttention(settings)])
        yield nn.ModuleList([nn.ModuleList([ScaleNorm(settings.width)]), FeedForward(settings)])


def _normal(rows: int, columns: int, seed: int) -> Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))
