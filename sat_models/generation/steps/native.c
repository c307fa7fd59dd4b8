/* One token per row through the products and the attention of a LLaMA on a CPU, in fp32 or bf16: what
   `native.py` calls.

   A decode step reads every weight and the cache once, so it is as fast as memory is read. A core reads faster from
   several places at once than from one, so each thread goes through its share of the rows of a matrix in STREAMS
   places, and asks for what it needs a little later. A row's sum does not depend on the number of threads.

   With `half` set, weights are bf16. What goes from one kernel to the next is fp32 in either case, rounded to bf16 where
   torch's operators would have. A cache has a form of its own (`mixins/cache_form.py`). Both are constants wherever they
   are read in a loop.

   Vectors are written in the language extension that GCC and Clang share and compiled for several processors; which
   one is here is found out when the library is loaded. Nothing is checked: the callers know their tensors. */

#include <math.h>
#include <stdint.h>
#include <string.h>

#define LANES 16    /* floats of a vector */
#define STREAMS 4   /* places that a thread reads at once */
#define BLOCK 4     /* inputs that go through the same weights at once */
#define AHEAD 128   /* floats that are asked for before they are needed */
#define MAX_WIDTH 256 /* of a head */

#if defined(__x86_64__) && defined(__GLIBC__) && !defined(__clang__)
#define EACH_PROCESSOR __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define EACH_PROCESSOR
#endif
#define INLINE static inline __attribute__((always_inline))

typedef float lanes __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef int places __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef uint16_t halves __attribute__((vector_size(2 * LANES), aligned(2), may_alias));
typedef int16_t shorts __attribute__((vector_size(2 * LANES), aligned(2), may_alias));
typedef int8_t bytes __attribute__((vector_size(LANES), aligned(1), may_alias));

#ifdef __clang__
#define CHOSEN(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define CHOSEN(a, b, ...) __builtin_shuffle(a, b, (places){__VA_ARGS__})
#endif

INLINE lanes at(const float *x) { return *(const lanes *)x; }

/* Forms of stored numbers. */
enum { SINGLE = 0, HALF = 1, BYTE = 2 };

/* Place `i` of stored numbers. */
INLINE const void *stored(const void *x, long i, int form) {
    if (form == BYTE) return (const int8_t *)x + i;
    return form == HALF ? (const void *)((const uint16_t *)x + i) : (const void *)((const float *)x + i);
}

INLINE float one_of(const void *x, long i, int form) {
    if (form == SINGLE) return ((const float *)x)[i];
    if (form == BYTE) return ((const int8_t *)x)[i];
    union { uint32_t bits; float number; } found = {(uint32_t)((const uint16_t *)x)[i] << 16};
    return found.number;
}

INLINE lanes some_of(const void *x, long i, int form) {
    if (form == SINGLE) return at((const float *)x + i);
    if (form == BYTE) { /* twice as wide at a time, or GCC takes them one by one */
        shorts wider = __builtin_convertvector(*(const bytes *)((const int8_t *)x + i), shorts);
        return __builtin_convertvector(__builtin_convertvector(wider, places), lanes);
    }
    return (lanes)(__builtin_convertvector(*(const halves *)((const uint16_t *)x + i), places) << 16);
}

/* A vector of a cache: how far it is to the next one, and what its numbers are multiplied by. */
INLINE long step_of(long width, int form) { return form == BYTE ? width + 4 : width; }

INLINE float scale_of(const void *vector, long width, int form) {
    if (form != BYTE) return 1;
    float scale;
    memcpy(&scale, (const int8_t *)vector + width, 4);
    return scale;
}

/* To the nearest bf16, to the even one of two, as torch. */
INLINE uint16_t half_of(float x) {
    union { float number; uint32_t bits; } given = {x};
    if (x != x) return 0x7fc0;
    return (given.bits + 0x7fff + (given.bits >> 16 & 1)) >> 16;
}

INLINE float rounded(float x, int half) {
    if (!half) return x;
    union { uint32_t bits; float number; } found = {(uint32_t)half_of(x) << 16};
    return found.number;
}

