/* The monitor: parent of one container's (or exec's) first process. Entered in a fork of the spawner, never returns, never touches Python.
 *
 *   WAITING  the socket pair to the daemon; ATTACH is accepted; ends when every daemon is gone
 *   START -> bundle, monitor.sock, stdio, knarr_launch -> STARTED (or FAILED, and the end) -> log, OOM notice
 *   RUNNING  one ppoll loop: messages, clients, stdio, log
 *   process ended -> rest of the output (at most 2 s) -> exit.json -> monitor.sock goes -> EXIT
 *   OVER     only clients that have not read everything yet; then _exit
 *
 * Specification: docs/architecture.md "The monitor"; the messages are in monitor_wire.h.
 */
#ifndef KNARR_MONITOR_H
#define KNARR_MONITOR_H

#include <linux/close_range.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include "monitor_attach.h"
#include "monitor_conn.h"
#include "monitor_oom.h"
#include "monitor_state.h"
#include "monitor_stdio.h"

#ifndef P_PIDFD
#define P_PIDFD 3
#endif

static void mon_end_clients(struct monitor *m)
{
    for (int i = 0; i < m->client_slots; i++)
        if (m->client[i].fd >= 0)
            client_end(m, &m->client[i], MW_ENDED);
}

/* Where `ps` finds the command line: proc(5), field 48 arg_start, 49 arg_end. */
static void mon_find_title(char **at, size_t *size)
{
    char text[1024], *field;
    unsigned long begin = 0, end = 0;
    int fd = open("/proc/self/stat", O_RDONLY | O_CLOEXEC);
    ssize_t n = fd < 0 ? -1 : read(fd, text, sizeof text - 1);
    mon_close(&fd);
    if (n <= 0)
        return;
    text[n] = 0;
    field = strrchr(text, ')');
    for (int i = 2; i < 48 && field; i++)
        field = strchr(field + 1, ' ');
    if (field && sscanf(field, "%lu %lu", &begin, &end) == 2 && begin && end > begin) {
        *at = (char *)begin;
        *size = end - begin;
    }
}

/* Write over the interpreter's arguments. */
static void mon_title(char *at, size_t size, const char *name, const char *more)
{
    if (!at)
        return;
    memset(at, 0, size);
    snprintf(at, size, more ? "%s %s" : "%s", name, more);
}

static void knarr_process_title(const char *name)
{
    char *at = NULL;
    size_t size = 0;
    prctl(PR_SET_NAME, name);
    mon_find_title(&at, &size);
    mon_title(at, size, name, NULL);
}

/* Field 22 of /proc/PID/stat, 0 when it cannot be read. */
static uint64_t mon_start_time(int pid)
{
    char text[1024], *field;
    unsigned long long ticks = 0;
    snprintf(text, sizeof text, "/proc/%d/stat", pid);
    int fd = open(text, O_RDONLY | O_CLOEXEC);
    ssize_t n = fd < 0 ? -1 : read(fd, text, sizeof text - 1);
    mon_close(&fd);
    if (n <= 0)
        return 0;
    text[n] = 0;
    field = strrchr(text, ')');
    for (int i = 2; i < 22 && field; i++)
        field = strchr(field + 1, ' ');
    return field && sscanf(field, "%llu", &ticks) == 1 ? ticks : 0;
}

/* ---- START ---- */

static void mon_put_trace(struct mw_writer *w, const struct launch_report *report)
{
    uint32_t degraded = 0, count = report ? report->count : 0;
    mw_put(w, count, 4);
    for (uint32_t i = 0; i < count; i++) {
        mw_put(w, report->mark[i].op, 4);
        mw_put(w, report->mark[i].ns, 8);
        degraded += report->mark[i].error != 0;
    }
    mw_put(w, degraded, 4);
    for (uint32_t i = 0; i < count; i++)
        if (report->mark[i].error) {
            mw_put(w, report->mark[i].op, 4);
            mw_put(w, report->mark[i].error, 4);
        }
}

