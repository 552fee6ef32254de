# cython: language_level=3, binding=False, embedsignature=False, boundscheck=False, wraparound=False
"""The only extension: thin system calls, launch(plan), the monitor's loop. No policy, no defaults."""

include "native/syscalls.pxi"
include "native/launch.pxi"
include "native/monitor.pxi"
