"""Filters really loaded: what they refuse, what still runs, in a process of their own."""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
import tempfile

import pytest

from engine.errors import InvalidParameter, NotImplementedYet
from engine.linux import caps, seccomp, syscalls
from engine.spec.runtime import Seccomp
from tests.lib.cgroup2 import INSIDE

pytestmark = pytest.mark.skipif(INSIDE in os.environ or os.uname().machine != "x86_64", reason="needs seccomp and x86_64 numbers")

# Loads the program given as a file, then answers with the errno of each call asked for as [number, arguments...].
_LOADER = """
import ctypes, json, os, sys
libc = ctypes.CDLL(None, use_errno=True)
program = open(sys.argv[1], 'rb').read()
class Program(ctypes.Structure):
    _fields_ = [('length', ctypes.c_ushort), ('code', ctypes.c_char_p)]
assert libc.prctl(38, 1, 0, 0, 0) == 0
assert libc.prctl(22, 2, ctypes.byref(Program(len(program) // 8, program))) == 0, ctypes.get_errno()
answers = []
for number, *arguments in json.loads(sys.argv[2]):
    ctypes.set_errno(0)
    result = libc.syscall(ctypes.c_long(number), *(ctypes.c_ulong(value) for value in arguments))
    if number == 56 and result == 0:
        os._exit(0)
    answers.append(ctypes.get_errno() if result == -1 else 0)
print(json.dumps(answers), flush=True)
if len(sys.argv) > 3:
    os.execvp(sys.argv[3], sys.argv[3:])
"""


def under(program: bytes, calls: list[list[int]], *command: str) -> tuple[list[int], str]:
    """errno of each call, and what `command` then prints."""
    with tempfile.NamedTemporaryFile() as file:
        file.write(program)
        file.flush()
        done = subprocess.run(
            [sys.executable, "-ISc", _LOADER, file.name, json.dumps(calls), *command], capture_output=True, text=True, timeout=120
        )
    assert done.returncode == 0, (done.returncode, done.stderr)
    answers, _, rest = done.stdout.partition("\n")
    return json.loads(answers), rest


def default(*capabilities: str) -> bytes:
    return seccomp.compile(seccomp.default_profile(), capabilities or caps.DEFAULT)


NUMBER = syscalls.numbers("x86_64") if os.uname().machine == "x86_64" else {}
EPERM, EINVAL, EFAULT, ENOSYS, EAFNOSUPPORT = 1, 22, 14, 38, 97
NEWUSER = 0x10000000 | 17  # CLONE_NEWUSER, SIGCHLD


def test_what_the_default_refuses() -> None:
    refused = {
        "keyctl": [0], "mount": [0, 0, 0, 0, 0], "unshare": [0x20000], "clone": [NEWUSER, 0, 0, 0, 0], "clone3": [0, 0],
        "bpf": [0, 0, 0], "io_uring_setup": [1, 0], "kexec_load": [0, 0, 0, 0], "userfaultfd": [0], "reboot": [0, 0, 0, 0],
        "add_key": [0] * 5,
    }  # fmt: skip
    answers, _ = under(default(), [[NUMBER[name], *arguments] for name, arguments in refused.items()])
    assert dict(zip(refused, answers, strict=True)) == {name: ENOSYS if name == "clone3" else EPERM for name in refused}


def test_arguments_decide() -> None:
    socket, personality, clone = NUMBER["socket"], NUMBER["personality"], NUMBER["clone"]
    calls = [[socket, 40, 1, 0], [socket, 38, 5, 0], [socket, 1, 1, 0], [socket, 16, 3, 0], [personality, 0xFFFFFFFF],
                 [personality, 0x40000],
             [clone, 17, 0, 0, 0, 0]]  # fmt: skip
    assert under(default(), calls)[0] == [EPERM, EPERM, 0, 0, 0, EPERM, 0]


def test_capabilities_open_calls() -> None:
    calls = [[NUMBER["mount"], 0, 0, 0, 0, 0], [NUMBER["clone3"], 0, 0], [NUMBER["perf_event_open"], 0, 0, 0, 0, 0]]
    with_admin = under(default("CAP_SYS_ADMIN"), calls)[0]
    assert ENOSYS not in with_admin
    assert with_admin[0] in (EFAULT, EPERM)  # the kernel's own answer: the process may be without the right itself
    assert with_admin[1] == EINVAL


def test_newer_calls_than_the_profile_do_not_exist() -> None:
    assert under(default(), [[1000], [NUMBER["removexattrat"] + 1, 0, 0, 0, 0, 0]])[0] == [ENOSYS, ENOSYS]


def test_programs_run() -> None:
    _, output = under(default(), [], "sh", "-c", "ls / | grep -c . > /dev/null && echo $(echo piped | cat) && sleep 0.01 && date +%Y")
    assert output.startswith("piped\n20")
    program = (
        "import threading, subprocess; t = threading.Thread(target=print, args=('thread',)); t.start(); t.join(); subprocess.run(['true'])"
    )
    assert under(default(), [], sys.executable, "-ISc", program)[1] == "thread\n"


