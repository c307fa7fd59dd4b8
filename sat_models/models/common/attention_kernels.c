/* Causal attention with its gradients on a CPU, in fp32: what `attention_kernels.py` calls.

   A thread takes a head, and in it TILE queries at a time with the keys that they may see. Everything is one product of
   small matrices (`product`) on numbers that lie in the caches; no product is made of what the mask hides, tiles on the
   diagonal apart. The gradients begin with the shares again, from the logarithm of each query's sum (as in
   FlashAttention, arXiv 2205.14135); only that is kept.

   Legend: S positions, H head dim (a multiple of LANES), T queries of a tile. Numbers of a head's position lie side by
   side; `step` is how far it is to the next position. Nothing is checked: the caller knows its tensors. */

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define LANES 16 /* floats of a vector */
#define PANEL 32 /* keys side by side */
#define TILE 64  /* queries at a time */
#define ROWS 4   /* rows of a result at a time */

#if defined(__x86_64__) && defined(__GLIBC__) && !defined(__clang__)
#define EACH_PROCESSOR __attribute__((target_clones("avx512f", "default")))
#define PAYS __builtin_cpu_supports("avx512f")
#else
#define EACH_PROCESSOR
#define PAYS 0
#endif
#define INLINE static inline __attribute__((always_inline))

typedef float lanes __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef int places __attribute__((vector_size(4 * LANES), aligned(4), may_alias));

/* A matrix of a head: [S, H]. */
typedef struct { float *at; long step; } matrix;

/* Tensors are [B, N, S, H]: how far it is to the next row, head and position, in floats. */
typedef struct { float *at; long row, head, step; } tensor;

INLINE matrix head_of(tensor x, long row, long head) { return (matrix){x.at + row * x.row + head * x.head, x.step}; }

INLINE long least(long a, long b) { return a < b ? a : b; }

/* 2^x for x <= 0; below 2^-126 nothing. The series of 2^f, |f| <= 1/2, ends below a rounding. */
INLINE lanes two_to(lanes x) {
    places tiny = x < -126.0f;
    x = (lanes)((places)x & ~tiny);
    places n = __builtin_convertvector(x - 0.5f, places);
    lanes f = x - __builtin_convertvector(n, lanes);
    lanes series = f * 1.540353e-4f + 1.3333558e-3f;
    series = series * f + 9.6181291e-3f;
    series = series * f + 5.5504109e-2f;
    series = series * f + 0.24022651f;
    series = series * f + 0.69314718f;
    series = series * f + 1;
    series *= (lanes)((n + 127) << 23);
    return (lanes)((places)series & ~tiny);
}

/* `rows` x `vectors` numbers of a product: c (+)= Σ a(i, k) b(k, ·). `rows` and `vectors` are constants. */
INLINE void corner(float *c, long c_step, const float *a, long a_row, long a_step, const float *b, long b_step,
                   long count, int rows, int vectors, int add) {
    lanes sums[ROWS][2];
    for (int i = 0; i < rows; i++)
        for (int j = 0; j < vectors; j++)
            sums[i][j] = add ? *(const lanes *)(c + i * c_step + j * LANES) : (lanes){0};
    for (long k = 0; k < count; k++) {
        lanes right[2];
        for (int j = 0; j < vectors; j++) right[j] = *(const lanes *)(b + k * b_step + j * LANES);
        for (int i = 0; i < rows; i++)
            for (int j = 0; j < vectors; j++) sums[i][j] += a[i * a_row + k * a_step] * right[j];
    }
    for (int i = 0; i < rows; i++)
        for (int j = 0; j < vectors; j++) *(lanes *)(c + i * c_step + j * LANES) = sums[i][j];
}

