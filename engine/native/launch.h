#ifndef KNARR_LAUNCH_H
#define KNARR_LAUNCH_H
/* early contract; see below */
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>
#endif
