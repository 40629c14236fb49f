"""From what is wanted to structures: component sets, starts, assemblies, shared crystals."""