/* c [rows, width] (+)= a [rows, count] b [count, width]; `width` is a multiple of LANES. */
INLINE void product(float *c, long c_step, const float *a, long a_row, long a_step, const float *b, long b_step,
                    long rows, long count, long width, int add) {
    for (long j = 0; j < width; j += 2 * LANES) {
        int narrow = j + LANES == width;
        long i = 0;
        for (; i + ROWS <= rows; i += ROWS) {
            float *here = c + i * c_step + j;
            const float *left = a + i * a_row;
            if (narrow) corner(here, c_step, left, a_row, a_step, b + j, b_step, count, ROWS, 1, add);
            else corner(here, c_step, left, a_row, a_step, b + j, b_step, count, ROWS, 2, add);
        }
        for (; i < rows; i++) {
            float *here = c + i * c_step + j;
            const float *left = a + i * a_row;
            if (narrow) corner(here, c_step, left, a_row, a_step, b + j, b_step, count, 1, 1, add);
            else corner(here, c_step, left, a_row, a_step, b + j, b_step, count, 1, 2, add);
        }
    }
}

/* [S, H] turned, PANEL positions to a panel: [panels, H, PANEL]; what is behind S is 0. */
INLINE void turn(float *to, matrix x, long positions, long width) {
    for (long start = 0; start < positions; start += PANEL, to += width * PANEL)
        for (long h = 0; h < width; h++)
            for (long j = 0; j < PANEL; j++)
                to[h * PANEL + j] = start + j < positions ? x.at[(start + j) * x.step + h] : 0;
}

/* [rows, columns] = x [rows, H] times turned keys; `columns` is a multiple of PANEL. */
INLINE void meet(float *to, long to_step, const float *x, long x_step, const float *turned, long rows, long columns,
                 long width) {
    for (long start = 0; start < columns; start += PANEL)
        product(to + start, to_step, x, x_step, 1, turned + start * width, PANEL, rows, width, PANEL, 0);
}

/* Scores of a query, in powers of two, become its shares, 0 from `seen` to `columns`; returns the logarithm of their
   sum. */
INLINE float share(float *scores, long seen, long columns, float factor) {
    float highest = -INFINITY, total = 0;
    lanes most = (lanes){0} + highest, totals = {0};
    for (long t = seen; t < columns; t++) scores[t] = -INFINITY;
    for (long t = 0; t < columns; t += LANES) {
        lanes here = *(lanes *)(scores + t);
        places more = here > most;
        most = (lanes)(((places)here & more) | ((places)most & ~more));
    }
    for (int i = 0; i < LANES; i++) highest = most[i] > highest ? most[i] : highest;
    for (long t = 0; t < columns; t += LANES)
        totals += *(lanes *)(scores + t) = two_to((*(lanes *)(scores + t) - highest) * factor);
    for (int i = 0; i < LANES; i++) total += totals[i];
    for (long t = 0; t < columns; t += LANES) *(lanes *)(scores + t) *= 1 / total;
    return highest * factor + log2f(total);
}

/* The same shares again, from that logarithm. */
INLINE void share_again(float *scores, long seen, long columns, float factor, float logarithm) {
    for (long t = seen; t < columns; t++) scores[t] = -INFINITY;
    for (long t = 0; t < columns; t += LANES)
        *(lanes *)(scores + t) = two_to(*(lanes *)(scores + t) * factor - logarithm);
}

/* Gradients of shares become those of scores. */
INLINE void through_softmax(float *gradients, const float *shares, long columns, float scale) {
    lanes sums = {0};
    float along = 0;
    for (long t = 0; t < columns; t += LANES) sums += *(lanes *)(gradients + t) * *(const lanes *)(shares + t);
    for (int i = 0; i < LANES; i++) along += sums[i];
    for (long t = 0; t < columns; t += LANES)
        *(lanes *)(gradients + t) = (*(lanes *)(gradients + t) - along) * *(const lanes *)(shares + t) * scale;
}

EACH_PROCESSOR static void attend_head(matrix out, float *logarithms, matrix q, matrix k, matrix v, long positions,
                                       long width, float scale, float *space) {
    long padded = (positions + PANEL - 1) / PANEL * PANEL;
    float *keys = space, *scores = keys + padded * width, factor = scale * 1.44269504f;
    turn(keys, k, positions, width);
    for (long start = 0; start < positions; start += TILE) {
        long rows = least(TILE, positions - start), seen = start + rows, columns = (seen + PANEL - 1) / PANEL * PANEL;
        meet(scores, padded, q.at + start * q.step, q.step, keys, rows, columns, width);
        for (long i = 0; i < rows; i++)
            logarithms[start + i] = share(scores + i * padded, start + i + 1, columns, factor);
        product(out.at + start * out.step, out.step, scores, padded, 1, v.at, v.step, rows, seen, width, 0);
    }
}