/* Nothing runs: say why, leave nothing, end. Clients are let go without a word: the daemon has the sockets too and tells them. */
static void mon_failed(struct monitor *m, struct mon_connection *to, const char *what, int error, const struct launch_report *report)
{
    uint8_t space[32768];
    char text[256];
    struct mw_writer w = mw_begin(space, sizeof space, MW_FAILED);
    int length = *what ? snprintf(text, sizeof text, "%s: %s", what, strerror(error)) : 0;
    mw_put(&w, (uint32_t)(report ? report->failed : -1), 4);
    mw_put(&w, (uint32_t)error, 4);
    mw_put_blob(&w, text, (size_t)length);
    mon_put_trace(&w, report);
    if (m->listening)
        unlinkat(m->bundle, "monitor.sock", 0);
    mon_close(&m->listener);
    mon_send(m, to, &w, -1);
    m->phase = MW_OVER;
    stdio_close_input(m);
    mon_close(&m->output[0]);
    mon_close(&m->output[1]);
    for (int i = 0; i < m->client_slots; i++)
        if (m->client[i].fd >= 0)
            client_free(&m->client[i]);
}

static void mon_started(struct monitor *m, struct mon_connection *to, const struct launch_report *report, uint64_t received, uint64_t prepared)
{
    uint8_t space[32768];
    uint64_t launched = mon_now(CLOCK_MONOTONIC);
    struct mw_writer w = mw_begin(space, sizeof space, MW_STARTED);
    m->pid = report->pid;
    m->pidfd = report->pidfd;
    m->start_time = mon_start_time(m->pid);
    m->phase = MW_RUNNING;
    mw_put(&w, (uint32_t)m->pid, 4);
    mw_put(&w, m->start_time, 8);
    mw_put(&w, received, 8);
    mw_put(&w, prepared, 8);
    mw_put(&w, launched, 8);
    mon_put_trace(&w, report);
    mon_send(m, to, &w, m->pidfd);
}

/* What need not be there before the daemon knows. */
static void mon_settle(struct monitor *m, const struct mw_start *s)
{
    char path[PATH_MAX];
    if (s->has_log) {
        memcpy(path, s->log_path.at, s->log_path.length);
        path[s->log_path.length] = 0;
        log_start(&m->log, path, s->attrs.at, s->attrs.length, s->max_size, s->max_files);
        m->has_log = 1;
        stdio_check_log(m);
    }
    oom_start(m, s);
    memcpy(path, s->bundle.at, s->bundle.length);
    path[s->bundle.length] = 0;
    mon_title(m->title, m->title_size, "knarr-monitor", path);
}

static void mon_start(struct monitor *m, struct mon_connection *from, const struct mw_start *s)
{
    char bundle[PATH_MAX];
    int theirs[3] = {-1, -1, -1}, error;
    uint64_t received = mon_now(CLOCK_MONOTONIC);
    struct launch_report *report = m->report;
    if (m->phase != MW_WAITING) {
        mon_refuse(m, from, "START came twice");
        return;
    }
    m->tty = s->tty;
    m->open_stdin = s->open_stdin;
    m->stdin_once = s->stdin_once;
    memcpy(bundle, s->bundle.at, s->bundle.length);
    bundle[s->bundle.length] = 0;
    m->bundle = open(bundle, O_PATH | O_DIRECTORY | O_CLOEXEC);
    if (m->bundle < 0) {
        mon_failed(m, from, "open the bundle", errno, NULL);
    } else if (unlinkat(m->bundle, "exit.json", 0) < 0 && errno != ENOENT) {
        mon_failed(m, from, "remove an old exit.json", errno, NULL);
    } else if ((error = mon_listen(m)) < 0) {
        mon_failed(m, from, "listen on monitor.sock", -error, NULL);
    } else if ((error = stdio_make(m, s, theirs)) < 0) {
        stdio_close_theirs(theirs);
        mon_failed(m, from, m->tty ? "make a terminal" : "make pipes", -error, NULL);
    } else {
        uint64_t prepared = mon_now(CLOCK_MONOTONIC);
        error = knarr_launch(s->plan.at, s->plan.length, theirs, report);
        stdio_close_theirs(theirs);
        if (error < 0) {
            const char *what = report->failed >= 0 ? "" : report->error == EBADMSG ? "decode the plan" : "clone the process";
            mon_failed(m, from, what, report->error, report);
        } else {
            mon_started(m, from, report, received, prepared);
            mon_settle(m, s);
        }
    }
    mon_unmap(report, sizeof *report);
    m->report = NULL;
}

