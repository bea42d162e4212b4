# SPDX-License-Identifier: GPL-2.0-or-later
"""Rules of the host kernel's files and memory management."""

from __future__ import annotations

from errno import (
    EACCES,
    EAGAIN,
    EBADF,
    EBUSY,
    EEXIST,
    EFAULT,
    EFBIG,
    EINVAL,
    EMFILE,
    ENODEV,
    ENOENT,
    ENOMEM,
    ENOTTY,
    ENXIO,
    EOPNOTSUPP,
    EOVERFLOW,
    EPERM,
    EPIPE,
    ESPIPE,
    ESRCH,
)

from ..uapi.errno import EHWPOISON
from .base import rule

# Files

BAD_FD = rule("fs.fd", EBADF, "the file descriptor must be open", "fs/file.c: fdget()")
TOO_MANY_FDS = rule(
    "fs.fd-limit",
    EMFILE,
    "the process may have no more than RLIMIT_NOFILE files open",
    "fs/file.c: alloc_fd()",
    advice="Close what is no longer used.",
)
NO_SUCH_FILE = rule(
    "fs.open.missing", ENOENT, "the path must name a device that the emulated machine has", "fs/namei.c: path_openat()"
)
NO_DEVICE_BEHIND = rule(
    "fs.open.no-device", ENXIO, "an anonymous inode can't be opened again through /proc", "fs/libfs.c: alloc_anon_inode()"
)
NOT_AN_IOCTL = rule("fs.ioctl.unknown", ENOTTY, "the file must know the ioctl", "fs/ioctl.c: vfs_ioctl()")
FILE_MODE = rule(
    "fs.mode", EBADF, "the file must be open for what is to be done, reading or writing", "fs/read_write.c: vfs_read()"
)
NO_READ = rule("fs.read.unsupported", EINVAL, "the file must support read and write", "fs/read_write.c: vfs_read()")
NEGATIVE_OFFSET = rule("fs.seek.negative", EINVAL, "the position must not be negative", "fs/read_write.c: ksys_pread64()")
NO_SEEK = rule("fs.seek.unsupported", ESPIPE, "the file must have positions", "fs/read_write.c: ksys_pread64()")
NO_FSYNC = rule("fs.fsync.unsupported", EINVAL, "the file must support fsync", "fs/sync.c: vfs_fsync_range()")
NEGATIVE_SIZE = rule("fs.truncate.negative", EINVAL, "the size must not be negative", "fs/open.c: do_sys_ftruncate()")
NO_TRUNCATE = rule("fs.truncate.unsupported", EINVAL, "the file must allow its size to be set", "fs/open.c: do_ftruncate()")
FALLOC_RANGE = rule(
    "fs.fallocate.range",
    EINVAL,
    "the offset must not be negative and the length must be positive",
    "fs/open.c: vfs_fallocate()",
)
FALLOC_MODE = rule(
    "fs.fallocate.mode", EOPNOTSUPP, "the fallocate mode must be a known combination", "fs/open.c: vfs_fallocate()"
)
FALLOC_TYPE = rule(
    "fs.fallocate.type", ENODEV, "fallocate needs a regular file or a block device", "fs/open.c: vfs_fallocate()"
)
FALLOC_PIPE = rule("fs.fallocate.pipe", ESPIPE, "a pipe has no ranges", "fs/open.c: vfs_fallocate()")
FALLOC_LIMIT = rule(
    "fs.fallocate.limit", EFBIG, "the range must end within the file system's largest file", "fs/open.c: vfs_fallocate()"
)
FALLOC_NONE = rule("fs.fallocate.unsupported", EOPNOTSUPP, "the file must support fallocate", "fs/open.c: vfs_fallocate()")

# Pipes

