/* The container's file system tree: mounts, nodes and links below its root. Paths inside are paths.h's business. Sources are host paths that
 * the engine chose; they are resolved in our own mount namespace before pivot_root. */
#ifndef KNARR_ROOTFS_H
#define KNARR_ROOTFS_H

#include "paths.h"

#ifndef SYS_open_tree
#define SYS_open_tree 428
#define SYS_move_mount 429
#endif
#ifndef SYS_mount_setattr
#define SYS_mount_setattr 442
#endif
#define TREE_CLONE 1       /* OPEN_TREE_CLONE */
#define MOVE_EMPTY_BOTH 68 /* MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH */
#define AT_TREE 0x8000     /* AT_RECURSIVE */
#define ATTR_READONLY 1    /* MOUNT_ATTR_RDONLY */
#define ATTR_NOSUID 2      /* MOUNT_ATTR_NOSUID */
#define ATTR_IDMAP 0x100000 /* MOUNT_ATTR_IDMAP */

struct attributes { /* struct mount_attr of the kernel, whose header collides with glibc's */
    uint64_t set, clear, propagation, userns;
};

static int set_attributes(int fd, int recursive, struct attributes a) {
    return failed(syscall(SYS_mount_setattr, fd, "", AT_EMPTY_PATH | (recursive ? AT_TREE : 0), &a, sizeof a));
}

static int clone_tree(int dir, const char *path, int recursive) {
    return (int)syscall(SYS_open_tree, dir, path, TREE_CLONE | O_CLOEXEC | AT_EMPTY_PATH | (recursive ? AT_TREE : 0));
}

/* Something was mounted on the last found path. What lies below it has changed, so the remembered parent may have. */
static void mounted(struct child *c) {
    if (!c->fresh)
        forget_parent(c);
}

/* Attach a cloned tree to the last found path and close it. */
static int attach(struct child *c, int tree, int target) {
    int error = failed(syscall(SYS_move_mount, tree, "", target, "", MOVE_EMPTY_BOTH));
    close(tree);
    mounted(c);
    return error;
}

static int set_propagation(int fd, uint64_t flags) {
    struct attributes a = {.propagation = flags & ~(uint64_t)MS_REC};
    return set_attributes(fd, (flags & MS_REC) != 0, a);
}

static int op_propagation(struct child *c, struct plan_op *op) {
    (void)c;
    return failed(mount(NULL, op->slot[0].text, NULL, op->arg[0], NULL));
}

/* slots: source, mountpoint (host path), type or NULL for a bind, data, base. arg[0]: MS_ flags. */
static int op_root(struct child *c, struct plan_op *op) {
    if (op->slot[4].text && chdir(op->slot[4].text) < 0)
        return errno;
    if (mount(op->slot[0].text, op->slot[1].text, op->slot[2].text, op->arg[0], op->slot[3].text) < 0)
        return errno;
    c->root = open(op->slot[1].text, O_PATH | O_DIRECTORY | O_CLOEXEC);
    return failed(c->root);
}

/* A new file system on a directory inside. slots: source, target, type, data, base. arg: MS_ flags, propagation (MS_ flags). */
static int op_mount(struct child *c, struct plan_op *op) {
    const char *source = op->slot[0].text, *path = op->slot[1].text, *where = ".";
    char name[FD_NAME];
    int target, error = find(c, path, DIRECTORY, &target);
    if (error)
        return error;
    if (op->slot[4].text) { /* relative names in the data are meant from the base, so the target needs a name of its own */
        where = fd_name(name, target);
        error = failed(chdir(op->slot[4].text));
    } else {
        error = failed(fchdir(target));
    }
    if (!error)
        error = failed(mount(source, where, op->slot[2].text, op->arg[0], op->slot[3].text));
    close(target);
    mounted(c);
    if (error || !op->arg[1])
        return error;
    error = find(c, path, EXISTING, &target);
    if (error)
        return error;
    error = set_propagation(target, op->arg[1]);
    close(target);
    return error;
}

/* What is at a path below a folder that others may write to: links in it must not lead out. */
static int clone_part(const char *source, const char *part, int recursive) {
    struct open_how how = {.flags = O_PATH | O_CLOEXEC, .resolve = RESOLVE_BENEATH | RESOLVE_NO_MAGICLINKS};
    int tree = -1, fd, error, tries = 64, base = open(source, O_PATH | O_DIRECTORY | O_CLOEXEC);
    if (base < 0)
        return -1;
    do {
        fd = (int)syscall(SYS_openat2, base, part, &how, sizeof how);
    } while (fd < 0 && (errno == EAGAIN || errno == EINTR) && --tries);
    if (fd >= 0)
        tree = clone_tree(fd, "", recursive);
    error = errno;
    close(base);
    if (fd >= 0)
        close(fd);
    errno = error;
    return tree;
}

