"""Becomes a program that may do only what easel.service says of system calls and memory. A test runs it with Debian's Python and
python3-seccomp: `python3 sandbox.py UNIT PROGRAM [ARGUMENT…]`."""

import ctypes
import errno
import os
import re
import subprocess
import sys

PR_SET_NO_NEW_PRIVS, PR_SET_MDWE = 38, 65


def system_calls(group: str) -> set[str]:
    """The calls of a group such as @system-service, as this machine's systemd has them."""
    command = ["systemd-analyze", "syscall-filter", group]
    listed = subprocess.run(
        command, env={"PATH": os.environ["PATH"]}, capture_output=True, text=True, check=True
    )
    names = [line.strip() for line in listed.stdout.splitlines()[1:]]
    calls: set[str] = set()
    for name in names:
        if name.startswith("@"):
            calls |= system_calls(name)
        elif name and not name.startswith("#"):
            calls.add(name)
    return calls


def allowed_by(unit: str) -> set[str]:
    """What the lines SystemCallFilter of a unit allow, and what systemd always allows."""
    calls = system_calls("@default") | {"execve"}
    for line in re.findall(r"(?m)^SystemCallFilter=(.*)$", unit):
        groups = line.removeprefix("~").split()
        named = set().union(*(system_calls(name) if name.startswith("@") else {name} for name in groups))
        calls = calls - named if line.startswith("~") else calls | named
    return calls


def main() -> None:
    import seccomp

    unit, *command = sys.argv[1:]
    with open(unit) as file:
        text = file.read()
    only = seccomp.SyscallFilter(seccomp.ERRNO(errno.EPERM))
    for call in sorted(allowed_by(text)):
        try:
            only.add_rule(seccomp.ALLOW, call)
        except (OSError, RuntimeError):
            continue  # not a call of this architecture
    libc = ctypes.CDLL(None, use_errno=True)
    limits = [PR_SET_NO_NEW_PRIVS] * ("\nNoNewPrivileges=yes" in text)
    limits += [PR_SET_MDWE] * ("\nMemoryDenyWriteExecute=yes" in text)
    for limit in limits:
        if libc.prctl(limit, 1, 0, 0, 0) != 0:
            raise OSError(ctypes.get_errno(), f"prctl {limit}")
    only.load()
    os.execv(command[0], command)


if __name__ == "__main__":
    main()
