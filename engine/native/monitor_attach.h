/* Attached clients: their sockets, Docker's 8-byte frames, input with detach keys, half-close.
 *
 * As Docker does it (moby daemon/attach.go, container/stream/attach.go): the end of a client's input closes the process's stdin when
 * stdin_once is set and there is no tty, and otherwise ends the attachment; detach keys count for a tty only; input for a process
 * without open stdin is thrown away. A client's socket is shared with the daemon, so it is never made non-blocking: MSG_DONTWAIT.
 */
#ifndef KNARR_MONITOR_ATTACH_H
#define KNARR_MONITOR_ATTACH_H

#include <sys/socket.h>
#include <sys/uio.h>

#include "monitor_state.h"
#include "monitor_stdio.h"

static struct mon_connection *mon_by_serial(struct monitor *m, uint32_t serial)
{
    for (int i = 0; i < MON_CONNECTIONS; i++)
        if (m->connection[i].fd >= 0 && m->connection[i].serial == serial)
            return &m->connection[i];
    return NULL;
}

static void client_report(struct monitor *m, uint32_t owner, uint32_t id, enum mw_reason reason)
{
    uint8_t space[32];
    struct mw_writer w = mw_begin(space, sizeof space, MW_DETACHED);
    struct mon_connection *to = mon_by_serial(m, owner);
    mw_put(&w, id, 4);
    mw_put(&w, reason, 1);
    if (to)
        mon_send(m, to, &w, -1);
}

static void client_free(struct mon_client *c)
{
    mon_close(&c->fd);
    mon_unmap(c->early, c->early_length);
    mon_unmap(c->out, c->out_capacity);
    c->early = c->out = NULL;
    c->out_length = c->out_capacity = 0;
}

/* Throw away what the peer sent: a unix socket closed with unread bytes would show its peer an error instead of an end. 1: it ended. */
static int client_discard(struct mon_client *c)
{
    char waste[2048];
    for (int i = 0; i < 1024; i++) { /* 2 MB, more than a socket holds unless net.core.wmem_max was raised far */
        ssize_t n = recv(c->fd, waste, sizeof waste, MSG_DONTWAIT);
        if (n == 0 || (n < 0 && errno != EAGAIN && errno != EINTR))
            return 1;
        if (n < 0 && errno == EAGAIN)
            return 0;
    }
    return 0;
}

/* Everything was delivered, or nothing can be: end the socket, which the daemon may hold as well. */
static void client_finish(struct monitor *m, struct mon_client *c)
{
    client_report(m, c->owner, c->id, c->reason);
    if (c->is_unix || c->hung_up || c->reason == MW_CLOSED || c->reason == MW_ERROR) {
        shutdown(c->fd, SHUT_RDWR);
        client_discard(c);
        client_free(c);
        return;
    }
    /* TCP: closing with input still under way would reset the connection and lose output on its way. */
    shutdown(c->fd, SHUT_WR);
    c->lingering = 1;
    c->linger_until = mon_now(CLOCK_MONOTONIC) + MON_LINGER_NS;
    if (client_discard(c))
        client_free(c);
}

/* End the attachment, after what is still waiting for the socket. */
static void client_end(struct monitor *m, struct mon_client *c, enum mw_reason reason)
{
    if (c->fd < 0 || c->ending)
        return;
    c->ending = 1;
    c->input_open = 0;
    c->reason = (uint8_t)reason;
    if (reason == MW_CLOSED || reason == MW_ERROR || reason == MW_KEYS)
        c->out_length = 0;
    if (!c->out_length)
        client_finish(m, c);
}

static int client_keep(struct mon_client *c, const uint8_t *data, size_t length)
{
    size_t end = c->out_at + c->out_length;
    if (c->out_at && end + length > c->out_capacity) {
        memmove(c->out, c->out + c->out_at, c->out_length);
        c->out_at = 0;
        end = c->out_length;
    }
    if (end + length > c->out_capacity) {
        size_t capacity = (end + length + 65535) & ~(size_t)65535;
        uint8_t *larger = c->out ? mremap(c->out, c->out_capacity, capacity, MREMAP_MAYMOVE) : mon_map(capacity);
        if (!larger || larger == MAP_FAILED)
            return -1;
        c->out = larger;
        c->out_capacity = capacity;
    }
    memcpy(c->out + end, data, length);
    c->out_length += length;
    return 0;
}

