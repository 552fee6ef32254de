/* The end of the process: reaping, the rest of its output, exit.json, EXIT. */
#ifndef KNARR_MONITOR_EXIT_H
#define KNARR_MONITOR_EXIT_H

#include "monitor_attach.h"
#include "monitor_conn.h"
#include "monitor_oom.h"
#include "monitor_start.h"
#include "monitor_stdio.h"

static void mon_end_clients(struct monitor *m)
{
    for (int i = 0; i < m->client_slots; i++)
        if (m->client[i].fd >= 0)
            client_end(m, &m->client[i], MW_ENDED);
}

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
    char text[MON_RECORD];
    int number = m->status & 0x7f, code = number ? 128 + number : m->status >> 8 & 0xff;
    int length = snprintf(text, sizeof text,
                          "{\"status\":%d,\"code\":%d,\"signal\":%d,\"oom_kills\":%llu,\"finished\":%llu,\"log_dropped\":%llu,\"pid\":%d,"
                          "\"start_time\":%llu,\"started\":%llu}",
                          m->status, code, number, (unsigned long long)m->oom_kills, (unsigned long long)m->finished,
                          (unsigned long long)m->log.dropped, m->pid, (unsigned long long)m->start_time,
                          (unsigned long long)m->started);
    memset(text + length, ' ', sizeof text - (size_t)length);
    text[sizeof text - 1] = '\n';
    if (m->record < 0)
        mon_open_record(m);
    int good = m->record >= 0 && pwrite(m->record, text, sizeof text, 0) == sizeof text;
    int error = errno;
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
    mon_write_exit(m);
    unlinkat(m->bundle, "monitor.sock", 0);
    struct mw_writer w = mw_begin(space, sizeof space, MW_EXIT);
    mw_put(&w, (uint32_t)m->status, 4);
    mw_put(&w, m->oom_kills, 8);
    mw_put(&w, m->finished, 8);
    mw_put(&w, m->log.dropped, 8);
    mon_broadcast(m, &w);
    mon_end_clients(m);
    m->listening = 0;
    mon_close(&m->listener);
    mon_close(&m->record);
    mon_close(&m->bundle);
    mon_close(&m->log.fd);
    mon_close(&m->log.folder);
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

#endif
