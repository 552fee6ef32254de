/* The log file: Docker's json-file format, one JSON object a line, with rotation by size.
 *
 * Format: moby daemon/logger/jsonfilelog as users' tools read it: {"log":"text\n","stream":"stdout","attrs":{..},"time":"RFC3339Nano"};
 * lines longer than 16 KiB are split, only the last piece has its newline. Escapes are those of Docker's encoder: \u003c for <, \ufffd for
 * each byte that is no UTF-8. Owns the file, its buffers and its failures: a full or broken disk loses lines, counted, and never
 * stalls the container. Buffers are mapped when first needed and given back by log_rest.
 */
#ifndef KNARR_MONITOR_LOG_H
#define KNARR_MONITOR_LOG_H

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define LOG_LINE 16384  /* Docker's copier splits here */
#define LOG_BUFFER 32768
#define LOG_TIME 40

struct log_partial {
    uint8_t *data; /* LOG_LINE bytes, mapped at first use */
    uint32_t length;
};

struct log_file {
    int above, folder, fd;        /* the folder's own folder, kept until the folder is made */
    char below[NAME_MAX + 1];     /* the folder's name in it */
    char name[NAME_MAX + 1];
    char *attrs;
    uint32_t attrs_length;
    uint64_t max_size;
    uint32_t max_files;
    uint64_t size;     /* bytes in the file */
    uint64_t whole;    /* of these, up to the end of the last whole line */
    uint64_t dropped;  /* lines lost */
    int error;         /* errno of the last failure, 0 when all is well */
    uint8_t torn;      /* the file ends inside a line that could not be cut off */
    uint8_t skipping;  /* the beginning of the current record was lost: lose its rest too */
    uint8_t *buffer;
    uint32_t length;
    struct log_partial partial[2];
    char time[LOG_TIME];
    uint32_t time_length;
};

static void *mon_map(size_t size)
{
    void *memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    return memory == MAP_FAILED ? NULL : memory;
}

static void mon_unmap(void *memory, size_t size)
{
    if (memory)
        munmap(memory, size);
}

/* ---- encoding, pure ---- */

/* "2006-01-02T15:04:05.999999999Z" as Go's RFC3339Nano has it: trailing zeros of the fraction are left out. Returns the length. */
static uint32_t log_format_time(uint64_t ns, char out[LOG_TIME])
{
    uint64_t seconds = ns / 1000000000u;
    uint32_t fraction = (uint32_t)(ns % 1000000000u), day = (uint32_t)(seconds % 86400);
    /* Civil date from days (proleptic Gregorian, eras of 400 years beginning on 1 March). */
    uint64_t days = seconds / 86400 + 719468, era = days / 146097;
    uint32_t of_era = (uint32_t)(days % 146097);
    uint32_t year = (of_era - of_era / 1460 + of_era / 36524 - of_era / 146096) / 365;
    uint32_t of_year = of_era - (365 * year + year / 4 - year / 100);
    uint32_t shifted = (5 * of_year + 2) / 153, month = shifted < 10 ? shifted + 3 : shifted - 9;
    int length = snprintf(out, LOG_TIME, "%04u-%02u-%02uT%02u:%02u:%02u", (unsigned)(year + era * 400 + (month <= 2)), month,
                          of_year - (153 * shifted + 2) / 5 + 1, day / 3600, day / 60 % 60, day % 60);
    if (fraction) {
        length += snprintf(out + length, (size_t)(LOG_TIME - length), ".%09u", fraction);
        while (out[length - 1] == '0')
            length--;
    }
    out[length++] = 'Z';
    return (uint32_t)length;
}

