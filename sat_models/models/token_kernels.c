/* One token per row through the products and the attention of a LLaMA on a CPU, in fp32: what `token_kernels.py` calls.

   A decode step reads every weight and the cache once, so it is as fast as memory is read. A core reads faster from
   several places at once than from one, so each thread goes through its share of the rows of a matrix in STREAMS
   places, and asks for what it needs a little later. A row's sum does not depend on the number of threads.

   Vectors are written in the language extension that GCC and Clang share and compiled for several processors; which
   one is here is found out when the library is loaded. Nothing is checked: the callers know their tensors. */

#include <math.h>
#include <stdint.h>
#include <string.h>

#define LAYOUT 1    /* what the functions take; token_kernels.py compares, so that an old build is not called */
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

#ifdef __clang__
#define CHOSEN(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define CHOSEN(a, b, ...) __builtin_shuffle(a, b, (places){__VA_ARGS__})
#endif

INLINE lanes at(const float *x) { return *(const lanes *)x; }

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
    x = (lanes)(((places)x & ~tiny) | ((places)(lanes)(x * 0 - 87.0f) & tiny));
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
INLINE void dots(float found[][STREAMS], const float *const weight[STREAMS], const float *x, long n, int count) {
    lanes sums[BLOCK][STREAMS] = {0};
    long i = 0;
    for (; i + LANES <= n; i += LANES) {
        for (int s = 0; s < STREAMS; s++) __builtin_prefetch(weight[s] + i + AHEAD);
        for (int b = 0; b < count; b++)
            for (int s = 0; s < STREAMS; s++) sums[b][s] += at(weight[s] + i) * at(x + b * n + i);
    }
    for (int b = 0; b < count; b++) {
        lanes four = sums_of(sums[b][0], sums[b][1], sums[b][2], sums[b][3]);
        for (int s = 0; s < STREAMS; s++) {
            found[b][s] = four[4 * s];
            for (long rest = i; rest < n; rest++) found[b][s] += weight[s][rest] * x[b * n + rest];
        }
    }
}

/* The same for the next inputs, at most BLOCK; how many they were. */
INLINE int some_dots(float found[][STREAMS], const float *const weight[STREAMS], const float *x, long n, long left) {
    if (left >= 4) return dots(found, weight, x, n, 4), 4;
    if (left >= 2) return dots(found, weight, x, n, 2), 2;
    return dots(found, weight, x, n, 1), 1;
}

/* Columns `first` to `last` of the result, for all rows. */
EACH_PROCESSOR
static void product_part(float *out, const float *x, const float *weight, const float *residual, long rows,
                         long outputs, long inputs, long first, long last) {
    long step = (last - first + STREAMS - 1) / STREAMS;
    for (long m = first; m < first + step; m++) {
        const float *from[STREAMS];
        float found[BLOCK][STREAMS];
        for (int s = 0; s < STREAMS; s++) from[s] = weight + (m + s * step < last ? m + s * step : m) * inputs;
        for (long row = 0, done; row < rows; row += done) {
            done = some_dots(found, from, x + row * inputs, inputs, rows - row);
            for (int b = 0; b < done; b++)
                for (int s = 0; s < STREAMS && m + s * step < last; s++) {
                    long place = (row + b) * outputs + m + s * step;
                    out[place] = residual ? residual[place] + found[b][s] : found[b][s];
                }
        }
    }
}

EACH_PROCESSOR
static void gated_part(float *out, const float *x, const float *gate, const float *up, long rows, long outputs,
                       long inputs, long first, long last) {
    long step = (last - first + 1) / 2;
    for (long m = first; m < first + step; m++) {
        long other = m + step < last ? m + step : m;
        const float *from[STREAMS] = {gate + m * inputs, gate + other * inputs, up + m * inputs, up + other * inputs};
        float found[BLOCK][STREAMS];
        for (long row = 0, done; row < rows; row += done) {
            done = some_dots(found, from, x + row * inputs, inputs, rows - row);
            for (int b = 0; b < done; b++) {
                float *to = out + (row + b) * outputs, *sums = found[b];
                to[m] = sums[0] / (1 + expf(-sums[0])) * sums[2];
                to[other] = sums[1] / (1 + expf(-sums[1])) * sums[3];
            }
        }
    }
}

/* Sum of all values, each times its weight, over `total`. */
INLINE void mix(float *out, const float *weights, float total, const float *values, long width, long count) {
    float sums[STREAMS][MAX_WIDTH];
    long step = (count + STREAMS - 1) / STREAMS;
    memset(sums, 0, sizeof sums);
    for (long t = 0; t < step; t++)
        for (int s = 0; s < STREAMS && t + s * step < count; s++) {
            const float *value = values + (t + s * step) * width;
            for (long i = 0; i < width; i++) sums[s][i] += value[i] * weights[t + s * step];
        }
    for (long i = 0; i < width; i++) out[i] = (sums[0][i] + sums[1][i] + sums[2][i] + sums[3][i]) / total;
}

