"""PRO-MOF: what is computed. Chemistry, geometry, physics, screening, the store; knows no scheduler."""

__version__ = "0.1.0"
