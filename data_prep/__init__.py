"""What must exist first: CIF -> blocks -> training shards, libraries, the reference set."""
