"""Kinds of runs and the configuration class of each."""

from __future__ import annotations

from promof_hpc.config import DesignConfig, RunConfig, ScreenConfig, load_config
from promof_hpc.store.run_dir import RunDir

CONFIG_OF_KIND: dict[str, type[RunConfig]] = {
    "screen": ScreenConfig,
    "reference": ScreenConfig,
    "design": DesignConfig,
}


def config_of(run: RunDir) -> RunConfig:
    """The configuration that a run was begun with."""
    return load_config(CONFIG_OF_KIND[run.provenance_record()["kind"]], run.config)
