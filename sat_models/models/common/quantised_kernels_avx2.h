/* Part of quantised_kernels.c: x86 with AVX2.

   Bytes are multiplied as the size of one and the other with its sign: sums of two then fit into 16 bits. Two inputs at
   a time, since there are half as many registers. */

#define TWO 2
#define WITH_AVX2 __attribute__((target("avx2,fma")))

/* Sums of four products of bytes. */
WITH_AVX2 INLINE __m256i fours(__m256i w, __m256i x) {
    __m256i pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(x, w));
    return _mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
}

WITH_AVX2 INLINE float sum_of(__m256 x) {
    __m128 four = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    four = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(four, _mm_movehdup_ps(four)));
}

/* 32 bytes, or what is left of a row and zeros. */
WITH_AVX2 INLINE __m256i bytes_32(const uint8_t *from, long left) {
    if (left >= 32) return _mm256_loadu_si256((const __m256i *)from);
    uint8_t rest[32] = {0};
    if (left > 0) memcpy(rest, from, left);
    return _mm256_loadu_si256((const __m256i *)rest);
}

WITH_AVX2 INLINE void narrow_8(float found[][STREAMS], const Weight *const weights[STREAMS], const long rows[STREAMS],
                               const Input *x, int count) {
    const long inputs = weights[0]->inputs;
    __m256 sums[TWO][STREAMS];
    const uint8_t *from[STREAMS];
    for (int s = 0; s < STREAMS; s++) from[s] = weights[s]->codes + rows[s] * inputs;
    for (int b = 0; b < count; b++)
        for (int s = 0; s < STREAMS; s++) sums[b][s] = _mm256_setzero_ps();
    for (long i = 0; i < inputs; i += 32)
        for (int s = 0; s < STREAMS; s++) {
            _mm_prefetch((const char *)from[s] + i + AHEAD, _MM_HINT_T0);
            __m256i w = bytes_32(from[s] + i, inputs - i);
            for (int b = 0; b < count; b++) {
                __m256i sum = fours(w, _mm256_loadu_si256((const __m256i *)(x[b].bytes + i)));
                sums[b][s] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(sum), _mm256_loadu_ps(x[b].scales + i / 4), sums[b][s]);
            }
        }
    for (int b = 0; b < count; b++)
        for (int s = 0; s < STREAMS; s++)
            found[b][s] = sum_of(sums[b][s]) * (((const float *)weights[s]->scales)[rows[s]] / 127);
}

WITH_AVX2 INLINE void narrow_4(float found[][STREAMS], const Weight *const weights[STREAMS], const long rows[STREAMS],
                               const Input *x, int count) {
    const __m256i low = _mm256_set1_epi8(15);
    const __m256i table = _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)NF4));
    const long inputs = weights[0]->inputs, bytes = inputs / 2, block = weights[0]->block;
    __m256 sums[TWO][STREAMS];
    const uint8_t *from[STREAMS], *scales[STREAMS];
    for (int s = 0; s < STREAMS; s++) {
        from[s] = weights[s]->codes + rows[s] * bytes;
        scales[s] = (const uint8_t *)weights[s]->scales + rows[s] * (inputs / block);
    }
    for (int b = 0; b < count; b++)
        for (int s = 0; s < STREAMS; s++) sums[b][s] = _mm256_setzero_ps();
    for (long i = 0; i < inputs; i += 64) { /* 32 bytes of codes; of each WIDE inputs the odd ones follow the even */
        const long even = i / WIDE * WIDE + i % WIDE / 2, odd = even + WIDE / 2;
        for (int s = 0; s < STREAMS; s++) {
            _mm_prefetch((const char *)from[s] + i / 2 + AHEAD, _MM_HINT_T0);
            __m256i codes = bytes_32(from[s] + i / 2, bytes - i / 2);
            __m256i first = _mm256_shuffle_epi8(table, _mm256_and_si256(_mm256_srli_epi16(codes, 4), low));
            __m256i second = _mm256_shuffle_epi8(table, _mm256_and_si256(codes, low));
            float here = weights[s]->scale_table[scales[s][i / block]], next = here;
            if (block == 32) next = i + 32 < inputs ? weights[s]->scale_table[scales[s][i / block + 1]] : 0;
            __m256 scale = _mm256_set_m128(_mm_set1_ps(next), _mm_set1_ps(here));
            for (int b = 0; b < count; b++) {
                __m256i sum = _mm256_add_epi32(fours(first, _mm256_loadu_si256((const __m256i *)(x[b].bytes + even))),
                                               fours(second, _mm256_loadu_si256((const __m256i *)(x[b].bytes + odd))));
                __m256 shared = _mm256_loadu_ps(x[b].scales + i / 8);
                sums[b][s] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(sum), _mm256_mul_ps(scale, shared), sums[b][s]);
            }
        }
    }
    for (int b = 0; b < count; b++)
        for (int s = 0; s < STREAMS; s++) found[b][s] = sum_of(sums[b][s]) / 127;
}

WITH_AVX2 static void avx2_dots(float found[BLOCK][STREAMS], const Weight *const weights[STREAMS],
                                const long rows[STREAMS], const Input *x, int count) {
    for (int b = 0; b < count; b += TWO) {
        int one = count == 1; /* known counts are unrolled */
        if (weights[0]->bits == 8)
            one ? narrow_8(found + b, weights, rows, x + b, 1) : narrow_8(found + b, weights, rows, x + b, TWO);
        else
            one ? narrow_4(found + b, weights, rows, x + b, 1) : narrow_4(found + b, weights, rows, x + b, TWO);
    }
}
