"""Which device of its node a process takes."""

from __future__ import annotations

from promof_hpc.errors import PromofError


def own_device(device: str, key: str, local_rank: int) -> str:
    """The device of a process; processes share GPUs where there are more of them than GPUs.

    Args:
        device: as configured under `key`.

    Raises:
        PromofError: a GPU is asked for and there is none.
    """
    if device != "cuda":
        return device
    import torch

    count = torch.cuda.device_count()
    if not count:
        raise PromofError(f"{key} is cuda, but torch sees no GPU here; set it to cpu.")
    return f"cuda:{local_rank % count}"
