"""A process of test_gpu.py, a round of learning under DeepSpeed: `python -m tests.gpu.learning CONFIG STAGE DEVICE`."""

import json
import os
import sys
from pathlib import Path

from hpc.training.team import DeepSpeedTeam
from hpc.training.world import World
from promof_hpc.config import DesignConfig, TrainingSettings, load_config
from promof_hpc.design.strategies.promof import Promof
from promof_hpc.design.strategy import Judged, Round


def main(path: Path, stage: int, device: str) -> None:
    """Print the learning signals."""
    settings = TrainingSettings(device=device, precision="bf16", zero_stage=stage)
    config = load_config(DesignConfig, path).model_copy(update={"training": settings})
    team = DeepSpeedTeam(World(0, 0, 1, "127.0.0.1", 20_000 + os.getpid() % 10_000), settings)
    strategy, asked = Promof(config, team), Round(0, 0, 64, 0, [{"pld_ang": 4.0}])
    proposals = strategy.propose(asked)
    signals = strategy.learn(asked, proposals, [Judged(float(k)) for k in range(len(proposals.items))])
    team.leave()
    print(json.dumps(signals))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
