# SPDX-License-Identifier: GPL-2.0-or-later
"""A conversion that promises to keep the contents, after the launch."""

from __future__ import annotations

from ..explore.verdict import Kind
from ..uapi.kvm import KVM_SET_MEMORY_ATTRIBUTES2_PRESERVE
from .worlds import BUSY, PAGE, SnpLaunch

__all__ = ["PreserveAfterFinal"]

CONTENTS = b"of host."


class PreserveAfterFinal(SnpLaunch):
    """RFC v5: page 1 becomes private with PRESERVE when the launch is final."""

    number = 30
    name = "preserve-after-final"
    question = "Is a promise that contents stay kept, or else refused?"
    source = "discussion D; D6; RFC v5"
    broken_by = {"preserve-always": Kind.ASSERTION}
    profile = "rfc-v5"

    def tasks(self) -> None:
        self.memory[PAGE : PAGE + len(CONTENTS)] = CONTENTS
        self.host.lru.lru_add_drain_all()
        self.task("vmm", self.finish_and_convert)
        self.task("touch", lambda: self.memory[PAGE])

    def finish_and_convert(self) -> str:
        """KVM_SEV_SNP_LAUNCH_FINISH, then the conversion."""
        self.vm.snp.launch_finish()
        self.gmem.make_private(PAGE, PAGE, KVM_SET_MEMORY_ATTRIBUTES2_PRESERVE)
        return "preserved"

    def holds(self) -> None:
        assert self.seen["vmm"] in ("preserved", "gmem.content.unsupported", BUSY)
        if self.seen["vmm"] == "preserved":
            seen = self.guest_sees(1, len(CONTENTS))
            assert seen == CONTENTS, f"the contents were promised to stay, and the guest reads {seen.hex()}"
