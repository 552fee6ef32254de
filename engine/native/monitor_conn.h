/* Connections to daemons: the inherited socket, monitor.sock for those that come later, sending and receiving messages.
 *
 * A daemon that does not read its messages is disconnected rather than waited for: it reconnects, or finds exit.json. One that
 * breaks the protocol is told so and disconnected. Every descriptor that arrives is used or closed.
 */
#ifndef KNARR_MONITOR_CONN_H
#define KNARR_MONITOR_CONN_H

#include <stdarg.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>

#include "monitor_attach.h"
#include "monitor_state.h"

#define MON_FDS 4

static void mon_handle(struct monitor *m, struct mon_connection *from, const struct mw_message *message, int fd);

static void mon_send(struct monitor *m, struct mon_connection *to, struct mw_writer *w, int fd)
{
    size_t length = mw_finish(w);
    struct iovec part = {w->data, length};
    union { struct cmsghdr header; char space[CMSG_SPACE(sizeof(int))]; } rights;
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1};
    if (fd >= 0) {
        memset(&rights, 0, sizeof rights);
        message.msg_control = &rights;
        message.msg_controllen = sizeof rights.space;
        rights.header.cmsg_level = SOL_SOCKET;
        rights.header.cmsg_type = SCM_RIGHTS;
        rights.header.cmsg_len = CMSG_LEN(sizeof fd);
        memcpy(CMSG_DATA(&rights.header), &fd, sizeof fd);
    }
    if (length && to->fd >= 0 && sendmsg(to->fd, &message, MSG_DONTWAIT | MSG_NOSIGNAL) < 0)
        mon_close(&to->fd);
}

static void mon_broadcast(struct monitor *m, struct mw_writer *w)
{
    for (int i = 0; i < MON_CONNECTIONS; i++)
        if (m->connection[i].fd >= 0)
            mon_send(m, &m->connection[i], w, -1);
}

static struct mw_writer mon_warning(uint8_t *space, size_t size, const char *format, va_list arguments)
{
    char text[512];
    int length = vsnprintf(text, sizeof text, format, arguments);
    struct mw_writer w = mw_begin(space, size, MW_WARNING);
    mw_put_blob(&w, text, length < 0 ? 0 : length < (int)sizeof text ? (size_t)length : sizeof text - 1);
    return w;
}

static void mon_warn(struct monitor *m, const char *format, ...)
{
    uint8_t space[640];
    va_list arguments;
    va_start(arguments, format);
    struct mw_writer w = mon_warning(space, sizeof space, format, arguments);
    va_end(arguments);
    mon_broadcast(m, &w);
}

static void mon_refuse(struct monitor *m, struct mon_connection *from, const char *format, ...)
{
    uint8_t space[640];
    va_list arguments;
    va_start(arguments, format);
    struct mw_writer w = mon_warning(space, sizeof space, format, arguments);
    va_end(arguments);
    mon_send(m, from, &w, -1);
}

static struct mon_connection *mon_connect(struct monitor *m, int fd)
{
    for (int i = 0; i < MON_CONNECTIONS; i++)
        if (m->connection[i].fd < 0) {
            m->connection[i].fd = fd;
            m->connection[i].serial = ++m->serials;
            return &m->connection[i];
        }
    return NULL;
}

/* The socket that was made while waiting becomes BUNDLE/monitor.sock, through the folder's descriptor because an address holds 107 bytes. 0 or -errno. */
static int mon_listen(struct monitor *m)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    int fd = m->listener, error = 0;
    snprintf(address.sun_path, sizeof address.sun_path, "/proc/self/fd/%d/monitor.sock", m->bundle);
    mode_t mask = umask(0177);
    for (int attempt = 0; attempt < 2; attempt++) {
        error = bind(fd, (struct sockaddr *)&address, sizeof address) < 0 ? errno : 0;
        if (error != EADDRINUSE || unlinkat(m->bundle, "monitor.sock", 0) < 0)
            break; /* a socket that a killed monitor left is replaced */
    }
    umask(mask);
    if (!error && listen(fd, MON_CONNECTIONS) < 0)
        error = errno;
    m->listening = !error;
    return -error;
}