PIPE_READERS = rule("fs.pipe.readers", EPIPE, "somebody must have the pipe open for reading", "fs/pipe.c: anon_pipe_write()")
PIPE_FULL = rule(
    "fs.pipe.full", EAGAIN, "the pipe must have room, if the call isn't to wait", "fs/splice.c: wait_for_space()"
)
PIPE_EMPTY = rule(
    "fs.pipe.empty", EAGAIN, "there must be something to read, if the call isn't to wait", "fs/pipe.c: anon_pipe_read()"
)
SPLICE_FLAGS = rule("fs.splice.flags", EINVAL, "only SPLICE_F_* may be set", "fs/splice.c: splice(), vmsplice()")
SPLICE_NO_PIPE = rule("fs.splice.no-pipe", EBADF, "the file must be a pipe", "fs/splice.c: vmsplice_to_pipe()")
SPLICE_PIPES = rule("fs.splice.pipes", EINVAL, "one of the two files must be a pipe", "fs/splice.c: do_splice()")
SPLICE_SELF = rule("fs.splice.self", EINVAL, "a pipe can't be spliced into itself", "fs/splice.c: do_splice()")
SPLICE_PIPE_OFFSET = rule("fs.splice.pipe-offset", ESPIPE, "a pipe has no position", "fs/splice.c: __do_splice()")
SPLICE_POSITION = rule(
    "fs.splice.position", EINVAL, "a position may be given only for a file that has positions", "fs/splice.c: do_splice()"
)
SPLICE_AREA = rule(
    "fs.splice.area", EINVAL, "position and length must not be negative, nor their sum", "fs/read_write.c: rw_verify_area()"
)
NO_SPLICE = rule(
    "fs.splice.unsupported", EINVAL, "the file must support splice", "fs/splice.c: do_splice_read(), do_splice_from()"
)
IOVEC_COUNT = rule("mm.iovec.count", EINVAL, "there may be 1024 parts at most", "lib/iov_iter.c: iovec_from_user()")
IOVEC_LENGTH = rule(
    "mm.iovec.length", EINVAL, "the length of a part must not be negative", "lib/iov_iter.c: copy_iovec_from_user()"
)

# Mappings