/* A vector into a cache. */
INLINE void keep_vector(void *to, const float *x, long width, int form) {
    if (form == SINGLE) memcpy(to, x, width * sizeof(float));
    for (long i = 0; form == HALF && i < width; i++) ((uint16_t *)to)[i] = half_of(x[i]);
    if (form != BYTE) return;
    float largest = 0;
    int sound = 1; /* all are numbers */
    for (long i = 0; i < width; i++) {
        float size = fabsf(x[i]);
        sound &= size <= 3.4e38f;
        largest = size > largest ? size : largest;
    }
    float factor = 127 / (largest > 1e-30f ? largest : 1e-30f), scale = sound ? largest / 127 : NAN;
    for (long i = 0; i < width; i++) ((int8_t *)to)[i] = sound ? (int8_t)(int)rintf(x[i] * factor) : 0;
    memcpy((int8_t *)to + width, &scale, 4);
}

/* The sums of four vectors, each four times. */
INLINE lanes sums_of(lanes a, lanes b, lanes c, lanes d) {
#define LOWER 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23
#define UPPER 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31
#define EVEN 0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19, 24, 25, 26, 27
#define ODD 4, 5, 6, 7, 12, 13, 14, 15, 20, 21, 22, 23, 28, 29, 30, 31
    lanes ab = CHOSEN(a, b, LOWER) + CHOSEN(a, b, UPPER), cd = CHOSEN(c, d, LOWER) + CHOSEN(c, d, UPPER);
    lanes all = CHOSEN(ab, cd, EVEN) + CHOSEN(ab, cd, ODD);
    all += CHOSEN(all, all, 2, 3, 0, 1, 6, 7, 4, 5, 10, 11, 8, 9, 14, 15, 12, 13);
    return all + CHOSEN(all, all, 1, 0, 3, 2, 5, 4, 7, 6, 9, 8, 11, 10, 13, 12, 15, 14);
}

/* e^x for x <= 0, NaN for NaN. x = n ln 2 + f; e^f by its series, whose ninth term is below a rounding. */
INLINE lanes exp_of(lanes x) {
    places tiny = x < -87.0f;
    x = (lanes)((places)x & ~tiny); /* those come out as 0 below */
    places n = __builtin_convertvector(x * 1.44269504f - 0.5f, places);
    lanes whole = __builtin_convertvector(n, lanes);
    lanes f = (x - whole * 0.693359375f) + whole * 2.12194440e-4f;
    lanes series = f * (1.0f / 5040) + 1.0f / 720;
    series = series * f + 1.0f / 120;
    series = series * f + 1.0f / 24;
    series = series * f + 1.0f / 6;
    series = series * f + 0.5f;
    series = series * f + 1;
    series = series * f + 1;
    lanes found = series * (lanes)((n + 127) << 23);
    return (lanes)((places)found & ~tiny);
}

/* Products of STREAMS rows of a weight with `count` inputs, n floats each. */
INLINE void dots(float found[][STREAMS], const void *const weight[STREAMS], const float *x, long n, int count,
                 int half) {
    lanes sums[BLOCK][STREAMS] = {0};
    long i = 0;
    for (; i + LANES <= n; i += LANES) {
        for (int s = 0; s < STREAMS; s++) __builtin_prefetch(stored(weight[s], i + AHEAD, half));
        for (int b = 0; b < count; b++)
            for (int s = 0; s < STREAMS; s++) sums[b][s] += some_of(weight[s], i, half) * at(x + b * n + i);
    }
    for (int b = 0; b < count; b++) {
        lanes four = sums_of(sums[b][0], sums[b][1], sums[b][2], sums[b][3]);
        for (int s = 0; s < STREAMS; s++) {
            found[b][s] = four[4 * s];
            for (long rest = i; rest < n; rest++) found[b][s] += one_of(weight[s], rest, half) * x[b * n + rest];
        }
    }
}

/* The same for the next inputs, at most BLOCK; how many they were. */
INLINE int some_dots(float found[][STREAMS], const void *const weight[STREAMS], const float *x, long n, long left,
                     int half) {
    if (left >= 4) return dots(found, weight, x, n, 4, half), 4;
    if (left >= 2) return dots(found, weight, x, n, 2, half), 2;
    return dots(found, weight, x, n, 1, half), 1;
}

