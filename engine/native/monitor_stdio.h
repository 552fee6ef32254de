/* The process's stdio as the monitor sees it: making pipes or a pty, pumping output to log and clients, pumping input in.
 *
 * Back-pressure: output is not read while a client that wants it has bytes waiting; a client's input is not read while the process has
 * not taken what is there. Nothing here waits.
 */
#ifndef KNARR_MONITOR_STDIO_H
#define KNARR_MONITOR_STDIO_H

#include <fcntl.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <termios.h>

#include "monitor_state.h"

static int stdio_unblock(int fd)
{
    int flags = fcntl(fd, F_GETFL);
    return flags < 0 ? -1 : fcntl(fd, F_SETFL, flags | O_NONBLOCK);
}

static int stdio_resize(struct monitor *m, uint16_t rows, uint16_t cols)
{
    struct winsize size = {.ws_row = rows, .ws_col = cols};
    return m->tty && m->output[0] >= 0 ? ioctl(m->output[0], TIOCSWINSZ, &size) : 0;
}

/* A pty of the host's devpts; the slave three times. 0 or -errno. */
static int stdio_terminal(struct monitor *m, const struct mw_start *s, int theirs[3])
{
    int unlock = 0, master = open("/dev/ptmx", O_RDWR | O_NOCTTY | O_CLOEXEC | O_NONBLOCK);
    if (master < 0)
        return -errno;
    m->output[0] = m->input = master;
    if (ioctl(master, TIOCSPTLCK, &unlock) < 0 || (s->rows && s->cols && stdio_resize(m, s->rows, s->cols) < 0))
        return -errno;
    theirs[0] = ioctl(master, TIOCGPTPEER, O_RDWR | O_NOCTTY | O_CLOEXEC);
    if (theirs[0] < 0)
        return -errno;
    theirs[1] = theirs[2] = theirs[0];
    return 0;
}

/* The process has a terminal of its container's devpts instead. */
static void stdio_adopt(struct monitor *m, int master)
{
    close(m->output[0]);
    m->output[0] = m->input = master;
    stdio_unblock(master);
}

/* Pipes for output, and no input; made before START, so that a start does not wait for it. 0 or -errno. */
static int stdio_prepare(struct monitor *m)
{
    int ends[2];
    for (int i = 0; i < 2; i++) {
        if (pipe2(ends, O_CLOEXEC) < 0)
            return -errno;
        m->output[i] = ends[0];
        m->spare[i + 1] = ends[1];
        if (stdio_unblock(ends[0]) < 0)
            return -errno;
    }
    m->spare[0] = open("/dev/null", O_RDONLY | O_CLOEXEC);
    return m->spare[0] < 0 ? -errno : 0;
}

static void stdio_close_theirs(int theirs[3])
{
    for (int i = 0; i < 3; i++)
        if (theirs[i] >= 0 && (i == 0 || theirs[i] != theirs[i - 1]))
            close(theirs[i]);
    theirs[0] = theirs[1] = theirs[2] = -1;
}

static int stdio_pipes(struct monitor *m, int theirs[3])
{
    int ends[2], error = m->output[1] < 0 ? stdio_prepare(m) : 0;
    memcpy(theirs, m->spare, sizeof m->spare);
    m->spare[0] = m->spare[1] = m->spare[2] = -1;
    if (error || !m->open_stdin)
        return error;
    if (pipe2(ends, O_CLOEXEC) < 0)
        return -errno;
    close(theirs[0]);
    theirs[0] = ends[0];
    m->input = ends[1];
    return stdio_unblock(ends[1]) < 0 ? -errno : 0;
}

static int stdio_make(struct monitor *m, const struct mw_start *s, int theirs[3])
{
    theirs[0] = theirs[1] = theirs[2] = -1;
    if (!m->tty)
        return stdio_pipes(m, theirs);
    stdio_close_theirs(m->spare);
    mon_close(&m->output[0]);
    mon_close(&m->output[1]);
    return stdio_terminal(m, s, theirs);
}

static void stdio_close_input(struct monitor *m)
{
    if (m->input >= 0 && !m->tty)
        close(m->input);
    m->input = -1;
    m->input_length = m->input_at = 0;
}

static void stdio_output_ended(struct monitor *m, int stream)
{
    if (m->has_log)
        log_end(&m->log, stream, mon_now(CLOCK_REALTIME));
    if (m->tty)
        m->input = -1;
    mon_close(&m->output[stream]);
}

static void stdio_check_log(struct monitor *m)
{
    if (!m->log.error || m->log_warned)
        return;
    m->log_warned = 1;
    mon_warn(m, "write the log %s: %s; lines are lost until this is mended", m->log.name, strerror(m->log.error));
}

/* Read what is there and hand it on, at most `rounds` chunks so that input and messages get their turn. 1: more may be there. */
static int stdio_pump_output(struct monitor *m, int stream, int rounds)
{
    while (m->output[stream] >= 0 && !client_blocked(m, stream) && mon_chunk(m)) {
        if (rounds-- == 0)
            return 1;
        ssize_t n = read(m->output[stream], m->chunk, MON_CHUNK);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0 && errno == EAGAIN)
            return 0;
        if (n <= 0) { /* a pty's master says EIO when the last slave is closed */
            stdio_output_ended(m, stream);
            return 0;
        }
        if (m->has_log) {
            log_output(&m->log, stream, m->chunk, (size_t)n, mon_now(CLOCK_REALTIME));
            stdio_check_log(m);
        }
        client_output(m, stream, m->chunk, (size_t)n);
        if (n < 1024)
            return 0; /* a short read: let poll say whether there is more */
    }
    return 0;
}

/* Write accepted input into the process; 1 when all is taken (or nobody will ever take it). */
static int stdio_push_input(struct monitor *m)
{
    while (m->input_length && m->input >= 0) {
        ssize_t n = write(m->input, m->input_data + m->input_at, m->input_length);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0 && errno == EAGAIN)
            return 0;
        if (n <= 0) {
            stdio_close_input(m); /* EPIPE: the process closed its stdin, what follows is thrown away */
            break;
        }
        m->input_at += (uint32_t)n;
        m->input_length -= (uint32_t)n;
    }
    m->input_at = m->input_length = 0;
    if (m->input_ended && m->input >= 0)
        stdio_close_input(m);
    return 1;
}

/* Quiet for a while: give buffers back. */
static void stdio_rest(struct monitor *m)
{
    mon_unmap(m->chunk, MON_CHUNK);
    m->chunk = NULL;
    if (!m->input_length) {
        mon_unmap(m->input_data, MON_INPUT + MW_KEYS_LIMIT);
        m->input_data = NULL;
    }
    log_rest(&m->log);
}

#endif
