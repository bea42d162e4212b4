# SPDX-License-Identifier: GPL-2.0-or-later
"""The log of a launch, page by page, and where two of them part.

A log is JSON Lines.  The first line is the header: what was launched, and that it was simulated.  Each further line is
one page in the order in which it was measured: the step (index in the plan, name), gpa, page type, the CONTENTS field
that entered the digest, and the digest after it, both SHA-384 in hex.  The digest of the last line is the measurement.

For a TD, contents are SHA-384 of a page that was extended (zeroes for one that was only added), and the digest is MRTD as
it would be if it were finished there.  For a realm both are SHA-256, and the digest is the RIM after the page; its first
vCPU, which comes after all pages, isn't in the log.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from enum import Enum
from typing import IO, TYPE_CHECKING, Any, NamedTuple, NoReturn

from ..uapi.sev import SnpPageType
from .errors import LaunchError
from .plan import LaunchPlan
from .vcpu_state import VMSA_GPA

if TYPE_CHECKING:
    from .cca import CcaPlan
    from .tdx import TdxPlan

__all__ = [
    "CcaPageType",
    "Difference",
    "LogWriter",
    "PageLog",
    "PageRecord",
    "PageType",
    "TdxPageType",
    "diff",
    "log_header",
    "read_log",
    "write_log",
]

FORMAT = "gmemu-page-log"
VERSION = 1
_HEX_DIGITS = frozenset("0123456789abcdef")


class TdxPageType(Enum):
    """How a page entered MRTD."""

    ADDED = 1
    """TDH.MEM.PAGE.ADD: its address alone."""
    EXTENDED = 2
    """TDH.MR.EXTEND of all of it, too."""


class CcaPageType(Enum):
    """How a page entered a RIM."""

    MEASURED = 1
    """With its contents."""


PageType = SnpPageType | TdxPageType | CcaPageType
_TYPES: dict[str, PageType] = {t.name.lower(): t for t in (*SnpPageType, *TdxPageType, *CcaPageType)}
_NAMES = {t: name for name, t in _TYPES.items()}


class PageRecord(NamedTuple):
    """One measured page.  `gpa` in bytes; `contents` and `digest` (the one after this page) are 96 hex digits, or 64 of a
    realm's."""

    step: int
    name: str
    gpa: int
    page_type: PageType
    contents: str
    digest: str


class PageLog(NamedTuple):
    """A whole log; `name` is what messages call it."""

    name: str
    header: dict[str, Any]
    pages: list[PageRecord]

    @property
    def measurement(self) -> str:
        """The digest after the last page; zeroes if there is none."""
        return self.pages[-1].digest if self.pages else "0" * _digits(self.header)


def log_header(plan: LaunchPlan | TdxPlan | CcaPlan, platform: str = "sev-snp") -> dict[str, Any]:
    """The header of the log of a launch by `plan`.  Hashes the firmware."""
    from hashlib import sha256

    firmware = plan.firmware
    return {
        "format": FORMAT,
        "version": VERSION,
        "simulated": True,
        "platform": platform,
        "firmware": {"name": firmware.name, "size": firmware.size, "sha256": sha256(firmware.data).hexdigest()},
        "parameters": dict(plan.parameters),
    }


class LogWriter:
    """Writes a log as pages are measured.  The caller opens and closes the text file."""

    def __init__(self, file: IO[str], header: dict[str, Any]) -> None:
        from json import dumps

        self._write, self._dumps = file.write, dumps
        self._heads: dict[tuple[int, str, PageType], tuple[str, str]] = {}
        self._write(dumps(header) + "\n")

    def page(self, step: int, name: str, gpa: int, page_type: PageType, contents: str, digest: str) -> None:
        """Add one page; the arguments are the fields of `PageRecord`."""
        head = self._heads.get((step, name, page_type)) or self._head(step, name, page_type)
        self._write(f'{head[0]}{gpa:#x}{head[1]}{contents}", "digest": "{digest}"}}\n')

    def _head(self, step: int, name: str, page_type: PageType) -> tuple[str, str]:
        """The parts of a line that all pages of a step share."""
        head = f'{{"step": {step}, "name": {self._dumps(name)}, "gpa": "', f'", "type": "{_NAMES[page_type]}", "contents": "'
        self._heads[step, name, page_type] = head
        return head