/* What is mounted at a path of another mount namespace, whose owner may have made links of the path's parts. We are back in our own namespace
 * and at its root afterwards, or the launch must not go on. */
static int clone_foreign(const char *namespace, const char *path, int *tree) {
    struct open_how how = {.flags = O_PATH | O_CLOEXEC, .resolve = RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS};
    int own = -1, fd = -1, error, root = open("/", O_PATH | O_DIRECTORY | O_CLOEXEC), other = open(namespace, O_RDONLY | O_CLOEXEC);
    if (root >= 0 && other >= 0)
        own = open("/proc/self/ns/mnt", O_RDONLY | O_CLOEXEC);
    error = failed(own);
    if (!error && !(error = failed(setns(other, CLONE_NEWNS)))) {
        fd = (int)syscall(SYS_openat2, AT_FDCWD, path, &how, sizeof how);
        *tree = fd < 0 ? -1 : clone_tree(fd, "", 0);
        error = failed(*tree);
        if (setns(own, CLONE_NEWNS) < 0 || fchdir(root) < 0 || chroot(".") < 0)
            error = errno;
    }
    close(fd);
    close(own);
    close(other);
    close(root);
    return error;
}

/* Show a tree's owners as a user namespace has them; `path` is the namespace's file. `nosuid` goes as far as the mapping: whoever a file
 * belongs to must not make a set-user-ID program of whoever it is shown as. */
static int set_owners(int tree, const char *path, int recursive, uint64_t nosuid) {
    struct attributes a = {.set = ATTR_IDMAP | nosuid};
    int error, fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return errno;
    a.userns = (uint64_t)fd;
    error = set_attributes(tree, recursive, a);
    close(fd);
    return error;
}

/* A bind mount. slots: source (host path), target; of OP_BIND_PART also a path below the source, a user namespace, and the mount namespace
 * that the source is a path of (each or NULL). arg: attributes to set, to clear, propagation (MS_ flags), BIND_ bits. */
enum { BIND_RECURSIVE = 1, BIND_ATTRIBUTES_RECURSIVE = 2, BIND_KEEP = 4, BIND_KEPT = 8, BIND_OWNERS_RECURSIVE = 16, BIND_INDEX_SHIFT = 8 };

static int op_bind(struct child *c, struct plan_op *op) {
    struct attributes a = {.set = op->arg[0], .clear = op->arg[1]};
    uint64_t bits = op->arg[3], index = bits >> BIND_INDEX_SHIFT;
    struct stat st;
    int target, error, tree = -1;
    if (index >= KEPT_TREES)
        return EINVAL;
    if (op->slots > 4 && op->slot[4].text) {
        if ((error = clone_foreign(op->slot[4].text, op->slot[0].text, &tree)) != 0)
            return error;
    } else if (bits & BIND_KEPT) {
        tree = c->tree[index];
    } else if (op->slots > 2 && op->slot[2].text) {
        tree = clone_part(op->slot[0].text, op->slot[2].text, bits & BIND_RECURSIVE);
    } else {
        tree = clone_tree(AT_FDCWD, op->slot[0].text, bits & BIND_RECURSIVE);
    }
    if (tree < 0)
        return errno;
    if (bits & BIND_KEEP) {
        c->tree[index] = tree;
        return 0;
    }
    if (op->slots > 3 && op->slot[3].text &&
        (error = set_owners(tree, op->slot[3].text, bits & BIND_OWNERS_RECURSIVE, a.set & ATTR_NOSUID)) != 0)
        return error;
    if ((a.set || a.clear) && (error = set_attributes(tree, (bits & BIND_ATTRIBUTES_RECURSIVE) != 0, a)) != 0)
        return error;
    if (op->arg[2] && (error = set_propagation(tree, op->arg[2])) != 0)
        return error;
    if (fstat(tree, &st) < 0)
        return errno;
    error = find(c, op->slot[1].text, S_ISDIR(st.st_mode) ? DIRECTORY : PLAIN_FILE, &target);
    if (error)
        return error;
    error = attach(c, tree, target);
    close(target);
    return error;
}

