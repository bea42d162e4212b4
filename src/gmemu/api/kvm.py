# SPDX-License-Identifier: GPL-2.0-or-later
"""/dev/kvm: the emulated one, or this machine's own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

from ..profiles import DEFAULT
from ..uapi.kvm import (
    KVM_CHECK_EXTENSION,
    KVM_CREATE_VM,
    KVM_GET_API_VERSION,
    KVM_GET_VCPU_MMAP_SIZE,
    Cap,
    VmType,
)
from ..uapi.mman import MAP_ANONYMOUS, MAP_PRIVATE, MAP_SHARED, PROT_READ, PROT_WRITE
from .descriptor import Descriptor
from .mapping import Mapping
from .vm import Vm

if TYPE_CHECKING:
    from ..kvm.host import Host
    from ..profiles import Profile
    from ..syscalls.door import Door

__all__ = ["Kvm"]


class Kvm(Descriptor):
    """An open /dev/kvm, and with it the process that opened it."""

    def __init__(self, door: Door, host: Host | None = None) -> None:
        super().__init__(door, door.open("/dev/kvm"))
        self._owned_host = host

    @classmethod
    def open(cls, profile: str | Profile = DEFAULT, **host_options: Any) -> Self:
        """The emulated /dev/kvm of a new emulated host.  `host_options` are those of `gmemu.Host`."""
        from ..kvm.host import Host
        from ..syscalls.emulated import EmulatedDoor

        host = Host(profile, **host_options)
        return cls(EmulatedDoor(host), host)

    @classmethod
    def open_on(cls, host: Host) -> Self:
        """The emulated /dev/kvm of `host`, opened by its first process."""
        from ..syscalls.emulated import EmulatedDoor

        return cls(EmulatedDoor(host))

    @classmethod
    def open_host(cls) -> Self:
        """This machine's real /dev/kvm.  Raises what open() does."""
        from ..syscalls.host import HostDoor

        return cls(HostDoor())

    @property
    def host(self) -> Host:
        """The emulated machine."""
        from ..syscalls.emulated import EmulatedDoor

        if not isinstance(self.door, EmulatedDoor):
            raise AttributeError("a real /dev/kvm has no emulated host")
        return self.door.host

    def api_version(self) -> int:
        """KVM_GET_API_VERSION: 12."""
        return self.ioctl(KVM_GET_API_VERSION)

    def check_extension(self, cap: Cap | int) -> int:
        """KVM_CHECK_EXTENSION on the device."""
        return self.ioctl(KVM_CHECK_EXTENSION, int(cap))

    def create_vm(self, vm_type: VmType | int = VmType.DEFAULT, ipa_bits: int = 0) -> Vm:
        """KVM_CREATE_VM; on arm64 with the size of the guest's address space (0: 40 bits).

        Raises EINVAL for a type that kernel or processor haven't.
        """
        fd = self.ioctl(KVM_CREATE_VM, int(vm_type) | ipa_bits)
        return Vm(self.door, fd, VmType(vm_type), self.ioctl(KVM_GET_VCPU_MMAP_SIZE))

    def anonymous(self, size: int, *, shared: bool = False, prot: int = PROT_READ | PROT_WRITE) -> Mapping:
        """`size` bytes of ordinary memory of the process: for memslots, sources of population, and so on."""
        flags = MAP_ANONYMOUS | (MAP_SHARED if shared else MAP_PRIVATE)
        return Mapping(self.door, self.door.mmap(0, size, prot, flags), size)

    def close(self) -> None:
        """Close /dev/kvm; a host that was made for it goes too."""
        super().close()
        if self._owned_host is not None:
            self._owned_host.close()
            self._owned_host = None
