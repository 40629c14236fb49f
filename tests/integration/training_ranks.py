"""A process of the trainings of test_deepspeed.py: `python -m tests.integration.training_ranks FOLDER STAGE A B`, or
`FOLDER STAGE N` for one whose last rank is asked for what is pressing once it has taken N steps.
"""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import torch
from torch import nn

from hpc.preemption import Asked, Interrupted
from hpc.training.team import DeepSpeedTeam, Stops
from hpc.training.world import World
from promof_hpc.config import TrainingSettings
from promof_hpc.design.learning.team import own_rows

ROWS, STEPS = 6, 4


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 16), nn.SiLU(), nn.Linear(16, 1))


def losses(net: nn.Module, step: int, team, at_once: int):
    """The mean over the rows of a batch, in pieces."""
    batch = torch.randn(ROWS, 5, generator=torch.Generator().manual_seed(step))
    for rows in own_rows(ROWS, team, at_once):
        wrong = (net(batch[rows.index])[:, 0] - batch[rows.index].sum(1).sin()) ** 2
        yield (wrong * torch.tensor(rows.counted)).sum() / ROWS


def train(team, folder: Path, begin: int, end: int, at_once: int = 2) -> dict:
    """Steps from `begin` to `end`, the state saved after each; loaded where `begin` is not 0."""
    net = network()
    engine = team.engine("toy", net, 1e-2, 0.5)
    if begin:
        before = torch.load(folder / str(begin) / "weights.pt", weights_only=True)
        net.load_state_dict(before)
        engine.load(folder / str(begin))
    norms = []
    for step in range(begin, end):
        norms.append(engine.step(losses(net, step, team, at_once)))
        place = folder / str(step + 1)
        place.mkdir(parents=True, exist_ok=True)
        write = engine.save(place)
        if team.rank == 0:
            torch.save({k: v.clone() for k, v in net.state_dict().items()}, place / "weights.pt")
        write()
        team.gather(None)
    return {"norms": norms, "weights": nn.utils.parameters_to_vector(net.parameters()).tolist()}


def start(size: int, folder: Path, *numbers: int) -> list[str]:
    """Have `size` processes come to a good end; what each logged."""
    environment = {**os.environ, "WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port())}
    command = [sys.executable, "-m", "tests.integration.training_ranks", str(folder), *map(str, numbers)]
    ranks = [
        subprocess.Popen(
            command, env={**environment, "RANK": str(k), "LOCAL_RANK": str(k)}, stderr=subprocess.PIPE, text=True
        )
        for k in range(size)
    ]
    errors = [rank.communicate(timeout=120)[1] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0] * size, errors
    return errors


def in_processes(size: int, folder: Path, stage: int, begin: int, end: int) -> dict:
    """What the first of `size` processes said."""
    log, *_ = start(size, folder, stage, begin, end)
    return {**json.loads((folder / f"said-{begin}-{end}.json").read_text()), "log": log}


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def main(folder: Path, stage: int, begin: int, end: int) -> None:
    team = DeepSpeedTeam(World.here(), TrainingSettings(zero_stage=stage, meeting_min=1.0))
    said = train(team, folder, begin, end)
    every = team.gather(said["weights"])
    assert all(w == every[0] for w in every)
    if team.rank == 0:
        (folder / f"said-{begin}-{end}.json").write_text(json.dumps(said))
    team.leave()


def press(folder: Path, stage: int, after: int) -> None:
    """Take steps until interrupted, which is written down; only the last rank is asked to stop."""
    world, taken = World.here(), 0

    def pressing() -> Asked:
        return Asked.REQUEUE if world.rank == world.size - 1 and taken + 1 >= after else Asked.NOTHING

    team = DeepSpeedTeam(world, TrainingSettings(zero_stage=stage, meeting_min=1.0), Stops(pressing=pressing))
    net = network()
    engine = team.engine("toy", net, 1e-2, 0.5)
    try:
        for taken in range(STEPS):
            engine.step(losses(net, taken, team, 2))
    except Interrupted as interrupted:
        (folder / f"stopped-{team.rank}").write_text(f"{interrupted.asked.name} after {taken + 1}")
    team.leave()


if __name__ == "__main__":
    torch.set_num_threads(1)
    (main if len(sys.argv) == 5 else press)(Path(sys.argv[1]), *(int(x) for x in sys.argv[2:]))
