/* The monitor's end of engine/wire/control.py: the same layout, decoded without copying, encoded into a caller's buffer.
 *
 * Pure functions on bytes: no system call, no allocation. Every length is checked against what is there before it is used; a message that
 * control.encode would not have made is refused as a whole.
 */
#ifndef KNARR_MONITOR_WIRE_H
#define KNARR_MONITOR_WIRE_H

#include <stdint.h>
#include <string.h>

#define MW_VERSION 1
#define MW_INLINE_LIMIT 65536u
#define MW_MESSAGE_LIMIT (16u << 20)
#define MW_FLAG_LARGE 1
#define MW_HEADER 8
#define MW_KEYS_LIMIT 32

enum mw_kind {
    MW_START = 1, MW_ATTACH, MW_RESIZE, MW_SIGNAL, MW_STATUS,
    MW_STARTED = 16, MW_FAILED, MW_EXIT, MW_DETACHED, MW_OOM, MW_STATE, MW_WARNING,
};

enum mw_reason { MW_KEYS, MW_INPUT, MW_CLOSED, MW_ERROR, MW_ENDED };
enum mw_phase { MW_WAITING, MW_RUNNING, MW_OVER };

struct mw_blob {
    const uint8_t *at;
    uint32_t length;
};

struct mw_start {
    uint8_t tty, open_stdin, stdin_once, has_log, oom_version, oom_watch;
    uint16_t rows, cols;
    uint64_t max_size;
    uint32_t max_files;
    struct mw_blob bundle, log_path, attrs, oom_path, plan;
};

#define MW_STDIN 1
#define MW_STDOUT 2
#define MW_STDERR 4
#define MW_FRAMED 8

struct mw_attach {
    uint32_t id;
    uint8_t flags;
    struct mw_blob keys, early;
};

struct mw_message {
    uint8_t kind;
    union {
        struct mw_start start;
        struct mw_attach attach;
        struct { uint16_t rows, cols; } size;
        uint32_t signal;
    };
};

struct mw_reader {
    const uint8_t *at, *end;
    int bad;
};

static uint64_t mw_get(struct mw_reader *r, unsigned width)
{
    uint64_t value = 0;
    if ((size_t)(r->end - r->at) < width) {
        r->bad = 1;
        r->at = r->end;
        return 0;
    }
    for (unsigned i = 0; i < width; i++)
        value |= (uint64_t)r->at[i] << (8 * i);
    r->at += width;
    return value;
}

static struct mw_blob mw_get_blob(struct mw_reader *r)
{
    struct mw_blob blob = {NULL, 0};
    uint32_t length = (uint32_t)mw_get(r, 4);
    if (r->bad || (size_t)(r->end - r->at) < length) {
        r->bad = 1;
        r->at = r->end;
        return blob;
    }
    blob.at = r->at;
    blob.length = length;
    r->at += length;
    return blob;
}

/* A path must fit PATH_MAX (4096) with its end and have none inside. */
static struct mw_blob mw_get_path(struct mw_reader *r)
{
    struct mw_blob blob = mw_get_blob(r);
    if (blob.length >= 4096 || (blob.length && memchr(blob.at, 0, blob.length)))
        r->bad = 1;
    return blob;
}

static void mw_get_start(struct mw_reader *r, struct mw_start *s)
{
    s->tty = (uint8_t)mw_get(r, 1);
    s->open_stdin = (uint8_t)mw_get(r, 1);
    s->stdin_once = (uint8_t)mw_get(r, 1);
    s->has_log = (uint8_t)mw_get(r, 1);
    s->oom_version = (uint8_t)mw_get(r, 1);
    s->oom_watch = (uint8_t)mw_get(r, 1);
    uint16_t reserved = (uint16_t)mw_get(r, 2);
    s->rows = (uint16_t)mw_get(r, 2);
    s->cols = (uint16_t)mw_get(r, 2);
    s->max_size = mw_get(r, 8);
    s->max_files = (uint32_t)mw_get(r, 4);
    reserved |= mw_get(r, 4) != 0;
    s->plan = mw_get_blob(r); /* at a multiple of 8 from the message's beginning */
    s->bundle = mw_get_path(r);
    s->log_path = mw_get_path(r);
    s->attrs = mw_get_blob(r);
    s->oom_path = mw_get_path(r);
    if (reserved || s->tty > 1 || s->open_stdin > 1 || s->stdin_once > 1 || s->has_log > 1 || s->oom_version > 2 || s->oom_watch > 1)
        r->bad = 1;
    if (!s->bundle.length || s->bundle.at[0] != '/' || (s->has_log && (!s->log_path.length || s->log_path.at[0] != '/')))
        r->bad = 1;
}