INLINE void attend_at(float *out, float *scores, const float *query, const float *keys, const float *values,
                      const uint8_t *may_look, long width, long count) {
    float scale = 1 / sqrtf((float)width), highest = -INFINITY, total = 0;
    long step = (count + STREAMS - 1) / STREAMS;
    for (long t = 0; t < step; t++) {
        const float *from[STREAMS];
        float found[1][STREAMS];
        for (int s = 0; s < STREAMS; s++) from[s] = keys + (t + s * step < count ? t + s * step : t) * width;
        dots(found, from, query, width, 1);
        for (int s = 0; s < STREAMS && t + s * step < count; s++) scores[t + s * step] = found[0][s] * scale;
    }
    for (long t = 0; may_look && t < count; t++)
        if (!may_look[t]) scores[t] = -INFINITY;
    for (long t = 0; t < count; t++) highest = scores[t] > highest ? scores[t] : highest;
    lanes totals = {0};
    long t = 0;
    for (; t + LANES <= count; t += LANES) totals += *(lanes *)(scores + t) = exp_of(at(scores + t) - highest);
    for (; t < count; t++) total += scores[t] = expf(scores[t] - highest);
    for (int i = 0; i < LANES; i++) total += totals[i];
    mix(out, scores, total, values, width, count);
}

EACH_PROCESSOR
static void attend_head(float *out, float *scores, const float *query, const float *keys, const float *values,
                        const uint8_t *may_look, long width, long count) {
    switch (width) { /* of the bundled model, of the benchmark, of LLaMA-7B: a width that is known is unrolled */
    case 24: return attend_at(out, scores, query, keys, values, may_look, 24, count);
    case 64: return attend_at(out, scores, query, keys, values, may_look, 64, count);
    case 128: return attend_at(out, scores, query, keys, values, may_look, 128, count);
    default: return attend_at(out, scores, query, keys, values, may_look, width, count);
    }
}

/* x times cos, and x with its halves exchanged times sin. */
INLINE void turn(float *out, const float *x, const float *cos, const float *sin, long width) {
    long half = width / 2;
    for (long i = 0; i < half; i++) {
        float first = x[i], second = x[i + half];
        out[i] = first * cos[i] + second * sin[i];
        out[i + half] = second * cos[i + half] + first * sin[i + half];
    }
}

int token_kernels_layout(void) { return LAYOUT; }

void token_rms_norm(float *out, const float *x, const float *weight, float epsilon, long rows, long n) {
    for (long row = 0; row < rows; row++, x += n, out += n) {
        float sum = 0;
        for (long i = 0; i < n; i++) sum += x[i] * x[i];
        float factor = 1 / sqrtf(sum / n + epsilon);
        for (long i = 0; i < n; i++) out[i] = x[i] * factor * weight[i];
    }
}

void token_product(float *out, const float *x, const float *weight, const float *residual, long rows, long outputs,
                   long inputs, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int part = 0; part < threads; part++)
        product_part(out, x, weight, residual, rows, outputs, inputs, outputs * part / threads,
                     outputs * (part + 1) / threads);
}

void token_gated(float *out, const float *x, const float *gate, const float *up, long rows, long outputs, long inputs,
                 int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int part = 0; part < threads; part++)
        gated_part(out, x, gate, up, rows, outputs, inputs, outputs * part / threads, outputs * (part + 1) / threads);
}

/* `mixed`: queries, keys and values of all heads of each row. The caches hold `columns` tokens for each row and head,
   `place` of them in front of the new one; `scores` is room for as many floats. `may_look` has `mask_stride` bytes
   for each row, or 0: one line for all. */
void token_attend(float *out, const float *mixed, const float *cos, const float *sin, float *keys, float *values,
                  const uint8_t *may_look, float *scores, long rows, long heads, long width, long place, long columns,
                  long mask_stride, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (long one = 0; one < rows * heads; one++) {
        long row = one / heads, head = one % heads;
        const float *part = mixed + (3 * row * heads + head) * width;
        float query[MAX_WIDTH], *key = keys + one * columns * width, *value = values + one * columns * width;
        turn(query, part, cos + row * width, sin + row * width, width);
        turn(key + place * width, part + heads * width, cos + row * width, sin + row * width, width);
        memcpy(value + place * width, part + 2 * heads * width, sizeof(float) * width);
        attend_head(out + one * width, scores + one * columns, query, key, value,
                    may_look ? may_look + row * mask_stride : 0, width, place + 1);
    }
}
