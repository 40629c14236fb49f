"""Extended XYZ files: where each frame lies, and one frame as a crystal."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from promof_hpc.errors import Refused
from promof_hpc.screen.contacts import check_physical, too_many
from promof_hpc.screen.refusals import DEFAULT_LIMITS, ReadLimits, ReadReason, ReadStructure
from promof_hpc.structure import Structure

FRAME_NAME = re.compile(r"""(?:^|\s)name=(?:"([^"]+)"|'([^']+)'|(\S+))""")
LONGEST_LINE = 1 << 16  # bytes; a longer "line" means a binary file


@dataclass(frozen=True)
class Frame:
    """Place of a frame in its file.

    Attributes:
        name: its `name=...`, or its index from 0.
        offset: first byte.
        length: in bytes; 0 where no frame begins here (reading it says why).
    """

    name: str
    offset: int
    length: int


def list_frames(path: Path) -> Iterator[Frame]:
    """Frames in the order of the file, found by their atom counts, without keeping the file in memory.

    What follows a broken count line cannot be found: it is one frame that is refused when it is read.
    """
    with path.open("rb") as file:
        index = 0
        while True:
            offset = file.tell()
            head = file.readline(LONGEST_LINE)
            if not head:
                return
            if not head.strip():
                continue
            if not head.strip().isdigit() or len(head) > 12:
                yield Frame(str(index), offset, 0)
                return
            comment = file.readline(LONGEST_LINE).decode("utf-8", "replace")
            for _ in range(int(head)):
                if not file.readline(LONGEST_LINE):
                    break
            named = FRAME_NAME.search(comment)
            name = next(g for g in named.groups() if g) if named else str(index)
            yield Frame(name, offset, file.tell() - offset)
            index += 1


def read_frame(data: bytes, limits: ReadLimits = DEFAULT_LIMITS) -> Structure:
    """The crystal of one frame.

    Args:
        data: the bytes of the frame, from its count to its last atom.

    Raises:
        Refused: malformed, cut short, not periodic in three directions, or no possible crystal.
    """
    import numpy as np
    from ase.io.extxyz import XYZError, read_xyz

    lines = data.decode("utf-8", "replace").splitlines()
    if not lines or not lines[0].strip().isdigit():
        raise Refused(ReadReason.MALFORMED, "a frame must begin with its number of atoms; correct that line")
    count = int(lines[0])
    if count > limits.atoms:
        raise too_many(count, limits)
    if len(lines) < count + 2:
        raise Refused(
            ReadReason.TRUNCATED, f"the frame has {max(0, len(lines) - 2)} of {count} atoms; fetch the file again"
        )
    if count == 0:
        raise Refused(ReadReason.NO_ATOMS, "the frame has no atoms; remove it")
    if "lattice" not in lines[1].lower():
        raise Refused(ReadReason.NON_PERIODIC, "there is no Lattice=; give a cell with three periodic directions")
    try:
        atoms = next(iter(read_xyz(io.StringIO("\n".join(lines[: count + 2]) + "\n"), 0)))
    except KeyError as error:
        raise Refused(
            ReadReason.UNKNOWN_ELEMENT, f"{error} names no element or column; write element symbols"
        ) from error
    except (XYZError, ValueError, IndexError, TypeError, StopIteration) as error:
        raise Refused(ReadReason.MALFORMED, f"the frame cannot be read ({error}); correct it") from error
    if not np.all(atoms.pbc):
        raise Refused(
            ReadReason.NON_PERIODIC, 'it is not periodic in three directions; set pbc="T T T" with a full Lattice'
        )
    structure = Structure.from_ase(atoms)
    check_physical(structure, [f"{s}{k + 1}" for k, s in enumerate(atoms.symbols)], limits)
    return structure


def read_file_frame(path: Path, frame: Frame, limits: ReadLimits = DEFAULT_LIMITS) -> ReadStructure:
    """The crystal of a frame found by `list_frames`.

    Raises:
        Refused: as `read_frame`, or the frame is larger than the limit.
    """
    if frame.length > limits.file_bytes:
        raise Refused(ReadReason.TOO_BIG, f"the frame has {frame.length / 2**20:.0f} MiB; split it")
    with path.open("rb") as file:
        file.seek(frame.offset)
        return ReadStructure(read_frame(file.read(frame.length), limits), frame.name)