static void mon_accept(struct monitor *m)
{
    struct ucred peer;
    socklen_t length = sizeof peer;
    int fd = accept4(m->listener, NULL, NULL, SOCK_CLOEXEC);
    if (fd < 0) {
        if (errno == EMFILE || errno == ENFILE || errno == ENOMEM || errno == ENOBUFS)
            usleep(20000); /* it would be reported again at once */
        return;
    }
    int known = getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &length) == 0 && (peer.uid == 0 || peer.uid == m->uid);
    if (!known || !mon_connect(m, fd))
        close(fd);
}

/* The message in a memfd that can no longer change. Returns its bytes (to be unmapped with `total`) or NULL. */
static uint8_t *mon_map_large(int fd, uint32_t total)
{
    struct stat status;
    int seals = fcntl(fd, F_GET_SEALS), needed = F_SEAL_SHRINK | F_SEAL_WRITE;
    if (seals < 0 || (seals & needed) != needed || fstat(fd, &status) < 0 || status.st_size != (off_t)total)
        return NULL;
    uint8_t *data = mmap(NULL, total, PROT_READ, MAP_PRIVATE, fd, 0);
    return data == MAP_FAILED ? NULL : data;
}

/* One packet with its descriptors; closes those that nobody took. -1: not the protocol. */
static int mon_packet(struct monitor *m, struct mon_connection *from, size_t length, int *fds, int count)
{
    struct mw_message message;
    uint32_t total;
    int large, next = 0, result = -1;
    uint8_t *data = m->packet, *mapped = NULL;
    if (mw_header(data, length, &total, &large) == 0) {
        if (large && length == MW_HEADER && count) {
            data = mapped = mon_map_large(fds[0], total);
            length = total;
            next = 1;
        }
        if (data && mw_decode(data, length, &message) == 0) {
            int takes = (message.kind == MW_ATTACH || message.kind == MW_START) && next < count;
            result = 0;
            mon_handle(m, from, &message, takes ? fds[next] : -1);
            if (takes)
                fds[next] = -1;
        }
    }
    mon_unmap(mapped, total);
    for (int i = 0; i < count; i++)
        mon_close(&fds[i]);
    return result;
}

/* Descriptors of a received message; returns how many. */
static int mon_take_fds(struct msghdr *message, int fds[MON_FDS])
{
    int count = 0;
    for (struct cmsghdr *c = CMSG_FIRSTHDR(message); c; c = CMSG_NXTHDR(message, c)) {
        if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS)
            continue;
        int here = (int)((c->cmsg_len - CMSG_LEN(0)) / sizeof(int));
        for (int i = 0; i < here && count < MON_FDS; i++)
            memcpy(&fds[count++], CMSG_DATA(c) + (size_t)i * sizeof(int), sizeof(int));
    }
    return count;
}

static void mon_receive(struct monitor *m, struct mon_connection *from)
{
    for (int rounds = 0; rounds < 16 && from->fd >= 0; rounds++) {
        union { struct cmsghdr header; char space[CMSG_SPACE(MON_FDS * sizeof(int))]; } rights;
        int fds[MON_FDS];
        if (!m->packet && !(m->packet = mon_map(MON_PACKET)))
            return;
        struct iovec part = {m->packet, MON_PACKET};
        struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = &rights, .msg_controllen = sizeof rights.space};
        ssize_t n = recvmsg(from->fd, &message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
        if (n < 0 && (errno == EAGAIN || errno == EINTR))
            return;
        if (n <= 0) {
            mon_close(&from->fd);
            return;
        }
        int count = mon_take_fds(&message, fds);
        if (mon_packet(m, from, message.msg_flags & (MSG_TRUNC | MSG_CTRUNC) ? 0 : (size_t)n, fds, count) < 0) {
            mon_refuse(m, from, "a message of %zd bytes that is none of control protocol %d", n, MW_VERSION);
            mon_close(&from->fd);
        }
    }
}

#endif
