"""From building blocks and poses to a structure, and the gate that judges it."""