/* ---- other messages ---- */

static void mon_state(struct monitor *m, struct mon_connection *to)
{
    uint8_t space[64 + 4 * MON_CLIENTS];
    struct mw_writer w = mw_begin(space, sizeof space, MW_STATE);
    uint32_t count = 0;
    for (int i = 0; i < m->client_slots; i++)
        count += m->client[i].fd >= 0 && !m->client[i].ending;
    mw_put(&w, m->phase, 1);
    mw_put(&w, (uint32_t)m->pid, 4);
    mw_put(&w, m->start_time, 8);
    mw_put(&w, m->tty, 1);
    mw_put(&w, m->log.dropped, 8);
    mw_put(&w, count, 4);
    for (int i = 0; i < m->client_slots; i++)
        if (m->client[i].fd >= 0 && !m->client[i].ending)
            mw_put(&w, m->client[i].id, 4);
    mon_send(m, to, &w, m->pidfd);
}

static void mon_handle(struct monitor *m, struct mon_connection *from, const struct mw_message *message, int fd)
{
    switch (message->kind) {
    case MW_START:
        mon_start(m, from, &message->start);
        break;
    case MW_ATTACH:
        client_accept(m, from, &message->attach, fd);
        break;
    case MW_RESIZE:
        stdio_resize(m, message->size.rows, message->size.cols);
        break;
    case MW_SIGNAL:
        if (m->pidfd < 0)
            mon_refuse(m, from, "signal %u: there is no process", message->signal);
        else if (!m->reaped && syscall(SYS_pidfd_send_signal, m->pidfd, (int)message->signal, NULL, 0) < 0 && errno != ESRCH)
            mon_refuse(m, from, "signal %u: %s", message->signal, strerror(errno));
        break;
    case MW_STATUS:
        mon_state(m, from);
        break;
    }
}

/* ---- the end ---- */

static void mon_reap(struct monitor *m)
{
    siginfo_t info = {0};
    if (waitid((idtype_t)P_PIDFD, (id_t)m->pidfd, &info, WEXITED | WNOHANG) < 0 && errno == EINTR)
        return;
    if (!info.si_pid)
        return;
    m->status = info.si_code == CLD_EXITED ? (info.si_status & 0xff) << 8 : info.si_status | (info.si_code == CLD_DUMPED ? 0x80 : 0);
    m->finished = mon_now(CLOCK_REALTIME);
    m->drain_until = mon_now(CLOCK_MONOTONIC) + MON_DRAIN_NS;
    m->reaped = 1;
}

/* BUNDLE/exit.json whole or not at all. */
static void mon_write_exit(struct monitor *m)
{
    char text[512];
    int number = m->status & 0x7f, code = number ? 128 + number : m->status >> 8 & 0xff;
    int length = snprintf(text, sizeof text,
                          "{\"status\":%d,\"code\":%d,\"signal\":%d,\"oom_kills\":%llu,\"finished\":%llu,\"log_dropped\":%llu,\"pid\":%d,"
                          "\"start_time\":%llu}\n",
                          m->status, code, number, (unsigned long long)m->oom_kills, (unsigned long long)m->finished,
                          (unsigned long long)m->log.dropped, m->pid, (unsigned long long)m->start_time);
    int fd = openat(m->bundle, ".exit.json.new", O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0600);
    int good = fd >= 0 && write(fd, text, (size_t)length) == length;
    int error = errno;
    mon_close(&fd);
    if (good && renameat(m->bundle, ".exit.json.new", m->bundle, "exit.json") < 0) {
        error = errno;
        good = 0;
    }
    if (!good) {
        unlinkat(m->bundle, ".exit.json.new", 0);
        mon_warn(m, "write exit.json: %s", strerror(error));
    }
}

