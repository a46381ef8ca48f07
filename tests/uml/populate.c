/* Gives Python its memory in one piece, in user-mode Linux, where each page's first use costs 80 microseconds.

   A process of ours starts by using ten thousand pages: with this it starts in three quarters of the time, and a start is
   what most of the time in there is spent on. The kernel makes pages at once when asked to (MAP_POPULATE), but shows
   them to the process only at a fault of each, or when their protection changes: so that is changed, there and back.
   Loaded into every program by /etc/ld.so.preload; those that are not Python are left alone. */
#define _GNU_SOURCE
#include <errno.h>
#include <malloc.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#define PAGE 4096UL
#define ARENA (1 << 20) /* bytes: what Python takes at a time for its objects, and here malloc for its heap */

void *__libc_malloc(size_t), *__libc_calloc(size_t, size_t), *__libc_realloc(void *, size_t);

static int python;
static char *shown; /* the heap is, up to here */

static void show(char *from, size_t size)
{
    mprotect(from, size, PROT_READ);
    mprotect(from, size, PROT_READ | PROT_WRITE);
}

static void *grown(void *got)
{
    char *end = python ? sbrk(0) : shown;
    if (end > shown && !madvise(shown, end - shown, MADV_POPULATE_WRITE))
        show(shown, end - shown);
    shown = end;
    return got;
}

void *malloc(size_t size) { return grown(__libc_malloc(size)); }
void *calloc(size_t count, size_t size) { return grown(__libc_calloc(count, size)); }
void *realloc(void *at, size_t size) { return grown(__libc_realloc(at, size)); }

void *mmap(void *at, size_t size, int prot, int flags, int fd, off_t offset)
{
    int arena = python && size == ARENA && flags == (MAP_PRIVATE | MAP_ANONYMOUS);
    void *got = (void *)syscall(SYS_mmap, at, size, prot, arena ? flags | MAP_POPULATE : flags, fd, offset);
    if (arena && got != MAP_FAILED)
        show(got, size);
    return got;
}

void *mmap64(void *at, size_t size, int prot, int flags, int fd, off_t offset)
{
    return mmap(at, size, prot, flags, fd, offset);
}

__attribute__((constructor)) static void begin(void)
{
    python = !strncmp(program_invocation_short_name, "python", 6);
    if (python)
        mallopt(M_TOP_PAD, ARENA);
    shown = (char *)(((unsigned long)sbrk(0) + PAGE - 1) & ~(PAGE - 1));
}
