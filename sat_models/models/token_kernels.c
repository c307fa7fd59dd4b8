/* One token through the products and the attention of a LLaMA on a CPU, in fp32: what `token_kernels.py` calls.

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
#define AHEAD 128   /* floats that are asked for before they are needed */
#define MAX_WIDTH 256 /* of a head */

#if defined(__x86_64__) && defined(__GLIBC__) && !defined(__clang__)
#define EACH_PROCESSOR __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define EACH_PROCESSOR
#endif
#define INLINE static inline __attribute__((always_inline))

typedef float lanes __attribute__((vector_size(4 * LANES), aligned(4), may_alias));

#ifdef __clang__
#define ROTATED(v, ...) __builtin_shufflevector(v, v, __VA_ARGS__)
#else
typedef int places __attribute__((vector_size(4 * LANES)));
#define ROTATED(v, ...) __builtin_shuffle(v, (places){__VA_ARGS__})
#endif

INLINE lanes at(const float *x) { return *(const lanes *)x; }

INLINE float sum_of(lanes v) {
    v += ROTATED(v, 8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7);
    v += ROTATED(v, 4, 5, 6, 7, 0, 1, 2, 3, 12, 13, 14, 15, 8, 9, 10, 11);
    v += ROTATED(v, 2, 3, 0, 1, 6, 7, 4, 5, 10, 11, 8, 9, 14, 15, 12, 13);
    v += ROTATED(v, 1, 0, 3, 2, 5, 4, 7, 6, 9, 8, 11, 10, 13, 12, 15, 14);
    return v[0];
}

/* Products of STREAMS rows with x, n floats each. */
INLINE void dots(float out[STREAMS], const float *const rows[STREAMS], const float *x, long n) {
    lanes sums[STREAMS] = {0};
    long i = 0;
    for (; i + LANES <= n; i += LANES)
        for (int s = 0; s < STREAMS; s++) {
            __builtin_prefetch(rows[s] + i + AHEAD);
            sums[s] += at(rows[s] + i) * at(x + i);
        }
    for (int s = 0; s < STREAMS; s++) out[s] = sum_of(sums[s]);
    for (; i < n; i++)
        for (int s = 0; s < STREAMS; s++) out[s] += rows[s][i] * x[i];
}

EACH_PROCESSOR
static void product_part(float *out, const float *x, const float *weight, const float *residual, long inputs,
                         long first, long last) {
    long step = (last - first + STREAMS - 1) / STREAMS;
    for (long r = first; r < first + step; r++) {
        const float *rows[STREAMS];
        float found[STREAMS];
        for (int s = 0; s < STREAMS; s++) rows[s] = weight + (r + s * step < last ? r + s * step : r) * inputs;
        dots(found, rows, x, inputs);
        for (int s = 0; s < STREAMS && r + s * step < last; s++)
            out[r + s * step] = residual ? residual[r + s * step] + found[s] : found[s];
    }
}

EACH_PROCESSOR
static void gated_part(float *out, const float *x, const float *gate, const float *up, long inputs, long first,
                       long last) {
    long step = (last - first + 1) / 2;
    for (long r = first; r < first + step; r++) {
        long other = r + step < last ? r + step : r;
        const float *rows[STREAMS] = {gate + r * inputs, gate + other * inputs, up + r * inputs, up + other * inputs};
        float found[STREAMS];
        dots(found, rows, x, inputs);
        out[r] = found[0] / (1 + expf(-found[0])) * found[2];
        out[other] = found[1] / (1 + expf(-found[1])) * found[3];
    }
}

/* Sum of all values, each times its weight, over `total`. */
INLINE void mix(float *out, const float *weights, float total, const float *values, long width, long count) {
    lanes sums[STREAMS][MAX_WIDTH / LANES];
    long step = (count + STREAMS - 1) / STREAMS, whole = width / LANES;
    memset(sums, 0, sizeof sums);
    for (long t = 0; t < step; t++)
        for (int s = 0; s < STREAMS && t + s * step < count; s++)
            for (long part = 0; part < whole; part++)
                sums[s][part] += at(values + (t + s * step) * width + part * LANES) * weights[t + s * step];
    for (long part = 0; part < whole; part++) {
        lanes sum = sums[0][part];
        for (int s = 1; s < STREAMS; s++) sum += sums[s][part];
        *(lanes *)(out + part * LANES) = sum / total;
    }
    for (long i = whole * LANES; i < width; i++) {
        float sum = 0;
        for (long t = 0; t < count; t++) sum += values[t * width + i] * weights[t];
        out[i] = sum / total;
    }
}

EACH_PROCESSOR
static void attend_head(float *out, float *scores, const float *query, const float *keys, const float *values,
                        const uint8_t *may_look, long width, long count) {
    float scale = 1 / sqrtf((float)width), highest = -INFINITY, total = 0;
    long step = (count + STREAMS - 1) / STREAMS;
    for (long t = 0; t < step; t++) {
        const float *rows[STREAMS];
        float found[STREAMS];
        for (int s = 0; s < STREAMS; s++) rows[s] = keys + (t + s * step < count ? t + s * step : t) * width;
        dots(found, rows, query, width);
        for (int s = 0; s < STREAMS && t + s * step < count; s++) scores[t + s * step] = found[s] * scale;
    }
    for (long t = 0; may_look && t < count; t++)
        if (!may_look[t]) scores[t] = -INFINITY;
    for (long t = 0; t < count; t++) highest = scores[t] > highest ? scores[t] : highest;
    for (long t = 0; t < count; t++) total += scores[t] = expf(scores[t] - highest);
    if (width == 64)
        mix(out, scores, total, values, 64, count); /* a width that is known is unrolled */
    else if (width == 128)
        mix(out, scores, total, values, 128, count);
    else
        mix(out, scores, total, values, width, count);
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

void token_rms_norm(float *out, const float *x, const float *weight, float epsilon, long n) {
    float sum = 0;
    for (long i = 0; i < n; i++) sum += x[i] * x[i];
    float factor = 1 / sqrtf(sum / n + epsilon);
    for (long i = 0; i < n; i++) out[i] = x[i] * factor * weight[i];
}

void token_product(float *out, const float *x, const float *weight, const float *residual, long outputs, long inputs,
                   int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int part = 0; part < threads; part++)
        product_part(out, x, weight, residual, inputs, outputs * part / threads, outputs * (part + 1) / threads);
}

void token_gated(float *out, const float *x, const float *gate, const float *up, long outputs, long inputs,
                 int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int part = 0; part < threads; part++)
        gated_part(out, x, gate, up, inputs, outputs * part / threads, outputs * (part + 1) / threads);
}

/* `mixed`: queries, keys and values of all heads. The caches hold `columns` tokens for each head, `place` of them in
   front of the new one; `scores` is room for as many floats. */
void token_attend(float *out, const float *mixed, const float *cos, const float *sin, float *keys, float *values,
                  const uint8_t *may_look, float *scores, long heads, long width, long place, long columns,
                  int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (long head = 0; head < heads; head++) {
        float query[MAX_WIDTH], *key = keys + head * columns * width, *value = values + head * columns * width;
        turn(query, mixed + head * width, cos, sin, width);
        turn(key + place * width, mixed + (heads + head) * width, cos, sin, width);
        memcpy(value + place * width, mixed + (2 * heads + head) * width, sizeof(float) * width);
        attend_head(out + head * width, scores + head * columns, query, key, value, may_look, width, place + 1);
    }
}
