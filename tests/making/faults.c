/* System calls that fail on purpose, and a record of what a program does to its files.

   Loaded with LD_PRELOAD, so that FFmpeg's, torch's and Python's calls are all seen. Only calls on
   files below the folders of `faults_watch` count. The program arms it through ctypes; see
   tests/faults.py.

   A record is a line of text for each change, with fields parted by tabs:
     create PATH INODE     open of a file that was not there
     bytes INODE COPY      what a file holds when it is closed after writing (COPY: the bytes)
     sync PATH INODE COPY  fsync of a file
     syncdir PATH          fsync of a folder
     rename FROM TO, link FROM TO, unlink PATH, mkdir PATH, rmdir PATH */
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <unistd.h>

#define MAX_FOLDERS 8
#define MAX_FILES 4096

static char folders[MAX_FOLDERS][PATH_MAX];
static int num_folders;
static long num_calls, fail_at, num_copies;
static int fail_with;
static char failed[PATH_MAX + 64];
static char calls_path[PATH_MAX], record_folder[PATH_MAX];
static char watched[MAX_FILES];  /* by descriptor: 1 below a folder, 2 also open for writing */
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static __thread int inside;  /* our own calls are not counted */

#define REAL(name, type) static type real; if (!real) real = (type)dlsym(RTLD_NEXT, name)

static void absolute(int at, const char *path, char *out) {
    char folder[PATH_MAX];
    if (path[0] == '/') { snprintf(out, PATH_MAX, "%s", path); return; }
    if (at == AT_FDCWD) {
        if (!getcwd(folder, sizeof folder)) folder[0] = 0;
    } else {
        char link[64];
        snprintf(link, sizeof link, "/proc/self/fd/%d", at);
        ssize_t length = readlink(link, folder, sizeof folder - 1);
        folder[length < 0 ? 0 : length] = 0;
    }
    snprintf(out, PATH_MAX, "%s/%s", folder, path);
}

static int below(const char *path) {
    for (int i = 0; i < num_folders; i++) {
        size_t length = strlen(folders[i]);
        if (!strncmp(path, folders[i], length) && (path[length] == '/' || !path[length])) return 1;
    }
    return 0;
}

/* Count a call; the error it must fail with, or 0. */
static int count(const char *name, const char *path) {
    if (inside) return 0;
    pthread_mutex_lock(&mutex);
    long number = ++num_calls;
    int error = number == fail_at ? fail_with : 0;
    if (error) snprintf(failed, sizeof failed, "%s %s", name, path);
    if (calls_path[0]) {
        inside = 1;
        FILE *file = fopen(calls_path, "a");
        if (file) { fprintf(file, "%ld\t%s\t%s\n", number, name, path); fclose(file); }
        inside = 0;
    }
    pthread_mutex_unlock(&mutex);
    return error;
}

static void note(const char *line) {
    if (!record_folder[0] || inside) return;
    char path[PATH_MAX + 8];
    pthread_mutex_lock(&mutex);
    inside = 1;
    snprintf(path, sizeof path, "%s/log", record_folder);
    FILE *file = fopen(path, "a");
    if (file) { fprintf(file, "%s\n", line); fclose(file); }
    inside = 0;
    pthread_mutex_unlock(&mutex);
}

static void note_paths(const char *name, const char *one, const char *two) {
    char line[2 * PATH_MAX + 64];
    snprintf(line, sizeof line, "%s\t%s%s%s", name, one, two ? "\t" : "", two ? two : "");
    note(line);
}

/* Copy what a descriptor's file holds now into the record; the copy's number. */
static long copy_of(int fd) {
    char path[PATH_MAX + 32], from[64], buffer[65536];
    pthread_mutex_lock(&mutex);
    long number = ++num_copies;
    pthread_mutex_unlock(&mutex);
    inside = 1;
    snprintf(from, sizeof from, "/proc/self/fd/%d", fd);
    snprintf(path, sizeof path, "%s/%ld", record_folder, number);
    FILE *in = fopen(from, "rb"), *out = fopen(path, "wb");
    for (size_t length; in && out && (length = fread(buffer, 1, sizeof buffer, in));)
        fwrite(buffer, 1, length, out);
    if (in) fclose(in);
    if (out) fclose(out);
    inside = 0;
    return number;
}