/* Length of the UTF-8 character at `at`; 0 for none, -1 when the bytes end inside one that may still become valid. */
static int log_utf8(const uint8_t *at, const uint8_t *end)
{
    uint8_t first = at[0], low = 0x80, high = 0xbf;
    int more;
    if (first < 0x80)
        return 1;
    if (first >= 0xc2 && first <= 0xdf)
        more = 1;
    else if ((first & 0xf0) == 0xe0)
        more = 2;
    else if (first >= 0xf0 && first <= 0xf4)
        more = 3;
    else
        return 0;
    if (first == 0xe0) low = 0xa0;      /* overlong */
    if (first == 0xed) high = 0x9f;     /* surrogates */
    if (first == 0xf0) low = 0x90;      /* overlong */
    if (first == 0xf4) high = 0x8f;     /* above U+10FFFF */
    for (int i = 1; i <= more; i++) {
        if (at + i == end)
            return -1;
        if (at[i] < low || at[i] > high)
            return 0;
        low = 0x80;
        high = 0xbf;
    }
    return more + 1;
}

static int log_plain(uint8_t byte)
{
    return byte >= 0x20 && byte < 0x80 && byte != '"' && byte != '\\' && byte != '<' && byte != '>' && byte != '&';
}

/* One character that needs care, to `out` (at most 6 bytes); returns how much of the input it was. */
static int log_escape(const uint8_t *at, const uint8_t *end, uint8_t *out, int *written)
{
    static const char hex[] = "0123456789abcdef";
    uint8_t byte = at[0];
    int length = log_utf8(at, end);
    if (byte == '"' || byte == '\\' || byte == '\n' || byte == '\r') {
        out[0] = '\\';
        out[1] = byte == '\n' ? 'n' : byte == '\r' ? 'r' : byte;
        *written = 2;
        return 1;
    }
    if (byte < 0x80) {
        memcpy(out, "\\u00", 4);
        out[4] = (uint8_t)hex[byte >> 4];
        out[5] = (uint8_t)hex[byte & 15];
        *written = 6;
        return 1;
    }
    if (length <= 0) {
        memcpy(out, "\\ufffd", *written = 6);
        return 1;
    }
    if (length == 3 && at[0] == 0xe2 && at[1] == 0x80 && (at[2] & ~1) == 0xa8) { /* U+2028 and U+2029 end a line in JavaScript */
        memcpy(out, "\\u202", 5);
        out[5] = (uint8_t)('8' + (at[2] & 1));
        *written = 6;
        return 3;
    }
    memcpy(out, at, (size_t)length);
    *written = length;
    return length;
}

/* ---- the file ---- */

static void log_failed(struct log_file *log, int error)
{
    log->error = error ? error : EIO;
}

static int log_open(struct log_file *log, int flags)
{
    log->fd = openat(log->folder, log->name, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC | O_NOFOLLOW | O_NOCTTY | O_NONBLOCK | flags, 0640);
    if (log->fd < 0) {
        log_failed(log, errno);
        return -1;
    }
    struct stat status;
    log->size = fstat(log->fd, &status) == 0 ? (uint64_t)status.st_size : 0;
    log->whole = log->size;
    return 0;
}

/* The log's folder, made if it is missing: a container that prints nothing costs its host no file and no folder. */
static void log_open_folder(struct log_file *log)
{
    if (mkdirat(log->above, log->below, 0710) < 0 && errno != EEXIST) {
        log_failed(log, errno);
        return;
    }
    log->folder = openat(log->above, log->below, O_PATH | O_DIRECTORY | O_CLOEXEC | O_NOFOLLOW);
    if (log->folder < 0)
        log_failed(log, errno);
}

/* Prepare from an absolute path; folder and file are made with the first output. */
static void log_start(struct log_file *log, const char *path, const uint8_t *attrs, uint32_t attrs_length, uint64_t max_size, uint32_t max_files)
{
    const char *slash = strrchr(path, '/');
    char folder[PATH_MAX];
    log->fd = log->folder = log->above = -1;
    log->max_size = max_size;
    log->max_files = max_files ? max_files : 1;
    snprintf(folder, sizeof folder, "%.*s", (int)(slash - path), path);
    const char *above = strrchr(folder, '/');
    if (!above || strlen(slash + 1) + 12 > sizeof log->name || !slash[1] || strlen(above + 1) >= sizeof log->below || !above[1]) {
        log_failed(log, ENAMETOOLONG);
        return;
    }
    strcpy(log->name, slash + 1);
    strcpy(log->below, above + 1);
    if (attrs_length && (log->attrs = mon_map(attrs_length))) {
        memcpy(log->attrs, attrs, attrs_length);
        log->attrs_length = attrs_length;
    }
    folder[above == folder ? 1 : above - folder] = 0;
    log->above = open(folder, O_PATH | O_DIRECTORY | O_CLOEXEC);
    if (log->above < 0)
        log_failed(log, errno);
}

