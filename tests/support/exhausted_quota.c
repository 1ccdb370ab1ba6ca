/* Preloaded: below the directory $QUOTA_OF, a write fails with EDQUOT while the file $QUOTA_USED_UP exists.
 *
 * A quota of the kernel's own would need a kernel that was built with them. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

static int is_refused(int descriptor) {
    const char *directory = getenv("QUOTA_OF"), *flag = getenv("QUOTA_USED_UP");
    char link[64], path[4096];
    if (directory == NULL || flag == NULL || access(flag, F_OK) != 0)
        return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length < 0)
        return 0;
    path[length] = '\0';
    if (strncmp(path, directory, strlen(directory)) != 0)
        return 0;
    errno = EDQUOT;
    return 1;
}

ssize_t write(int descriptor, const void *bytes, size_t count) {
    ssize_t (*next)(int, const void *, size_t) = dlsym(RTLD_NEXT, "write");
    return is_refused(descriptor) ? -1 : next(descriptor, bytes, count);
}

ssize_t pwrite64(int descriptor, const void *bytes, size_t count, off64_t offset) {
    ssize_t (*next)(int, const void *, size_t, off64_t) = dlsym(RTLD_NEXT, "pwrite64");
    return is_refused(descriptor) ? -1 : next(descriptor, bytes, count, offset);
}

ssize_t pwrite(int descriptor, const void *bytes, size_t count, off_t offset) {
    return pwrite64(descriptor, bytes, count, offset);
}