static void path_of(int fd, char *out) {
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, out, PATH_MAX - 1);
    out[length < 0 ? 0 : length] = 0;
}

/* ---- what tests call ---- */
void faults_watch(const char *folder) { snprintf(folders[num_folders++], PATH_MAX, "%s", folder); }
void faults_arm(long number, int error) {
    num_calls = 0; fail_at = number; fail_with = error; failed[0] = 0;
}
void faults_log(const char *path) { snprintf(calls_path, PATH_MAX, "%s", path); }
void faults_record(const char *folder) { snprintf(record_folder, PATH_MAX, "%s", folder); }
long faults_calls(void) { return num_calls; }
const char *faults_failed(void) { return failed; }

/* ---- the calls ---- */
typedef int (*open_t)(const char *, int, ...);
typedef int (*openat_t)(int, const char *, int, ...);

static int opened(int at, const char *given, int flags, mode_t mode, int is_at) {
    REAL("openat64", openat_t);
    (void)is_at;
    if (inside || !num_folders) return real(at, given, flags, mode);
    char path[PATH_MAX];
    absolute(at, given, path);
    if (!below(path)) {
        int fd = real(at, given, flags, mode);
        if (fd >= 0 && fd < MAX_FILES) watched[fd] = 0;
        return fd;
    }
    int error = count("open", path);
    if (error) { errno = error; return -1; }
    struct stat status;
    int is_new = (flags & O_CREAT) && lstat(path, &status) != 0;
    int fd = real(at, given, flags, mode);
    if (fd >= 0 && fd < MAX_FILES) {
        watched[fd] = (flags & O_ACCMODE) == O_RDONLY ? 1 : 2;
        if (is_new && record_folder[0] && !fstat(fd, &status)) {
            char line[PATH_MAX + 64];
            snprintf(line, sizeof line, "create\t%s\t%lu", path, (unsigned long)status.st_ino);
            note(line);
        }
    }
    return fd;
}

#define OPEN(name) \
    int name(const char *path, int flags, ...) { \
        va_list list; va_start(list, flags); mode_t mode = va_arg(list, mode_t); va_end(list); \
        return opened(AT_FDCWD, path, flags, mode, 0); \
    }
#define OPENAT(name) \
    int name(int at, const char *path, int flags, ...) { \
        va_list list; va_start(list, flags); mode_t mode = va_arg(list, mode_t); va_end(list); \
        return opened(at, path, flags, mode, 1); \
    }
OPEN(open)
OPEN(open64)
OPENAT(openat)
OPENAT(openat64)

static int is_watched(int fd) { return !inside && fd >= 0 && fd < MAX_FILES && watched[fd]; }

#define ON_FD(name) \
    if (is_watched(fd)) { \
        char path[PATH_MAX]; \
        path_of(fd, path); \
        int error = count(name, path); \
        if (error) { errno = error; return -1; } \
    }

typedef ssize_t (*read_t)(int, void *, size_t);
ssize_t read(int fd, void *bytes, size_t size) {
    REAL("read", read_t);
    ON_FD("read")
    return real(fd, bytes, size);
}

typedef ssize_t (*write_t)(int, const void *, size_t);
ssize_t write(int fd, const void *bytes, size_t size) {
    REAL("write", write_t);
    ON_FD("write")
    return real(fd, bytes, size);
}

typedef ssize_t (*sendfile_t)(int, int, off_t *, size_t);
ssize_t sendfile(int to, int fd, off_t *offset, size_t size) {
    REAL("sendfile64", sendfile_t);
    ON_FD("read")
    return real(to, fd, offset, size);
}
ssize_t sendfile64(int to, int fd, off_t *offset, size_t size) {
    return sendfile(to, fd, offset, size);
}