EACH_PROCESSOR static void attend_head_back(matrix of_q, matrix of_k, matrix of_v, matrix of_out,
                                            const float *logarithms, matrix q, matrix k, matrix v, long positions,
                                            long width, float scale, float *space) {
    long padded = (positions + PANEL - 1) / PANEL * PANEL;
    float *keys = space, *values = keys + padded * width, *shares = values + padded * width;
    float *gradients = shares + TILE * padded, factor = scale * 1.44269504f;
    turn(keys, k, positions, width);
    turn(values, v, positions, width);
    for (long start = 0; start < positions; start += TILE) {
        long rows = least(TILE, positions - start), seen = start + rows, columns = (seen + PANEL - 1) / PANEL * PANEL;
        const float *queries = q.at + start * q.step, *above = of_out.at + start * of_out.step;
        meet(shares, padded, queries, q.step, keys, rows, columns, width);
        meet(gradients, padded, above, of_out.step, values, rows, columns, width);
        for (long i = 0; i < rows; i++)
            share_again(shares + i * padded, start + i + 1, columns, factor, logarithms[start + i]);
        product(of_v.at, of_v.step, shares, 1, padded, above, of_out.step, seen, rows, width, 1);
        for (long i = 0; i < rows; i++) through_softmax(gradients + i * padded, shares + i * padded, columns, scale);
        product(of_q.at + start * of_q.step, of_q.step, gradients, padded, 1, k.at, k.step, rows, seen, width, 0);
        product(of_k.at, of_k.step, gradients, 1, padded, queries, q.step, seen, rows, width, 1);
    }
}

/* How many floats a thread needs beside the tensors. */
static long space_for(long positions, long width, int turned) {
    long padded = (positions + PANEL - 1) / PANEL * PANEL;
    return turned * padded * (width + TILE);
}


uint32_t attention_kernels_source(void) { return SOURCE; }

/* Whether they are faster than torch's here: they are written for registers of LANES floats, and cut in pieces for
   narrower ones they take twenty times as long. */
int attention_pays(void) { return PAYS != 0; }

/* out and logarithms [B, N, S] of q, k, v. `failed` is set to 1 where there was no memory. */
void attention_forward(const tensor *out, float *logarithms, const tensor *q, const tensor *k, const tensor *v,
                       long batch, long heads, long positions, long width, float scale, int threads, int *failed) {
#pragma omp parallel num_threads(threads)
    {
        float *space = malloc(space_for(positions, width, 1) * sizeof(float));
        if (!space) *failed = 1;
#pragma omp for schedule(static)
        for (long i = 0; i < batch * heads; i++) {
            long b = i / heads, n = i % heads;
            if (space)
                attend_head(head_of(*out, b, n), logarithms + i * positions, head_of(*q, b, n), head_of(*k, b, n),
                            head_of(*v, b, n), positions, width, scale, space);
        }
        free(space);
    }
}

/* The gradients of q, k, v from that of out; those of k and v begin as 0. */
void attention_backward(const tensor *of_q, const tensor *of_k, const tensor *of_v, const tensor *of_out,
                        const float *logarithms, const tensor *q, const tensor *k, const tensor *v, long batch,
                        long heads, long positions, long width, float scale, int threads, int *failed) {
#pragma omp parallel num_threads(threads)
    {
        float *space = malloc(space_for(positions, width, 2) * sizeof(float));
        if (!space) *failed = 1;
#pragma omp for schedule(static)
        for (long i = 0; i < batch * heads; i++) {
            long b = i / heads, n = i % heads;
            if (space)
                attend_head_back(head_of(*of_q, b, n), head_of(*of_k, b, n), head_of(*of_v, b, n),
                                 head_of(*of_out, b, n), logarithms + i * positions, head_of(*q, b, n),
                                 head_of(*k, b, n), head_of(*v, b, n), positions, width, scale, space);
        }
        free(space);
    }
}
