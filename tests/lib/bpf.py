"""A classic BPF machine as seccomp uses it, to run compiled filters without a kernel."""

from __future__ import annotations

import struct


class Machine:
    """One filter program, decoded once and checked as the kernel does: jumps stay inside it, it ends with a return."""

    def __init__(self, program: bytes) -> None:
        self.code = list(struct.iter_unpack("<HBBI", program))
        assert 0 < len(self.code) <= 4096
        for place, (op, true, false, k) in enumerate(self.code):
            reach = place + 1 + (k if op == 0x05 else max(true, false) if op in (0x15, 0x25, 0x35, 0x45) else 0)
            assert reach < len(self.code) or op == 0x06, f"instruction {place} leaves the program"
        assert self.code[-1][0] == 0x06

    def run(self, number: int, arch: int, arguments: tuple[int, ...] = (0,) * 6) -> int:
        """The filter's return value for one call; `number` is unsigned 32 bit."""
        data = struct.pack("<IIQ6Q", number, arch, 0, *arguments)
        accumulator, place = 0, 0
        while True:
            op, true, false, k = self.code[place]
            place += 1
            if op == 0x20:
                (accumulator,) = struct.unpack_from("<I", data, k)
            elif op == 0x05:
                place += k
            elif op == 0x15:
                place += true if accumulator == k else false
            elif op == 0x25:
                place += true if accumulator > k else false
            elif op == 0x35:
                place += true if accumulator >= k else false
            elif op == 0x54:
                accumulator &= k
            elif op == 0x06:
                return k
            else:
                raise AssertionError(f"unexpected instruction {op:#x}")
