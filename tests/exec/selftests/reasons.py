# SPDX-License-Identifier: GPL-2.0-or-later
"""Why selftests don't pass under `gmemu exec`, in a sentence each, for RESULTS.md."""

__all__ = ["NOT_RUN", "REASONS"]

NOT_RUN = ("kvm_create_max_vcpus", "hardware_disable_test")
"""take the whole machine down with them"""

REASONS: dict[str, str] = {
    "access_tracking_perf_test": "It needs the machine's own kernel to have CONFIG_IDLE_PAGE_TRACKING.",
    "dirty_log_perf_test": (
        "It dirties a gigabyte of guest memory over and over, at a fault of some 100 us for each 4 KiB, "
        "and isn't done in the time given."
    ),
    "dirty_log_test": ("It dirties random pages of a gigabyte in two modes, which takes a minute on two idle processors."),
    "hardware_disable_test": (
        "It forks 512 processes with a VM and many vCPU threads each; an interpreter in every one of "
        "them is too much for a small machine."
    ),
    "kvm_create_max_vcpus": "It makes as many vCPUs as KVM allows, and each has an emulated processor of its own.",
    "max_guest_memory_test": ("It touches as much guest memory as the machine has, which takes longer than the time given."),
    "memslot_perf_test": (
        "It measures for five seconds each how fast tens of thousands of slots are mapped, unmapped and "
        "moved, and counts in loops that take the interpreter far longer."
    ),
    "rseq_test": (
        "It wants 50,000 runs of a vCPU while a thread migrates 100,000 times: a run costs 100 us here, "
        "so that there are too few of them."
    ),
    "x86_64/amx_test": "The emulated processor has no AMX.",
    "x86_64/apic_bus_clock_test": (
        "It compares the APIC's timer with the time stamp counter to 5 %, both of which go on while a "
        "busy machine keeps the interpreter waiting."
    ),
    "x86_64/dirty_log_page_splitting_test": (
        "The emulated KVM has nothing to split before it's written, and so no parameter eager_page_split."
    ),
    "x86_64/monitor_mwait_test": "It needs MWAIT in the CPUID of the machine that it runs on.",
    "x86_64/nx_huge_pages_test": "The emulated processor has no iTLB multihit erratum, so nothing about NX huge pages.",
    "x86_64/sev_init2_tests": "It's about SEV and SEV-ES, of which only SNP is emulated.",
    "x86_64/sev_migrate_tests": "It's about migration of SEV and SEV-ES guests, of which only SNP is emulated.",
    "x86_64/sev_smoke_test": ("It's about SEV and SEV-ES; of an SNP guest the memory is encrypted, and its code isn't run."),
    "x86_64/smm_test": "System management mode isn't emulated.",
    "x86_64/smaller_maxphyaddr_emulation_test": "KVM_CAP_SMALLER_MAXPHYADDR isn't offered, as without nested paging.",
    "x86_64/ucna_injection_test": "Threshold interrupts for corrected errors are Intel's.",
    "x86_64/xapic_ipi_test": (
        "One vCPU has to wake the other, twice each time, within a second of its own busy loop on RDTSC, "
        "each of which is an exit that takes the interpreter."
    ),
    "x86_64/xen_shinfo_test": "The Xen interface of KVM isn't emulated.",
    "x86_64/xen_vmcall_test": "The Xen interface of KVM isn't emulated.",
    "x86_64/xss_msr_test": "The emulated processor has no XSAVES.",
}