MMAP_LENGTH = rule("mm.mmap.length", EINVAL, "a mapping must have a length", "mm/mmap.c: do_mmap()")
MMAP_OFFSET = rule(
    "mm.mmap.offset", EINVAL, "the file offset must be a multiple of the page size", "arch/x86/kernel/sys_x86_64.c: mmap()"
)
MMAP_FLAGS = rule(
    "mm.mmap.flags", EINVAL, "a mapping must be MAP_SHARED, MAP_SHARED_VALIDATE or MAP_PRIVATE", "mm/mmap.c: do_mmap()"
)
MMAP_REAL = rule(
    "mm.mmap.real",
    ENOMEM,
    "this machine's kernel must make the mapping that stands for the emulated one",
    "gmemu exec",
    advice="See vm.max_map_count and the process's limits.",
)
MMAP_ADDRESS = rule("mm.mmap.address", EINVAL, "a fixed address must be page aligned", "mm/mmap.c: get_unmapped_area()")
MMAP_TAKEN = rule("mm.mmap.taken", EEXIST, "MAP_FIXED_NOREPLACE must not hit an existing mapping", "mm/mmap.c: do_mmap()")
MMAP_SPACE = rule("mm.mmap.space", ENOMEM, "the mapping must fit in the address space", "mm/mmap.c: do_mmap()")
MMAP_HUGETLB = rule(
    "mm.mmap.hugetlb", EINVAL, "MAP_HUGETLB needs anonymous memory or a hugetlbfs file", "mm/mmap.c: ksys_mmap_pgoff()"
)
MMAP_FILE_LIMIT = rule(
    "mm.mmap.file-limit", EOVERFLOW, "the mapping must end within the largest possible file", "mm/mmap.c: file_mmap_ok()"
)
MMAP_VALIDATE = rule(
    "mm.mmap.validate",
    EOPNOTSUPP,
    "MAP_SHARED_VALIDATE accepts only flags that the file supports, and neither MAP_SYNC nor MAP_FIXED_NOREPLACE",
    "mm/mmap.c: do_mmap()",
)
MMAP_GROWS = rule("mm.mmap.grows", EINVAL, "a file or shared mapping can't be MAP_GROWSDOWN", "mm/mmap.c: do_mmap()")
MMAP_MODE = rule(
    "mm.mmap.mode",
    EACCES,
    "the file must be open for reading, and to be written by a shared mapping for writing too",
    "mm/mmap.c: do_mmap()",
)
MMAP_NOEXEC = rule("mm.mmap.noexec", EPERM, "PROT_EXEC isn't allowed on a file of a noexec mount", "mm/mmap.c: do_mmap()")
MMAP_UNSUPPORTED = rule("mm.mmap.unsupported", ENODEV, "the file must support mmap", "mm/mmap.c: do_mmap()")
MUNMAP_RANGE = rule(
    "mm.munmap.range", EINVAL, "the address must be page aligned and the length positive", "mm/mmap.c: do_vmi_munmap()"
)
MADVISE_RANGE = rule(
    "mm.madvise.range", EINVAL, "the start must be page aligned and the range must not wrap", "mm/madvise.c: do_madvise()"
)
MADVISE_ADVICE = rule("mm.madvise.advice", EINVAL, "the advice must be known", "mm/madvise.c: madvise_behavior_valid()")
MADVISE_COLLAPSE = rule(
    "mm.madvise.collapse", EINVAL, "only memory that may be made of huge pages can be collapsed", "mm/khugepaged.c"
)
MADVISE_ANONYMOUS = rule(
    "mm.madvise.anonymous", EINVAL, "the advice is for private anonymous memory only", "mm/madvise.c: madvise_vma_behavior()"
)
MADVISE_FILE = rule("mm.madvise.file", EINVAL, "only memory of a file can be removed", "mm/madvise.c: madvise_remove()")
MADVISE_SHARED = rule(
    "mm.madvise.shared", EACCES, "a file's memory can be removed only by a shared mapping", "mm/madvise.c: madvise_remove()"
)
MADVISE_LOCKED = rule(
    "mm.madvise.locked",
    EINVAL,
    "locked memory can't be dropped, removed or aged",
    "mm/madvise.c: madvise_dontneed_free_valid_vma(), madvise_remove(), can_madv_lru_vma()",
    advice="Unlock it, or use MADV_DONTNEED_LOCKED.",
)
MADVISE_POPULATE = rule(
    "mm.madvise.populate",
    EINVAL,
    "the mapping's protection must allow the access that is populated for",
    "mm/gup.c: faultin_page_range()",
)
MADVISE_FAULT = rule(
    "mm.madvise.fault", EFAULT, "every page to be populated must be accessible", "mm/madvise.c: madvise_populate()"
)
MADVISE_POISON = rule(
    "mm.madvise.hwpoison",
    EHWPOISON,
    "a page with a hardware memory error can't be populated",
    "mm/madvise.c: madvise_populate()",
)
MADVISE_UNMAPPED = rule("mm.madvise.unmapped", ENOMEM, "the whole range must be mapped", "mm/madvise.c: madvise_walk_vmas()")
MPROTECT_RANGE = rule("mm.mprotect.range", EINVAL, "the start must be page aligned", "mm/mprotect.c: do_mprotect_pkey()")
MPROTECT_PROT = rule("mm.mprotect.prot", EINVAL, "the protection must be known", "mm/mprotect.c: do_mprotect_pkey()")
MPROTECT_WRAP = rule("mm.mprotect.wrap", ENOMEM, "the range must not wrap", "mm/mprotect.c: do_mprotect_pkey()")
MPROTECT_GROWS = rule(
    "mm.mprotect.grows", EINVAL, "PROT_GROWSDOWN and _GROWSUP need a mapping that grows", "mm/mprotect.c: do_mprotect_pkey()"
)
MPROTECT_ACCESS = rule(
    "mm.mprotect.access", EACCES, "PROT_EXEC isn't allowed on a file of a noexec mount", "mm/mprotect.c: do_mprotect_pkey()"
)
MPROTECT_UNMAPPED = rule(
    "mm.mprotect.unmapped", ENOMEM, "the whole range must be mapped", "mm/mprotect.c: do_mprotect_pkey()"
)