static uint32_t log_count_lines(const uint8_t *data, size_t length)
{
    uint32_t count = 0;
    for (const uint8_t *end = data + length; data < end && (data = memchr(data, '\n', (size_t)(end - data))); data++)
        count++;
    return count;
}

/* A write stopped after `done` bytes of the buffer: keep the whole lines, cut the torn one off, count what is lost. */
static void log_lost(struct log_file *log, size_t done, int error)
{
    const uint8_t *last = done ? memrchr(log->buffer, '\n', done) : NULL;
    size_t kept = last ? (size_t)(last - log->buffer) + 1 : 0;
    uint64_t begin = log->size;
    if (kept)
        log->whole = begin + kept;
    log->size = begin + done;
    if (log->size > log->whole) {
        if (ftruncate(log->fd, (off_t)log->whole) == 0)
            log->size = log->whole;
        else
            log->torn = 1;
    }
    log->dropped += log_count_lines(log->buffer + kept, log->length - kept);
    /* A record whose beginning is among the lost bytes and whose end is still to come. */
    log->skipping = log->length && log->buffer[log->length - 1] != '\n';
    log->length = 0;
    log_failed(log, error);
}

static void log_flush(struct log_file *log)
{
    size_t done = 0;
    if (!log->length)
        return;
    if (log->folder < 0 && log->above >= 0)
        log_open_folder(log);
    if (log->fd < 0 && (log->folder < 0 || log_open(log, 0) < 0)) {
        log_lost(log, 0, log->error);
        return;
    }
    if (log->torn && write(log->fd, "\n", 1) == 1) {
        log->torn = 0;
        log->whole = ++log->size;
    }
    while (done < log->length) {
        ssize_t n = write(log->fd, log->buffer + done, log->length - done);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0) {
            log_lost(log, done, n < 0 ? errno : EIO);
            return;
        }
        done += (size_t)n;
    }
    const uint8_t *last = memrchr(log->buffer, '\n', log->length);
    if (last)
        log->whole = log->size + (uint64_t)(last - log->buffer) + 1;
    log->size += log->length;
    log->length = 0;
    log->error = 0;
}

/* FILE becomes FILE.1, FILE.1 becomes FILE.2 and so on; the oldest goes. With one file, it is emptied. */
static void log_rotate(struct log_file *log)
{
    char from[NAME_MAX + 16], to[NAME_MAX + 16];
    log_flush(log);
    if (log->fd < 0 || log->size < log->max_size)
        return;
    for (uint32_t n = log->max_files - 1; n > 0; n--) {
        snprintf(to, sizeof to, "%s.%u", log->name, n);
        snprintf(from, sizeof from, n > 1 ? "%s.%u" : "%s", log->name, n - 1);
        if (renameat(log->folder, from, log->folder, to) < 0 && errno != ENOENT) {
            log_failed(log, errno); /* go on with a file that is too long rather than lose lines */
            return;
        }
    }
    close(log->fd);
    log_open(log, log->max_files == 1 ? O_TRUNC : 0);
}

static void log_put(struct log_file *log, const void *data, size_t length)
{
    const uint8_t *at = data;
    while (length && !log->skipping) {
        size_t room = LOG_BUFFER - log->length, n = length < room ? length : room;
        memcpy(log->buffer + log->length, at, n);
        log->length += (uint32_t)n;
        at += n;
        length -= n;
        if (log->length == LOG_BUFFER)
            log_flush(log);
    }
}

static void log_put_text(struct log_file *log, const uint8_t *at, const uint8_t *end)
{
    while (at < end) {
        const uint8_t *run = at;
        while (run < end && log_plain(*run))
            run++;
        if (run > at) {
            log_put(log, at, (size_t)(run - at));
            at = run;
            continue;
        }
        uint8_t escaped[8];
        int written;
        at += log_escape(at, end, escaped, &written);
        log_put(log, escaped, (size_t)written);
    }
}

