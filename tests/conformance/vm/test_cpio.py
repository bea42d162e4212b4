# SPDX-License-Identifier: GPL-2.0-or-later
"""The archive, read back by a reader that knows only the format."""

from __future__ import annotations

from stat import S_ISCHR, S_ISDIR, S_ISREG

from gmemu.conformance.vm.cpio import initramfs

INIT = b"\x7fELF" + bytes(range(250))


def entries(archive: bytes) -> dict[str, tuple[int, bytes, tuple[int, int]]]:
    """Name -> mode, data, device."""
    found: dict[str, tuple[int, bytes, tuple[int, int]]] = {}
    at = 0
    while True:
        assert at % 4 == 0
        assert archive[at : at + 6] == b"070701"
        fields = [int(archive[at + 6 + 8 * i : at + 14 + 8 * i], 16) for i in range(13)]
        name_at = at + 110
        name = archive[name_at : name_at + fields[11] - 1].decode()
        assert archive[name_at + fields[11] - 1] == 0
        data_at = -(-(name_at + fields[11]) // 4) * 4
        if name == "TRAILER!!!":
            assert data_at == len(archive)
            return found
        found[name] = (fields[1], archive[data_at : data_at + fields[6]], (fields[9], fields[10]))
        at = -(-(data_at + fields[6]) // 4) * 4


def test_program_is_init_and_executable() -> None:
    mode, data, _ = entries(initramfs(INIT))["init"]
    assert S_ISREG(mode)
    assert mode & 0o777 == 0o755
    assert data == INIT


def test_mount_points_and_console() -> None:
    found = entries(initramfs(INIT))
    assert all(S_ISDIR(found[name][0]) for name in ("dev", "proc", "sys", "tmp"))
    mode, _, device = found["dev/console"]
    assert S_ISCHR(mode)
    assert device == (5, 1)


def test_directories_come_before_what_is_in_them() -> None:
    names = list(entries(initramfs(INIT)))
    assert names.index("dev") < names.index("dev/console")
