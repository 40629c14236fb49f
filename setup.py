"""Packages, the command `promof`, and the extras: `[train]`, `[uma]`, `[mpi-wheel]`, `[dev]`."""

from pathlib import Path

from setuptools import find_namespace_packages, setup

CORE = [
    "numpy>=2.0",
    "scipy",
    "torch==2.13.0",
    "ase",
    "pymatgen",
    "spglib",
    "gemmi",
    "rdkit",
    "h5py",
    "numba",
    "matscipy",
    "pandas",
    "pyarrow",
    "pydantic>=2",
    "PyYAML",
    "typer",
    "rich",
    "Jinja2",
    "MarkupSafe",
    "sevenn",
    "chgnet",
    "core-mof",
    "mpi4py",
    "submitit",
    "safetensors",
    "tensorboard",
]
EXTRAS = {
    "train": ["deepspeed"],
    "uma": ["fairchem-core"],
    "mpi-wheel": ["mpich"],
    "dev": ["pytest", "pytest-timeout", "hypothesis", "ruff", "mypy", "psutil", "pyzeo", "types-PyYAML"],
}
setup(
    name="promof-hpc",
    version="0.1.0",
    description="Design and screen metal-organic frameworks on Slurm clusters",
    long_description=Path("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="MIT",
    python_requires=">=3.11",
    packages=find_namespace_packages(include=["promof_hpc*", "hpc*", "data_prep*", "slurm_templates*"]),
    include_package_data=True,
    package_data={
        "": ["*.cif", "*.h5", "*.safetensors", "*.json", "*.jsonl", "*.md", "*.txt", "*.j2", "*.css", "*.js", "*.yaml"]
    },
    install_requires=CORE,
    extras_require=EXTRAS,
    entry_points={"console_scripts": ["promof=hpc.cli:main"]},
)
