/* What one monitor knows. There is one per process, in zeroed memory of the extension, so only pages that are used cost anything. */
#ifndef KNARR_MONITOR_STATE_H
#define KNARR_MONITOR_STATE_H

#include <limits.h>
#include <poll.h>
#include <stdint.h>
#include <sys/types.h>

#include "launch.h"
#include "monitor_log.h"
#include "monitor_wire.h"

#define MON_CONNECTIONS 16  /* daemons: one, and the next while the old one is not yet gone; the rest is for tools */
#define MON_CLIENTS 128
#define MON_CHUNK 32768     /* one read of output */
#define MON_INPUT 16384     /* one read of a client's input */
#define MON_PACKET MW_INLINE_LIMIT
#define MON_EARLY_LIMIT (1u << 20)
#define MON_BACKLOG_LIMIT (4u << 20) /* per client, once the process ended: the rest of both pipes (at most 1 MiB each) and its frames */
#define MON_DRAIN_NS 2000000000ull   /* others may hold the pipes open after the process ended: containerd waits as long */
#define MON_LINGER_NS 1000000000ull
#define MON_RECORD 384               /* bytes of exit.json; written ahead, so that a full disk cannot keep the record from being written */
#define MON_REST_MS 3000             /* quiet for so long: give buffers back */

struct mon_connection {
    int fd; /* -1: free */
    uint32_t serial;
};

struct mon_client {
    int fd; /* -1: free */
    uint32_t id, owner; /* owner: serial of the connection that attached it */
    uint8_t flags;      /* MW_STDIN.. */
    uint8_t input_open, ending, lingering, hung_up, is_unix;
    uint8_t reason;
    uint8_t keys_length, matched, keys[MW_KEYS_LIMIT];
    uint8_t *early;
    uint32_t early_at, early_length;
    uint8_t *out; /* bytes that the socket did not take yet */
    size_t out_at, out_length, out_capacity;
    uint64_t linger_until;
};

struct monitor {
    struct mon_connection connection[MON_CONNECTIONS];
    uint32_t serials;
    enum mw_phase phase;
    uint8_t tty, open_stdin, stdin_once, has_log, log_warned, listening;
    uid_t uid;
    int bundle, listener, record; /* record: the future exit.json, made while there is time */
    int pid, pidfd;
    int mounts;          /* the container's mount namespace, see mon_keep_mounts */
    uint64_t start_time; /* field 22 of /proc/PID/stat */
    uint64_t started;    /* CLOCK_REALTIME */
    /* stdio: our ends. With a tty, output[0] and input are the same master. -1: closed. */
    int output[2], input;
    uint8_t *input_data; /* accepted from clients, not yet taken by the process */
    uint32_t input_at, input_length;
    uint8_t input_ended; /* close `input` once input_data is written */
    uint8_t *chunk, *packet;
    struct launch_report *report;
    int spare[3];        /* made while waiting: what the process gets as stdio unless it gets a terminal */
    char *title;         /* the interpreter's command line, which `ps` shows, and its size */
    size_t title_size;
    struct log_file log;
    /* memory cgroup */
    int oom_version, oom_file, oom_event;
    uint64_t oom_kills;
    uint8_t oom_noticed;
    /* the end */
    uint8_t reaped;
    int status;
    uint64_t finished, drain_until;
    int client_slots; /* clients are in [0, client_slots) */
    struct mon_client client[MON_CLIENTS]; /* from client_slots on untouched memory */
};

static uint64_t mon_now(clockid_t clock)
{
    struct timespec now;
    clock_gettime(clock, &now);
    return (uint64_t)now.tv_sec * 1000000000ull + (uint64_t)now.tv_nsec;
}

static void mon_close(int *fd)
{
    if (*fd >= 0)
        close(*fd);
    *fd = -1;
}

/* The shared read buffer; NULL only when the machine has no memory, and then nothing is read until it has. */
static uint8_t *mon_chunk(struct monitor *m)
{
    if (!m->chunk)
        m->chunk = mon_map(MON_CHUNK);
    return m->chunk;
}

static void mon_send(struct monitor *m, struct mon_connection *to, struct mw_writer *w, int fd);
static void mon_broadcast(struct monitor *m, struct mw_writer *w);
static void mon_warn(struct monitor *m, const char *format, ...);
static void client_output(struct monitor *m, int stream, const uint8_t *data, size_t length);
static int client_blocked(struct monitor *m, int stream);

#endif
