/* START: from the message to a running process that can be found again, or to FAILED and nothing left.
 *
 * Order matters twice. What the launch needs not is done after it, while the process already runs; and monitor.sock is there before
 * STARTED is sent, because a daemon that is killed right after must be able to find us.
 */
#ifndef KNARR_MONITOR_START_H
#define KNARR_MONITOR_START_H

#include <sys/prctl.h>
#include <sys/wait.h>

#include "monitor_conn.h"
#include "monitor_oom.h"
#include "monitor_state.h"
#include "monitor_stdio.h"

#ifndef P_PIDFD
#define P_PIDFD 3
#endif

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

static void mon_started(struct monitor *m, struct mon_connection *to, const struct launch_report *report, uint64_t received, uint64_t prepared, uint64_t launched)
{
    uint8_t space[32768];
    struct mw_writer w = mw_begin(space, sizeof space, MW_STARTED);
    m->pid = report->pid;
    m->pidfd = report->pidfd;
    m->start_time = mon_start_time(m->pid);
    m->started = mon_now(CLOCK_REALTIME);
    m->phase = MW_RUNNING;
    mw_put(&w, (uint32_t)m->pid, 4);
    mw_put(&w, m->start_time, 8);
    mw_put(&w, m->started, 8);
    mw_put(&w, received, 8);
    mw_put(&w, prepared, 8);
    mw_put(&w, launched, 8);
    mon_put_trace(&w, report);
    mon_send(m, to, &w, m->pidfd);
}

static void mon_open_record(struct monitor *m)
{
    m->record = openat(m->bundle, ".exit.json.new", O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (m->record < 0)
        return;
    char blank[MON_RECORD];
    memset(blank, ' ', sizeof blank);
    if (write(m->record, blank, sizeof blank) < 0)
        mon_close(&m->record); /* tried again at the end */
}

/* What need not be there before the daemon knows. */
static void mon_settle(struct monitor *m, const struct mw_start *s)
{
    char path[PATH_MAX];
    mon_open_record(m);
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

/* What a later daemon needs to find us. NULL, or what could not be done (errno says why). */
static const char *mon_publish(struct monitor *m)
{
    if (unlinkat(m->bundle, "exit.json", 0) < 0 && errno != ENOENT)
        return "remove an old exit.json";
    int error = mon_listen(m);
    errno = -error;
    return error < 0 ? "listen on monitor.sock" : NULL;
}

/* The process runs but we cannot keep it: end it, so that FAILED is true. */
static void mon_give_up(struct monitor *m, struct mon_connection *to, const char *what, int error, struct launch_report *report)
{
    siginfo_t info;
    syscall(SYS_pidfd_send_signal, report->pidfd, SIGKILL, NULL, 0);
    while (waitid((idtype_t)P_PIDFD, (id_t)report->pidfd, &info, WEXITED) < 0 && errno == EINTR)
        ;
    mon_close(&report->pidfd);
    mon_failed(m, to, what, error, report);
}

/* A mount namespace is taken down by whoever lets go of it last, and unmounting an overlay writes out its whole upper file system: some
 * milliseconds. Held here, the process need not wait for that before it is seen as ended; we let go when everyone was told. An exec
 * (no new mount namespace in its clone) holds nothing: it must not keep its container's mounts. */
static void mon_keep_mounts(struct monitor *m, const struct mw_start *s, int pid)
{
    const struct plan_op *first = (const void *)(s->plan.at + sizeof(struct plan_header));
    char path[32];
    if (first->code != OP_CLONE || !(first->arg[0] & CLONE_NEWNS))
        return;
    snprintf(path, sizeof path, "/proc/%d/ns/mnt", pid);
    m->mounts = open(path, O_RDONLY | O_CLOEXEC);
}

/* A network namespace that the daemon made ahead is entered around the clone, so that the process is born in it: no operation of the plan
 * needs to know. Back at once: we must not keep it alive when the process is gone. 0 or -errno. */
static int mon_enter_network(int network, int *own)
{
    *own = open("/proc/self/ns/net", O_RDONLY | O_CLOEXEC);
    if (*own >= 0 && setns(network, CLONE_NEWNET) == 0)
        return 0;
    int error = -errno;
    mon_close(own);
    return error;
}

static void mon_leave_network(struct monitor *m, int *own)
{
    if (*own >= 0 && setns(*own, CLONE_NEWNET) < 0)
        mon_warn(m, "leave the container's network namespace: %s", strerror(errno));
    mon_close(own);
}

static void mon_run(struct monitor *m, struct mon_connection *from, const struct mw_start *s, uint64_t received, int network)
{
    struct launch_report *report = m->report;
    int own_network = -1, theirs[3], error = stdio_make(m, s, theirs);
    if (error < 0) {
        stdio_close_theirs(theirs);
        mon_failed(m, from, m->tty ? "make a terminal" : "make pipes", -error, NULL);
        return;
    }
    uint64_t prepared = mon_now(CLOCK_MONOTONIC);
    if (network >= 0 && (error = mon_enter_network(network, &own_network)) < 0) {
        stdio_close_theirs(theirs);
        mon_failed(m, from, "enter the network namespace", -error, NULL);
        return;
    }
    error = knarr_launch(s->plan.at, s->plan.length, theirs, report);
    mon_leave_network(m, &own_network);
    stdio_close_theirs(theirs);
    if (error < 0) {
        const char *what = report->failed >= 0 ? "" : report->error == EBADMSG ? "decode the plan" : "clone the process";
        mon_failed(m, from, what, report->error, report);
        return;
    }
    mon_keep_mounts(m, s, report->pid);
    if (report->terminal >= 0)
        stdio_adopt(m, report->terminal);
    uint64_t launched = mon_now(CLOCK_MONOTONIC);
    const char *failure = mon_publish(m); /* while the process already runs: binding costs a tenth of a millisecond */
    if (failure) {
        mon_give_up(m, from, failure, errno, report);
        return;
    }
    mon_started(m, from, report, received, prepared, launched);
    mon_settle(m, s);
}

static void mon_start(struct monitor *m, struct mon_connection *from, const struct mw_start *s, int network)
{
    char bundle[PATH_MAX];
    uint64_t received = mon_now(CLOCK_MONOTONIC);
    if (m->phase != MW_WAITING) {
        mon_refuse(m, from, "START came twice");
        mon_close(&network);
        return;
    }
    m->tty = s->tty;
    m->open_stdin = s->open_stdin;
    m->stdin_once = s->stdin_once;
    memcpy(bundle, s->bundle.at, s->bundle.length);
    bundle[s->bundle.length] = 0;
    m->bundle = open(bundle, O_PATH | O_DIRECTORY | O_CLOEXEC);
    if (m->bundle < 0)
        mon_failed(m, from, "open the bundle", errno, NULL);
    else
        mon_run(m, from, s, received, network);
    mon_close(&network);
    mon_unmap(m->report, sizeof *m->report);
    m->report = NULL;
}

#endif
