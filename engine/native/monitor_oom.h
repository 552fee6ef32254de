/* The memory cgroup's oom_kill counter and its live notice, on v1 (memory.oom_control, eventfd) and v2 (memory.events, POLLPRI).
 *
 * Kernel: Documentation/admin-guide/cgroup-v1/memory.rst section 10, cgroup-v2.rst "memory.events". The counter starts at 0 with a new group.
 */
#ifndef KNARR_MONITOR_OOM_H
#define KNARR_MONITOR_OOM_H

#include <sys/eventfd.h>

#include "monitor_conn.h"
#include "monitor_state.h"

/* The counter; unchanged when it cannot be read (the group may be gone). */
static uint64_t oom_count(struct monitor *m)
{
    char text[1024], *found;
    ssize_t n = m->oom_file < 0 ? -1 : pread(m->oom_file, text, sizeof text - 1, 0);
    if (n <= 0)
        return m->oom_kills;
    text[n] = 0;
    for (found = strstr(text, "oom_kill "); found && found != text && found[-1] != '\n'; found = strstr(found + 1, "oom_kill "))
        ;
    return found ? strtoull(found + 9, NULL, 10) : m->oom_kills;
}

static int oom_watch_v1(struct monitor *m, char *path)
{
    char line[32];
    char *slash = strrchr(path, '/');
    if (!slash || (size_t)(slash - path) + 24 > PATH_MAX)
        return ENAMETOOLONG;
    strcpy(slash + 1, "cgroup.event_control");
    int event = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK), control = open(path, O_WRONLY | O_CLOEXEC), error = errno;
    if (event >= 0 && control >= 0) {
        int length = snprintf(line, sizeof line, "%d %d", event, m->oom_file);
        error = write(control, line, (size_t)length) == length ? 0 : errno;
    }
    mon_close(&control);
    if (error)
        mon_close(&event);
    m->oom_event = event;
    return error;
}

static void oom_start(struct monitor *m, const struct mw_start *s)
{
    char path[PATH_MAX];
    if (!s->oom_version)
        return;
    memcpy(path, s->oom_path.at, s->oom_path.length);
    path[s->oom_path.length] = 0;
    m->oom_version = s->oom_version;
    m->oom_file = open(path, O_RDONLY | O_CLOEXEC);
    int error = m->oom_file < 0 ? errno : 0;
    if (!error && s->oom_watch) {
        if (m->oom_version == 1)
            error = oom_watch_v1(m, path);
        else
            m->oom_event = m->oom_file;
    }
    if (error)
        mon_warn(m, "watch for lack of memory in %.*s: %s", (int)s->oom_path.length, (const char *)s->oom_path.at, strerror(error));
}

static void oom_notice(struct monitor *m)
{
    uint8_t space[32];
    struct mw_writer w = mw_begin(space, sizeof space, MW_OOM);
    mw_put(&w, m->oom_kills, 8);
    mon_broadcast(m, &w);
    m->oom_noticed = 1;
}

/* The notice came. v1 signals the eventfd once more when the group is removed, v2 on every event of the file. */
static void oom_event(struct monitor *m)
{
    uint64_t before = m->oom_kills, waste;
    if (m->oom_version == 1 && read(m->oom_event, &waste, sizeof waste) < 0)
        return;
    m->oom_kills = oom_count(m);
    if (m->oom_version == 1 || m->oom_kills > before)
        oom_notice(m);
}

/* The end may be known before the notice that explains it. */
static void oom_end(struct monitor *m)
{
    uint64_t before = m->oom_kills;
    m->oom_kills = oom_count(m);
    if (m->oom_event >= 0 && m->oom_kills > before && (m->oom_version == 2 || !m->oom_noticed))
        oom_notice(m);
    if (m->oom_version == 1)
        mon_close(&m->oom_event);
    m->oom_event = -1;
    mon_close(&m->oom_file);
}

#endif