def write_log(path: str | os.PathLike[str], header: dict[str, Any], pages: Iterable[PageRecord]) -> None:
    """Write a whole log to `path`.  Raises `LaunchError` if that can't be done."""
    try:
        with open(path, "w", encoding="ascii", buffering=1 << 20) as file:
            writer = LogWriter(file, header)
            for page in pages:
                writer.page(*page)
    except OSError as error:
        raise LaunchError(f"the page log {os.fspath(path)} can't be written: {error.strerror or error}") from error


def read_log(path: str | os.PathLike[str]) -> PageLog:
    """Read and check the log at `path`.  Raises `LaunchError` that names the line."""
    name = os.fspath(path)
    try:
        with open(path, "rb", buffering=1 << 20) as file:
            lines = enumerate(file, 1)
            header = _read_header(name, lines)
            digits = _digits(header)
            return PageLog(name, header, [_read_record(name, number, line, digits) for number, line in lines])
    except LaunchError:
        raise
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise LaunchError(f"the page log {name} can't be read: {why}") from error


def _read_header(name: str, lines: Iterator[tuple[int, bytes]]) -> dict[str, Any]:
    header = _object(name, *next(lines, (1, b"{}")))
    if header.get("format") != FORMAT:
        _bad(name, 1, f'the first line isn\'t the header of a page log (no "format": "{FORMAT}")')
    if header.get("version") != VERSION:
        _bad(name, 1, f"the log has version {header.get('version')!r}, and only version {VERSION} is known")
    for part in "parameters", "firmware":
        if not isinstance(header.get(part), dict):
            _bad(name, 1, f'the header has no object "{part}"')
    return header


def _digits(header: dict[str, Any]) -> int:
    """How many hexadecimal digits a digest has: SHA-256 of a realm, SHA-384 elsewhere."""
    return 64 if header.get("platform") == "cca" else 96


def _read_record(name: str, number: int, line: bytes, digits: int) -> PageRecord:
    fields = _object(name, number, line)
    try:
        step, step_name, gpa = fields["step"], fields["name"], int(fields["gpa"], 16)
        kind, contents, digest = _TYPES[fields["type"]], fields["contents"], fields["digest"]
    except KeyError as error:
        _bad(name, number, f"a page has no {error.args[0]!r}, or of a kind that isn't known")
    except (TypeError, ValueError):
        _bad(name, number, "a page's gpa isn't a hexadecimal number in quotes, or its type no name")
    if type(step) is not int or not isinstance(step_name, str) or gpa < 0:
        _bad(name, number, "a page's step, name or gpa isn't of the right kind")
    for value in contents, digest:
        if not isinstance(value, str) or len(value) != digits or not _HEX_DIGITS.issuperset(value):
            _bad(name, number, f"a page's contents and digest must be {digits} hexadecimal digits each")
    return PageRecord(step, step_name, gpa, kind, contents, digest)


def _object(name: str, number: int, line: bytes) -> dict[str, Any]:
    from json import loads

    try:
        value = loads(line)
    except (ValueError, RecursionError):
        _bad(name, number, "the line isn't JSON; the log is damaged or cut short")
    if not isinstance(value, dict):
        _bad(name, number, "the line isn't a JSON object")
    return value


def _bad(name: str, number: int, what: str) -> NoReturn:
    raise LaunchError(f"the page log {name}, line {number}: {what}")


class Difference(NamedTuple):
    """Where two logs part.

    `kind` is `contents`, `type`, `order`, `page` (one has a page that the other lacks), `end` (one ends earlier) or
    `digest`.  `page` counts from 0.  `a` and `b` are the records there, `None` after an end.  `why` is a sentence;
    `parameters` says what else the headers differ in, as (in a, in b) by name.
    """

    kind: str
    page: int
    a: PageRecord | None
    b: PageRecord | None
    why: str
    parameters: dict[str, tuple[Any, Any]]


