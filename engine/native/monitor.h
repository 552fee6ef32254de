/* The monitor: parent of one container's (or exec's) first process. Entered in a fork of the spawner, never returns, never touches Python.
 *
 *   WAITING  the socket pair to the daemon; ATTACH is accepted; ends when every daemon is gone
 *   START -> bundle, stdio, knarr_launch -> monitor.sock -> STARTED (or FAILED, and the end) -> log, OOM notice
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
#include "monitor_exit.h"
#include "monitor_oom.h"
#include "monitor_start.h"
#include "monitor_state.h"
#include "monitor_stdio.h"

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
    mw_put(&w, m->started, 8);
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
        mon_start(m, from, &message->start, fd);
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
        if (m->phase == MW_OVER)
            mon_close(&m->mounts);
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
    m->bundle = m->listener = m->record = m->pidfd = m->mounts = m->input = m->oom_file = m->oom_event = m->log.fd = m->log.folder = -1;
    m->output[0] = m->output[1] = m->spare[0] = m->spare[1] = m->spare[2] = -1;
    m->uid = geteuid();
    mon_connect(m, sock);
    if (mon_prepare(m) < 0)
        _exit(1);
    mon_loop(m);
    _exit(0);
}

#endif