/* Folders with their owners mapped, each mounted over itself, for the overlay that is mounted of them next; without a user namespace they are
 * uncovered again. In our mount namespace only, and no link on the way counts. slots: the folders' paths below the base, each with its NUL
 * (arg[2] bytes), base (host path), user namespace or NULL. */
static int owners_of(int base, const char *path, const char *userns) {
    struct open_how how = {.flags = O_PATH | O_DIRECTORY | O_CLOEXEC, .resolve = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS};
    char name[FD_NAME];
    int fd, tree, error, tries = 64;
    do {
        fd = (int)syscall(SYS_openat2, base, path, &how, sizeof how);
    } while (fd < 0 && (errno == EAGAIN || errno == EINTR) && --tries);
    if (fd < 0)
        return errno;
    if (!userns) {
        error = failed(umount2(fd_name(name, fd), MNT_DETACH));
    } else if ((tree = clone_tree(fd, "", 0)) < 0) {
        error = errno;
    } else {
        error = set_owners(tree, userns, 0, 0);
        if (!error)
            error = failed(syscall(SYS_move_mount, tree, "", fd, "", MOVE_EMPTY_BOTH));
        close(tree);
    }
    close(fd);
    return error;
}

static int op_owners(struct child *c, struct plan_op *op) {
    const char *path = op->slot[0].text, *end = path + op->arg[2];
    int error = 0, base;
    (void)c;
    if (path == end || end[-1])
        return EINVAL;
    base = open(op->slot[1].text, O_PATH | O_DIRECTORY | O_CLOEXEC);
    if (base < 0)
        return errno;
    for (; !error && path < end; path += strlen(path) + 1)
        error = owners_of(base, path, op->slot[2].text);
    close(base);
    return error;
}

/* slot: a mounted path inside. arg: attributes to set, to clear, recursive. */
static int op_attributes(struct child *c, struct plan_op *op) {
    struct attributes a = {.set = op->arg[0], .clear = op->arg[1]};
    int fd, error = find(c, op->slot[0].text, EXISTING, &fd);
    if (error)
        return error;
    error = set_attributes(fd, op->arg[2] != 0, a);
    close(fd);
    return error;
}

/* slot: path. arg: mode with type, device number, uid, gid. An equal node that is there already is taken. */
static int op_mknod(struct child *c, struct plan_op *op) {
    mode_t mode = (mode_t)op->arg[0];
    uid_t uid = (uid_t)op->arg[2];
    gid_t gid = (gid_t)op->arg[3];
    struct stat st;
    const char *name;
    int error = find_parent(c, op->slot[0].text, &name);
    if (error)
        return error;
    if (mknodat(c->parent, name, mode, op->arg[1]) < 0) {
        if (errno != EEXIST || fstatat(c->parent, name, &st, AT_SYMLINK_NOFOLLOW) < 0)
            return errno;
        return (st.st_mode & S_IFMT) == (mode & S_IFMT) && st.st_rdev == (dev_t)op->arg[1] ? 0 : EEXIST;
    }
    if (uid || gid)
        return failed(fchownat(c->parent, name, uid, gid, AT_SYMLINK_NOFOLLOW));
    return 0;
}

/* slots: what it says, path. */
static int op_symlink(struct child *c, struct plan_op *op) {
    const char *name;
    int error = find_parent(c, op->slot[1].text, &name);
    if (error)
        return error;
    return symlinkat(op->slot[0].text, c->parent, name) < 0 && errno != EEXIST ? errno : 0;
}

/* The terminal's mount, to be bound. One of the host belongs to the mount namespace we came from and cannot be cloned by its descriptor, so
 * it is opened again by name, and must prove to be the same. */
static int clone_terminal(struct child *c, int *tree) {
    static const char prefix[] = "/dev/pts/";
    struct stat tty, again;
    char name[FD_NAME];
    ssize_t n;
    if (fstat(c->stdio[0], &tty) < 0)
        return errno;
    n = readlink(fd_name(name, c->stdio[0]), c->link, sizeof c->link - 1);
    if (n < 0)
        return errno;
    c->link[n] = 0;
    if (!S_ISCHR(tty.st_mode) || strncmp(c->link, prefix, sizeof prefix - 1) != 0)
        return ENOTTY;
    *tree = clone_tree(AT_FDCWD, c->link, 0);
    if (*tree < 0 || fstat(*tree, &again) < 0)
        return errno;
    return again.st_dev == tty.st_dev && again.st_ino == tty.st_ino && again.st_rdev == tty.st_rdev ? 0 : ENOTTY;
}