static void client_send(struct monitor *m, struct mon_client *c, int stream, const uint8_t *data, size_t length)
{
    uint8_t header[8] = {(uint8_t)(stream + 1), 0, 0, 0, (uint8_t)(length >> 24), (uint8_t)(length >> 16), (uint8_t)(length >> 8), (uint8_t)length};
    size_t head = c->flags & MW_FRAMED ? sizeof header : 0, done = 0;
    if (!c->out_length) {
        struct iovec parts[2] = {{header, head}, {(void *)data, length}};
        struct msghdr message = {.msg_iov = parts, .msg_iovlen = 2};
        ssize_t n = sendmsg(c->fd, &message, MSG_DONTWAIT | MSG_NOSIGNAL);
        if (n < 0 && errno != EAGAIN && errno != EINTR && errno != ENOBUFS) {
            c->hung_up = 1;
            if (!c->input_open)
                client_end(m, c, MW_CLOSED); /* else its last input is read first */
            return;
        }
        done = n < 0 ? 0 : (size_t)n;
    }
    int failed = 0;
    if (done < head)
        failed = client_keep(c, header + done, head - done) < 0;
    size_t from = done > head ? done - head : 0;
    if (!failed && from < length)
        failed = client_keep(c, data + from, length - from) < 0;
    if (failed)
        client_end(m, c, MW_ERROR);
}

static void client_output(struct monitor *m, int stream, const uint8_t *data, size_t length)
{
    uint8_t wanted = stream ? MW_STDERR : MW_STDOUT;
    for (int i = 0; i < m->client_slots; i++) {
        struct mon_client *c = &m->client[i];
        if (c->fd >= 0 && (c->flags & wanted) && !c->ending && !c->hung_up)
            client_send(m, c, stream, data, length);
    }
}

/* Whether output must wait for a client. */
static int client_blocked(struct monitor *m, int stream)
{
    uint8_t wanted = stream ? MW_STDERR : MW_STDOUT;
    size_t limit = m->reaped ? MON_BACKLOG_LIMIT : 0;
    for (int i = 0; i < m->client_slots; i++) {
        struct mon_client *c = &m->client[i];
        if (c->fd >= 0 && (c->flags & wanted) && !c->ending && c->out_length > limit)
            return 1;
    }
    return 0;
}

static void client_flush(struct monitor *m, struct mon_client *c)
{
    while (c->out_length) {
        ssize_t n = send(c->fd, c->out + c->out_at, c->out_length, MSG_DONTWAIT | MSG_NOSIGNAL);
        if (n < 0 && (errno == EAGAIN || errno == EINTR || errno == ENOBUFS))
            return;
        if (n <= 0) {
            c->hung_up = 1;
            c->out_length = 0;
            c->reason = MW_CLOSED;
            if (!c->input_open && !c->ending)
                client_end(m, c, MW_CLOSED);
            break;
        }
        c->out_at += (size_t)n;
        c->out_length -= (size_t)n;
    }
    c->out_at = 0;
    if (c->fd >= 0 && c->ending && !c->lingering)
        client_finish(m, c);
}

/* ---- input ---- */

static void client_emit(struct monitor *m, const uint8_t *data, size_t length)
{
    memcpy(m->input_data + m->input_length, data, length);
    m->input_length += (uint32_t)length;
}

/* Copy input to the process's buffer, looking for the detach keys; 1 when they are complete. Held-back keys come out when they turn out
 * to be none. At most MW_KEYS_LIMIT - 1 more bytes come out than went in. */
static int client_filter(struct monitor *m, struct mon_client *c, const uint8_t *data, size_t length)
{
    if (!m->tty || !c->keys_length) {
        client_emit(m, data, length);
        return 0;
    }
    for (size_t i = 0; i < length; i++) {
        while (c->matched && data[i] != c->keys[c->matched]) {
            /* The longest shorter beginning of the keys that the held ones end with. */
            uint8_t keep = (uint8_t)(c->matched - 1);
            while (keep && memcmp(c->keys, c->keys + c->matched - keep, keep) != 0)
                keep--;
            client_emit(m, c->keys, (size_t)(c->matched - keep));
            c->matched = keep;
        }
        if (data[i] != c->keys[c->matched])
            client_emit(m, data + i, 1);
        else if (++c->matched == c->keys_length)
            return 1;
    }
    return 0;
}

static void client_input_ended(struct monitor *m, struct mon_client *c)
{
    c->input_open = 0;
    if (c->hung_up) {
        if (m->open_stdin && m->stdin_once && !m->tty)
            m->input_ended = 1;
        client_end(m, c, MW_CLOSED);
        return;
    }
    if (!m->open_stdin)
        return;
    if (m->stdin_once && !m->tty)
        m->input_ended = 1;
    else
        client_end(m, c, MW_INPUT);
}

