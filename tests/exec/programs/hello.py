# SPDX-License-Identifier: GPL-2.0-or-later
"""The smallest VMM in Python: the standard library, and its own view of what isolation means.

    python3 hello.py

It runs a guest in real mode that prints a sum, says what it sees of its own interpreter, and what a signal did.
"""

import ctypes
import fcntl
import json
import mmap
import os
import signal
import struct
import sys
import threading

CODE = bytes.fromhex("baf803 00d8 0430 ee b00a ee f4")
SIZE = 0x10000


def vmm() -> str:
    """What the guest printed."""
    kvm = os.open("/dev/kvm", os.O_RDWR | os.O_CLOEXEC)
    vm = fcntl.ioctl(kvm, 0xAE01, 0)
    ram = mmap.mmap(-1, SIZE)
    ram[0x1000 : 0x1000 + len(CODE)] = CODE
    address = ctypes.addressof(ctypes.c_char.from_buffer(ram))
    fcntl.ioctl(vm, 0x4020AE46, struct.pack("<IIQQQ", 0, 0, 0, SIZE, address))
    vcpu = fcntl.ioctl(vm, 0xAE41, 0)
    run = mmap.mmap(vcpu, fcntl.ioctl(kvm, 0xAE04, 0))
    sregs = bytearray(312)
    fcntl.ioctl(vcpu, 0x8138AE83, sregs)
    sregs[0:8] = bytes(8)
    sregs[12:14] = bytes(2)
    fcntl.ioctl(vcpu, 0x4138AE84, sregs)
    fcntl.ioctl(vcpu, 0x4090AE82, struct.pack("<18Q", 2, 3, *[0] * 14, 0x1000, 2))
    printed = b""
    while True:
        fcntl.ioctl(vcpu, 0xAE80, 0)
        reason = struct.unpack_from("<I", run, 8)[0]
        if reason == 5:
            return printed.decode()
        assert reason == 2, reason
        printed += run[struct.unpack_from("<Q", run, 40)[0] :][:1]


def main() -> None:
    signals = []
    signal.signal(signal.SIGUSR1, lambda number, frame: signals.append(number))
    printed = vmm()
    in_thread = []
    thread = threading.Thread(target=lambda: in_thread.append(vmm()))
    thread.start()
    thread.join()
    os.kill(os.getpid(), signal.SIGUSR1)
    child = os.fork()
    if child == 0:
        os._exit(3 if vmm() == printed else 4)
    import decimal  # extension modules that ours may have loaded, or not

    try:
        import greenlet

        found = greenlet.greenlet(lambda: "switched").switch()
    except ImportError:
        found = "switched"
    print(
        json.dumps(
            {
                "guest": printed,
                "thread": in_thread,
                "signals": signals,
                "child": os.WEXITSTATUS(os.waitpid(child, 0)[1]),
                "version": sys.version,
                "greenlet": found,
                "decimal": str(decimal.Decimal("0.1") * 3),
                "path": sys.path,
                "prefix": sys.prefix,
                "modules": sorted(name for name in sys.modules if name.startswith("gmemu")),
                "hash": hash("isolation"),
                "optimize": sys.flags.optimize,
            }
        )
    )


main()