/* slot: /dev/console. The terminal on standard input is bound over it. */
static int op_console(struct child *c, struct plan_op *op) {
    int tree = -1, target, error = 0;
    if (c->own_terminal) {
        tree = clone_tree(c->stdio[0], "", 0);
        error = failed(tree);
    } else {
        error = clone_terminal(c, &tree);
    }
    if (!error)
        error = find(c, op->slot[0].text, PLAIN_FILE, &target);
    if (error)
        return error;
    error = attach(c, tree, target);
    close(target);
    return error;
}

static int open_null(struct child *c) {
    struct stat st;
    if (c->null >= 0)
        return 0;
    c->null = open("/dev/null", O_PATH | O_NOFOLLOW | O_CLOEXEC);
    if (c->null < 0 || fstat(c->null, &st) < 0)
        return errno;
    return S_ISCHR(st.st_mode) && st.st_rdev == makedev(1, 3) ? 0 : ENODEV;
}

/* Hide a directory under one empty file system that all hidden directories share. */
static int mask_directory(struct child *c, const char *path, int target) {
    int tree;
    if (c->masked >= 0) {
        tree = clone_tree(c->masked, "", 0);
        return tree < 0 ? errno : attach(c, tree, target);
    }
    if (fchdir(target) < 0 || mount("tmpfs", ".", "tmpfs", MS_RDONLY | MS_NOSUID | MS_NODEV | MS_NOEXEC, "nr_blocks=1,nr_inodes=1,mode=755") < 0)
        return errno;
    mounted(c);
    c->masked = open_inside(c, path, O_PATH);
    return failed(c->masked);
}

/* Hide a file under the host's null device. Read-only (which a device does not mind), or root inside could change the mode of the host's node. */
static int mask_file(struct child *c, int target) {
    struct attributes a = {.set = ATTR_READONLY};
    int tree, error = open_null(c);
    if (error)
        return error;
    tree = clone_tree(c->null, "", 0);
    if (tree < 0)
        return errno;
    error = set_attributes(tree, 0, a);
    return error ? error : attach(c, tree, target);
}

/* slot: path to hide; one that is not there is fine. */
static int op_mask(struct child *c, struct plan_op *op) {
    struct stat st;
    int target, error = find(c, op->slot[0].text, EXISTING, &target);
    if (error)
        return error == ENOENT || error == ENOTDIR ? 0 : error;
    if (fstat(target, &st) < 0)
        return errno;
    error = S_ISDIR(st.st_mode) ? mask_directory(c, op->slot[0].text, target) : mask_file(c, target);
    close(target);
    return error;
}

/* slot: path to make read-only, with everything mounted below it; one that is not there is fine. */
static int op_readonly(struct child *c, struct plan_op *op) {
    struct attributes a = {.set = ATTR_READONLY};
    int tree, target, error = find(c, op->slot[0].text, EXISTING, &target);
    if (error)
        return error == ENOENT || error == ENOTDIR ? 0 : error;
    tree = clone_tree(target, "", 1);
    if (tree < 0)
        return errno;
    error = set_attributes(tree, 1, a);
    if (!error)
        error = attach(c, tree, target);
    close(target);
    return error;
}

/* pivot_root(2), "pivot_root(".", ".")": the old root is stacked on the new one and detached; no directory for it is needed. */
static int op_pivot(struct child *c, struct plan_op *op) {
    (void)op;
    forget_parent(c);
    if (fchdir(c->root) < 0 || syscall(SYS_pivot_root, ".", ".") < 0)
        return errno;
    if (umount2(".", MNT_DETACH) < 0)
        return errno;
    return failed(chdir("/"));
}

/* slot: path inside; arg[0]: make it if missing. The result must be reachable from our root (CVE-2024-21626). */
static int op_cwd(struct child *c, struct plan_op *op) {
    int fd, error = find(c, op->slot[0].text, op->arg[0] ? DIRECTORY : EXISTING, &fd);
    if (error)
        return error;
    if (fchdir(fd) < 0)
        return errno;
    close(fd);
    if (syscall(SYS_getcwd, c->path, sizeof c->path) < 0)
        return errno;
    return c->path[0] == '/' ? 0 : ENOENT; /* "(unreachable)..." */
}

#endif
