"""Copies in buffers that are used again: equal to the state, apart from it, and in the same memory."""

from __future__ import annotations

import copy

import torch
from torch import nn

from promof_hpc.policy.host_buffers import HostBuffers


def _trained() -> tuple[nn.Module, torch.optim.Adam]:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    optimiser = torch.optim.Adam(network.parameters(), 0.1)
    _step(network, optimiser)
    return network, optimiser


def _step(network: nn.Module, optimiser: torch.optim.Adam) -> None:
    network(torch.ones(3)).sum().backward()
    optimiser.step()


def _pages(state: dict[str, torch.Tensor]) -> set[int]:
    return {tensor.data_ptr() for tensor in state.values()}


def test_a_copy_stays_what_the_state_was() -> None:
    network, optimiser = _trained()
    before = copy.deepcopy(optimiser.state_dict())
    copied = HostBuffers().copy(optimiser.state_dict())
    _step(network, optimiser)
    assert copied["param_groups"] == before["param_groups"]
    for number, moments in before["state"].items():
        for name, value in moments.items():
            assert torch.equal(copied["state"][number][name], value)


def test_tensors_of_one_shape_have_a_buffer_each_and_the_next_copy_the_same_ones() -> None:
    network, optimiser = _trained()
    buffers = HostBuffers()
    first = buffers.copy(network.state_dict())
    assert len(_pages(first)) == 4
    _step(network, optimiser)
    second = buffers.copy(network.state_dict())
    assert _pages(second) == _pages(first)
    assert all(torch.equal(second[name], value) for name, value in network.state_dict().items())


def test_buffers_made_ahead_are_the_ones_copied_to() -> None:
    network, _ = _trained()
    buffers = HostBuffers(network.state_dict().values())
    made = {tensor.data_ptr() for kept in buffers._buffers.values() for tensor in kept}
    assert _pages(buffers.copy(network.state_dict())) == made


def test_a_part_of_a_larger_tensor_is_copied_by_itself() -> None:
    whole = torch.arange(1000.0)
    copied = HostBuffers().copy([whole[10:20], {"turned": torch.arange(6.0).reshape(2, 3).T}])
    assert copied[0].untyped_storage().nbytes() == 40
    assert copied[0].tolist() == list(range(10, 20))
    assert copied[1]["turned"].is_contiguous()
