# SPDX-License-Identifier: GPL-2.0-or-later
"""KVM_MEMORY_ENCRYPT_OP for an SNP VM."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..rules import KernelError
from ..uapi.kvm import KVM_MEMORY_ENCRYPT_OP
from ..uapi.layout import Struct
from ..uapi.mman import MAP_ANONYMOUS, MAP_PRIVATE, PROT_READ, PROT_WRITE
from ..uapi.sev import (
    PspStatus,
    SevCmd,
    SnpPageType,
    kvm_sev_cmd,
    kvm_sev_init,
    kvm_sev_snp_launch_finish,
    kvm_sev_snp_launch_start,
    kvm_sev_snp_launch_update,
)

if TYPE_CHECKING:
    from .vm import Vm

__all__ = ["DEFAULT_POLICY", "Snp", "SnpError"]

DEFAULT_POLICY = 0x30000
"""SMT allowed, and bit 17, which must be one: what QEMU uses."""


class SnpError(KernelError):
    """A command failed; `fw_error` is the firmware's status (SUCCESS: the firmware wasn't the reason)."""

    def __init__(self, cause: KernelError, fw_error: int) -> None:
        super().__init__(cause.rule, cause.found)
        self.fw_error = PspStatus(fw_error)


class Snp:
    """The commands, in the order of a launch.  Addresses are bytes; `source` is a user address."""

    def __init__(self, vm: Vm) -> None:
        self._vm, self._door = vm, vm.door
        self._sev_fd = -1
        self._scratch = 0

    def command(self, id: SevCmd, data: Struct) -> bytes:
        """Issue one command.  Returns its structure as KVM left it.  Raises `SnpError`."""
        if self._sev_fd < 0:
            self._sev_fd = self._door.open("/dev/sev")
            self._scratch = self._door.mmap(0, 4096, PROT_READ | PROT_WRITE, MAP_ANONYMOUS | MAP_PRIVATE)
        self._door.store(self._scratch, data.pack())
        cmd = bytearray(kvm_sev_cmd(id=id, data=self._scratch, sev_fd=self._sev_fd).pack())
        try:
            self._vm.ioctl(KVM_MEMORY_ENCRYPT_OP, cmd)
        except KernelError as error:
            raise SnpError(error, kvm_sev_cmd.unpack_from(cmd).error) from error
        return self._door.load(self._scratch, data.SIZE)

    def close(self) -> None:
        """Close /dev/sev and unmap the commands' page."""
        if self._sev_fd >= 0:
            self._door.close(self._sev_fd)
            self._door.munmap(self._scratch, 4096)
            self._sev_fd = -1

    def init2(self, vmsa_features: int = 0, ghcb_version: int = 0, flags: int = 0) -> None:
        """KVM_SEV_INIT2, before the first vCPU."""
        self.command(SevCmd.INIT2, kvm_sev_init(vmsa_features=vmsa_features, flags=flags, ghcb_version=ghcb_version))

    def launch_start(self, policy: int = DEFAULT_POLICY, gosvw: bytes = bytes(16), flags: int = 0) -> None:
        """KVM_SEV_SNP_LAUNCH_START."""
        self.command(SevCmd.SNP_LAUNCH_START, kvm_sev_snp_launch_start(policy=policy, gosvw=gosvw, flags=flags))

    def launch_update_once(
        self, gpa: int, length: int, page_type: SnpPageType | int, source: int = 0, flags: int = 0
    ) -> kvm_sev_snp_launch_update:
        """KVM_SEV_SNP_LAUNCH_UPDATE, one call: the structure with what is left to do."""
        data = kvm_sev_snp_launch_update(gfn_start=gpa >> 12, uaddr=source, len=length, type=int(page_type), flags=flags)
        return kvm_sev_snp_launch_update.unpack_from(self.command(SevCmd.SNP_LAUNCH_UPDATE, data))

    def launch_update(self, gpa: int, length: int, page_type: SnpPageType | int, source: int = 0) -> int:
        """KVM_SEV_SNP_LAUNCH_UPDATE until `len` is 0, as its contract asks.  Returns how many calls it took."""
        calls = 0
        while True:
            left = self.launch_update_once(gpa, length, page_type, source)
            calls += 1
            if not left.len:
                return calls
            gpa, length, source = left.gfn_start << 12, left.len, left.uaddr

    def launch_finish(
        self,
        *,
        host_data: bytes = bytes(32),
        id_block: int = 0,
        id_auth: int = 0,
        auth_key: bool = False,
        vcek_disabled: bool = False,
        flags: int = 0,
    ) -> None:
        """KVM_SEV_SNP_LAUNCH_FINISH.  `id_block` and `id_auth` are user addresses; 0 for none."""
        data = kvm_sev_snp_launch_finish(
            id_block_uaddr=id_block,
            id_auth_uaddr=id_auth,
            id_block_en=int(bool(id_block)),
            auth_key_en=int(auth_key),
            vcek_disabled=int(vcek_disabled),
            host_data=host_data,
            flags=flags,
        )
        self.command(SevCmd.SNP_LAUNCH_FINISH, data)