MREMAP_FLAGS = rule("mm.mremap.flags", EINVAL, "only MREMAP_* may be set", "mm/mremap.c: check_mremap_params()")
MREMAP_MAYMOVE = rule(
    "mm.mremap.maymove",
    EINVAL,
    "MREMAP_FIXED and _DONTUNMAP need MREMAP_MAYMOVE",
    "mm/mremap.c: check_mremap_params()",
)
MREMAP_RESIZE = rule(
    "mm.mremap.resize", EINVAL, "MREMAP_DONTUNMAP can't change the length", "mm/mremap.c: check_mremap_params()"
)
MREMAP_ADDRESS = rule(
    "mm.mremap.address", EINVAL, "the old address must be page aligned", "mm/mremap.c: check_mremap_params()"
)
MREMAP_LENGTH = rule(
    "mm.mremap.length", EINVAL, "the new length must be positive and fit in user space", "mm/mremap.c: check_mremap_params()"
)
MREMAP_TARGET = rule(
    "mm.mremap.target",
    EINVAL,
    "the new address must be page aligned, in user space",
    "mm/mremap.c: check_mremap_params()",
)
MREMAP_OVERLAP = rule(
    "mm.mremap.overlap", EINVAL, "the old and the new range must not overlap", "mm/mremap.c: check_mremap_params()"
)
MREMAP_UNMAPPED = rule("mm.mremap.unmapped", EFAULT, "the old address must be mapped", "mm/mremap.c: check_prep_vma()")
MREMAP_DUPLICATE = rule(
    "mm.mremap.duplicate",
    EINVAL,
    "a mapping of which nothing is to be moved (old length 0) is doubled, and must be shared",
    "mm/mremap.c: check_prep_vma()",
)
MREMAP_CROSSES = rule(
    "mm.mremap.crosses",
    EFAULT,
    "the old range must lie in one mapping, unless Linux 6.17 or newer only moves it",
    "mm/mremap.c: check_prep_vma()",
)
MREMAP_NO_ROOM = rule(
    "mm.mremap.no-room",
    ENOMEM,
    "without MREMAP_MAYMOVE the old range must end with its mapping, and what it grows by be free",
    "mm/mremap.c: expand_vma()",
)
MREMAP_CHARGE = rule(
    "mm.mremap.charge",
    ENOMEM,
    "private memory that is to be committed must not be more than the machine has",
    "mm/mremap.c: vrm_calc_charge(), mm/util.c: __vm_enough_memory()",
    advice="Linux 6.17 and newer count what a move shrinks by, too: shrink first, then move.",
)
MLOCK_WRAP = rule("mm.mlock.wrap", EINVAL, "the range must not wrap", "mm/mlock.c: apply_vma_lock_flags()")
MLOCK_UNMAPPED = rule("mm.mlock.unmapped", ENOMEM, "the whole range must be mapped", "mm/mlock.c: apply_vma_lock_flags()")
MLOCK_FAULT = rule(
    "mm.mlock.fault",
    ENOMEM,
    "every page to be locked must be accessible",
    "mm/mlock.c: __mlock_posix_error_return()",
    advice="The range is locked all the same: it's populated afterwards.",
)
MLOCK_OOM = rule("mm.mlock.oom", EAGAIN, "there must be memory for the pages", "mm/mlock.c: __mlock_posix_error_return()")
PROCESS_VM_FLAGS = rule("mm.process.flags", EINVAL, "there are no flags yet", "mm/process_vm_access.c: process_vm_rw()")
NO_PROCESS = rule("mm.process.missing", ESRCH, "the process must exist", "mm/process_vm_access.c: process_vm_rw_core()")

# Faults, by user space or on its behalf

