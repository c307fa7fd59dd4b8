/* Products with weights of 8 or 4 bits on a CPU: what `quantised_kernels.py` calls.

   The inputs of a product are made integers, too: 32 at a time share a scale, so that a few large ones do not cost all
   others their precision. A product is then a sum of products of bytes, which processors with VNNI add up 64 at a time.
   Those multiply bytes without a sign with bytes that have one; so a weight is read as w + 128, and what that adds,
   128 times the sum of the inputs, is taken off from the start (`less`). All sums of bytes are exact in either form.

   Forms of weights, as `quantised.py` says:
     8 bits  int8 w for w * scale / 127, a scale for each row.
     4 bits  two nf4 codes a byte, the first in the upper half; a byte for the scale of 64 or 32 of them. The sixteen
             values are taken in steps of 1 / 127, which moves none by more than 1 / 254 of its block's largest.

   A thread reads its share of a matrix in STREAMS places at once, a row's sum depends neither on the
   number of threads nor on the other rows, `half` rounds results to bf16, and nothing is checked.

   Many inputs (a prompt) go another way: the weight is laid out anew, PANEL outputs side by side, so that the 32 products
   that share a scale are added as integers before they are scaled once. That takes fewer instructions for each product
   and some for each weight, so it pays from some dozens of inputs on. The sums are those above in another order. */

#include <math.h>
#include <stdint.h>
#include <string.h>

#if defined(__x86_64__) && defined(__GNUC__)
#include <immintrin.h>
#define X86 1
#define EACH_VECTOR __attribute__((target_clones("avx2", "default")))
#define WITH_VNNI __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")))
#else
#define X86 0
#define EACH_VECTOR
#endif
#if defined(__aarch64__)
#include <arm_neon.h>
#define ARM 1
#else
#define ARM 0
#endif
#if defined(__clang__)
#undef EACH_VECTOR
#define EACH_VECTOR
#endif
#define INLINE static inline __attribute__((always_inline))

#define STREAMS 4  /* rows of a weight that a thread reads at once */
#define BLOCK 4    /* inputs that go through the same weights at once */
#define SHARED 32  /* numbers of an input that share a scale: whole ones in each process's part of most models */
#define WIDE 128   /* what inputs are filled up to: a vector of bytes holds that many codes of 4 bits */
#define NEAR 16    /* inputs that stay in the nearest cache while a thread's share of the weight goes by */
#define AHEAD 512  /* bytes that are asked for before they are needed */
#define PANEL 32   /* outputs of a panel: two vectors of int32 */
#define AT_ONCE 6  /* inputs that go through a panel at once: their sums fill the registers */

/* nf4 (QLoRA, arXiv 2305.14314), times 127. */
static const int8_t NF4[16] = {-127, -88, -67, -50, -36, -23, -12, 0, 10, 20, 31, 43, 56, 71, 92, 127};

/* An input row as bytes. */
typedef struct {
    const int8_t *bytes;  /* filled up with 0; for 4 bits the even ones of each WIDE in front of the odd ones */
    const int32_t *less;  /* for each vector of int32, -128 times the sums of the bytes that end there */
    const float *scales;  /* of the inputs whose products end in each of these */
} Input;

/* A weight. */
typedef struct {
    const uint8_t *codes;
    const void *scales;       /* of 8 bits: a float for each row; of 4 bits: a byte for each block */
    const float *scale_table; /* what such a byte means */
    long inputs, block;
    int bits;
} Weight;

/* To the nearest bf16, to the even one of two, as torch. */
INLINE uint16_t half_of(float x) {
    union { float number; uint32_t bits; } given = {x};
    if (x != x) return 0x7fc0;
    return (uint16_t)((given.bits + 0x7fff + (given.bits >> 16 & 1)) >> 16);
}

INLINE float rounded(float x, int half) {
    if (!half) return x;
    union { uint32_t bits; float number; } found = {(uint32_t)half_of(x) << 16};
    return found.number;
}

INLINE long filled_up(long n) { return (n + WIDE - 1) / WIDE * WIDE; }

/* The scale of input `i`. */
INLINE float scale_at(Input x, long i, int bits) { return x.scales[bits == 8 ? i / 4 : i / 8]; }

INLINE long row_bytes(const Weight *w) { return w->bits == 8 ? w->inputs : w->inputs / 2; }

INLINE Input input_at(const int8_t *bytes, const int32_t *less, const float *scales, long row, long inputs, int bits) {
    long width = filled_up(inputs), sums = bits == 8 ? width / 4 : width / 8;
    Input found = {bytes + row * width, less + row * sums, scales + row * sums};
    return found;
}