INLINE void product_of(float *out, const float *x, const void *weight, const float *residual, long rows, long outputs,
                       long inputs, long first, long last, int half) {
    long step = (last - first + STREAMS - 1) / STREAMS;
    for (long m = first; m < first + step; m++) {
        const void *from[STREAMS];
        float found[BLOCK][STREAMS];
        for (int s = 0; s < STREAMS; s++)
            from[s] = stored(weight, (m + s * step < last ? m + s * step : m) * inputs, half);
        for (long row = 0, done; row < rows; row += done) {
            done = some_dots(found, from, x + row * inputs, inputs, rows - row, half);
            for (int b = 0; b < done; b++)
                for (int s = 0; s < STREAMS && m + s * step < last; s++) {
                    long place = (row + b) * outputs + m + s * step;
                    float sum = rounded(found[b][s], half);
                    out[place] = residual ? rounded(residual[place] + sum, half) : sum;
                }
        }
    }
}

/* Columns `first` to `last` of the result, for all rows. */
EACH_PROCESSOR
static void product_part(float *out, const float *x, const void *weight, const float *residual, long rows,
                         long outputs, long inputs, long first, long last, int half) {
    if (half)
        product_of(out, x, weight, residual, rows, outputs, inputs, first, last, 1);
    else
        product_of(out, x, weight, residual, rows, outputs, inputs, first, last, 0);
}

INLINE float gated(float gate, float up, int half) {
    gate = rounded(gate, half);
    return rounded(rounded(gate / (1 + expf(-gate)), half) * rounded(up, half), half);
}

INLINE void gated_of(float *out, const float *x, const void *gate, const void *up, long rows, long outputs,
                     long inputs, long first, long last, int half) {
    long step = (last - first + 1) / 2;
    for (long m = first; m < first + step; m++) {
        long other = m + step < last ? m + step : m;
        const void *from[STREAMS] = {stored(gate, m * inputs, half), stored(gate, other * inputs, half),
                                     stored(up, m * inputs, half), stored(up, other * inputs, half)};
        float found[BLOCK][STREAMS];
        for (long row = 0, done; row < rows; row += done) {
            done = some_dots(found, from, x + row * inputs, inputs, rows - row, half);
            for (int b = 0; b < done; b++) {
                out[(row + b) * outputs + m] = gated(found[b][0], found[b][2], half);
                out[(row + b) * outputs + other] = gated(found[b][1], found[b][3], half);
            }
        }
    }
}

EACH_PROCESSOR
static void gated_part(float *out, const float *x, const void *gate, const void *up, long rows, long outputs,
                       long inputs, long first, long last, int half) {
    if (half)
        gated_of(out, x, gate, up, rows, outputs, inputs, first, last, 1);
    else
        gated_of(out, x, gate, up, rows, outputs, inputs, first, last, 0);
}

#define NARROW 4 /* vectors of a value whose sums stay in registers */

/* What token `t` of a stream adds to the sums, from number `from` of its value on. */
INLINE void add_value(lanes *sums, const float *weights, const void *values, long t, long from, long width, int form) {
    const void *value = stored(values, t * step_of(width, form), form);
    float weight = weights[t] * scale_of(value, width, form);
    for (int v = 0; v < NARROW; v++) sums[v] += some_of(value, from + v * LANES, form) * weight;
}