def diff(a: PageLog, b: PageLog) -> Difference | None:
    """The first page at which `a` and `b` part, or `None` if the same pages were measured in the same order."""
    for index, (left, right) in enumerate(zip(a.pages, b.pages, strict=False)):
        if left[2:] != right[2:]:
            kind, why = _why_pages(a, b, index, left, right)
            return _difference(a, b, kind, index, f"page {index}: {why}")
    if len(a.pages) != len(b.pages):
        return _difference(a, b, "end", min(len(a.pages), len(b.pages)), _why_end(a, b))
    return None


def _difference(a: PageLog, b: PageLog, kind: str, index: int, why: str) -> Difference:
    parameters = _parameters(a, b)
    if parameters:
        told = ", ".join(f"{key} ({left} and {right})" for key, (left, right) in parameters.items())
        why += f"; the launches differ in {told}"
    left = a.pages[index] if index < len(a.pages) else None
    right = b.pages[index] if index < len(b.pages) else None
    return Difference(kind, index, left, right, why, parameters)


def _parameters(a: PageLog, b: PageLog) -> dict[str, tuple[Any, Any]]:
    """What the headers say differently; the firmware's name only if its contents differ too."""
    left, right = dict(a.header["parameters"]), dict(b.header["parameters"])
    left_firmware, right_firmware = a.header["firmware"], b.header["firmware"]
    if left_firmware.get("sha256") != right_firmware.get("sha256"):
        for key in "name", "sha256":
            left[f"firmware {key}"], right[f"firmware {key}"] = left_firmware.get(key), right_firmware.get(key)
    keys = list(dict.fromkeys((*left, *right)))
    return {k: (left.get(k), right.get(k)) for k in keys if left.get(k) != right.get(k)}


def _why_pages(a: PageLog, b: PageLog, index: int, left: PageRecord, right: PageRecord) -> tuple[str, str]:
    if left.gpa != right.gpa:
        return _why_places(a, b, index, left, right)
    if left.page_type is not right.page_type:
        types = f"{_NAMES[left.page_type]} in {a.name} and as {_NAMES[right.page_type]} in {b.name}"
        return "type", f"{_place(a, left)} is measured as {types}"
    if left.contents != right.contents:
        what = "the registers differ" if left.gpa == VMSA_GPA else "the contents differ"
        return "contents", f"{_place(a, left)}: {what} between {a.name} and {b.name}"
    return (
        "digest",
        f"{_place(a, left)} is the same, but the digests after it differ: the launches didn't start from the same digest",
    )


def _why_places(a: PageLog, b: PageLog, index: int, left: PageRecord, right: PageRecord) -> tuple[str, str]:
    """The logs go on at different addresses: another order, or a page that only one of them has."""
    in_a = any(p.gpa == right.gpa for p in a.pages[index:])
    in_b = any(p.gpa == left.gpa for p in b.pages[index:])
    both = f"{a.name} goes on with {_place(a, left)}, {b.name} with {_place(b, right)}"
    if in_a and in_b:
        return "order", f"{both}; both launch these pages, in another order"
    if in_a:
        return "page", f"{both}; {b.name} doesn't launch the former"
    if in_b:
        return "page", f"{both}; {a.name} doesn't launch the latter"
    return "page", f"{both}; neither launches the other's page"


def _why_end(a: PageLog, b: PageLog) -> str:
    shorter, longer = sorted((a, b), key=lambda log: len(log.pages))
    count = len(shorter.pages)
    following = longer.pages[count]
    if following.gpa == VMSA_GPA and (count and shorter.pages[-1].gpa == VMSA_GPA):
        left, right = (sum(p.gpa == VMSA_GPA for p in log.pages) for log in (shorter, longer))
        return f"{shorter.name} has {left} vCPUs and {longer.name} has {right}; up to {following.name} they are the same"
    return f"{shorter.name} ends after {count} pages, where {longer.name} goes on with {_place(longer, following)}"


def _place(log: PageLog, record: PageRecord) -> str:
    if record.gpa == VMSA_GPA:
        return f"the VMSA of step {record.step} ({record.name})"
    start = min(p.gpa for p in log.pages if p.step == record.step)
    return f"gpa {record.gpa:#x} in step {record.step} ({record.name}, offset {record.gpa - start:#x})"
