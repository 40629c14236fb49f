"""Where it runs: command line, local execution, MPI farm."""