/* One line, `newline` or not. stream: 0 stdout, 1 stderr. */
static void log_record(struct log_file *log, int stream, const uint8_t *text, size_t length, int newline)
{
    if (log->max_size && log->size + log->length >= log->max_size)
        log_rotate(log);
    log_put(log, "{\"log\":\"", 8);
    log_put_text(log, text, text + length);
    if (newline)
        log_put(log, "\\n", 2);
    log_put(log, "\",\"stream\":\"", 12);
    log_put(log, stream ? "stderr\"" : "stdout\"", 7);
    if (log->attrs_length) {
        log_put(log, ",\"attrs\":", 9);
        log_put(log, log->attrs, log->attrs_length);
    }
    log_put(log, ",\"time\":\"", 9);
    log_put(log, log->time, log->time_length);
    log_put(log, "\"}\n", 3);
    if (log->skipping) {
        log->skipping = 0;
        log->dropped++;
    }
}

/* Add to the unfinished line; writes it out when it reaches LOG_LINE. Returns how much was taken. */
static size_t log_keep(struct log_file *log, int stream, const uint8_t *data, size_t length)
{
    struct log_partial *partial = &log->partial[stream];
    if (!partial->data && !(partial->data = mon_map(LOG_LINE)))
        return length; /* no memory: this text is lost, the container goes on */
    size_t room = LOG_LINE - partial->length, n = length < room ? length : room;
    memcpy(partial->data + partial->length, data, n);
    partial->length += (uint32_t)n;
    if (partial->length < LOG_LINE)
        return n;
    /* Never split inside a character. */
    uint32_t cut = LOG_LINE, from = LOG_LINE - 1;
    while (from > LOG_LINE - 4 && (partial->data[from] & 0xc0) == 0x80)
        from--;
    if (log_utf8(partial->data + from, partial->data + LOG_LINE) < 0)
        cut = from;
    log_record(log, stream, partial->data, cut, 0);
    memmove(partial->data, partial->data + cut, LOG_LINE - cut);
    partial->length = LOG_LINE - cut;
    return n;
}

/* Output of the process, as it was read at time `ns`. */
static void log_output(struct log_file *log, int stream, const uint8_t *data, size_t length, uint64_t ns)
{
    struct log_partial *partial = &log->partial[stream];
    if (!log->buffer && !(log->buffer = mon_map(LOG_BUFFER)))
        return;
    log->time_length = log_format_time(ns, log->time);
    while (length) {
        const uint8_t *newline = memchr(data, '\n', length);
        size_t line = newline ? (size_t)(newline - data) : length;
        if (newline && !partial->length && line < LOG_LINE) {
            log_record(log, stream, data, line, 1);
            data += line + 1;
            length -= line + 1;
            continue;
        }
        while (line) {
            size_t n = log_keep(log, stream, data, line);
            data += n;
            length -= n;
            line -= n;
        }
        if (newline) {
            log_record(log, stream, partial->data, partial->length, 1);
            partial->length = 0;
            data++;
            length--;
        }
    }
    log_flush(log);
}

/* The stream ended: what is left has no newline. */
static void log_end(struct log_file *log, int stream, uint64_t ns)
{
    struct log_partial *partial = &log->partial[stream];
    if (!partial->length || (!log->buffer && !(log->buffer = mon_map(LOG_BUFFER))))
        return;
    log->time_length = log_format_time(ns, log->time);
    log_record(log, stream, partial->data, partial->length, 0);
    partial->length = 0;
    log_flush(log);
}

/* Nothing was printed for a while: give memory back. */
static void log_rest(struct log_file *log)
{
    mon_unmap(log->buffer, LOG_BUFFER);
    log->buffer = NULL;
    for (int i = 0; i < 2; i++)
        if (!log->partial[i].length) {
            mon_unmap(log->partial[i].data, LOG_LINE);
            log->partial[i].data = NULL;
        }
}

#endif
