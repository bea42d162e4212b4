# SPDX-License-Identifier: GPL-2.0-or-later
"""GUIDs as UEFI stores them: the first three groups little endian, the rest in order of reading.

`uuid` does the same, at a price in import time that `gmemu measure` would pay on every start.
"""

__all__ = ["guid_bytes", "guid_text"]


def guid_bytes(text: str) -> bytes:
    """The 16 bytes of `text`, such as ``96b582de-1fb2-45f7-baea-a366c55a082d``."""
    first, second, third, *rest = (bytes.fromhex(group) for group in text.split("-"))
    guid = first[::-1] + second[::-1] + third[::-1] + b"".join(rest)
    if len(guid) != 16:
        raise ValueError(f"{text} is no GUID")
    return guid


def guid_text(guid: bytes) -> str:
    """How the 16 bytes of `guid` are written, in lower case."""
    groups = guid[3::-1], guid[5:3:-1], guid[7:5:-1], guid[8:10], guid[10:16]
    return "-".join(group.hex() for group in groups)