/* The plain form. */
INLINE float plain_dot(const Weight *w, long row, Input x) {
    const uint8_t *codes = w->codes + row * row_bytes(w);
    float found = 0;
    if (w->bits == 8) {
        const int8_t *weight = (const int8_t *)codes;
        for (long start = 0; start < w->inputs; start += SHARED) {
            long stop = start + SHARED < w->inputs ? start + SHARED : w->inputs;
            int32_t sum = 0;
            for (long i = start; i < stop; i++) sum += (int32_t)weight[i] * x.bytes[i];
            found += (float)sum * scale_at(x, start, 8);
        }
        return found * (((const float *)w->scales)[row] / 127);
    }
    const uint8_t *scales = (const uint8_t *)w->scales + row * (w->inputs / w->block);
    for (long start = 0; start < w->inputs; start += SHARED) {
        long first = start / WIDE * WIDE + start % WIDE / 2;
        const int8_t *even = x.bytes + first, *odd = even + WIDE / 2;
        int32_t sum = 0;
        for (long i = 0; i < SHARED / 2; i++) {
            uint8_t code = codes[start / 2 + i];
            sum += (int32_t)NF4[code >> 4] * even[i] + (int32_t)NF4[code & 15] * odd[i];
        }
        found += (float)sum * (w->scale_table[scales[start / w->block]] * scale_at(x, start, 4));
    }
    return found / 127;
}

INLINE void plain_dots(float found[BLOCK][STREAMS], const Weight *const weights[STREAMS], const long rows[STREAMS],
                       const Input *x, int count) {
    for (int b = 0; b < count; b++)
        for (int s = 0; s < STREAMS; s++) found[b][s] = plain_dot(weights[s], rows[s], x[b]);
}

#if X86
#include "quantised_kernels_avx2.h"
#include "quantised_kernels_avx512.h"
#elif ARM
#include "quantised_kernels_neon.h"
#endif

static void other_dots(float found[BLOCK][STREAMS], const Weight *const weights[STREAMS], const long rows[STREAMS],
                       const Input *x, int count) {
    plain_dots(found, weights, rows, x, count);
}

/* What a processor may have. */
enum { PLAIN = 0, AVX2 = 1, NEON = 1, VNNI = 2 };

static int most = VNNI;

/* For tests: products take at most this. */
void quantised_most(int allowed) { most = allowed; }

