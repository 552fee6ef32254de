/* The wire form of a plan and its decoder. Written by wire/plan.py; native byte order, never stored across machines.
 *
 *   header     magic u32 | operations u32 | total size u32 | reserved u32
 *   operation  size u32 (whole operation, multiple of 8) | code u16 | slots u16 | arg u64 x 4 | slot u64 x slots | bytes
 *
 * A slot is the offset, from the start of its operation, of a NUL-terminated string (or of a table whose length an argument gives);
 * 0 means NULL. knarr_plan_load turns offsets into pointers in a private copy, so that argv and env need no further work.
 */
#ifndef KNARR_PLAN_H
#define KNARR_PLAN_H

#include <errno.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "launch.h"

#define PLAN_MAGIC 0x314e524bu /* "KRN1" */
#define PLAN_MAX (16u << 20)   /* far above any argv + env (the kernel's limit is 6 MiB); keeps sizes in 32 bits */

enum plan_code {
    OP_CLONE = 1,
    OP_JOIN,
    OP_JOIN_PROCESS,
    OP_TASKS,
    OP_UNSHARE,
    OP_LOOPBACK,
    OP_KEYRING,
    OP_PROPAGATION,
    OP_ROOT,
    OP_MOUNT,
    OP_BIND,
    OP_ATTRIBUTES,
    OP_MKNOD,
    OP_SYMLINK,
    OP_CONSOLE,
    OP_MASK,
    OP_READONLY,
    OP_SYSCTL,
    OP_HOSTNAME,
    OP_DOMAINNAME,
    OP_PIVOT,
    OP_RLIMIT,
    OP_OOM_SCORE,
    OP_CWD,
    OP_STDIO,
    OP_BOUNDING,
    OP_USER,
    OP_CAPABILITIES,
    OP_NO_NEW_PRIVS,
    OP_SECCOMP,
    OP_UMASK,
    OP_EXEC,
    OP_TERMINAL,
    OP_BIND_PART,
    OP_OWNERS,
    OP_ALIVE,
    OP_LAST = OP_ALIVE
};

struct plan_header {
    uint32_t magic, count, size, reserved;
};

struct plan_op {
    uint32_t size;
    uint16_t code, slots;
    uint64_t arg[4];
    union {
        uint64_t offset;
        char *text;
    } slot[];
};

/* What each code must have: number of slots, which of them must not be NULL (bit mask), and, when slot 0 is a table of arg[2] elements
 * instead of a string, the size of an element. */
struct plan_shape {
    uint8_t slots, needed, element;
};
static const struct plan_shape plan_shapes[OP_LAST + 1] = {
    [OP_CLONE] = {1, 0},
    [OP_JOIN] = {1, 1},
    [OP_JOIN_PROCESS] = {0, 0},
    [OP_TASKS] = {1, 1},
    [OP_UNSHARE] = {0, 0},
    [OP_LOOPBACK] = {0, 0},
    [OP_KEYRING] = {0, 0},
    [OP_PROPAGATION] = {1, 1},
    [OP_ROOT] = {5, 3},
    [OP_MOUNT] = {5, 7},
    [OP_BIND] = {2, 3},
    [OP_ATTRIBUTES] = {1, 1},
    [OP_MKNOD] = {1, 1},
    [OP_SYMLINK] = {2, 3},
    [OP_CONSOLE] = {1, 1},
    [OP_MASK] = {1, 1},
    [OP_READONLY] = {1, 1},
    [OP_SYSCTL] = {2, 3},
    [OP_HOSTNAME] = {1, 1},
    [OP_DOMAINNAME] = {1, 1},
    [OP_PIVOT] = {0, 0},
    [OP_RLIMIT] = {0, 0},
    [OP_OOM_SCORE] = {0, 0},
    [OP_CWD] = {1, 1},
    [OP_STDIO] = {0, 0},
    [OP_BOUNDING] = {0, 0},
    [OP_USER] = {1, 0, 4},    /* group ids */
    [OP_CAPABILITIES] = {0, 0},
    [OP_NO_NEW_PRIVS] = {0, 0},
    [OP_SECCOMP] = {1, 1, 8}, /* struct sock_filter */
    [OP_UMASK] = {0, 0},
    [OP_EXEC] = {0, 0}, /* slots: argv, NULL, env, NULL; arg[0] and arg[1] their lengths */
    [OP_TERMINAL] = {0, 0, 0},
    [OP_BIND_PART] = {5, 3},
    [OP_OWNERS] = {3, 3, 1}, /* paths */
    [OP_ALIVE] = {0, 0},
};

