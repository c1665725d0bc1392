/* The limit: select a row and widen its uint16 tokens into a new batch of int64, nothing else.
 *
 *   copy_limit FOLDER SEQ_LEN THREADS SECONDS mmap|pread    prints rows and seconds
 *
 * A batch is allocated, filled, and freed when the next batch is assigned, as in `for batch in loader`.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

enum { DOMAINS = 7, BATCH = 32, WARM_UP = 50 };

static const char *names[DOMAINS] = {"cc", "github", "book", "stack", "wiki", "arxiv", "c4"};
static const double shares[DOMAINS] = {.67, .045, .045, .02, .045, .025, .15};

static struct { int file; const uint16_t *tokens; uint64_t rows; } domains[DOMAINS];
static long seq_len;
static double seconds;
static int mapped;

struct work { uint64_t seed; long rows; double seconds; int64_t sum; };

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + 1e-9 * t.tv_nsec;
}

static uint64_t random_number(uint64_t *state) /* xorshift64* (Vigna 2016) */
{
    *state ^= *state >> 12;
    *state ^= *state << 25;
    *state ^= *state >> 27;
    return *state * 0x2545f4914f6cdd1dull;
}

static void fill(int64_t *restrict batch, uint16_t *restrict bytes, uint64_t *state)
{
    for (int k = 0; k < BATCH; k++) {
        double u = (random_number(state) >> 11) * 0x1p-53;
        int d = 0;
        while (d < DOMAINS - 1 && u >= shares[d]) u -= shares[d++];
        uint64_t row = random_number(state) % domains[d].rows;
        const uint16_t *from = mapped ? domains[d].tokens + row * seq_len : bytes;
        if (!mapped && pread(domains[d].file, bytes, seq_len * 2, row * seq_len * 2) != seq_len * 2) exit(3);
        for (long i = 0; i < seq_len; i++) batch[k * seq_len + i] = from[i];
    }
}

static void *run(void *argument)
{
    struct work *work = argument;
    size_t size = BATCH * seq_len * sizeof(int64_t);
    uint16_t *bytes = malloc(seq_len * 2);
    int64_t *last = malloc(size);
    double started = 0;
    for (long number = 0;; number++) {
        if (number == WARM_UP) started = now();
        int64_t *batch = malloc(size);
        fill(batch, bytes, &work->seed);
        work->sum += batch[number % seq_len];
        free(last);
        last = batch;
        work->rows = (number + 1 - WARM_UP) * BATCH;
        if (number > WARM_UP && (work->seconds = now() - started) >= seconds) break;
    }
    free(last);
    free(bytes);
    return NULL;
}

int main(int count, char **arguments)
{
    if (count != 6) return 1;
    seq_len = atol(arguments[2]);
    int threads = atoi(arguments[3]);
    seconds = atof(arguments[4]);
    mapped = !strcmp(arguments[5], "mmap");
    for (int d = 0; d < DOMAINS; d++) {
        char path[4096];
        struct stat about;
        snprintf(path, sizeof path, "%s/%s.bin", arguments[1], names[d]);
        if ((domains[d].file = open(path, O_RDONLY)) < 0 || fstat(domains[d].file, &about)) return 2;
        domains[d].rows = about.st_size / (seq_len * 2);
        if (mapped) {
            void *tokens = mmap(NULL, about.st_size, PROT_READ, MAP_SHARED | MAP_POPULATE, domains[d].file, 0);
            if (tokens == MAP_FAILED) return 2;
            domains[d].tokens = tokens;
        }
    }
    pthread_t thread[64];
    struct work work[64];
    if (threads < 1 || threads > 64) return 1;
    for (int i = 0; i < threads; i++) {
        work[i] = (struct work){.seed = 0x9e3779b97f4a7c15ull * (i + 1)};
        if (pthread_create(&thread[i], NULL, run, &work[i])) return 2;
    }
    double rate = 0;
    int64_t sum = 0;
    for (int i = 0; i < threads; i++) {
        pthread_join(thread[i], NULL);
        rate += work[i].rows / work[i].seconds;
        sum += work[i].sum;
    }
    printf("%.0f %lld\n", rate, (long long)sum);
    return 0;
}
