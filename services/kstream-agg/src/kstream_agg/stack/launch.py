"""Starts a component's program: `python launch.py [--uid N --gid N] -- PROGRAM ARGUMENT…`.

Run as a script of its own between the supervisor and the program, it does what must happen in
the child and is unsafe in a fork of a threaded process: on Linux it asks for SIGKILL when the
supervisor dies, so that nothing lingers, and it gives up root. Its process becomes the program.

A user other than root may not be able to enter the folders above the program and its data (a
checkout in root's home): `--traverse` keeps the one capability that lets it pass there,
CAP_DAC_READ_SEARCH. It reads any file too, and writes none.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import signal
import sys

# linux/prctl.h, linux/capability.h
_PR_SET_PDEATHSIG = 1
_PR_SET_KEEPCAPS = 8
_PR_CAP_AMBIENT = 47
_PR_CAP_AMBIENT_RAISE = 2
_PR_CAPBSET_READ = 23
_CAP_DAC_READ_SEARCH = 2
_LINUX_CAPABILITY_VERSION_3 = 0x20080522


def main() -> None:
    """Prepare this process and become the program."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--parent", type=int, required=True)
    parser.add_argument("--uid", type=int)
    parser.add_argument("--gid", type=int)
    parser.add_argument("--traverse", action="store_true")
    parser.add_argument("program", nargs="+")
    options = parser.parse_args()
    if options.uid is not None:
        _give_up_root(options.uid, options.gid, traverse=options.traverse)
    if sys.platform == "linux":
        # After the change of user: that resets it.
        _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != options.parent:
            sys.exit("the supervisor is gone")
    os.execv(options.program[0], options.program)  # noqa: S606 - becoming the program is its job


def _give_up_root(uid: int, gid: int, *, traverse: bool) -> None:
    if traverse and not may_traverse():
        sys.exit("this system does not let another user pass folders that are closed to it")
    if traverse:
        _prctl(_PR_SET_KEEPCAPS, 1)
    os.setgroups([])
    os.setgid(gid)
    os.setuid(uid)
    if traverse:
        _keep_only(_CAP_DAC_READ_SEARCH)
        _prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_RAISE, _CAP_DAC_READ_SEARCH)


def may_traverse() -> bool:
    """Whether a child of this process, which is root, may keep the capability to pass folders."""
    if sys.platform != "linux":
        return False
    libc = ctypes.CDLL(None, use_errno=True)
    return bool(libc.prctl(_PR_CAPBSET_READ, _CAP_DAC_READ_SEARCH, 0, 0, 0) == 1)


def _keep_only(capability: int) -> None:
    class Header(ctypes.Structure):
        _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))

    class Data(ctypes.Structure):
        _fields_ = (
            ("effective", ctypes.c_uint32),
            ("permitted", ctypes.c_uint32),
            ("inheritable", ctypes.c_uint32),
        )

    bit = 1 << capability
    header = Header(_LINUX_CAPABILITY_VERSION_3, 0)
    data = (Data * 2)(Data(bit, bit, bit), Data(0, 0, 0))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.capset(ctypes.byref(header), ctypes.byref(data)) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def _prctl(option: int, *arguments: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    padded = (*arguments, 0, 0, 0, 0)[:4]
    if libc.prctl(option, *(ctypes.c_ulong(argument) for argument in padded)) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


if __name__ == "__main__":
    main()
