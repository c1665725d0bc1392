/* Counts the file operations of a process below one folder, and kills the process or fails at chosen ones.
 *
 * Loaded by LD_PRELOAD, so that operations of Python, Rust and torch pass through it alike. An operation creates,
 * writes, flushes, renames, truncates or removes a file or folder. Reads are not counted. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

enum { OFF, KILL, FAIL, SHORT_WRITE };

static char root[PATH_MAX];
static size_t root_length;
static int mode, error_number, all_after;
static long first;
static atomic_long operations;

/* Fail at operation `at` (from 1), and at all after it if `rest` is not 0; 0 only counts. */
void faults_arm(const char *folder, int what, long at, int number, int rest)
{
    strncpy(root, folder, sizeof root - 1);
    root_length = strlen(root);
    first = at;
    error_number = number;
    all_after = rest;
    atomic_store(&operations, 0);
    mode = what;
}

long faults_count(void) { return atomic_load(&operations); }

static int below(const char *path) { return root_length && strncmp(path, root, root_length) == 0; }

static int descriptor_below(int file)
{
    char link[64], path[PATH_MAX];
    snprintf(link, sizeof link, "/proc/self/fd/%d", file);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length < 0)
        return 0;
    path[length] = 0;
    return below(path);
}

static int place_below(int folder, const char *path)
{
    if (!root_length || !path)
        return 0;
    if (path[0] == '/')
        return below(path);
    if (folder != AT_FDCWD)
        return descriptor_below(folder);
    char current[PATH_MAX];
    return getcwd(current, sizeof current) && below(current);
}

/* Returns what this operation does: OFF, FAIL or SHORT_WRITE; KILL ends the process unless the caller is a write. */
static int outcome(int counted, int is_write)
{
    if (!counted || !root_length)
        return OFF;
    long number = atomic_fetch_add(&operations, 1) + 1;
    if (!first || number < first || (number > first && !all_after))
        return OFF;
    if (mode == KILL && !is_write)
        kill(getpid(), SIGKILL);
    if (mode == SHORT_WRITE && !is_write)
        return OFF;
    if (mode == FAIL)
        errno = error_number;
    return mode;
}

#define ORIGINAL(name) __typeof__(name) *original = (__typeof__(name) *)dlsym(RTLD_NEXT, #name)
#define CHECK(counted)                                                                                                 \
    do {                                                                                                               \
        if (outcome((counted), 0) == FAIL)                                                                             \
            return -1;                                                                                                 \
    } while (0)

#define OPEN(name)                                                                                                     \
    int name(const char *path, int flags, ...)                                                                         \
    {                                                                                                                  \
        va_list list;                                                                                                  \
        va_start(list, flags);                                                                                         \
        mode_t rights = va_arg(list, mode_t);                                                                          \
        va_end(list);                                                                                                  \
        ORIGINAL(name);                                                                                                \
        CHECK((flags & (O_CREAT | O_TRUNC)) && place_below(AT_FDCWD, path));                                           \
        return original(path, flags, rights);                                                                          \
    }
OPEN(open)
OPEN(open64)

#define OPENAT(name)                                                                                                   \
    int name(int folder, const char *path, int flags, ...)                                                             \
    {                                                                                                                  \
        va_list list;                                                                                                  \
        va_start(list, flags);                                                                                         \
        mode_t rights = va_arg(list, mode_t);                                                                          \
        va_end(list);                                                                                                  \
        ORIGINAL(name);                                                                                                \
        CHECK((flags & (O_CREAT | O_TRUNC)) && place_below(folder, path));                                             \
        return original(folder, path, flags, rights);                                                                  \
    }
OPENAT(openat)
OPENAT(openat64)

ssize_t write(int file, const void *bytes, size_t count)
{
    ORIGINAL(write);
    int what = root_length ? outcome(descriptor_below(file), 1) : OFF;
    if (what == FAIL)
        return -1;
    if (what == SHORT_WRITE && count > 1)
        count /= 2;
    if (what == KILL) {
        original(file, bytes, count / 2);
        kill(getpid(), SIGKILL);
    }
    return original(file, bytes, count);
}

#define PWRITE(name, offset)                                                                                           \
    ssize_t name(int file, const void *bytes, size_t count, offset at)                                                 \
    {                                                                                                                  \
        ORIGINAL(name);                                                                                                \
        int what = root_length ? outcome(descriptor_below(file), 1) : OFF;                                             \
        if (what == FAIL)                                                                                              \
            return -1;                                                                                                 \
        if (what == SHORT_WRITE && count > 1)                                                                          \
            count /= 2;                                                                                                \
        if (what == KILL) {                                                                                            \
            original(file, bytes, count / 2, at);                                                                      \
            kill(getpid(), SIGKILL);                                                                                   \
        }                                                                                                              \
        return original(file, bytes, count, at);                                                                       \
    }
PWRITE(pwrite, off_t)
PWRITE(pwrite64, off64_t)

ssize_t writev(int file, const struct iovec *parts, int count)
{
    ORIGINAL(writev);
    int what = root_length ? outcome(descriptor_below(file), 1) : OFF;
    if (what == FAIL)
        return -1;
    if (what == KILL)
        kill(getpid(), SIGKILL);
    return original(file, parts, what == SHORT_WRITE && count > 1 ? 1 : count);
}

int fsync(int file)
{
    ORIGINAL(fsync);
    CHECK(descriptor_below(file));
    return original(file);
}

int fdatasync(int file)
{
    ORIGINAL(fdatasync);
    CHECK(descriptor_below(file));
    return original(file);
}

#define TRUNCATE(name, offset)                                                                                         \
    int name(int file, offset size)                                                                                    \
    {                                                                                                                  \
        ORIGINAL(name);                                                                                                \
        CHECK(descriptor_below(file));                                                                                 \
        return original(file, size);                                                                                   \
    }
TRUNCATE(ftruncate, off_t)
TRUNCATE(ftruncate64, off64_t)

int rename(const char *from, const char *to)
{
    ORIGINAL(rename);
    CHECK(place_below(AT_FDCWD, to));
    return original(from, to);
}

int renameat(int source, const char *from, int target, const char *to)
{
    ORIGINAL(renameat);
    CHECK(place_below(target, to));
    return original(source, from, target, to);
}

int mkdir(const char *path, mode_t rights)
{
    ORIGINAL(mkdir);
    CHECK(place_below(AT_FDCWD, path));
    return original(path, rights);
}

int mkdirat(int folder, const char *path, mode_t rights)
{
    ORIGINAL(mkdirat);
    CHECK(place_below(folder, path));
    return original(folder, path, rights);
}

int unlink(const char *path)
{
    ORIGINAL(unlink);
    CHECK(place_below(AT_FDCWD, path));
    return original(path);
}

int unlinkat(int folder, const char *path, int flags)
{
    ORIGINAL(unlinkat);
    CHECK(place_below(folder, path));
    return original(folder, path, flags);
}

int rmdir(const char *path)
{
    ORIGINAL(rmdir);
    CHECK(place_below(AT_FDCWD, path));
    return original(path);
}
