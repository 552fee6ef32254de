/* The program of `make hello`: says where it runs. It is static, so that an image needs nothing but it. */
#include <stdio.h>
#include <sys/utsname.h>
#include <unistd.h>

int main(void) {
    struct utsname host;
    uname(&host);
    printf("Hello from container %s.\n", host.nodename);
    printf("I am process %d here, on Linux %s, with an image of one program.\n", (int)getpid(), host.release);
    return 0;
}