UNMAPPED = rule(
    "mm.fault.unmapped",
    EFAULT,
    "the address must be mapped",
    "mm/memory.c: handle_mm_fault(), arch/x86/mm/fault.c",
    signal="SIGSEGV",
)
PROTECTION = rule(
    "mm.fault.protection",
    EFAULT,
    "the mapping's protection must allow the access",
    "arch/x86/mm/fault.c: access_error()",
    signal="SIGSEGV",
)
BEYOND_EOF = rule(
    "mm.fault.eof",
    EFAULT,
    "a file mapping may only be touched within the file",
    "mm/filemap.c: filemap_fault()",
    signal="SIGBUS",
)
POISONED = rule(
    "mm.fault.hwpoison",
    EHWPOISON,
    "a page with a hardware memory error may not be touched",
    "mm/memory.c: __do_fault()",
    signal="SIGBUS",
)
FAULT_OOM = rule(
    "mm.fault.oom", EFAULT, "there must be memory for the page", "mm/memory.c: handle_mm_fault()", signal="SIGBUS"
)
OWNED_BY_GUEST = rule(
    "mm.fault.rmp",
    EFAULT,
    "the host may not write a page that the RMP assigns to a guest or to firmware",
    "arch/x86/mm/fault.c (X86_PF_RMP); APM vol. 2, 15.36.10",
    signal="SIGBUS",
)
USER_COPY = rule(
    "mm.uaccess",
    EFAULT,
    "the user address handed to the call must be readable (or writable, for results)",
    "lib/usercopy.c: copy_from_user(), copy_to_user()",
)
GUP_FAULT = rule("mm.gup.fault", EFAULT, "every page to be pinned must be mapped and accessible", "mm/gup.c: faultin_page()")
GUP_POISON = rule(
    "mm.gup.hwpoison", EHWPOISON, "a page with a hardware memory error can't be pinned", "mm/gup.c: faultin_page()"
)
GUP_TEST_REQUEST = rule(
    "mm.gup-test.request",
    EINVAL,
    "gup_test must know the call; the emulated one knows PIN_LONGTERM_TEST_*",
    "mm/gup_test.c: gup_test_ioctl()",
)
GUP_TEST_STARTED = rule(
    "mm.gup-test.started",
    EINVAL,
    "one open gup_test keeps one range pinned at a time",
    "mm/gup_test.c: pin_longterm_test_start()",
)
GUP_TEST_FLAGS = rule(
    "mm.gup-test.flags", EINVAL, "only PIN_LONGTERM_TEST_FLAG_USE_* may be set", "mm/gup_test.c: pin_longterm_test_start()"
)
GUP_TEST_RANGE = rule(
    "mm.gup-test.range",
    EINVAL,
    "address and size must be multiples of 4096, and the size not 0",
    "mm/gup_test.c: pin_longterm_test_start()",
)
GUP_TEST_NOT_STARTED = rule(
    "mm.gup-test.not-started", EINVAL, "pages must be pinned before they are read", "mm/gup_test.c: pin_longterm_test_read()"
)
HWPOISON_AGAIN = rule(
    "mm.hwpoison.again", EHWPOISON, "the page must not be known to be bad already", "mm/memory-failure.c: memory_failure()"
)
HWPOISON_KEPT = rule(
    "mm.hwpoison.kept",
    EBUSY,
    "a bad page must come out of use: out of its file, with nobody else's reference to it (guest_memfd always keeps it)",
    "mm/memory-failure.c: truncate_error_folio(), has_extra_refcount(), action_result()",
)

# Pages

OUT_OF_MEMORY = rule("mm.page.oom", ENOMEM, "the emulated machine must have a free page", "mm/page_alloc.c")

PAGE_HELD = rule(
    "mm.page.held",
    ENOMEM,
    "in a real process a truncated page's place can't be used again while somebody holds the old page",
    "gmemu exec",
    advice="Release the pin first; a real kernel would take another page.",
)
MREMAP = rule(
    "mm.mremap.unsupported",
    EOPNOTSUPP,
    "a mapping of an emulated file can't be moved or resized",
    "gmemu exec",
    advice="Unmap it and map it anew.",
)
