"""Rotations, torsions, lattices and nets, as plain array functions."""
