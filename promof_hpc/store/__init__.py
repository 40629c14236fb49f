"""The run directory is the ledger: write-once shards, claims, the folded budget."""
