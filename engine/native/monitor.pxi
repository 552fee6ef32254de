# The monitor's way in from Python, and its pure parts for tests. Everything else is in native/monitor*.h.

cdef extern from "native/monitor.h":
    """
    static pid_t knarr_fork_monitor(int sock)
    {
        pid_t pid = fork();
        if (pid == 0)
            knarr_monitor_main(sock);
        return pid;
    }

    static size_t knarr_log_line(uint8_t *out, size_t capacity, const uint8_t *text, size_t length)
    {
        const uint8_t *end = text + length;
        size_t used = 0;
        int written;
        while (text < end && capacity - used >= 8) {
            if (log_plain(*text)) {
                out[used++] = *text++;
                continue;
            }
            text += log_escape(text, end, out + used, &written);
            used += (size_t)written;
        }
        return used;
    }
    """
    enum: MW_VERSION
    int knarr_fork_monitor(int sock)
    size_t knarr_log_line(unsigned char *out, size_t capacity, const unsigned char *text, size_t length)
    unsigned int log_format_time(unsigned long long ns, char *out)
    void knarr_process_title(const char *name)
    cdef struct mw_message:
        unsigned char kind
    int mw_decode(const unsigned char *data, size_t length, mw_message *m)

MONITOR_VERSION = MW_VERSION


def fork_monitor(int sock_fd):
    """Fork; the child keeps `sock_fd` and /dev/null on 0-2, and enters the monitor's loop. The parent gets its pid."""
    if sock_fd < 3:
        raise ValueError("fork a monitor: its socket must not be one of descriptors 0-2")
    cdef int pid = knarr_fork_monitor(sock_fd)
    if pid < 0:
        raise OSError(errno, "fork a monitor")
    return pid


def process_title(bytes name):
    """Name the process for `ps`: comm (15 bytes) and command line."""
    knarr_process_title(name)


def decode_control(bytes data):
    """The kind number of a message to a monitor, by the monitor's own decoder. Raises ValueError for anything else."""
    cdef mw_message message
    cdef const unsigned char *start = data
    if mw_decode(start, len(data), &message) < 0:
        raise ValueError("no message to a monitor")
    return message.kind


def json_text(bytes text):
    """`text` as the monitor writes it between the quotes of "log"."""
    cdef bytearray out = bytearray(6 * len(text) + 8)
    cdef unsigned char *place = out
    cdef const unsigned char *start = text
    return bytes(out[:knarr_log_line(place, len(out), start, len(text))])


def json_time(unsigned long long ns):
    """A CLOCK_REALTIME in ns as the monitor writes it in "time"."""
    cdef char space[40]
    return space[:log_format_time(ns, space)]
