"""Libraries of structures in, a table of typed rows out."""