static void mw_get_attach(struct mw_reader *r, struct mw_attach *a)
{
    a->id = (uint32_t)mw_get(r, 4);
    a->flags = (uint8_t)mw_get(r, 1);
    a->keys = mw_get_blob(r);
    a->early = mw_get_blob(r);
    if (a->flags > 15 || a->keys.length > MW_KEYS_LIMIT)
        r->bad = 1;
}

/* The header of a packet: 0 and its total length, or -1. `large`: the message itself is in a memfd. */
static int mw_header(const uint8_t *data, size_t length, uint32_t *total, int *large)
{
    struct mw_reader r = {data, data + length, 0};
    uint8_t version = (uint8_t)mw_get(&r, 1);
    (void)mw_get(&r, 1);
    uint16_t flags = (uint16_t)mw_get(&r, 2);
    *total = (uint32_t)mw_get(&r, 4);
    *large = flags == MW_FLAG_LARGE;
    if (r.bad || version != MW_VERSION || flags > MW_FLAG_LARGE || *total < MW_HEADER || *total > MW_MESSAGE_LIMIT)
        return -1;
    return 0;
}

/* 0, or -1 for anything but one whole message to a monitor. The blobs point into `data`. */
static int mw_decode(const uint8_t *data, size_t length, struct mw_message *m)
{
    uint32_t total;
    int large;
    if (mw_header(data, length, &total, &large) < 0 || large || total != length)
        return -1;
    struct mw_reader r = {data + MW_HEADER, data + length, 0};
    memset(m, 0, sizeof *m);
    m->kind = data[1];
    switch (m->kind) {
    case MW_START:
        mw_get_start(&r, &m->start);
        break;
    case MW_ATTACH:
        mw_get_attach(&r, &m->attach);
        break;
    case MW_RESIZE:
        m->size.rows = (uint16_t)mw_get(&r, 2);
        m->size.cols = (uint16_t)mw_get(&r, 2);
        break;
    case MW_SIGNAL:
        m->signal = (uint32_t)mw_get(&r, 4);
        break;
    case MW_STATUS:
        break;
    default:
        return -1;
    }
    return r.bad || r.at != r.end ? -1 : 0;
}

/* ---- encoding: what does not fit sets `full`, and mw_finish then returns 0 ---- */

struct mw_writer {
    uint8_t *data;
    size_t capacity, length;
    int full;
};

static void mw_put(struct mw_writer *w, uint64_t value, unsigned width)
{
    if (w->capacity - w->length < width) {
        w->full = 1;
        return;
    }
    for (unsigned i = 0; i < width; i++)
        w->data[w->length++] = (uint8_t)(value >> (8 * i));
}

static void mw_put_blob(struct mw_writer *w, const void *data, size_t length)
{
    mw_put(w, length, 4);
    if (w->full || w->capacity - w->length < length) {
        w->full = 1;
        return;
    }
    memcpy(w->data + w->length, data, length);
    w->length += length;
}

static struct mw_writer mw_begin(uint8_t *data, size_t capacity, enum mw_kind kind)
{
    struct mw_writer w = {data, capacity, 0, 0};
    mw_put(&w, MW_VERSION, 1);
    mw_put(&w, kind, 1);
    mw_put(&w, 0, 2);
    mw_put(&w, 0, 4);
    return w;
}

/* The message's length, 0 when it did not fit. */
static size_t mw_finish(struct mw_writer *w)
{
    if (w->full)
        return 0;
    for (unsigned i = 0; i < 4; i++)
        w->data[4 + i] = (uint8_t)(w->length >> (8 * i));
    return w->length;
}

#endif
