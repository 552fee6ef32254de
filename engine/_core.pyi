"""Types of the extension. Every function raises OSError(errno, "what failed", path) on a kernel error."""

MONITOR_VERSION: int

def openat2(dirfd: int, path: str | bytes, flags: int, mode: int = 0, resolve: int = 0) -> int: ...
def mount(source: str | bytes | None, target: str | bytes, fstype: str | bytes | None, flags: int, data: str | bytes | None) -> None: ...
def umount2(target: str | bytes, flags: int) -> None: ...
def pivot_root(new_root: str | bytes, put_old: str | bytes) -> None: ...
def release_memory() -> None: ...
def sync_file_range(fd: int, offset: int, length: int) -> None: ...
def syncfs(fd: int) -> None: ...
def setns(fd: int, nstype: int) -> None: ...
def unshare(flags: int) -> None: ...
def clone_user() -> int:
    """The pid of a new process in a new user namespace, which has already ended. The caller reaps it, with waitpid's __WALL."""

def sethostname(name: bytes) -> None: ...
def renameat2(olddirfd: int, oldpath: str | bytes, newdirfd: int, newpath: str | bytes, flags: int) -> None: ...
def prctl(option: int, arg2: int = 0, arg3: int = 0, arg4: int = 0, arg5: int = 0) -> int: ...
def pidfd_getfd(pidfd: int, targetfd: int) -> int: ...
def inotify_init() -> int:
    """Non-blocking, close-on-exec inotify descriptor."""

def inotify_add_watch(fd: int, path: str | bytes, mask: int) -> int: ...
def inotify_rm_watch(fd: int, wd: int) -> None: ...
def bpf_load_device(instructions: bytes) -> int:
    """Load a BPF_PROG_TYPE_CGROUP_DEVICE program (raw struct bpf_insn array); returns its descriptor."""

def bpf_attach_device(cgroup_fd: int, prog_fd: int, flags: int) -> None: ...
def name_to_handle_at(dirfd: int, path: str | bytes, flags: int) -> tuple[int, bytes]: ...
def launch(plan: bytes, stdio: tuple[int, int, int]) -> tuple[int, int, list[tuple[int, int, int]]]:
    """Run an encoded plan in a new process (the caller is its parent and reaps it).

    Returns (pid, pidfd, trace); trace is [(op index, nanoseconds of CLOCK_MONOTONIC when it began, errno)], where errno is
    not 0 for an operation that was degraded instead of done. The last entry, with op == number of operations, is the moment
    of exec. Makes the calling process undumpable for good. Raises `LaunchFailed`; ValueError for a plan that does not decode.
    """

def launch_terminal(plan: bytes) -> tuple[int, int, list[tuple[int, int, int]], int]:
    """As `launch`, for a plan that makes a terminal in the container; the last item is the terminal's master (-1: it made none)."""

def decode(plan: bytes) -> int:
    """Check an encoded plan with the same decoder that launch uses; number of operations. Raises ValueError."""

class LaunchFailed(OSError):
    """An operation of a plan failed. `args` = (errno, strerror); attributes: index (-1: not an operation), trace (as for `launch`)."""

    index: int
    trace: list[tuple[int, int, int]]

def fork_monitor(sock_fd: int) -> int:
    """Fork; the child closes all descriptors but `sock_fd` and 0-2 and enters the C monitor loop, never returning to Python.

    Parent: pid.
    """

def process_title(name: bytes) -> None:
    """Name the process for `ps`: comm (15 bytes) and command line."""

def decode_control(data: bytes) -> int:
    """Kind of a control message to a monitor, by the monitor's own decoder. Raises ValueError for anything else."""

def json_text(text: bytes) -> bytes:
    """`text` as the monitor writes it between the quotes of "log"."""

def json_time(ns: int) -> bytes:
    """A CLOCK_REALTIME in ns as the monitor writes it in "time"."""