/* Sum of all values, each times its weight, over `total`. */
INLINE void mix(float *out, const float *weights, float total, const void *values, long width, long count, int form,
                int half) {
    long step = (count + STREAMS - 1) / STREAMS, whole = count - (STREAMS - 1) * step, i = 0;
    for (; i + NARROW * LANES <= width; i += NARROW * LANES) {
        lanes sums[STREAMS][NARROW] = {0};
        long t = 0;
        for (; t < whole; t++)
            for (int s = 0; s < STREAMS; s++) add_value(sums[s], weights, values, t + s * step, i, width, form);
        for (; t < step; t++)
            for (int s = 0; s < STREAMS && t + s * step < count; s++)
                add_value(sums[s], weights, values, t + s * step, i, width, form);
        for (int v = 0; v < NARROW; v++) {
            lanes all = (sums[0][v] + sums[1][v] + sums[2][v] + sums[3][v]) / total;
            for (int j = 0; j < LANES; j++) out[i + v * LANES + j] = rounded(all[j], half);
        }
    }
    float sums[STREAMS][NARROW * LANES];
    memset(sums, 0, sizeof sums);
    for (long t = 0; i < width && t < step; t++)
        for (int s = 0; s < STREAMS && t + s * step < count; s++) {
            const void *value = stored(values, (t + s * step) * step_of(width, form), form);
            float weight = weights[t + s * step] * scale_of(value, width, form);
            for (long j = i; j < width; j++) sums[s][j - i] += one_of(value, j, form) * weight;
        }
    for (long j = i; j < width; j++)
        out[j] = rounded((sums[0][j - i] + sums[1][j - i] + sums[2][j - i] + sums[3][j - i]) / total, half);
}

INLINE void attend_at(float *out, float *scores, const float *query, const void *keys, const void *values,
                      const uint8_t *may_look, long width, long count, int form, int half) {
    float scale = 1 / sqrtf((float)width), highest = -INFINITY, total = 0;
    long step = (count + STREAMS - 1) / STREAMS;
    for (long t = 0; t < step; t++) {
        const void *from[STREAMS];
        float found[1][STREAMS];
        for (int s = 0; s < STREAMS; s++)
            from[s] = stored(keys, (t + s * step < count ? t + s * step : t) * step_of(width, form), form);
        dots(found, from, query, width, 1, form);
        for (int s = 0; s < STREAMS && t + s * step < count; s++)
            scores[t + s * step] = found[0][s] * (scale * scale_of(from[s], width, form));
    }
    for (long t = 0; may_look && t < count; t++)
        if (!may_look[t]) scores[t] = -INFINITY;
    for (long t = 0; t < count; t++) highest = scores[t] > highest ? scores[t] : highest;
    lanes totals = {0};
    long t = 0;
    for (; t + LANES <= count; t += LANES) totals += *(lanes *)(scores + t) = exp_of(at(scores + t) - highest);
    for (; t < count; t++) total += scores[t] = expf(scores[t] - highest);
    for (int i = 0; i < LANES; i++) total += totals[i];
    mix(out, scores, total, values, width, count, form, half);
}

EACH_PROCESSOR
static void attend_head(float *out, float *scores, const float *query, const void *keys, const void *values,
                        const uint8_t *may_look, long width, long count, int form, int half) {
    /* A width that is known is unrolled: those of the bundled model, of the benchmark, of LLaMA-7B. */
#define KNOWN(given_width, given_form) \
    if (width == given_width && form == given_form) \
        return attend_at(out, scores, query, keys, values, may_look, given_width, count, given_form, half)
    KNOWN(24, SINGLE);
    KNOWN(64, SINGLE);
    KNOWN(128, SINGLE);
    KNOWN(128, HALF);
    KNOWN(64, BYTE);
    KNOWN(128, BYTE);
    if (form == BYTE) return attend_at(out, scores, query, keys, values, may_look, width, count, BYTE, half);
    if (form == HALF) return attend_at(out, scores, query, keys, values, may_look, width, count, HALF, half);
    attend_at(out, scores, query, keys, values, may_look, width, count, SINGLE, half);
}

/* How heads turn: the first `turned` of `width` numbers, neighbours together or the halves of them. */
typedef struct { const float *cos, *sin; long width, turned; int neighbours; } turns;

INLINE void turn_pair(float *to, const float *x, const float *cos, const float *sin, long a, long b) {
    float first = x[a], second = x[b];
    to[a] = first * cos[a] + second * sin[a];
    to[b] = second * cos[b] + first * sin[b];
}

