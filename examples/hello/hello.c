/* The program of `make hello`: says where it runs. Any program of the host would do; Knarr finds the libraries it needs by itself. */
#include <stdio.h>
#include <sys/utsname.h>
#include <unistd.h>

int main(void) {
    struct utsname host;
    uname(&host);
    printf("Hello from container %s.\n", host.nodename);
    printf("I am process %d here, on Linux %s, with an image of one program and its libraries.\n", (int)getpid(), host.release);
    return 0;
}