/* The output is complete. The record first, then the socket goes (so that the next monitor of this bundle finds the name free), then EXIT. */
static void mon_over(struct monitor *m)
{
    uint8_t space[64];
    m->phase = MW_OVER;
    for (int i = 0; i < 2; i++)
        if (m->output[i] >= 0)
            stdio_output_ended(m, i);
    stdio_close_input(m);
    oom_end(m);
    mon_close(&m->log.fd);
    mon_write_exit(m);
    unlinkat(m->bundle, "monitor.sock", 0);
    mon_close(&m->listener);
    mon_close(&m->bundle);
    struct mw_writer w = mw_begin(space, sizeof space, MW_EXIT);
    mw_put(&w, (uint32_t)m->status, 4);
    mw_put(&w, m->oom_kills, 8);
    mw_put(&w, m->finished, 8);
    mw_put(&w, m->log.dropped, 8);
    mon_broadcast(m, &w);
    mon_end_clients(m);
}

/* After the process ended: read on until both streams end, or nothing more may be waited for. */
static void mon_drain(struct monitor *m)
{
    for (int i = 0; i < 2; i++)
        stdio_pump_output(m, i, 64);
    int open = m->output[0] >= 0 || m->output[1] >= 0;
    if (!open || mon_now(CLOCK_MONOTONIC) >= m->drain_until)
        mon_over(m);
}

/* ---- the loop ---- */

struct mon_poll {
    struct pollfd fds[MON_CONNECTIONS + MON_CLIENTS + 8];
    int count;
};

static int mon_ask(struct mon_poll *p, int fd, int events)
{
    if (fd < 0)
        return -1;
    p->fds[p->count] = (struct pollfd){fd, (short)events, 0};
    return p->count++;
}

static int mon_events(const struct mon_poll *p, int index)
{
    return index < 0 ? 0 : p->fds[index].revents;
}

/* Milliseconds until something must happen without an event; -1: never. */
static int mon_timeout(struct monitor *m)
{
    uint64_t now = mon_now(CLOCK_MONOTONIC), until = UINT64_MAX;
    if (m->phase == MW_RUNNING && m->reaped)
        until = m->drain_until;
    for (int i = 0; i < m->client_slots; i++)
        if (m->client[i].fd >= 0 && m->client[i].lingering && m->client[i].linger_until < until)
            until = m->client[i].linger_until;
    if (until != UINT64_MAX)
        return until <= now ? 0 : (int)((until - now) / 1000000 + 1);
    return m->phase != MW_WAITING && (m->chunk || m->packet || m->log.buffer || m->input_data) ? MON_REST_MS : -1;
}

static void mon_rest(struct monitor *m)
{
    stdio_rest(m);
    client_rest(m);
    mon_unmap(m->packet, MON_PACKET);
    m->packet = NULL;
}

static int mon_alone(struct monitor *m)
{
    for (int i = 0; i < MON_CONNECTIONS; i++)
        if (m->connection[i].fd >= 0)
            return 0;
    return 1;
}

static void mon_turn(struct monitor *m)
{
    struct mon_poll p = {.count = 0};
    int connections[MON_CONNECTIONS], clients[MON_CLIENTS], output[2], slots = m->client_slots;
    for (int i = 0; i < MON_CONNECTIONS; i++)
        connections[i] = mon_ask(&p, m->connection[i].fd, POLLIN);
    for (int i = 0; i < slots; i++) {
        int wants = m->client[i].fd >= 0 ? client_interest(m, &m->client[i]) : -1;
        clients[i] = wants < 0 ? -1 : mon_ask(&p, m->client[i].fd, wants);
    }
    for (int i = 0; i < 2; i++)
        output[i] = client_blocked(m, i) ? -1 : mon_ask(&p, m->output[i], POLLIN);
    int input = m->input_length ? mon_ask(&p, m->input, POLLOUT) : -1;
    int listener = m->listening ? mon_ask(&p, m->listener, POLLIN) : -1;
    int process = m->reaped ? -1 : mon_ask(&p, m->pidfd, POLLIN);
    int oom = mon_ask(&p, m->oom_event, m->oom_version == 2 ? POLLPRI : POLLIN);
    int ready = poll(p.fds, (nfds_t)p.count, mon_timeout(m));
    if (ready == 0 && !m->reaped)
        mon_rest(m);
    if (ready < 0)
        memset(p.fds, 0, sizeof p.fds);
    /* Messages first: an ATTACH that was sent before output came must see it. */
    for (int i = 0; i < MON_CONNECTIONS; i++)
        if (mon_events(&p, connections[i]))
            mon_receive(m, &m->connection[i]);
    if (mon_events(&p, listener) && m->listener >= 0)
        mon_accept(m);
    for (int i = 0; i < slots; i++)
        if (mon_events(&p, clients[i]) && m->client[i].fd >= 0)
            client_event(m, &m->client[i], mon_events(&p, clients[i]));
    if (mon_events(&p, input))
        stdio_push_input(m);
    if (mon_events(&p, oom))
        oom_event(m);
    for (int i = 0; i < 2; i++)
        if (mon_events(&p, output[i]) == POLLHUP && !m->tty)
            stdio_output_ended(m, i); /* no writer and nothing left */
        else if (mon_events(&p, output[i]))
            stdio_pump_output(m, i, 4);
    if (mon_events(&p, process))
        mon_reap(m);
}

