# launch(plan) and decode(plan) for Python; the work is in parent.h (both sides of the clone), paths.h, rootfs.h, process.h, plan.h.

from libc.stdlib cimport free, malloc

cdef extern from "native/parent.h":
    struct launch_mark:
        uint32_t op
        uint32_t error
        uint64_t ns
    struct launch_report:
        int32_t pid
        int32_t pidfd
        int32_t failed
        int32_t terminal
        int32_t error
        uint32_t count
        launch_mark mark[1]
    int EBADMSG
    int knarr_plan_check(const uint8_t *plan, size_t len, uint32_t *count) nogil
    int knarr_launch(const uint8_t *plan, size_t len, const int *stdio, launch_report *report) nogil


class LaunchFailed(OSError):
    index = -1
    trace = []


cdef list _trace(launch_report *report):
    return [(report.mark[i].op, report.mark[i].ns, report.mark[i].error) for i in range(report.count)]


cdef object _launch(bytes plan, tuple stdio):
    cdef const uint8_t *data = plan
    cdef size_t length = len(plan)
    cdef int fds[3]
    cdef int failed
    cdef launch_report *report
    fds[0], fds[1], fds[2] = stdio
    report = <launch_report *>malloc(sizeof(launch_report))
    if report == NULL:
        raise MemoryError()
    try:
        with nogil:
            failed = knarr_launch(data, length, fds, report)
        trace = _trace(report)
        if not failed:
            return report.pid, report.pidfd, trace, report.terminal
        if report.error == EBADMSG and report.count == 0:
            raise ValueError("the plan does not decode")
        error = LaunchFailed(report.error, strerror(report.error).decode("utf-8", "replace"))
        error.index = report.failed
        error.trace = trace
        raise error
    finally:
        free(report)


def launch(bytes plan not None, tuple stdio not None):
    pid, pidfd, trace, terminal = _launch(plan, stdio)
    if terminal >= 0:
        _os.close(terminal)
    return pid, pidfd, trace


def launch_terminal(bytes plan not None):
    null = _os.open("/dev/null", _os.O_RDWR | _os.O_CLOEXEC)
    try:
        return _launch(plan, (null, null, null))
    finally:
        _os.close(null)


def decode(bytes plan not None):
    cdef uint32_t count = 0
    if knarr_plan_check(plan, len(plan), &count) != 0:
        raise ValueError("the plan does not decode")
    return count