/* Take input from one client while the process takes it from us. `readable`: its socket has some. */
static void client_pump_input(struct monitor *m, struct mon_client *c, int readable)
{
    for (int rounds = 0; rounds < 8 && c->fd >= 0 && c->input_open; rounds++) {
        if (m->input_length || !mon_chunk(m) || (!m->input_data && !(m->input_data = mon_map(MON_INPUT + MW_KEYS_LIMIT))))
            return;
        ssize_t n;
        const uint8_t *data = m->chunk;
        if (c->early_at < c->early_length) {
            n = c->early_length - c->early_at < MON_INPUT ? c->early_length - c->early_at : MON_INPUT;
            data = c->early + c->early_at;
            c->early_at += (uint32_t)n;
        } else if (readable || c->hung_up) {
            n = recv(c->fd, m->chunk, MON_INPUT, MSG_DONTWAIT);
        } else {
            return;
        }
        if (n < 0 && (errno == EAGAIN || errno == EINTR))
            return;
        if (n < 0)
            c->hung_up = 1;
        if (n <= 0) {
            client_input_ended(m, c);
        } else if (m->input >= 0 && !m->input_ended && client_filter(m, c, data, (size_t)n)) {
            client_end(m, c, MW_KEYS);
        }
        stdio_push_input(m);
    }
}

/* ---- arrival and events ---- */

static void client_accept(struct monitor *m, const struct mon_connection *owner, const struct mw_attach *a, int fd)
{
    int type = 0, domain = 0, slot = 0;
    socklen_t length = sizeof type;
    while (slot < m->client_slots && m->client[slot].fd >= 0)
        slot++;
    int usable = fd >= 0 && getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &length) == 0 && type == SOCK_STREAM;
    if (!usable || slot == MON_CLIENTS || a->early.length > MON_EARLY_LIMIT) {
        if (fd >= 0)
            close(fd);
        client_report(m, owner->serial, a->id, MW_ERROR);
        return;
    }
    struct mon_client *c = &m->client[slot];
    memset(c, 0, sizeof *c);
    if (slot >= m->client_slots)
        m->client_slots = slot + 1;
    getsockopt(fd, SOL_SOCKET, SO_DOMAIN, &domain, &length);
    c->fd = fd;
    c->id = a->id;
    c->owner = owner->serial;
    c->flags = a->flags;
    c->is_unix = domain == AF_UNIX;
    c->input_open = (a->flags & MW_STDIN) != 0;
    c->keys_length = (uint8_t)a->keys.length;
    memcpy(c->keys, a->keys.at, a->keys.length);
    if (c->input_open && a->early.length && (c->early = mon_map(a->early.length))) {
        memcpy(c->early, a->early.at, a->early.length);
        c->early_length = a->early.length;
    }
    if (m->phase == MW_OVER)
        client_end(m, c, MW_ENDED);
}

/* What to wait for; -1: not worth asking (a hung-up socket would wake us for ever). */
static int client_interest(struct monitor *m, struct mon_client *c)
{
    int wants = c->out_length && !c->hung_up ? POLLOUT : 0;
    int room = m->phase == MW_RUNNING && !m->input_length;
    if (c->lingering || (c->input_open && room))
        wants |= POLLIN;
    return c->hung_up && !(wants & POLLIN) ? -1 : wants;
}

static void client_event(struct monitor *m, struct mon_client *c, int events)
{
    if (c->lingering) {
        if ((events & (POLLIN | POLLHUP | POLLERR)) && (client_discard(c) || (events & (POLLHUP | POLLERR))))
            client_free(c);
        return;
    }
    if (events & (POLLHUP | POLLERR)) { /* both directions are closed: output is pointless, input may still be waiting */
        c->hung_up = 1;
        c->out_length = 0;
        if (!c->input_open || c->ending) {
            c->ending = 0;
            client_end(m, c, MW_CLOSED);
            return;
        }
    }
    if ((events & POLLOUT) && c->out_length)
        client_flush(m, c);
    if (c->fd >= 0 && m->phase == MW_RUNNING && (events & (POLLIN | POLLHUP | POLLERR)))
        client_pump_input(m, c, 1);
}

/* Every turn of the loop: early input, and the end of those that linger too long. Returns how many clients there are. */
static int client_sweep(struct monitor *m)
{
    int count = 0;
    for (int i = 0; i < m->client_slots; i++) {
        struct mon_client *c = &m->client[i];
        if (c->fd >= 0 && c->lingering && mon_now(CLOCK_MONOTONIC) >= c->linger_until)
            client_free(c);
        if (c->fd >= 0 && m->phase == MW_RUNNING && c->input_open && (c->early_at < c->early_length || c->hung_up))
            client_pump_input(m, c, 0);
        count += c->fd >= 0;
    }
    while (m->client_slots && m->client[m->client_slots - 1].fd < 0)
        m->client_slots--;
    return count;
}

static void client_rest(struct monitor *m)
{
    for (int i = 0; i < m->client_slots; i++) {
        struct mon_client *c = &m->client[i];
        if (c->fd < 0 || c->out_length)
            continue;
        mon_unmap(c->out, c->out_capacity);
        c->out = NULL;
        c->out_at = c->out_capacity = 0;
    }
}

#endif
