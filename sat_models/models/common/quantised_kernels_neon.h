/* Part of quantised_kernels.c: ARM with NEON, and with dot products of bytes where the compiler may take them. */

/* Sums of four products of bytes. */
INLINE int32x4_t fours(int8x16_t w, int8x16_t x) {
#if defined(__ARM_FEATURE_DOTPROD)
    return vdotq_s32(vdupq_n_s32(0), w, x);
#else
    int16x8_t low = vmull_s8(vget_low_s8(w), vget_low_s8(x)), high = vmull_high_s8(w, x);
    return vpaddq_s32(vpaddlq_s16(low), vpaddlq_s16(high));
#endif
}

/* 16 bytes, or what is left of a row and zeros. */
INLINE int8x16_t bytes_16(const uint8_t *from, long left) {
    if (left >= 16) return vld1q_s8((const int8_t *)from);
    int8_t rest[16] = {0};
    if (left > 0) memcpy(rest, from, left);
    return vld1q_s8(rest);
}

INLINE void arm_8(float found[BLOCK][STREAMS], const Weight *const weights[STREAMS], const long rows[STREAMS],
                  const Input *x, int count) {
    const long inputs = weights[0]->inputs;
    float32x4_t sums[BLOCK][STREAMS];
    for (int b = 0; b < count; b++)
        for (int s = 0; s < STREAMS; s++) sums[b][s] = vdupq_n_f32(0);
    for (long i = 0; i < inputs; i += 16)
        for (int s = 0; s < STREAMS; s++) {
            const uint8_t *from = weights[s]->codes + rows[s] * inputs + i;
            __builtin_prefetch(from + AHEAD);
            int8x16_t w = bytes_16(from, inputs - i);
            for (int b = 0; b < count; b++) {
                float32x4_t sum = vcvtq_f32_s32(fours(w, vld1q_s8(x[b].bytes + i)));
                sums[b][s] = vfmaq_f32(sums[b][s], sum, vld1q_f32(x[b].scales + i / 4));
            }
        }
    for (int b = 0; b < count; b++)
        for (int s = 0; s < STREAMS; s++)
            found[b][s] = vaddvq_f32(sums[b][s]) * (((const float *)weights[s]->scales)[rows[s]] / 127);
}

INLINE void arm_4(float found[BLOCK][STREAMS], const Weight *const weights[STREAMS], const long rows[STREAMS],
                  const Input *x, int count) {
    const long inputs = weights[0]->inputs, block = weights[0]->block;
    const int8x16_t table = vld1q_s8(NF4);
    float32x4_t sums[BLOCK][STREAMS];
    for (int b = 0; b < count; b++)
        for (int s = 0; s < STREAMS; s++) sums[b][s] = vdupq_n_f32(0);
    for (long i = 0; i < inputs; i += 32) { /* 16 bytes of codes; of each WIDE inputs the odd ones follow the even */
        const long even = i / WIDE * WIDE + i % WIDE / 2, odd = even + WIDE / 2;
        for (int s = 0; s < STREAMS; s++) {
            const uint8_t *from = weights[s]->codes + (rows[s] * inputs + i) / 2;
            const uint8_t *scales = (const uint8_t *)weights[s]->scales + rows[s] * (inputs / block);
            __builtin_prefetch(from + AHEAD);
            uint8x16_t codes = vreinterpretq_u8_s8(bytes_16(from, (inputs - i) / 2));
            int8x16_t first = vqtbl1q_s8(table, vshrq_n_u8(codes, 4));
            int8x16_t second = vqtbl1q_s8(table, vandq_u8(codes, vdupq_n_u8(15)));
            float scale = weights[s]->scale_table[scales[i / block]];
            for (int b = 0; b < count; b++) {
                int32x4_t sum = vaddq_s32(fours(first, vld1q_s8(x[b].bytes + even)),
                                          fours(second, vld1q_s8(x[b].bytes + odd)));
                float32x4_t shared = vmulq_n_f32(vld1q_f32(x[b].scales + i / 8), scale);
                sums[b][s] = vfmaq_f32(sums[b][s], vcvtq_f32_s32(sum), shared);
            }
        }
    }
    for (int b = 0; b < count; b++)
        for (int s = 0; s < STREAMS; s++) found[b][s] = vaddvq_f32(sums[b][s]) / 127;
}

static void arm_dots(float found[BLOCK][STREAMS], const Weight *const weights[STREAMS], const long rows[STREAMS],
                     const Input *x, int count) {
    int eight = weights[0]->bits == 8; /* known counts are unrolled */
    if (count == 1) return eight ? arm_8(found, weights, rows, x, 1) : arm_4(found, weights, rows, x, 1);
    if (count == 2) return eight ? arm_8(found, weights, rows, x, 2) : arm_4(found, weights, rows, x, 2);
    eight ? arm_8(found, weights, rows, x, 4) : arm_4(found, weights, rows, x, 4);
}
