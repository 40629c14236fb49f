"""What can go wrong for a user: one sentence each, saying what, where and what to do next."""

from __future__ import annotations

from enum import StrEnum


class PromofError(Exception):
    """A failure that is told to the user as one sentence (what, where, remedy), never as a traceback."""

    exit_code = 1


class UsageError(PromofError):
    """The command, its configuration or its input cannot be used as given."""

    exit_code = 2


class Refused(Exception):
    """One structure is turned away for a typed reason; the run goes on.

    `reason` is a member of a `StrEnum` that the refusing module owns; `detail` names the item and the remedy.
    """

    def __init__(self, reason: StrEnum, detail: str):
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail
