"""Takes away what the process that reads a guest's disk does not need, before it reads the first byte of it.

Works for every user. For root it also changes the user: it is nobody from then on. Where the system's own filter for system calls
is to be had (Linux on x86-64 and arm64), nothing is left but reading, writing to descriptors that are open, and memory.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import resource
import signal
import struct
import sys

NOBODY = 65534
MEMORY_BYTES = 160 << 20
"""On top of what the process has when it enters: bitmaps of the largest filesystems, and free ranges."""
CPU_S = 300
DESCRIPTORS = 64

_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS = 1, 4, 22, 38
_CLONE_NEWIPC, _CLONE_NEWNET = 0x08000000, 0x40000000


def enter(*, programs: bool) -> None:
    """Give up privileges for good. With `programs`, starting other programs stays possible, with the same limits.

    Raises:
        OSError: some of it cannot be had. The disk must not be read then.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    parent = os.getppid()
    os.chdir("/")
    os.umask(0o077)
    _set_limits(programs=programs)
    if os.geteuid() == 0:
        # No network of its own and no shared memory; in a container that may not do that, the filter below has to do.
        libc.unshare(_CLONE_NEWNET | _CLONE_NEWIPC)
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)
    _prctl(libc, _PR_SET_NO_NEW_PRIVS, 1)
    _prctl(libc, _PR_SET_DUMPABLE, 0)
    # After the change of user, which takes it back: whoever is orphaned ends.
    _prctl(libc, _PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        raise ProcessLookupError(errno.ESRCH, "the one who asked is gone")
    if not programs:
        _filter_system_calls(libc)


def _set_limits(*, programs: bool) -> None:
    with open("/proc/self/statm") as file:
        now = int(file.read().split()[0]) * resource.getpagesize()
    limits = {
        resource.RLIMIT_AS: now + MEMORY_BYTES,
        resource.RLIMIT_CPU: CPU_S,
        resource.RLIMIT_NOFILE: DESCRIPTORS,
        resource.RLIMIT_FSIZE: 0,
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_MEMLOCK: 0,
    }
    if not programs:
        limits[resource.RLIMIT_NPROC] = 0
    for kind, most in limits.items():
        _, hard = resource.getrlimit(kind)
        value = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(kind, (value, value))


def _prctl(libc: ctypes.CDLL, option: int, argument: int) -> None:
    if libc.prctl(option, ctypes.c_ulong(argument), ctypes.c_ulong(0), ctypes.c_ulong(0), ctypes.c_ulong(0)) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"prctl {option}: {os.strerror(number)}")


# --- the filter for system calls --------------------------------------------------------------------------------------

_AUDIT_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
# Numbers of include/uapi/asm-generic/unistd.h (arm64) and arch/x86/entry/syscalls/syscall_64.tbl: what Python and the C library
# need to go on, to read, to answer, and to end. Nothing opens, connects, starts or signals anything.
_ALLOWED = {
    "x86_64": {
        "read": 0, "write": 1, "close": 3, "fstat": 5, "poll": 7, "lseek": 8, "mmap": 9, "mprotect": 10, "munmap": 11, "brk": 12,
        "rt_sigaction": 13, "rt_sigprocmask": 14, "rt_sigreturn": 15, "pread64": 17, "readv": 19, "writev": 20, "sched_yield": 24,
        "mremap": 25, "madvise": 28, "getpid": 39, "sendto": 44, "recvfrom": 45, "exit": 60, "gettimeofday": 96, "getrusage": 98,
        "getuid": 102, "getgid": 104, "geteuid": 107, "getegid": 108, "getppid": 110, "sigaltstack": 131, "gettid": 186,
        "time": 201, "futex": 202, "sched_getaffinity": 204, "restart_syscall": 219, "fadvise64": 221, "clock_gettime": 228,
        "exit_group": 231, "newfstatat": 262, "preadv": 295, "getrandom": 318, "rseq": 334,
    },
    "aarch64": {
        "close": 57, "lseek": 62, "read": 63, "write": 64, "readv": 65, "writev": 66, "pread64": 67, "preadv": 69, "ppoll": 73,
        "newfstatat": 79, "fstat": 80, "exit": 93, "exit_group": 94, "futex": 98, "clock_gettime": 113, "sched_getaffinity": 123,
        "sched_yield": 124, "restart_syscall": 128, "sigaltstack": 132, "rt_sigaction": 134, "rt_sigprocmask": 135,
        "rt_sigreturn": 139, "getrusage": 165, "gettimeofday": 169, "getpid": 172, "getppid": 173, "getuid": 174, "geteuid": 175,
        "getgid": 176, "getegid": 177, "gettid": 178, "sendto": 206, "recvfrom": 207, "brk": 214, "munmap": 215, "mremap": 216,
        "mmap": 222, "fadvise64": 223, "mprotect": 226, "madvise": 233, "getrandom": 278, "rseq": 293,
    },
}  # fmt: skip

_LOAD, _JUMP_IF_EQUAL, _JUMP_IF_MORE, _RETURN = 0x20, 0x15, 0x25, 0x06
_ALLOW, _KILL = 0x7FFF0000, 0x80000000
_REFUSE = 0x00050000 | errno.EPERM
_NUMBER_AT, _ARCH_AT = 0, 4
_X32_BIT = 0x40000000


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_void_p))


def _filter_system_calls(libc: ctypes.CDLL) -> None:
    """Refuse (EPERM) every system call that is not listed; another machine's calls end the process.

    A kernel or a container without filters leaves it at what the limits and the user allow.
    """
    machine = platform.machine()
    if machine not in _ALLOWED or sys.maxsize < 1 << 32:
        return
    code = _instructions(_AUDIT_ARCH[machine], sorted(_ALLOWED[machine].values()))
    memory = ctypes.create_string_buffer(code, len(code))
    program = _Program(len(code) // 8, ctypes.addressof(memory))
    libc.prctl(_PR_SET_SECCOMP, ctypes.c_ulong(2), ctypes.byref(program), ctypes.c_ulong(0), ctypes.c_ulong(0))


def _instructions(architecture: int, allowed: list[int]) -> bytes:
    """A classic BPF program (Linux: Documentation/userspace-api/seccomp_filter.rst) that lets `allowed` through."""
    code = [
        (_LOAD, 0, 0, _ARCH_AT),
        (_JUMP_IF_EQUAL, 1, 0, architecture),
        (_RETURN, 0, 0, _KILL),
        (_LOAD, 0, 0, _NUMBER_AT),
        (_JUMP_IF_MORE, len(allowed), 0, _X32_BIT - 1),
    ]
    for index, number in enumerate(allowed):
        code.append((_JUMP_IF_EQUAL, len(allowed) - index, 0, number))
    code += [(_RETURN, 0, 0, _REFUSE), (_RETURN, 0, 0, _ALLOW)]
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in code)
