"""Exit codes of `promof` commands, and the one by which a farm tells its launcher not to start it again."""

DONE = 0
FAILED = 1
USAGE = 2
INCOMPLETE = 3  # something is missing; `resume` may finish it
STOPPED = 75  # stopped on request, to be resumed
CANNOT_GO_ON = 65  # a rank's only: starting again would fail in the same way (disk full, wrong weights)
