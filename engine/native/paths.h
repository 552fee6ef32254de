/* Paths inside the container's root. They come from a hostile image as far as their links go, so one is only ever resolved by openat2 in
 * the root (links stay inside, magic links refused) and used through the descriptor that comes back. */
#ifndef KNARR_PATHS_H
#define KNARR_PATHS_H

#include "child.h"

#ifndef SYS_openat2
#define SYS_openat2 437
#endif

enum { EXISTING, DIRECTORY, PLAIN_FILE }; /* what find() makes when there is nothing at the path */
#define MAX_DANGLING 8                    /* links to nothing that are followed while making a path */

static int open_root(struct child *c) {
    if (c->root < 0)
        c->root = open("/", O_PATH | O_DIRECTORY | O_CLOEXEC);
    return c->root < 0 ? errno : 0;
}

static int open_inside(struct child *c, const char *path, uint64_t flags) {
    struct open_how how = {.flags = flags | O_CLOEXEC, .resolve = RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS};
    int fd, tries = 64;
    if (open_root(c) != 0)
        return -1;
    do { /* EAGAIN: something was renamed on the system while a ".." was resolved */
        fd = (int)syscall(SYS_openat2, c->root, path, &how, sizeof how);
    } while (fd < 0 && (errno == EAGAIN || errno == EINTR) && --tries);
    return fd;
}

/* c->path ends with `name`, which is a link to nothing in `parent`: put what it says in its place, and `rest` behind it. */
static int follow_dangling(struct child *c, int parent, char *name, const char *rest) {
    size_t length, keep, tail = strlen(rest);
    ssize_t n = readlinkat(parent, name, c->link, sizeof c->link - 1);
    if (n < 0)
        return errno;
    length = (size_t)n;
    keep = c->link[0] == '/' ? 0 : (size_t)(name - c->path);
    if (keep + length + tail + 2 > sizeof c->path)
        return ENAMETOOLONG;
    memmove(c->path + keep + length, rest, tail + 1);
    memcpy(c->path + keep, c->link, length);
    return 0;
}

static int make_last(int parent, const char *name, int kind) {
    int fd;
    if (name[0] == '.' && (name[1] == 0 || (name[1] == '.' && name[2] == 0)))
        return ENOENT;
    if (kind == DIRECTORY)
        return failed(mkdirat(parent, name, 0755));
    fd = openat(parent, name, O_RDONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0644);
    if (fd < 0)
        return errno;
    close(fd);
    return 0;
}

/* Walk c->path from the root and make what is missing. A link to nothing is followed inside the root, as a shell's mkdir -p would not but
 * as images expect (/var/run -> /run, /etc/resolv.conf -> ../run/...). */
static int make_path(struct child *c, int kind, int *result) {
    int links = 0, parent, fd, error;
    char *at, *name, saved;
    size_t length;
restart:
    parent = fcntl(c->root, F_DUPFD_CLOEXEC, 3);
    if (parent < 0)
        return errno;
    at = c->path;
    for (;;) {
        while (*at == '/')
            at++;
        if (*at == 0) {
            *result = parent;
            return 0;
        }
        name = at;
        while (*at && *at != '/')
            at++;
        saved = *at;
        *at = 0;
        fd = open_inside(c, c->path, O_PATH);
        if (fd < 0 && errno == ENOENT) {
            const char *left = at + 1;
            if (saved)
                while (*left == '/')
                    left++;
            error = make_last(parent, name, saved && *left ? DIRECTORY : kind);
            if (error == EEXIST) {
                *at = saved; /* the rest moves out of the way, to the end of the buffer */
                length = strlen(at) + 1;
                left = memmove(c->path + sizeof c->path - length, at, length);
                *at = 0;
                error = ++links > MAX_DANGLING ? ELOOP : follow_dangling(c, parent, name, left);
                close(parent);
                if (error)
                    return error;
                goto restart;
            }
            fd = error ? -1 : openat(parent, name, O_PATH | O_NOFOLLOW | O_CLOEXEC);
            if (error)
                errno = error;
        }
        error = fd < 0 ? errno : 0;
        close(parent);
        if (error)
            return error;
        parent = fd;
        *at = saved;
    }
}

static void forget_parent(struct child *c) {
    if (c->parent >= 0)
        close(c->parent);
    c->parent = -1;
}

/* The directory a node is made in (made if missing) and the node's name. Consecutive nodes of one directory look it up once. */
static int find_parent(struct child *c, const char *path, const char **name) {
    const char *slash = strrchr(path, '/');
    size_t length = slash ? (size_t)(slash - path) : 0;
    int error;
    *name = slash ? slash + 1 : path;
    if (**name == 0)
        return EINVAL;
    if (c->parent >= 0 && length == c->parent_length && memcmp(path, c->parent_path, length) == 0)
        return 0;
    forget_parent(c);
    if (length >= PATH_MAX)
        return ENAMETOOLONG;
    memcpy(c->path, path, length);
    c->path[length] = 0;
    error = open_root(c);
    if (!error)
        error = make_path(c, DIRECTORY, &c->parent);
    c->parent_path = path;
    c->parent_length = length;
    if (error)
        c->parent = -1;
    return error;
}

/* O_PATH descriptor of a path inside the root; with `kind`, what is missing is made. c->fresh: the last part was made, and nothing can be
 * below it. */
static int find(struct child *c, const char *path, int kind, int *result) {
    const char *name;
    size_t length;
    int error;
    c->fresh = 0;
    *result = open_inside(c, path, O_PATH);
    if (*result >= 0)
        return 0;
    if (errno != ENOENT || kind == EXISTING)
        return errno;
    error = find_parent(c, path, &name);
    if (!error) {
        error = make_last(c->parent, name, kind);
        if (!error) {
            c->fresh = 1;
            *result = openat(c->parent, name, O_PATH | O_NOFOLLOW | O_CLOEXEC);
            return failed(*result);
        }
    }
    if (error != EEXIST && error != EINVAL)
        return error;
    length = strlen(path); /* a link to nothing, or a path that ends in "/" */
    if (length >= PATH_MAX)
        return ENAMETOOLONG;
    memcpy(c->path, path, length + 1);
    return make_path(c, kind, result);
}

#endif
