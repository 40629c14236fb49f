"""From the bytes of a CIF to its data blocks: size, compression, encoding, syntax, and files that end too early."""

from __future__ import annotations

import re
import zlib
from collections.abc import Sequence

import gemmi

from promof_hpc.errors import Refused
from promof_hpc.screen.refusals import DEFAULT_LIMITS, ReadLimits, ReadReason

BARE_NAME = re.compile(
    r"""^(\s*_(?:symmetry_)?space_group_name_(?:H-M|H-M_alt|H-M_ref|Hall)[ \t]+)([^\s'"#;][^'"#\n]*?)[ \t]*$""",
    re.MULTILINE | re.IGNORECASE,
)
CONTROLS_IN_TEXT = 16  # more control characters than this in the first 4096 are not text


def parse(data: bytes, limits: ReadLimits = DEFAULT_LIMITS) -> gemmi.cif.Document:
    """Tokenise CIF text (plain or gzip) of any encoding and line ending.

    Raises:
        Refused: empty, too big, binary, truncated, malformed or not a CIF.
    """
    text = decode(inflate(data, limits))
    if not re.search(r"^\s*data_", text, re.MULTILINE | re.IGNORECASE):
        start = " ".join(text.split())[:40].encode("ascii", "backslashreplace").decode()
        raise Refused(ReadReason.NOT_A_CIF, f"no line begins with data_ (the file begins '{start}'); give a CIF file")
    try:
        document = _tokenise(text)
    except (ValueError, RuntimeError, IndexError) as error:
        raise _syntax_refusal(text, str(error)) from error
    if not text.endswith("\n"):
        _refuse_cut(document)
    return document


def _tokenise(text: str) -> gemmi.cif.Document:
    """Parse; a bare space-group name with spaces (a third of CoRE MOF's FSR set has `P 1`) is quoted first."""
    try:
        return gemmi.cif.read_string(text, check_level=0)
    except (ValueError, RuntimeError):
        quoted = BARE_NAME.sub(r'\1"\2"', text)
        if quoted == text:
            raise
        return gemmi.cif.read_string(quoted, check_level=0)


def inflate(data: bytes, limits: ReadLimits) -> bytes:
    """The bytes themselves, or what their gzip holds.

    Raises:
        Refused: more than the size limit, before or after; a broken stream.
    """
    if len(data) > limits.file_bytes:
        raise too_big(len(data), limits)
    if data[:2] != b"\x1f\x8b":
        return data
    inflater = zlib.decompressobj(wbits=31)
    try:
        plain = inflater.decompress(data, limits.file_bytes + 1)
    except zlib.error as error:
        raise Refused(ReadReason.TRUNCATED, f"the gzip stream is broken ({error}); compress the file again") from error
    if len(plain) > limits.file_bytes:
        raise Refused(ReadReason.ARCHIVE_BOMB, f"it inflates to more than {_mib(limits)}; split it")
    if not inflater.eof:
        raise Refused(ReadReason.TRUNCATED, "the gzip stream ends early; fetch the file again")
    return plain


def too_big(size: int, limits: ReadLimits) -> Refused:
    """The refusal of a file of so many bytes."""
    return Refused(ReadReason.TOO_BIG, f"{size / 2**20:.0f} MiB, more than {_mib(limits)}; split it")


def decode(data: bytes) -> str:
    """Text with `\\n` line ends: UTF-16 where marked, UTF-8 where it is, else Latin-1.

    Raises:
        Refused: nothing but white space, or not text.
    """
    if not data.strip(b"\xef\xbb\xbf \t\r\n\x1a"):
        raise Refused(ReadReason.EMPTY, "the file is empty; fetch or write it again")
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        text = data.decode("utf-16", errors="replace")
    else:
        try:
            text = data.decode("utf-8-sig")
        except UnicodeDecodeError:
            text = data.decode("latin-1")
    # files from DOS end with \x1a; the tokeniser knows neither it nor form feeds and hard spaces
    text = text.rstrip("\x1a").replace("\r\n", "\n").replace("\r", "\n").replace("\f", "\n").replace("\xa0", " ")
    # the newer dictionary writes _cell.length_a for _cell_length_a
    text = re.sub(r"^(\s*_[A-Za-z]\w*)\.(?=[A-Za-z])", r"\1_", text, flags=re.MULTILINE) if "\n_cell." in text else text
    controls = sum(c < " " and c not in "\n\t" for c in text[:4096])
    if "\x00" in text or controls > CONTROLS_IN_TEXT:
        raise Refused(ReadReason.BINARY, "the file is binary, not text; give a CIF file")
    return text


def _mib(limits: ReadLimits) -> str:
    return f"{limits.file_bytes / 2**20:.0f} MiB"


def _syntax_refusal(text: str, error: str) -> Refused:
    """Tell a file that ends in the middle from one that is wrong in the middle."""
    place = re.match(r"string:(\d+):\d+\(\d+\): *(.*)", error)
    line, what = (int(place[1]), place[2]) if place else (1, error)
    rest = text.rstrip().split("\n")[line - 1 :]
    if "Wrong number of values" in what:  # reported at the line of loop_
        ends_early = not any(re.match(r"\s*(loop_|data_|_\S+\s+\S)", row, re.IGNORECASE) for row in rest[1:])
    else:
        open_text_field = len(re.findall(r"^;", text, re.MULTILINE)) % 2 == 1
        ends_early = len(rest) <= 1 or open_text_field
    where = f"line {line}: {what}"
    if ends_early:
        return Refused(ReadReason.TRUNCATED, f"the file ends in the middle ({where}); fetch it again")
    return Refused(ReadReason.MALFORMED, f"the CIF syntax is broken at {where}; correct it")


def _refuse_cut(document: gemmi.cif.Document) -> None:
    """Refuse a text without a last line end whose last atom row ends in a stump.

    A cut inside the last value leaves a complete row, so that the syntax cannot tell: `0.36264` becomes `0.3`.
    """
    items = [item for block in document for item in block]
    loop = items[-1].loop if items else None
    if loop is None or not loop.tags[0].lower().startswith("_atom_site"):
        return
    width = len(loop.tags)
    column = loop.values[width - 1 :: width]
    shorter = len(column) > 1 and len(column[-1]) < min(map(len, column[:-1]))
    is_symbol = loop.tags[-1].lower() == "_atom_site_type_symbol"
    if _is_cut_symbol(loop, column) if is_symbol else shorter:
        raise Refused(
            ReadReason.TRUNCATED,
            f"the file ends in the middle of its last atom ('{column[-1]}' without a line end); fetch it again",
        )


def _is_cut_symbol(loop: gemmi.cif.Loop, symbols: Sequence[str]) -> bool:
    """Whether the last symbol is not the one its label begins with, though all others are."""
    tags = [tag.lower() for tag in loop.tags]
    if "_atom_site_label" not in tags:
        return False
    labels = loop.values[tags.index("_atom_site_label") :: len(tags)]
    begins = [re.match(r"[A-Z][a-z]?", label) for label in labels]
    agrees = [b is not None and b[0] == s for b, s in zip(begins, symbols, strict=True)]
    return all(agrees[:-1]) and not agrees[-1]
