"""What a user may set: one typed class an idea, units in the names, one docstring a key.

Validation, the commented file of `promof init` and the error messages all come from these classes.
"""

from promof_hpc.config.design import (
    AssemblySettings,
    DesignConfig,
    LearningSettings,
    PolicySettings,
    RewardSettings,
    RoundSettings,
    SdeSettings,
    TaskSettings,
    TrainingSettings,
)
from promof_hpc.config.evaluation import (
    STAGES,
    EvaluationSettings,
    PotentialSettings,
    RelaxSettings,
    Stage,
    Threshold,
)
from promof_hpc.config.reading import commented, dump_config, load_config
from promof_hpc.config.run import FarmSettings, ReadSettings, RunConfig, ScreenConfig

__all__ = [
    "STAGES",
    "AssemblySettings",
    "DesignConfig",
    "EvaluationSettings",
    "FarmSettings",
    "LearningSettings",
    "PolicySettings",
    "PotentialSettings",
    "ReadSettings",
    "RelaxSettings",
    "RewardSettings",
    "RoundSettings",
    "RunConfig",
    "ScreenConfig",
    "SdeSettings",
    "Stage",
    "TaskSettings",
    "Threshold",
    "TrainingSettings",
    "commented",
    "dump_config",
    "load_config",
]