static void mon_loop(struct monitor *m)
{
    for (;;) {
        mon_turn(m);
        if (m->phase == MW_RUNNING && m->reaped)
            mon_drain(m);
        int clients = client_sweep(m);
        if (m->phase == MW_OVER ? !clients : m->phase == MW_WAITING && mon_alone(m))
            _exit(0);
    }
}

/* ---- the fork ---- */

static struct monitor the_monitor;

static void mon_signals(void)
{
    static const int ignored[] = {SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGPIPE, SIGTTOU, SIGTTIN, SIGTSTP};
    static const unsigned long defaults[4]; /* the kernel's struct sigaction: SIG_DFL, no flags, empty mask */
    struct sigaction action = {.sa_handler = SIG_IGN};
    sigset_t none;
    for (int number = 1; number <= 64; number++)
        syscall(SYS_rt_sigaction, number, defaults, NULL, 8); /* libc refuses for its own two, which posix_spawn leaves ignored */
    /* It must outlive everything but the process that it waits for. */
    for (size_t i = 0; i < sizeof ignored / sizeof *ignored; i++)
        sigaction(ignored[i], &action, NULL);
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
}

static void mon_close_others(int keep)
{
    dup2(0, 1);
    dup2(0, 2);
    if (keep > 3)
        close_range(3, (unsigned)keep - 1, 0);
    close_range((unsigned)keep + 1, ~0u, 0);
}

/* All that a start would otherwise wait for: pipes, the socket, memory (touched, so that it does not fault). 0, or -1: it cannot work. */
static int mon_prepare(struct monitor *m)
{
    m->listener = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    m->packet = mon_map(MON_PACKET);
    m->report = mon_map(sizeof *m->report);
    if (m->listener < 0 || !m->packet || !m->report || stdio_prepare(m) < 0)
        return -1;
    memset(m->packet, 0, 8192);
    memset(m->report, 0, 4096);
    mon_find_title(&m->title, &m->title_size);
    return 0;
}

/* In the child of fork, with descriptor 0 on /dev/null and `sock` the only other one worth keeping. */
static _Noreturn void knarr_monitor_main(int sock)
{
    struct monitor *m = &the_monitor;
    mon_signals();
    setsid();
    mon_close_others(sock);
    fcntl(sock, F_SETFD, FD_CLOEXEC);
    if (chdir("/") < 0)
        _exit(1);
    umask(022);
    prctl(PR_SET_NAME, "knarr-monitor");
    memset(m, 0, offsetof(struct monitor, client));
    for (int i = 0; i < MON_CONNECTIONS; i++)
        m->connection[i].fd = -1;
    m->bundle = m->listener = m->pidfd = m->input = m->oom_file = m->oom_event = m->log.fd = m->log.folder = -1;
    m->output[0] = m->output[1] = m->spare[0] = m->spare[1] = m->spare[2] = -1;
    m->uid = geteuid();
    mon_connect(m, sock);
    if (mon_prepare(m) < 0)
        _exit(1);
    mon_loop(m);
    _exit(0);
}

#endif