static int plan_check_slot(const uint8_t *op, uint32_t size, uint64_t offset, uint32_t first) {
    if (offset < first || offset >= size)
        return -1;
    return memchr(op + offset, 0, size - offset) ? 0 : -1;
}

static int plan_check_exec(const struct plan_op *op) {
    uint64_t argc = op->arg[0], envc = op->arg[1], i;
    if (argc == 0 || argc > UINT16_MAX || envc > UINT16_MAX || argc + envc + 2 != op->slots)
        return -1;
    for (i = 0; i < op->slots; i++)
        if ((op->slot[i].offset == 0) != (i == argc || i == argc + envc + 1))
            return -1;
    return 0;
}

/* `op` is aligned and `left` bytes are readable. */
static int plan_check_op(const struct plan_op *op, size_t left) {
    const struct plan_shape *shape;
    uint32_t first, i;
    if (left < sizeof *op || op->size < sizeof *op || op->size > left || op->size % 8)
        return -1;
    first = sizeof *op + op->slots * (uint32_t)sizeof op->slot[0];
    if (first > op->size || op->code < OP_CLONE || op->code > OP_LAST)
        return -1;
    shape = &plan_shapes[op->code];
    if (op->code == OP_EXEC ? plan_check_exec(op) != 0 : op->slots != shape->slots)
        return -1;
    for (i = 0; i < op->slots; i++) {
        uint64_t offset = op->slot[i].offset;
        if (offset == 0) {
            if (op->code != OP_EXEC && (shape->needed >> i & 1))
                return -1;
        } else if (shape->element && i == 0) {
            uint64_t length = op->arg[2];
            if (offset < first || offset > op->size || offset % 4 || length > (op->size - offset) / shape->element)
                return -1;
        } else if (plan_check_slot((const uint8_t *)op, op->size, offset, first) != 0) {
            return -1;
        }
    }
    if (shape->element && op->slot[0].offset == 0 && op->arg[2] != 0)
        return -1;
    return 0;
}

/* The first operation is CLONE, the last EXEC, neither occurs elsewhere. */
static int knarr_plan_check(const uint8_t *plan, size_t len, uint32_t *count) {
    struct plan_header header;
    size_t at = sizeof header;
    uint32_t i;
    if ((uintptr_t)plan % 8 || len < sizeof header || len > PLAN_MAX)
        return -1;
    memcpy(&header, plan, sizeof header);
    if (header.magic != PLAN_MAGIC || header.size != len || header.count < 2 || header.count > KNARR_MAX_OPS || header.reserved)
        return -1;
    for (i = 0; i < header.count; i++) {
        const struct plan_op *op = (const void *)(plan + at);
        if (plan_check_op(op, len - at) != 0)
            return -1;
        if ((op->code == OP_CLONE) != (i == 0) || (op->code == OP_EXEC) != (i == header.count - 1))
            return -1;
        at += op->size;
    }
    if (at != len)
        return -1;
    if (count)
        *count = header.count;
    return 0;
}

/* Turn the offsets of a checked, private copy into pointers. */
static void plan_load(uint8_t *plan) {
    struct plan_header *header = (void *)plan;
    size_t at = sizeof *header;
    for (uint32_t i = 0; i < header->count; i++) {
        struct plan_op *op = (void *)(plan + at);
        for (uint32_t s = 0; s < op->slots; s++)
            op->slot[s].text = op->slot[s].offset ? (char *)op + op->slot[s].offset : NULL;
        at += op->size;
    }
}

#endif
