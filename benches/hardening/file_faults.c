/* Counts the file operations of a process below one folder, and kills the process, fails at chosen ones, or records all.
 *
 * Loaded by LD_PRELOAD, so that operations of Python, Rust and torch pass through it alike. An operation creates,
 * writes, flushes, renames, truncates or removes a file or folder. Reads are not counted.
 *
 * A record has a kind, two paths, an inode, a position and bytes, see `record`. Kinds: Create, Write, Truncate, Sync, Rename,
 * Make a folder, Unlink. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

enum { OFF, KILL, FAIL, SHORT_WRITE };

static char root[PATH_MAX];
static size_t root_length;
static int mode, error_number, all_after;
static long first;
static atomic_long *operations; /* of this process and of those that it forks */

/* Fail at operation `at` (from 1), and at all after it if `rest` is not 0; 0 only counts. */
void faults_arm(const char *folder, int what, long at, int number, int rest)
{
    strncpy(root, folder, sizeof root - 1);
    root_length = strlen(root);
    first = at;
    error_number = number;
    all_after = rest;
    if (!operations)
        operations = mmap(NULL, sizeof *operations, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    atomic_store(operations, 0);
    mode = what;
}

long faults_count(void) { return operations ? atomic_load(operations) : 0; }

static int journal = -1;
static pthread_mutex_t recording = PTHREAD_MUTEX_INITIALIZER;

/* Record the operations from now on in an open file; -1 for none. */
void faults_record(int file) { journal = file; }

static void put(const void *bytes, size_t count)
{
    for (const char *next = bytes; count;) {
        long done = syscall(SYS_write, journal, next, count);
        if (done <= 0)
            abort();
        next += done;
        count -= done;
    }
}

static void record(char kind, int file, const char *path, const char *other, long at, const void *bytes, size_t count)
{
    struct stat found = {0};
    int error = errno;
    if (file >= 0)
        fstat(file, &found);
    struct {
        long inode, at, count;
        int path, other, kind, unused;
    } head = {found.st_ino, at, count, strlen(path), strlen(other), kind, 0};
    pthread_mutex_lock(&recording);
    put(&head, sizeof head);
    put(path, head.path);
    put(other, head.other);
    put(bytes, count);
    pthread_mutex_unlock(&recording);
    errno = error;
}

static int below(const char *path) { return root_length && strncmp(path, root, root_length) == 0; }

static int path_of(int file, char *path)
{
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", file);
    ssize_t length = readlink(link, path, PATH_MAX - 1);
    if (length < 0)
        return 0;
    path[length] = 0;
    return 1;
}

static int descriptor_below(int file)
{
    char path[PATH_MAX];
    return path_of(file, path) && below(path);
}

/* Returns whether an operation on a path below the folder is recorded, and writes its absolute path. */
static int recorded_at(int folder, const char *path, char *absolute)
{
    char base[PATH_MAX] = "";
    if (journal < 0 || !path)
        return 0;
    if (path[0] != '/' && !(folder == AT_FDCWD ? getcwd(base, sizeof base) != NULL : path_of(folder, base)))
        return 0;
    snprintf(absolute, PATH_MAX, "%s%s%s", base, path[0] == '/' ? "" : "/", path);
    return below(absolute);
}

static int recorded(int file, char *path) { return journal >= 0 && path_of(file, path) && below(path); }

static void record_write(int file, const void *bytes, ssize_t done, long at)
{
    char path[PATH_MAX];
    if (done > 0 && recorded(file, path))
        record('W', file, path, "", at < 0 ? lseek(file, 0, SEEK_CUR) - done : at, bytes, done);
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
    long number = atomic_fetch_add(operations, 1) + 1;
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

static int record_open(int file, int flags, int known)
{
    char path[PATH_MAX];
    if (file >= 0 && (flags & (O_CREAT | O_TRUNC)) && recorded(file, path)) {
        if (!known)
            record('C', file, path, "", 0, "", 0);
        else if (flags & O_TRUNC)
            record('T', file, path, "", 0, "", 0);
    }
    return file;
}

#define OPEN(name)                                                                                                     \
    int name(const char *path, int flags, ...)                                                                         \
    {                                                                                                                  \
        va_list list;                                                                                                  \
        va_start(list, flags);                                                                                         \
        mode_t rights = va_arg(list, mode_t);                                                                          \
        va_end(list);                                                                                                  \
        ORIGINAL(name);                                                                                                \
        CHECK((flags & (O_CREAT | O_TRUNC)) && place_below(AT_FDCWD, path));                                           \
        int known = journal < 0 || faccessat(AT_FDCWD, path, F_OK, AT_SYMLINK_NOFOLLOW) == 0;                          \
        return record_open(original(path, flags, rights), flags, known);                                               \
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
        int known = journal < 0 || faccessat(folder, path, F_OK, AT_SYMLINK_NOFOLLOW) == 0;                            \
        return record_open(original(folder, path, flags, rights), flags, known);                                       \
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
    ssize_t done = original(file, bytes, count);
    record_write(file, bytes, done, -1);
    return done;
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
        ssize_t done = original(file, bytes, count, at);                                                               \
        record_write(file, bytes, done, at);                                                                           \
        return done;                                                                                                   \
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
    ssize_t done = original(file, parts, what == SHORT_WRITE && count > 1 ? 1 : count);
    char path[PATH_MAX];
    if (done > 0 && recorded(file, path)) {
        long at = lseek(file, 0, SEEK_CUR) - done;
        for (ssize_t left = done; left > 0; left -= parts->iov_len, at += parts->iov_len, parts++)
            record('W', file, path, "", at, parts->iov_base, (size_t)left < parts->iov_len ? (size_t)left : parts->iov_len);
    }
    return done;
}

/* Copies within the system would pass by: callers copy by reads and writes instead. */
#define SENDFILE(name, offset)                                                                                         \
    ssize_t name(int target, int source, offset *at, size_t count)                                                     \
    {                                                                                                                  \
        ORIGINAL(name);                                                                                                \
        if (journal < 0)                                                                                               \
            return original(target, source, at, count);                                                                \
        errno = EINVAL;                                                                                                \
        return -1;                                                                                                     \
    }
SENDFILE(sendfile, off_t)
SENDFILE(sendfile64, off64_t)

ssize_t copy_file_range(int source, off64_t *from, int target, off64_t *to, size_t count, unsigned flags)
{
    ORIGINAL(copy_file_range);
    if (journal < 0)
        return original(source, from, target, to, count, flags);
    errno = EXDEV;
    return -1;
}

int fsync(int file)
{
    ORIGINAL(fsync);
    CHECK(descriptor_below(file));
    char path[PATH_MAX];
    int failed = original(file);
    if (!failed && recorded(file, path))
        record('S', file, path, "", 0, "", 0);
    return failed;
}

int fdatasync(int file)
{
    ORIGINAL(fdatasync);
    CHECK(descriptor_below(file));
    char path[PATH_MAX];
    int failed = original(file);
    if (!failed && recorded(file, path))
        record('S', file, path, "", 0, "", 0);
    return failed;
}

#define TRUNCATE(name, offset)                                                                                         \
    int name(int file, offset size)                                                                                    \
    {                                                                                                                  \
        ORIGINAL(name);                                                                                                \
        CHECK(descriptor_below(file));                                                                                 \
        char path[PATH_MAX];                                                                                           \
        int failed = original(file, size);                                                                             \
        if (!failed && recorded(file, path))                                                                           \
            record('T', file, path, "", size, "", 0);                                                                        \
        return failed;                                                                                                 \
    }
TRUNCATE(ftruncate, off_t)
TRUNCATE(ftruncate64, off64_t)

static int record_rename(int failed, int source, const char *from, int target, const char *to)
{
    char before[PATH_MAX], after[PATH_MAX];
    if (!failed && recorded_at(target, to, after) && recorded_at(source, from, before))
        record('R', -1, before, after, 0, "", 0);
    return failed;
}

static int record_entry(int failed, char kind, int folder, const char *path)
{
    char absolute[PATH_MAX];
    if (!failed && recorded_at(folder, path, absolute))
        record(kind, -1, absolute, "", 0, "", 0);
    return failed;
}

int rename(const char *from, const char *to)
{
    ORIGINAL(rename);
    CHECK(place_below(AT_FDCWD, to));
    return record_rename(original(from, to), AT_FDCWD, from, AT_FDCWD, to);
}

int renameat(int source, const char *from, int target, const char *to)
{
    ORIGINAL(renameat);
    CHECK(place_below(target, to));
    return record_rename(original(source, from, target, to), source, from, target, to);
}

int mkdir(const char *path, mode_t rights)
{
    ORIGINAL(mkdir);
    CHECK(place_below(AT_FDCWD, path));
    return record_entry(original(path, rights), 'M', AT_FDCWD, path);
}

int mkdirat(int folder, const char *path, mode_t rights)
{
    ORIGINAL(mkdirat);
    CHECK(place_below(folder, path));
    return record_entry(original(folder, path, rights), 'M', folder, path);
}

int unlink(const char *path)
{
    ORIGINAL(unlink);
    CHECK(place_below(AT_FDCWD, path));
    return record_entry(original(path), 'U', AT_FDCWD, path);
}

int unlinkat(int folder, const char *path, int flags)
{
    ORIGINAL(unlinkat);
    CHECK(place_below(folder, path));
    return record_entry(original(folder, path, flags), 'U', folder, path);
}

int rmdir(const char *path)
{
    ORIGINAL(rmdir);
    CHECK(place_below(AT_FDCWD, path));
    return record_entry(original(path), 'U', AT_FDCWD, path);
}
