"""Potentials, relaxation, energies and pores; `evaluate` is the one door."""