typedef int (*fsync_t)(int);
static int synced(int fd) {
    REAL("fsync", fsync_t);
    ON_FD("fsync")
    struct stat status;
    if (is_watched(fd) && record_folder[0] && !fstat(fd, &status)) {
        char path[PATH_MAX], line[PATH_MAX + 96];
        path_of(fd, path);
        if (S_ISDIR(status.st_mode)) {
            note_paths("syncdir", path, NULL);
        } else {
            long copy = copy_of(fd);
            unsigned long inode = status.st_ino;
            snprintf(line, sizeof line, "sync\t%s\t%lu\t%ld", path, inode, copy);
            note(line);
        }
    }
    return is_watched(fd) ? 0 : real(fd);  /* the power stays on: no need to wait for the disk */
}
int fsync(int fd) { return synced(fd); }
int fdatasync(int fd) { return synced(fd); }

typedef int (*close_t)(int);
int close(int fd) {
    REAL("close", close_t);
    if (is_watched(fd)) {
        struct stat status;
        if (record_folder[0] && watched[fd] == 2 && !fstat(fd, &status)
            && S_ISREG(status.st_mode)) {
            char line[128];
            long copy = copy_of(fd);
            snprintf(line, sizeof line, "bytes\t%lu\t%ld", (unsigned long)status.st_ino, copy);
            note(line);
        }
        watched[fd] = 0;
    }
    return real(fd);
}

typedef int (*two_t)(int, const char *, int, const char *);
static int renamed(int from_at, const char *from, int to_at, const char *to) {
    REAL("renameat", two_t);
    char one[PATH_MAX], two[PATH_MAX];
    absolute(from_at, from, one);
    absolute(to_at, to, two);
    if (inside || !(below(one) || below(two))) return real(from_at, from, to_at, to);
    int error = count("rename", two);
    if (error) { errno = error; return -1; }
    struct stat a, b;
    int is_same = !lstat(one, &a) && !lstat(two, &b) && a.st_ino == b.st_ino;
    int result = real(from_at, from, to_at, to);
    if (!result && !is_same) note_paths("rename", one, two);
    return result;
}
int rename(const char *from, const char *to) { return renamed(AT_FDCWD, from, AT_FDCWD, to); }
int renameat(int at, const char *from, int to_at, const char *to) {
    return renamed(at, from, to_at, to);
}

typedef int (*link_t)(int, const char *, int, const char *, int);
static int linked(int from_at, const char *from, int to_at, const char *to, int flags) {
    REAL("linkat", link_t);
    char one[PATH_MAX], two[PATH_MAX];
    absolute(from_at, from, one);
    absolute(to_at, to, two);
    if (inside || !(below(one) || below(two))) return real(from_at, from, to_at, to, flags);
    int error = count("link", two);
    if (error) { errno = error; return -1; }
    int result = real(from_at, from, to_at, to, flags);
    if (!result) note_paths("link", one, two);
    return result;
}
int link(const char *from, const char *to) { return linked(AT_FDCWD, from, AT_FDCWD, to, 0); }
int linkat(int at, const char *from, int to_at, const char *to, int flags) {
    return linked(at, from, to_at, to, flags);
}

typedef int (*unlinkat_t)(int, const char *, int);
static int unlinked(int at, const char *given, int flags) {
    REAL("unlinkat", unlinkat_t);
    char path[PATH_MAX];
    absolute(at, given, path);
    if (inside || !below(path)) return real(at, given, flags);
    int error = count(flags & AT_REMOVEDIR ? "rmdir" : "unlink", path);
    if (error) { errno = error; return -1; }
    int result = real(at, given, flags);
    if (!result) note_paths(flags & AT_REMOVEDIR ? "rmdir" : "unlink", path, NULL);
    return result;
}
int unlink(const char *path) { return unlinked(AT_FDCWD, path, 0); }
int unlinkat(int at, const char *path, int flags) { return unlinked(at, path, flags); }
int rmdir(const char *path) { return unlinked(AT_FDCWD, path, AT_REMOVEDIR); }

typedef int (*mkdirat_t)(int, const char *, mode_t);
int mkdir(const char *given, mode_t mode) {
    REAL("mkdirat", mkdirat_t);
    char path[PATH_MAX];
    absolute(AT_FDCWD, given, path);
    if (inside || !below(path)) return real(AT_FDCWD, given, mode);
    int error = count("mkdir", path);
    if (error) { errno = error; return -1; }
    int result = real(AT_FDCWD, given, mode);
    if (!result) note_paths("mkdir", path, NULL);
    return result;
}