/* x times cos, and x with its pairs exchanged times sin; the rest as it is. */
INLINE void turn(float *to, const float *x, const turns *by, long row, int half) {
    const float *cos = by->cos + row * by->turned, *sin = by->sin + row * by->turned;
    if (by->neighbours)
        for (long j = 0; j < by->turned / 2; j++) turn_pair(to, x, cos, sin, 2 * j, 2 * j + 1);
    else
        for (long j = 0; j < by->turned / 2; j++) turn_pair(to, x, cos, sin, j, j + by->turned / 2);
    for (long j = by->turned; j < by->width; j++) to[j] = x[j];
    for (long j = 0; j < by->width; j++) to[j] = rounded(to[j], half);
}

/* Puts the turned key and the value of a head into the caches, as vector number `now`. */
INLINE void keep(void *keys, void *values, long now, const float *key, const float *value, const turns *by, long row,
                 int form, int half) {
    float turned[MAX_WIDTH];
    long place = now * step_of(by->width, form);
    turn(turned, key, by, row, half);
    keep_vector((void *)stored(keys, place, form), turned, by->width, form);
    keep_vector((void *)stored(values, place, form), value, by->width, form);
}

/* The checksum of this file, by which an old build is told apart. */
unsigned native_source(void) { return SOURCE; }

void token_rms_norm(float *out, const float *x, const void *weight, float epsilon, long rows, long n, int half) {
    for (long row = 0; row < rows; row++, x += n, out += n) {
        float sum = 0;
        for (long i = 0; i < n; i++) sum += x[i] * x[i];
        float factor = 1 / sqrtf(sum / n + epsilon);
        for (long i = 0; i < n; i++) out[i] = rounded(x[i] * factor * one_of(weight, i, half), half);
    }
}

void token_product(float *out, const float *x, const void *weight, const float *residual, long rows, long outputs,
                   long inputs, int half, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int part = 0; part < threads; part++)
        product_part(out, x, weight, residual, rows, outputs, inputs, outputs * part / threads,
                     outputs * (part + 1) / threads, half);
}

void token_gated(float *out, const float *x, const void *gate, const void *up, long rows, long outputs, long inputs,
                 int half, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int part = 0; part < threads; part++)
        gated_part(out, x, gate, up, rows, outputs, inputs, outputs * part / threads, outputs * (part + 1) / threads,
                   half);
}

/* `mixed`: queries of `heads`, then keys and values of `groups` for each row; `heads / groups` queries share a key. The
   caches hold `columns` tokens for each row and group, `place` of them in front of the new one; `scores` is room for as
   many floats for each row and head; `form` is that of the caches. `may_look` has `mask_stride` bytes for each row, or 0: one line for all.

   Queries that share keys go through them one after the other on one thread, while those are near; with fewer such
   groups than threads, each on its own. */
void token_attend(float *out, const float *mixed, const float *cos, const float *sin, void *keys, void *values,
                  const uint8_t *may_look, float *scores, long rows, long heads, long groups, long width, long turned,
                  long place, long columns, long mask_stride, int neighbours, int form, int half, int threads) {
    const turns by = {cos, sin, width, turned, neighbours};
    long group = heads / groups, together = rows * groups >= threads ? group : 1, all = (heads + 2 * groups) * width;
    if (together < group)
        for (long one = 0; one < rows * groups; one++) {
            const float *key = mixed + one / groups * all + (heads + one % groups) * width;
            keep(keys, values, one * columns + place, key, key + groups * width, &by, one / groups, form, half);
        }
#pragma omp parallel for num_threads(threads) schedule(static)
    for (long one = 0; one < rows * heads / together; one++) {
        long first = one * together, row = first / heads, head = first % heads / group;
        long start = (row * groups + head) * columns, place_of = start * step_of(width, form);
        const float *part = mixed + row * all, *key = part + (heads + head) * width;
        if (together == group) keep(keys, values, start + place, key, key + groups * width, &by, row, form, half);
        for (long each = first; each < first + together; each++) {
            float query[MAX_WIDTH];
            turn(query, part + each % heads * width, &by, row, half);
            attend_head(out + each * width, scores + each * columns, query, stored(keys, place_of, form),
                        stored(values, place_of, form), may_look ? may_look + row * mask_stride : 0, width, place + 1,
                        form, half);
        }
    }
}
