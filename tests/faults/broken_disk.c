/* Makes reads and writes of files below $DISK_BELOW fail, as a broken or full disk does.
 *
 * DISK_ROOM=n      writing fails with "no space left" once n bytes are written; the last write that
 *                  still fits in part is short.
 * DISK_SHORT=1     every write and every read moves half of what it is asked to, at most 4 KiB.
 * DISK_READ=n      the n-th read fails with EIO.
 * DISK_WRITE=n     the n-th write fails with EIO.
 * DISK_SYNC=n      the n-th fsync fails with EIO.
 * DISK_CALL=name:n:errno   the n-th call of rename, link, mkdir, open or create (open with O_CREAT)
 *                  fails with that number.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

static atomic_long reads, writes, syncs, calls, used;

static long number(const char *name) {
    const char *text = getenv(name);
    return text ? atol(text) : -1;
}

static int below(const char *path) {
    const char *root = getenv("DISK_BELOW");
    char absolute[PATH_MAX];
    if (!root || !path) return 0;
    if (path[0] != '/') {
        if (!getcwd(absolute, sizeof absolute)) return 0;
        size_t length = strlen(absolute);
        snprintf(absolute + length, sizeof absolute - length, "/%s", path);
        path = absolute;
    }
    size_t length = strlen(root);
    return strncmp(path, root, length) == 0 && (path[length] == '/' || !path[length]);
}

static int watched(int fd) {
    char link[64], path[PATH_MAX];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length < 0) return 0;
    path[length] = 0;
    return below(path);
}

#define REAL(name) \
    static __typeof__(&name) real; \
    if (!real) real = (__typeof__(&name))dlsym(RTLD_NEXT, #name)

/* How much of a write is taken: all of it, a part, or -1 with errno. */
static ssize_t taken(int fd, size_t wanted) {
    if (!watched(fd)) return wanted;
    if (atomic_fetch_add(&writes, 1) + 1 == number("DISK_WRITE")) { errno = EIO; return -1; }
    if (number("DISK_SHORT") > 0 && wanted > 1) wanted = wanted / 2 > 4096 ? 4096 : wanted / 2;
    long room = number("DISK_ROOM");
    if (room >= 0) {
        long left = room - atomic_load(&used);
        if (left <= 0) { errno = ENOSPC; return -1; }
        if ((long)wanted > left) wanted = left;
        atomic_fetch_add(&used, wanted);
    }
    return wanted;
}

static ssize_t given(int fd, size_t wanted) {
    if (!watched(fd)) return wanted;
    if (atomic_fetch_add(&reads, 1) + 1 == number("DISK_READ")) { errno = EIO; return -1; }
    if (number("DISK_SHORT") > 0 && wanted > 1) wanted = wanted / 2 > 4096 ? 4096 : wanted / 2;
    return wanted;
}

ssize_t write(int fd, const void *buffer, size_t count) {
    REAL(write);
    ssize_t part = taken(fd, count);
    return part < 0 ? part : real(fd, buffer, part);
}

ssize_t pwrite64(int fd, const void *buffer, size_t count, off64_t at) {
    REAL(pwrite64);
    ssize_t part = taken(fd, count);
    return part < 0 ? part : real(fd, buffer, part, at);
}

ssize_t pwrite(int fd, const void *buffer, size_t count, off_t at) {
    return pwrite64(fd, buffer, count, at);
}

ssize_t read(int fd, void *buffer, size_t count) {
    REAL(read);
    ssize_t part = given(fd, count);
    return part < 0 ? part : real(fd, buffer, part);
}

ssize_t pread64(int fd, void *buffer, size_t count, off64_t at) {
    REAL(pread64);
    ssize_t part = given(fd, count);
    return part < 0 ? part : real(fd, buffer, part, at);
}

ssize_t pread(int fd, void *buffer, size_t count, off_t at) {
    return pread64(fd, buffer, count, at);
}

ssize_t preadv64v2(int fd, const struct iovec *parts, int count, off64_t at, int flags) {
    REAL(preadv64v2);
    struct iovec first = parts[0];
    ssize_t part = given(fd, first.iov_len);
    if (part < 0) return part;
    if (count > 1) return real(fd, parts, count, at, flags);
    first.iov_len = part;
    return real(fd, &first, 1, at, flags);
}

ssize_t preadv2(int fd, const struct iovec *parts, int count, off_t at, int flags) {
    return preadv64v2(fd, parts, count, at, flags);
}

ssize_t preadv64(int fd, const struct iovec *parts, int count, off64_t at) {
    return preadv64v2(fd, parts, count, at, 0);
}

ssize_t preadv(int fd, const struct iovec *parts, int count, off_t at) {
    return preadv64v2(fd, parts, count, at, 0);
}

int fsync(int fd) {
    REAL(fsync);
    if (watched(fd) && atomic_fetch_add(&syncs, 1) + 1 == number("DISK_SYNC")) {
        errno = EIO;
        return -1;
    }
    return real(fd);
}

/* With DISK_ROOM the space cannot be taken in advance, so that the writes meet the end of it. */
int posix_fallocate64(int fd, off64_t start, off64_t length) {
    REAL(posix_fallocate64);
    if (watched(fd) && number("DISK_ROOM") >= 0) return EOPNOTSUPP;
    return real(fd, start, length);
}

int posix_fallocate(int fd, off_t start, off_t length) { return posix_fallocate64(fd, start, length); }

static int refused(const char *name, const char *path) {
    const char *text = getenv("DISK_CALL");
    size_t length = strlen(name);
    if (!text || strncmp(text, name, length) || text[length] != ':' || !below(path)) return 0;
    long wanted = 0, code = EIO;
    sscanf(text + length + 1, "%ld:%ld", &wanted, &code);
    if (atomic_fetch_add(&calls, 1) + 1 != wanted) return 0;
    errno = code;
    return 1;
}

int rename(const char *from, const char *to) {
    REAL(rename);
    return refused("rename", from) ? -1 : real(from, to);
}

int link(const char *from, const char *to) {
    REAL(link);
    return refused("link", to) ? -1 : real(from, to);
}

int mkdir(const char *path, mode_t mode) {
    REAL(mkdir);
    return refused("mkdir", path) ? -1 : real(path, mode);
}

int open64(const char *path, int flags, ...) {
    REAL(open64);
    mode_t mode = 0;
    if (flags & (O_CREAT | O_TMPFILE)) {
        va_list rest;
        va_start(rest, flags);
        mode = va_arg(rest, mode_t);
        va_end(rest);
    }
    if ((flags & O_CREAT) ? refused("create", path) : refused("open", path)) return -1;
    return real(path, flags, mode);
}

int open(const char *path, int flags, ...) {
    mode_t mode = 0;
    if (flags & (O_CREAT | O_TMPFILE)) {
        va_list rest;
        va_start(rest, flags);
        mode = va_arg(rest, mode_t);
        va_end(rest);
    }
    return open64(path, flags, mode);
}
