/* Launching: what the monitor and the extension call. One translation unit (_core.c) includes this once.
 *
 *  parent (any thread, GIL released)                child (same memory until exec; no allocation, locks, stdio, TLS but errno)
 *  ------------------------------------------------ ---------------------------------------------------------------------
 *  plan_check: bounds of every byte that is used
 *  mmap: stack + private copy of the plan, offsets
 *  turned into pointers
 *  block all signals, enter the pid namespace
 *  clone3(VM|VFORK|PIDFD [|INTO_CGROUP]) ---------> reset signals, setsid, umask 0
 *  (suspended)                                      for each operation: mark[n] = {op, now}; run it
 *                                                   failure: report->failed, ->error; _exit
 *                                                   last operation: close_range, execve
 *  resumed by exec or _exit <-----------------------
 *  leave the pid namespace, restore signals
 *  failed? reap the child: -1. else 0
 */
#ifndef KNARR_LAUNCH_H
#define KNARR_LAUNCH_H

#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#define KNARR_MAX_OPS 1024

/* One operation's beginning. error != 0: it was degraded (for instance a limit above the hard limit), not failed. */
struct launch_mark {
    uint32_t op;
    uint32_t error;
    uint64_t ns; /* CLOCK_MONOTONIC */
};

struct launch_report {
    int32_t pid;    /* in the caller's pid namespace; 0 when nothing was started */
    int32_t pidfd;  /* close-on-exec, the caller's to close; -1 when nothing was started */
    int32_t failed; /* index of the failing operation; -1: none, or the clone or the plan itself (then error says which) */
    int32_t terminal; /* master of the terminal that OP_TERMINAL made, close-on-exec, the caller's; -1: none was made */
    int32_t error;  /* errno of the failure, EBADMSG for a plan that does not decode; 0: the program runs */
    uint32_t count; /* marks used; the last one is the moment of exec (op == number of operations) when error == 0 */
    struct launch_mark mark[KNARR_MAX_OPS + 2];
};

/* 0, or -1 for a plan that does not decode. `plan` is aligned to 8 bytes. `count`: number of operations (may be NULL). Never reads beyond `len`. */
static int knarr_plan_check(const uint8_t *plan, size_t len, uint32_t *count);

/* 0: report->pid runs the program and is a child of the caller's process (SIGCHLD, to be reaped). -1: nothing runs, nothing is left to
 * reap, report->failed and ->error say why. stdio: three descriptors that become 0, 1 and 2 (equal ones are fine; for a terminal all
 * three are the pty's slave), unless the plan makes a terminal in the container: then report->terminal is its master. Blocks until the program is executed or failed: a few milliseconds. Makes the calling process undumpable
 * for good, so that nothing inside the container can trace the child while it still shares our memory. Reentrant. */
static int knarr_launch(const uint8_t *plan, size_t len, const int stdio[3], struct launch_report *report);

#endif
