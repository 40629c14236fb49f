"""The compared systems, one file each with what only it needs, on the protocol of `design.strategy`."""
