// SPDX-License-Identifier: GPL-2.0-or-later
//! The smallest VMM in Rust: the standard library, and libc's functions by their own names.
//! Its guest, in real mode, prints the sum of two numbers on a serial port, and halts.

use std::ffi::c_void;
use std::fs::OpenOptions;
use std::os::fd::AsRawFd;
use std::ptr::null_mut;

extern "C" {
    fn ioctl(fd: i32, request: u64, ...) -> i32;
    fn mmap(at: *mut c_void, length: usize, prot: i32, flags: i32, fd: i32, offset: i64) -> *mut c_void;
}

const KVM_GET_API_VERSION: u64 = 0xAE00;
const KVM_CREATE_VM: u64 = 0xAE01;
const KVM_GET_VCPU_MMAP_SIZE: u64 = 0xAE04;
const KVM_CREATE_VCPU: u64 = 0xAE41;
const KVM_SET_USER_MEMORY_REGION: u64 = 0x4020_AE46;
const KVM_RUN: u64 = 0xAE80;
const KVM_SET_REGS: u64 = 0x4090_AE82;
const KVM_GET_SREGS: u64 = 0x8138_AE83;
const KVM_SET_SREGS: u64 = 0x4138_AE84;
const EXIT_IO: u32 = 2;
const EXIT_HLT: u32 = 5;

const CODE: [u8; 12] = [0xba, 0xf8, 0x03, 0x00, 0xd8, 0x04, b'0', 0xee, 0xb0, b'\n', 0xee, 0xf4];

#[repr(C)]
struct Region {
    slot: u32,
    flags: u32,
    guest_phys_addr: u64,
    memory_size: u64,
    userspace_addr: u64,
}

fn check(result: i32, what: &str) -> i32 {
    assert!(result >= 0, "{what}: {}", std::io::Error::last_os_error());
    result
}

fn map(length: usize, flags: i32, fd: i32) -> *mut u8 {
    let at = unsafe { mmap(null_mut(), length, 3, flags, fd, 0) };
    assert!(at as isize != -1, "mmap: {}", std::io::Error::last_os_error());
    at.cast()
}

fn main() {
    let kvm = OpenOptions::new().read(true).write(true).open("/dev/kvm").expect("/dev/kvm");
    let fd = kvm.as_raw_fd();
    assert_eq!(unsafe { ioctl(fd, KVM_GET_API_VERSION, 0) }, 12);
    let vm = check(unsafe { ioctl(fd, KVM_CREATE_VM, 0) }, "KVM_CREATE_VM");
    let ram = map(0x10000, 0x22, -1);
    unsafe { std::ptr::copy_nonoverlapping(CODE.as_ptr(), ram.add(0x1000), CODE.len()) };
    let region = Region { slot: 0, flags: 0, guest_phys_addr: 0, memory_size: 0x10000, userspace_addr: ram as u64 };
    check(unsafe { ioctl(vm, KVM_SET_USER_MEMORY_REGION, &region) }, "KVM_SET_USER_MEMORY_REGION");
    let vcpu = check(unsafe { ioctl(vm, KVM_CREATE_VCPU, 0) }, "KVM_CREATE_VCPU");
    let size = check(unsafe { ioctl(fd, KVM_GET_VCPU_MMAP_SIZE, 0) }, "KVM_GET_VCPU_MMAP_SIZE");
    let run = map(size as usize, 1, vcpu);

    let mut sregs = [0u8; 312];
    check(unsafe { ioctl(vcpu, KVM_GET_SREGS, &mut sregs) }, "KVM_GET_SREGS");
    sregs[..8].fill(0); // cs.base
    sregs[12..14].fill(0); // cs.selector
    check(unsafe { ioctl(vcpu, KVM_SET_SREGS, &sregs) }, "KVM_SET_SREGS");
    let mut regs = [0u64; 18]; // rax, rbx, ..., rip, rflags
    (regs[0], regs[1], regs[16], regs[17]) = (4, 4, 0x1000, 2);
    check(unsafe { ioctl(vcpu, KVM_SET_REGS, &regs) }, "KVM_SET_REGS");

    loop {
        check(unsafe { ioctl(vcpu, KVM_RUN, 0) }, "KVM_RUN");
        match unsafe { run.add(8).cast::<u32>().read() } {
            EXIT_IO => unsafe {
                let data = run.add(40).cast::<u64>().read() as usize;
                print!("{}", *run.add(data) as char);
            },
            EXIT_HLT => break println!("halted"),
            other => panic!("exit {other}"),
        }
    }
}
