"""SevenNet's convolution for CPUs: gather, tensor product and scatter in one pass over undirected pairs.

e3nn writes the message of every directed edge to memory (3136 floats in SevenNet-0) and, going back, one zero-filled
array for every slice of it; that is most of the time of a call on a CPU. Here a pair of atoms is taken
once for both directions: radial weights are equal, and the filter of degree l only changes sign by (-1)^l. A message
is added to its atom as it is made, and going back it is made again instead of being kept.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numba
import numpy as np
import torch

FIRST, SECOND = "pair_first", "pair_second"  # keys of the graph: the two atoms of each pair, int64 [P]
LARGEST_ORDER = 7  # components of an irrep that the kernels have room for: l ≤ 3


@dataclass(frozen=True)
class Plan:
    """A `uvu` tensor product x ⊗ y → out with weights w, as flat tables.

    Component-major means that within an irrep block the channels of one component lie side by side.

    Attributes:
        paths: int64 [n, 8]: channels, components of x, components of out, offset in x, in out, in w, first and
            last-plus-one row of the coefficients.
        signs: (-1)^l of the filter of each path, float32 [n].
        indices: components (i of x, j of the whole filter y, k of out) of each coefficient, int64 [c, 3].
        coefficients: Wigner 3j symbol times path weight, float32 [c].
        into: index that makes x component-major, int64 [D].
        out_of: index that takes out back to e3nn's order, int64 [D'].
        back: index that makes a gradient by out component-major, int64 [D'].
        out_of_x: index that takes a gradient by x back to e3nn's order, int64 [D].
    """

    paths: np.ndarray
    signs: np.ndarray
    indices: np.ndarray
    coefficients: np.ndarray
    into: torch.Tensor
    out_of: torch.Tensor
    back: torch.Tensor
    out_of_x: torch.Tensor

    @classmethod
    def of(cls, product: Any) -> Plan:
        """The plan of an `e3nn.o3.TensorProduct` whose instructions are all `uvu` with filters of one channel.

        Raises:
            ValueError: another kind of product.
        """
        from e3nn.o3 import wigner_3j

        if any(i.connection_mode != "uvu" or not i.has_weight for i in product.instructions):
            raise ValueError("only weighted uvu paths are implemented")
        x_blocks, y_blocks, out_blocks = product.irreps_in1, product.irreps_in2, product.irreps_out
        paths: list[list[int]] = []
        indices: list[np.ndarray] = []
        coefficients: list[np.ndarray] = []
        weights = rows = 0
        for ins in product.instructions:
            mul, ir_x = x_blocks[ins.i_in1]
            ir_y, ir_out = y_blocks[ins.i_in2].ir, out_blocks[ins.i_out].ir
            symbol = wigner_3j(ir_x.l, ir_y.l, ir_out.l, dtype=torch.float64).numpy() * ins.path_weight
            used = np.argwhere(np.abs(symbol) > 1e-9)
            coefficients.append(symbol[tuple(used.T)])
            at_x, at_y, at_out = (
                blocks.slices()[k].start
                for blocks, k in ((x_blocks, ins.i_in1), (y_blocks, ins.i_in2), (out_blocks, ins.i_out))
            )
            indices.append(used + np.array([0, at_y, 0]))
            paths.append([mul, ir_x.dim, ir_out.dim, at_x, at_out, weights, rows, rows + len(used)])
            weights, rows = weights + mul, rows + len(used)
        signs = [(-1) ** y_blocks[ins.i_in2].ir.l for ins in product.instructions]
        into, back = _component_major(x_blocks), _component_major(out_blocks)
        return cls(
            np.array(paths, np.int64), np.array(signs, np.float32), np.concatenate(indices).astype(np.int64),
            np.concatenate(coefficients).astype(np.float32), into, torch.argsort(back), back, torch.argsort(into),
        )  # fmt: skip


def _component_major(irreps: Any) -> torch.Tensor:
    """Index [D] that reorders each block of `irreps` from (channel, component) to (component, channel)."""
    blocks = [
        torch.arange(s.start, s.stop).reshape(mul, ir.dim).T.reshape(-1)
        for (mul, ir), s in zip(irreps, irreps.slices(), strict=True)
    ]
    return torch.cat(blocks)


class PairConvolution(torch.nn.Module):
    """Stands in for sevenn's `IrrepsConvolution` on graphs of undirected pairs (float32, CPU)."""

    def __init__(self, convolution: Any):
        super().__init__()
        self.plan = Plan.of(convolution.convolution)
        self.weight_nn, self.denominator = convolution.weight_nn, convolution.denominator
        self.keys = (convolution.key_x, convolution.key_filter, convolution.key_weight_input)

    def forward(self, data: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Replace the node features [N, D] by the convolved ones [N, D']."""
        x, filters, radial = (data[k] for k in self.keys)
        out = _Convolve.apply(x, filters, self.weight_nn(radial), self.plan, data[FIRST], data[SECOND])
        data[self.keys[0]] = out / self.denominator
        return data


class _Convolve(torch.autograd.Function):
    """Sum over pairs of w · (x ⊗ y), both directions; differentiable once."""

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        y: torch.Tensor,
        w: torch.Tensor,
        plan: Plan,
        first: torch.Tensor,
        second: torch.Tensor,
    ) -> torch.Tensor:
        major = x.index_select(1, plan.into)
        out = torch.zeros(len(x), len(plan.out_of))
        tables = (plan.paths, plan.signs, plan.indices, plan.coefficients)
        arrays = [a.detach().contiguous().numpy() for a in (major, y, w)]
        ends = (first.numpy(), second.numpy())
        _forward(*arrays, *ends, *tables, out.numpy())
        ctx.saved = (arrays, ends, tables, plan)
        return out.index_select(1, plan.out_of)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        arrays, ends, tables, plan = ctx.saved
        by_out = gradient.index_select(1, plan.back).numpy()
        by = [np.zeros_like(a) for a in arrays]
        _backward(*arrays, *ends, *tables, by_out, *by)
        by_x, by_y, by_w = map(torch.from_numpy, by)
        return by_x.index_select(1, plan.out_of_x), by_y, by_w, None, None, None


_jit = numba.njit(cache=True, fastmath={"contract", "reassoc", "nsz"}, error_model="numpy")


@_jit
def _coupling(path, y, indices, coefficients, matrix):  # type: ignore[no-untyped-def]
    """Fill matrix[i, k] = Σ_j coefficient_ijk y_j of one path."""
    matrix[:] = numba.float32(0.0)
    for c in range(path[6], path[7]):
        matrix[indices[c, 0], indices[c, 2]] += coefficients[c] * y[indices[c, 1]]


@_jit
def _forward(x, y, w, first, second, paths, signs, indices, coefficients, out):  # type: ignore[no-untyped-def]
    matrix = np.zeros((LARGEST_ORDER, LARGEST_ORDER), np.float32)
    to_first, to_second = np.empty(w.shape[1], np.float32), np.empty(w.shape[1], np.float32)
    for pair in range(len(first)):
        a, b = first[pair], second[pair]
        for p in range(len(paths)):
            path = paths[p]
            mul, d_x, d_out, at_x, at_out, at_w = path[0], path[1], path[2], path[3], path[4], path[5]
            _coupling(path, y[pair], indices, coefficients, matrix)
            sign = signs[p]
            weight = w[pair, at_w : at_w + mul]
            sum_a, sum_b = to_first[:mul], to_second[:mul]
            for k in range(d_out):
                sum_a[:] = numba.float32(0.0)
                sum_b[:] = numba.float32(0.0)
                for i in range(d_x):
                    m = matrix[i, k]
                    x_a = x[a, at_x + i * mul : at_x + (i + 1) * mul]
                    x_b = x[b, at_x + i * mul : at_x + (i + 1) * mul]
                    for u in range(mul):
                        sum_a[u] += m * x_b[u]
                        sum_b[u] += m * x_a[u]
                out_a = out[a, at_out + k * mul : at_out + (k + 1) * mul]
                out_b = out[b, at_out + k * mul : at_out + (k + 1) * mul]
                for u in range(mul):
                    out_a[u] += weight[u] * sum_a[u]
                    out_b[u] += sign * weight[u] * sum_b[u]


@_jit
def _backward(x, y, w, first, second, paths, signs, indices, coefficients, by_out, by_x, by_y, by_w):  # type: ignore[no-untyped-def]
    matrix = np.zeros((LARGEST_ORDER, LARGEST_ORDER), np.float32)
    by_matrix = np.zeros((LARGEST_ORDER, LARGEST_ORDER), np.float32)
    room = np.empty((2, w.shape[1]), np.float32)
    one = numba.float32(1.0)
    for pair in range(len(first)):
        for p in range(len(paths)):
            path = paths[p]
            _coupling(path, y[pair], indices, coefficients, matrix)
            by_matrix[:] = numba.float32(0.0)
            a, b = first[pair], second[pair]
            _message_back(path, one, x[b], w[pair], by_out[a], matrix, by_matrix, by_x[b], by_w[pair], room)
            _message_back(path, signs[p], x[a], w[pair], by_out[b], matrix, by_matrix, by_x[a], by_w[pair], room)
            for c in range(path[6], path[7]):
                by_y[pair, indices[c, 1]] += coefficients[c] * by_matrix[indices[c, 0], indices[c, 2]]


@_jit
def _message_back(path, sign, x, w, by_out, matrix, by_matrix, by_x, by_w, room):  # type: ignore[no-untyped-def]
    """Gradients of one message along one path: by the source x, the weights w and the coupling matrix."""
    mul, d_x, d_out, at_x, at_out, at_w = path[0], path[1], path[2], path[3], path[4], path[5]
    weight, by_weight = w[at_w : at_w + mul], by_w[at_w : at_w + mul]
    pull, weighted = room[0, :mul], room[1, :mul]
    for i in range(d_x):
        source = x[at_x + i * mul : at_x + (i + 1) * mul]
        by_source = by_x[at_x + i * mul : at_x + (i + 1) * mul]
        for u in range(mul):
            weighted[u] = sign * weight[u] * source[u]
        pull[:] = numba.float32(0.0)
        for k in range(d_out):
            m = sign * matrix[i, k]
            gradient = by_out[at_out + k * mul : at_out + (k + 1) * mul]
            total = numba.float32(0.0)
            for u in range(mul):
                pull[u] += m * gradient[u]
                total += weighted[u] * gradient[u]
            by_matrix[i, k] += total
        for u in range(mul):
            by_source[u] += weight[u] * pull[u]
            by_weight[u] += source[u] * pull[u]
