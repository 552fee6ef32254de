/* Traffic for benchmarks/network.py, the same program on both sides of every engine.
 *
 *   traffic sink PORT                     takes TCP connections and reads what comes; answers each end of stream with one byte
 *   traffic send HOST PORT SECONDS        sends for so long; prints bytes per second up to the sink's answer
 *   traffic dns SERVER NAME SECONDS MANY  asks for NAME's A records with MANY questions open at a time (UDP); prints answers per
 *                                         second, then the 50th and 99th percentile and the maximum of the times in microseconds,
 *                                         and how many questions had no answer in two seconds or a wrong one
 */
#include <arpa/inet.h>
#include <errno.h>
#include <netdb.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { BUFFER = 256 << 10, WINDOW = 256, SAMPLES = 4 << 20 };
static const double LOST = 2.0;

static void fail(const char *what) {
    perror(what);
    exit(1);
}

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec / 1e9;
}

static void *drain(void *argument) {
    int fd = (int)(intptr_t)argument;
    char *buffer = malloc(BUFFER);
    while (buffer && read(fd, buffer, BUFFER) > 0) {
    }
    if (write(fd, "!", 1) != 1) perror("answer");
    close(fd);
    free(buffer);
    return NULL;
}

static int sink(int port) {
    int one = 1, fd = socket(AF_INET6, SOCK_STREAM, 0);
    struct sockaddr_in6 address = {.sin6_family = AF_INET6, .sin6_port = htons(port)};
    socklen_t length = sizeof address;
    struct sockaddr_in old = {.sin_family = AF_INET, .sin_port = htons(port)};
    if (fd < 0 || setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one) || bind(fd, (void *)&address, length)) {
        fd = socket(AF_INET, SOCK_STREAM, 0); /* no IPv6 here */
        if (bind(fd, (void *)&old, sizeof old)) fail("bind");
    }
    if (listen(fd, 64)) fail("listen");
    for (;;) {
        int client = accept(fd, NULL, NULL);
        pthread_t thread;
        if (client < 0) fail("accept");
        if (pthread_create(&thread, NULL, drain, (void *)(intptr_t)client)) fail("thread");
        pthread_detach(thread);
    }
}

static int sending(const char *host, int port, double seconds) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(port)};
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    char *buffer = calloc(1, BUFFER), answer;
    if (inet_pton(AF_INET, host, &address.sin_addr) != 1) return fputs("not an IPv4 address\n", stderr), 2;
    double began = now(), sent = 0;
    while (connect(fd, (void *)&address, sizeof address)) { /* the sink may have only just been started */
        if (errno != ECONNREFUSED || now() - began > 30) fail("connect");
        usleep(10000);
    }
    began = now();
    while (now() - began < seconds) {
        ssize_t count = write(fd, buffer, BUFFER);
        if (count < 0) fail("write");
        sent += count;
    }
    shutdown(fd, SHUT_WR);
    if (read(fd, &answer, 1) != 1) fail("the sink's answer");
    printf("%.0f\n", sent / (now() - began));
    return 0;
}

static size_t question(uint8_t *out, const char *name) {
    static const uint8_t head[12] = {0, 0, 1, 0, 0, 1};
    size_t length = sizeof head;
    memcpy(out, head, sizeof head);
    for (const char *label = name; *label;) {
        size_t size = strcspn(label, ".");
        if (size == 0 || size > 63) break;
        out[length++] = size;
        memcpy(out + length, label, size);
        length += size;
        label += size + (label[size] == '.');
    }
    memcpy(out + length, "\0\0\1\0\1", 5);
    return length + 5;
}

static int ascending(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static int dns(const char *server, const char *name, double seconds, int many) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(53)};
    int fd = socket(AF_INET, SOCK_DGRAM, 0);
    static double asked[WINDOW];
    static uint16_t turn[WINDOW];
    double *times = malloc(SAMPLES * sizeof *times);
    size_t count = 0, bad = 0;
    uint8_t packet[512], reply[4096];
    size_t length = question(packet, name);
    if (!times || many < 1 || many > WINDOW) return 2;
    inet_pton(AF_INET, server, &address.sin_addr);
    if (connect(fd, (void *)&address, sizeof address)) fail("connect");
    double began = now(), end = began + seconds;
    while (now() < end && count < SAMPLES) {
        for (int slot = 0; slot < many; slot++) { /* ids: turn in the high byte, slot in the low one */
            if (asked[slot] && now() - asked[slot] < LOST) continue;
            if (asked[slot]) bad++;
            packet[0] = ++turn[slot];
            packet[1] = slot;
            asked[slot] = now();
            if (send(fd, packet, length, 0) < 0 && errno != ECONNREFUSED) fail("send");
        }
        struct pollfd wait = {.fd = fd, .events = POLLIN};
        if (poll(&wait, 1, 100) <= 0) continue;
        ssize_t size;
        while ((size = recv(fd, reply, sizeof reply, MSG_DONTWAIT)) >= 12) {
            int slot = reply[1];
            if (slot >= many || !asked[slot] || reply[0] != (uint8_t)turn[slot]) continue;
            if ((reply[3] & 15) || !(reply[6] | reply[7])) bad++;
            else times[count++] = (now() - asked[slot]) * 1e6;
            asked[slot] = 0;
            if (count == SAMPLES) break;
        }
    }
    double taken = now() - began;
    qsort(times, count, sizeof *times, ascending);
    printf("%.1f %.1f %.1f %.1f %zu\n", count / taken, count ? times[count / 2] : 0, count ? times[count * 99 / 100] : 0,
           count ? times[count - 1] : 0, bad);
    return 0;
}

int main(int argc, char **argv) {
    signal(SIGPIPE, SIG_IGN);
    if (argc == 3 && !strcmp(argv[1], "sink")) return sink(atoi(argv[2]));
    if (argc == 5 && !strcmp(argv[1], "send")) return sending(argv[2], atoi(argv[3]), atof(argv[4]));
    if (argc == 6 && !strcmp(argv[1], "dns")) return dns(argv[2], argv[3], atof(argv[4]), atoi(argv[5]));
    return fputs("traffic sink PORT | send HOST PORT SECONDS | dns SERVER NAME SECONDS MANY\n", stderr), 2;
}