def test_a_profile_of_ones_own() -> None:
    text = json.dumps(
        {
            "defaultAction": "SCMP_ACT_ALLOW",
            "architectures": ["SCMP_ARCH_X86_64"],
            "syscalls": [
                {"names": ["mkdir", "no_such_call"], "action": "SCMP_ACT_ERRNO", "errnoRet": 28},
                {"name": "chmod", "action": "SCMP_ACT_ERRNO"},
                {"names": ["kill"], "action": "SCMP_ACT_ERRNO", "args": [{"index": 1, "value": 9, "op": "SCMP_CMP_GE"}]},
            ],
        }
    )
    resolved = seccomp.from_option(text, caps.DEFAULT)
    assert resolved is not None
    pid = os.getpid()
    calls = [[NUMBER["mkdir"], 0, 0], [NUMBER["chmod"], 0, 0], [NUMBER["kill"], pid, 0], [NUMBER["kill"], pid, 15]]
    assert under(seccomp.compile(resolved), calls)[0] == [28, EPERM, 0, EPERM]


def test_killing_actions_and_foreign_architectures() -> None:
    kill = seccomp.parse('{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["getppid"],"action":"SCMP_ACT_KILL_PROCESS"}]}')
    with tempfile.NamedTemporaryFile() as file:
        file.write(seccomp.compile(kill))
        file.flush()
        for number in (NUMBER["getppid"], 0x40000000):  # x32 is not in the profile
            done = subprocess.run([sys.executable, "-ISc", _LOADER, file.name, json.dumps([[number]])], capture_output=True, timeout=120)
            assert done.returncode == -31  # SIGSYS


def test_options() -> None:
    assert seccomp.from_option("unconfined", caps.DEFAULT) is None
    assert seccomp.from_option(None, caps.DEFAULT, privileged=True) is None
    assert seccomp.from_option("builtin", caps.DEFAULT) == seccomp.from_option(None, caps.DEFAULT)
    bad = {
        "{": "decoding seccomp profile failed",
        '{"defaultAction":"SCMP_ACT_ALLOW","architectures":["a"],"archMap":[{"architecture":"b"}]}': "both 'architectures' and 'archMap'",
        '{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"name":"a","names":["b"],"action":"SCMP_ACT_ALLOW"}]}': "both 'name' and 'names'",
    }
    for text, words in bad.items():
        with pytest.raises(InvalidParameter, match=words):
            seccomp.from_option(text, caps.DEFAULT)
    with pytest.raises(InvalidParameter, match="SCMP_ACT_NONSENSE"):
        seccomp.compile(Seccomp(default_action="SCMP_ACT_NONSENSE"))
    with pytest.raises(NotImplementedYet):
        seccomp.compile(Seccomp(default_action="SCMP_ACT_NOTIFY"))


def test_the_same_profile_is_compiled_once() -> None:
    assert seccomp.compile(seccomp.default_profile(), caps.DEFAULT) is seccomp.compile(seccomp.default_profile(), caps.DEFAULT)


def test_the_default_program_stays_short() -> None:
    # Loading costs by length and depth: 246 instructions 115 µs, libseccomp's 1048 for the same rules 756 µs.
    assert len(default()) // 8 <= 250


def test_against_libseccomp() -> None:
    """The same rules given to libseccomp, where this machine has it, decide alike wherever that knows the name."""
    from tests.lib.bpf import Machine

    try:
        library = ctypes.CDLL("libseccomp.so.2")
    except OSError:
        pytest.skip("no libseccomp on this machine")
    library.seccomp_init.restype = ctypes.c_void_p

    class Argument(ctypes.Structure):
        _fields_ = [("index", ctypes.c_uint), ("op", ctypes.c_int), ("value", ctypes.c_uint64), ("second", ctypes.c_uint64)]

    order = ["", "NE", "LT", "LE", "EQ", "GE", "GT", "MASKED_EQ"]
    resolved = seccomp.resolve(seccomp.default_profile(), caps.DEFAULT)
    context = ctypes.c_void_p(library.seccomp_init(ctypes.c_uint32(0x50001)))
    assert library.seccomp_arch_add(context, ctypes.c_uint32(0x40000003)) == 0
    known = set()
    for rule in resolved.syscalls:
        for name in rule.names:
            number = library.seccomp_syscall_resolve_name(name.encode())
            if number == -1:
                continue
            known.add(name)
            arguments = [Argument(a.index, order.index(a.op.removeprefix("SCMP_CMP_")), a.value, a.value_two) for a in rule.args]
            action = ctypes.c_uint32(seccomp._action(rule.action, rule.errno_ret))
            assert (
                library.seccomp_rule_add_array(context, action, number, len(arguments), (Argument * max(len(arguments), 1))(*arguments))
                == 0
            )
    with tempfile.TemporaryFile() as file:
        assert library.seccomp_export_bpf(context, file.fileno()) == 0
        file.seek(0)
        theirs = Machine(file.read())
    library.seccomp_release(context)
    ours = Machine(seccomp.compile(resolved))
    for arch, audit in (("x86_64", 0xC000003E), ("i386", 0x40000003)):
        for name, number in syscalls.numbers(arch).items():
            values = (0, 8, 11, 12, 13, 38, 40, 17, 0x10000000, 0xFFFFFFFF, *((1 << 32, (1 << 64) - 1) if arch == "x86_64" else ()))
            for value in values if name in known else ():
                assert ours.run(number, audit, (value,) * 6) == theirs.run(number, audit, (value,) * 6), (arch, name, value)