/* The best that this processor has, and may take. */
static int instructions(void) {
#if X86
    if (most >= VNNI && __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512dq")) return VNNI;
    if (most >= AVX2 && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return AVX2;
#endif
    return ARM && most >= NEON ? NEON : PLAIN;
}

static void some_dots(float found[BLOCK][STREAMS], const Weight *const weights[STREAMS], const long rows[STREAMS],
                      const Input *x, int count) {
#if X86
    if (instructions() == VNNI) return vnni_dots(found, weights, rows, x, count);
    if (instructions() == AVX2) return avx2_dots(found, weights, rows, x, count);
#elif ARM
    if (instructions() == NEON) return arm_dots(found, weights, rows, x, count);
#endif
    other_dots(found, weights, rows, x, count);
}

INLINE int next_count(long left) { return left >= 4 ? 4 : left >= 2 ? 2 : 1; }

INLINE float gated(float gate, float up, int half) {
    gate = rounded(gate, half);
    return rounded(rounded(gate / (1 + expf(-gate)), half) * rounded(up, half), half);
}

/* Outputs `first` to `last` for the inputs `from` to `to`. */
static void product_part(float *out, const int8_t *bytes, const int32_t *less, const float *scales, const Weight *w,
                         const float *residual, long from, long to, long outputs, long first, long last, int half) {
    const Weight *weights[STREAMS] = {w, w, w, w};
    long step = (last - first + STREAMS - 1) / STREAMS;
    for (long m = first; m < first + step; m++) {
        long at[STREAMS];
        for (int s = 0; s < STREAMS; s++) at[s] = m + s * step < last ? m + s * step : m;
        for (long row = from, count; row < to; row += count) {
            Input x[BLOCK];
            float found[BLOCK][STREAMS];
            count = next_count(to - row);
            for (long b = 0; b < count; b++) x[b] = input_at(bytes, less, scales, row + b, w->inputs, w->bits);
            some_dots(found, weights, at, x, (int)count);
            for (long b = 0; b < count; b++)
                for (int s = 0; s < STREAMS && m + s * step < last; s++) {
                    long place = (row + b) * outputs + m + s * step;
                    float sum = rounded(found[b][s], half);
                    out[place] = residual ? rounded(residual[place] + sum, half) : sum;
                }
        }
    }
}

static void gated_part(float *out, const int8_t *bytes, const int32_t *less, const float *scales, const Weight *gate,
                       const Weight *up, long from, long to, long outputs, long first, long last, int half) {
    const Weight *weights[STREAMS] = {gate, gate, up, up};
    long step = (last - first + 1) / 2;
    for (long m = first; m < first + step; m++) {
        long other = m + step < last ? m + step : m, at[STREAMS] = {m, other, m, other};
        for (long row = from, count; row < to; row += count) {
            Input x[BLOCK];
            float found[BLOCK][STREAMS];
            count = next_count(to - row);
            for (long b = 0; b < count; b++) x[b] = input_at(bytes, less, scales, row + b, gate->inputs, gate->bits);
            some_dots(found, weights, at, x, (int)count);
            for (long b = 0; b < count; b++) {
                out[(row + b) * outputs + m] = gated(found[b][0], found[b][2], half);
                out[(row + b) * outputs + other] = gated(found[b][1], found[b][3], half);
            }
        }
    }
}

/* One input row as bytes, for products whose integers add up `each` numbers: 4 for weights of 8 bits, 8 for those of 4,
   SHARED for panels of either. */
EACH_VECTOR
static void quantise_row(int8_t *bytes, int32_t *less, float *scales, const float *x, long n, int each) {
    long width = filled_up(n);
    int8_t plain[WIDE];
    for (long start = 0; start < width; start += WIDE) {
        memset(plain, 0, sizeof plain);
        for (long part = 0; part < WIDE; part += SHARED) {
            long first = start + part, count = n - first < SHARED ? n - first : SHARED; /* 0 or less: nothing is left */
            float largest = 0;
            for (long i = 0; i < count; i++) largest = fabsf(x[first + i]) > largest ? fabsf(x[first + i]) : largest;
            float factor = largest > 0 ? 127 / largest : 0;
            for (long i = 0; i < count; i++) plain[part + i] = (int8_t)(int)rintf(x[first + i] * factor);
            float scale = largest / 127;
            for (long i = 0; i < count; i++) /* an input that is no number makes results that are none */
                if (!(fabsf(x[first + i]) <= 3.4e38f)) scale = NAN;
            for (long i = 0; i < SHARED / each; i++) scales[first / each + i] = scale;
        }
        if (each != 8) {
            memcpy(bytes + start, plain, WIDE);
            continue;
        }
        for (long i = 0; i < WIDE / 2; i++) bytes[start + i] = plain[2 * i];
        for (long i = 0; i < WIDE / 2; i++) bytes[start + WIDE / 2 + i] = plain[2 * i + 1];
    }
    for (long lane = 0; lane < width / each; lane++) {
        int32_t sum = 0;
        if (each == 8) {
            const int8_t *even = bytes + lane / 16 * WIDE + lane % 16 * 4, *odd = even + WIDE / 2;
            for (long i = 0; i < 4; i++) sum += even[i] + odd[i];
        } else {
            for (long i = 0; i < each; i++) sum += bytes[lane * each + i];
        }
        less[lane] = -128 * sum;
    }
}

/* x [rows, n] as bytes [rows, filled up], what VNNI takes off, and scales; `each` as above. */
void quantised_inputs(int8_t *bytes, int32_t *less, float *scales, const float *x, long rows, long n, int each,
                      int threads) {
    long width = filled_up(n), sums = width / each;
#pragma omp parallel for num_threads(threads) schedule(static) if (rows > NEAR)
    for (long row = 0; row < rows; row++)
        quantise_row(bytes + row * width, less + row * sums, scales + row * sums, x + row * n, n, each);
}

void quantised_product(float *out, const int8_t *bytes, const int32_t *less, const float *scales,
                       const uint8_t *codes, const void *weight_scales, const float *scale_table,
                       const float *residual, long rows, long outputs, long inputs, long block, int bits, int half,
                       int threads) {
    Weight w = {codes, weight_scales, scale_table, inputs, block, bits};
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int part = 0; part < threads; part++)
        for (long row = 0; row < rows; row += NEAR)
            product_part(out, bytes, less, scales, &w, residual, row, row + NEAR < rows ? row + NEAR : rows, outputs,
                         outputs * part / threads, outputs * (part + 1) / threads, half);
}

void quantised_gated(float *out, const int8_t *bytes, const int32_t *less, const float *scales, const uint8_t *gate,
                     const void *gate_scales, const uint8_t *up, const void *up_scales, const float *scale_table,
                     long rows, long outputs, long inputs, long block, int bits, int half, int threads) {
    Weight first = {gate, gate_scales, scale_table, inputs, block, bits};
    Weight second = {up, up_scales, scale_table, inputs, block, bits};
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int part = 0; part < threads; part++)
        for (long row = 0; row < rows; row += NEAR)
            gated_part(out, bytes, less, scales, &first, &second, row, row + NEAR < rows ? row + NEAR : rows, outputs,
                       outputs * part / threads, outputs * (part + 1) / threads, half);
}

/* Whether this processor takes many inputs panel by panel. */
int quantised_has_panels(void) { return instructions() == VNNI; }

/* As `quantised_product`, without residual and rounding; inputs in runs of SHARED. A thread lays its panels out in
   `room` [threads, inputs filled up, PANEL + 4]: bytes, and a float for each SHARED of them. */
void quantised_panels(float *out, const int8_t *bytes, const int32_t *less, const float *scales, const uint8_t *codes,
                      const void *weight_scales, const float *scale_table, uint8_t *room, long rows, long outputs,
                      long inputs, long block, int bits, int threads) {
#if X86
    Weight w = {codes, weight_scales, scale_table, inputs, block, bits};
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int part = 0; part < threads; part++)
        for (long first = part * PANEL; first < outputs; first += threads * PANEL)
            panel_product(out, bytes, less, scales, &w, room + part * filled_up(inputs) * (PANEL + 4),
                          rows, outputs, first);
#endif
}

/* The checksum of this file, by which an old build is told apart. */
unsigned quantised_kernels_source(void) { return SOURCE; }
