"""Building blocks: bonds, bond orders, decomposition, SMILES sequences, conformers, validity."""
