/* A quota on a directory, for LD_PRELOAD: QUOTA_BYTES and QUOTA_FILES for all files below QUOTA_DIR; beyond it EDQUOT. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static __thread long long used, files;

static int add(const char *path, const struct stat *state, int kind, struct FTW *ftw) {
    (void)path, (void)ftw;
    if (kind == FTW_F) used += state->st_blocks * 512LL, files++;
    return 0;
}

static int is_over(long long more_bytes, int more_files) {
    const char *root = getenv("QUOTA_DIR"), *bytes = getenv("QUOTA_BYTES"), *most = getenv("QUOTA_FILES");
    if (!root) return 0;
    int error = errno;
    used = files = 0;
    nftw(root, add, 8, FTW_PHYS);
    errno = error;
    return (bytes && used + more_bytes > atoll(bytes)) || (most && files + more_files > atoll(most));
}

static int is_inside(int fd) {
    char link[64], path[PATH_MAX];
    const char *root = getenv("QUOTA_DIR");
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t n = readlink(link, path, sizeof path - 1);
    if (!root || n < 0) return 0;
    path[n] = 0;
    return strncmp(path, root, strlen(root)) == 0;
}

static int grows(int fd, long long end) {
    struct stat state;
    if (!is_inside(fd) || fstat(fd, &state)) return 0;
    return end > state.st_blocks * 512LL && is_over(end - state.st_blocks * 512LL, 0);
}

#define REAL(name, type) static type real; if (!real) real = (type)dlsym(RTLD_NEXT, name)
#define REFUSE do { errno = EDQUOT; return -1; } while (0)

typedef ssize_t (*write_t)(int, const void *, size_t);
ssize_t write(int fd, const void *data, size_t size) {
    REAL("write", write_t);
    off_t at = lseek(fd, 0, SEEK_CUR);
    if (at >= 0 && grows(fd, at + (long long)size)) REFUSE;
    return real(fd, data, size);
}

typedef ssize_t (*pwrite_t)(int, const void *, size_t, off64_t);
ssize_t pwrite64(int fd, const void *data, size_t size, off64_t at) {
    REAL("pwrite64", pwrite_t);
    if (grows(fd, at + (long long)size)) REFUSE;
    return real(fd, data, size, at);
}
ssize_t pwrite(int fd, const void *data, size_t size, off_t at) { return pwrite64(fd, data, size, at); }

typedef int (*fallocate_t)(int, off64_t, off64_t);
int posix_fallocate64(int fd, off64_t at, off64_t size) {
    REAL("posix_fallocate64", fallocate_t);
    return grows(fd, at + size) ? EDQUOT : real(fd, at, size);
}
int posix_fallocate(int fd, off_t at, off_t size) { return posix_fallocate64(fd, at, size); }

typedef int (*open_t)(const char *, int, ...);
int open64(const char *path, int flags, ...) {
    REAL("open64", open_t);
    va_list more;
    va_start(more, flags);
    mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(more, mode_t) : 0;
    va_end(more);
    const char *root = getenv("QUOTA_DIR");
    struct stat state;
    if (root && (flags & O_CREAT) && !strncmp(path, root, strlen(root)) && lstat(path, &state) && is_over(0, 1)) REFUSE;
    return real(path, flags, mode);
}
int open(const char *path, int flags, ...) {
    va_list more;
    va_start(more, flags);
    mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(more, mode_t) : 0;
    va_end(more);
    return open64(path, flags, mode);
}
