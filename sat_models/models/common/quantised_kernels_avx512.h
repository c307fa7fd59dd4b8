/* Part of quantised_kernels.c: x86 with AVX-512 and VNNI. */

/* 64 bytes, or what is left of a row and zeros. */
WITH_VNNI INLINE __m512i bytes_at(const uint8_t *from, long left) {
    if (left >= 64) return _mm512_loadu_si512(from);
    return _mm512_maskz_loadu_epi8(left > 0 ? ~0ull >> (64 - left) : 0, from);
}

WITH_VNNI INLINE void dots_8(float found[BLOCK][STREAMS], const Weight *const weights[STREAMS],
                             const long rows[STREAMS], const Input *x, int count) {
    const __m512i sign = _mm512_set1_epi8((char)0x80);
    const long inputs = weights[0]->inputs;
    __m512 sums[BLOCK][STREAMS];
    const uint8_t *from[STREAMS];
    for (int s = 0; s < STREAMS; s++) from[s] = weights[s]->codes + rows[s] * inputs;
    for (int b = 0; b < count; b++)
        for (int s = 0; s < STREAMS; s++) sums[b][s] = _mm512_setzero_ps();
    for (long i = 0; i < inputs; i += 64) {
        __m512i w[STREAMS];
        for (int s = 0; s < STREAMS; s++) {
            _mm_prefetch((const char *)from[s] + i + AHEAD, _MM_HINT_T0);
            w[s] = _mm512_xor_si512(bytes_at(from[s] + i, inputs - i), sign);
        }
        for (int b = 0; b < count; b++) {
            __m512i bytes = _mm512_loadu_si512(x[b].bytes + i), less = _mm512_loadu_si512(x[b].less + i / 4);
            __m512 scale = _mm512_loadu_ps(x[b].scales + i / 4);
            for (int s = 0; s < STREAMS; s++)
                sums[b][s] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(_mm512_dpbusd_epi32(less, w[s], bytes)), scale,
                                             sums[b][s]);
        }
    }
    for (int b = 0; b < count; b++)
        for (int s = 0; s < STREAMS; s++)
            found[b][s] = _mm512_reduce_add_ps(sums[b][s]) * (((const float *)weights[s]->scales)[rows[s]] / 127);
}

/* Sixteen scales of a row from number `at` on; 0 behind its last. */
WITH_VNNI INLINE __m512 scales_4(const Weight *w, const uint8_t *scales, long at) {
    long left = w->inputs / w->block - at;
    __m128i codes = _mm_maskz_loadu_epi8(left < 16 ? (__mmask16)((1u << left) - 1) : 0xffff, scales + at);
    return _mm512_i32gather_ps(_mm512_cvtepu8_epi32(codes), w->scale_table, 4);
}

WITH_VNNI INLINE void dots_4(float found[BLOCK][STREAMS], const Weight *const weights[STREAMS],
                             const long rows[STREAMS], const Input *x, int count) {
    const __m512i low = _mm512_set1_epi8(15);
    const __m512i table = _mm512_xor_si512(_mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i *)NF4)),
                                           _mm512_set1_epi8((char)0x80));
    const long inputs = weights[0]->inputs, bytes = inputs / 2, block = weights[0]->block, fresh = 16 * block;
    const __m512i lanes = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
    const __m512i own = _mm512_srli_epi32(lanes, block == 64 ? 3 : 2); /* of a vector's scales, each lane's */
    __m512 sums[BLOCK][STREAMS], all_scales[STREAMS];
    const uint8_t *from[STREAMS], *scales[STREAMS];
    for (int s = 0; s < STREAMS; s++) {
        from[s] = weights[s]->codes + rows[s] * bytes;
        scales[s] = (const uint8_t *)weights[s]->scales + rows[s] * (inputs / block);
    }
    for (int b = 0; b < count; b++)
        for (int s = 0; s < STREAMS; s++) sums[b][s] = _mm512_setzero_ps();
    for (long i = 0; i < inputs; i += WIDE) {
        if (i % fresh == 0)
            for (int s = 0; s < STREAMS; s++) all_scales[s] = scales_4(weights[s], scales[s], i / block);
        const __m512i here = _mm512_add_epi32(own, _mm512_set1_epi32((int)(i % fresh / block)));
        __m512i first[STREAMS], second[STREAMS];
        __m512 scale[STREAMS];
        for (int s = 0; s < STREAMS; s++) {
            _mm_prefetch((const char *)from[s] + i / 2 + AHEAD, _MM_HINT_T0);
            __m512i codes = bytes_at(from[s] + i / 2, bytes - i / 2);
            first[s] = _mm512_shuffle_epi8(table, _mm512_and_si512(_mm512_srli_epi16(codes, 4), low));
            second[s] = _mm512_shuffle_epi8(table, _mm512_and_si512(codes, low));
            scale[s] = _mm512_permutexvar_ps(here, all_scales[s]);
        }
        for (int b = 0; b < count; b++) {
            __m512i even = _mm512_loadu_si512(x[b].bytes + i), odd = _mm512_loadu_si512(x[b].bytes + i + WIDE / 2);
            __m512i less = _mm512_loadu_si512(x[b].less + i / 8);
            __m512 shared = _mm512_loadu_ps(x[b].scales + i / 8);
            for (int s = 0; s < STREAMS; s++) {
                __m512i sum = _mm512_dpbusd_epi32(_mm512_dpbusd_epi32(less, first[s], even), second[s], odd);
                sums[b][s] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum), _mm512_mul_ps(scale[s], shared), sums[b][s]);
            }
        }
    }
    for (int b = 0; b < count; b++)
        for (int s = 0; s < STREAMS; s++) found[b][s] = _mm512_reduce_add_ps(sums[b][s]) / 127;
}

/* A count that is known is unrolled, so that the sums stay in registers. */
WITH_VNNI static void vnni_dots(float found[BLOCK][STREAMS], const Weight *const weights[STREAMS],
                                const long rows[STREAMS], const Input *x, int count) {
    if (weights[0]->bits == 8) {
        if (count == 1) return dots_8(found, weights, rows, x, 1);
        if (count == 2) return dots_8(found, weights, rows, x, 2);
        return dots_8(found, weights, rows, x, 4);
    }
    if (count == 1) return dots_4(found, weights, rows, x, 1);
    if (count == 2) return dots_4(found, weights, rows, x, 2);
    return dots_4(found, weights, rows, x, 4);
}

/* Sixteen rows of sixteen int32, turned. */
WITH_VNNI INLINE void turned(__m512i rows[16]) {
    const __m512i lanes = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
    for (int far = 1; far < 16; far *= 2) {
        /* Of two rows `far` apart, the lanes whose bit `far` is 0 stay in the first; the second's come into the others. */
        const __m512i bit = _mm512_and_si512(lanes, _mm512_set1_epi32(far)), step = _mm512_set1_epi32(far);
        const __mmask16 here = _mm512_testn_epi32_mask(bit, bit);
        const __m512i other = _mm512_set1_epi32(16);
        const __m512i first = _mm512_mask_mov_epi32(_mm512_add_epi32(_mm512_sub_epi32(lanes, step), other), here, lanes);
        const __m512i second = _mm512_mask_mov_epi32(_mm512_add_epi32(lanes, other), here, _mm512_add_epi32(lanes, step));
        for (int i = 0; i < 16; i++) {
            if (i & far) continue;
            __m512i a = rows[i], b = rows[i + far];
            rows[i] = _mm512_permutex2var_epi32(a, first, b);
            rows[i + far] = _mm512_permutex2var_epi32(a, second, b);
        }
    }
}

/* 64 numbers of a row from number `i` on, as w + 128; what stands behind its last one meets inputs that are 0. */
WITH_VNNI INLINE __m512i numbers_at(const Weight *w, long row, long i, __m512i table) {
    const uint8_t *from = w->codes + row * row_bytes(w);
    if (w->bits == 8) return _mm512_xor_si512(bytes_at(from + i, w->inputs - i), _mm512_set1_epi8((char)0x80));
    long left = (w->inputs - i) / 2;
    __m256i codes = _mm256_maskz_loadu_epi8(left < 32 ? (1u << left) - 1 : ~0u, from + i / 2);
    __m512i wide = _mm512_cvtepu8_epi16(codes), low = _mm512_set1_epi16(15);
    __m512i each = _mm512_or_si512(_mm512_and_si512(_mm512_srli_epi16(wide, 4), low),
                                   _mm512_slli_epi16(_mm512_and_si512(wide, low), 8));
    return _mm512_shuffle_epi8(table, each);
}

/* Outputs `first` to `first` + PANEL laid out: for each four inputs the bytes of PANEL outputs, and of 4 bits the scales
   of each SHARED inputs. Outputs behind the last one repeat it. */
WITH_VNNI static void lay_out(uint8_t *panel, float *scales, const Weight *w, long first, long outputs) {
    const __m512i table = _mm512_xor_si512(_mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i *)NF4)),
                                           _mm512_set1_epi8((char)0x80));
    for (long i = 0; i < w->inputs; i += 64)
        for (int half = 0; half < 2; half++) {
            __m512i rows[16];
            for (int r = 0; r < 16; r++) {
                long row = first + 16 * half + r;
                rows[r] = numbers_at(w, row < outputs ? row : outputs - 1, i, table);
            }
            turned(rows);
            for (int r = 0; r < 16; r++) _mm512_storeu_si512(panel + (i / 4 + r) * PANEL * 4 + 64 * half, rows[r]);
        }
    if (w->bits == 8) return;
    const uint8_t *codes = (const uint8_t *)w->scales;
    for (long run = 0; run < w->inputs / SHARED; run++)
        for (long r = 0; r < PANEL; r++) {
            long row = first + r < outputs ? first + r : outputs - 1;
            scales[run * PANEL + r] = w->scale_table[codes[(row * w->inputs + run * SHARED) / w->block]];
        }
}

/* `count` inputs through a panel. */
WITH_VNNI INLINE void through_panel(float *out, long outputs, const uint8_t *panel, const float *scales,
                                    const Weight *w, long first, const int8_t *bytes, const int32_t *less,
                                    const float *shared, int count) {
    const long width = filled_up(w->inputs), runs = width / SHARED, used = (w->inputs + SHARED - 1) / SHARED;
    __m512 sums[AT_ONCE][2];
    for (int b = 0; b < count; b++) sums[b][0] = sums[b][1] = _mm512_setzero_ps();
    for (long run = 0; run < used; run++) {
        const uint8_t *weights = panel + run * SHARED * PANEL;
        __m512i found[AT_ONCE][2];
        for (int b = 0; b < count; b++) found[b][0] = found[b][1] = _mm512_set1_epi32(less[b * runs + run]);
        for (int four = 0; four < SHARED / 4; four++) {
            __m512i left = _mm512_loadu_si512(weights + four * PANEL * 4);
            __m512i right = _mm512_loadu_si512(weights + four * PANEL * 4 + 64);
            for (int b = 0; b < count; b++) {
                int32_t bits;
                memcpy(&bits, bytes + b * width + run * SHARED + four * 4, 4);
                __m512i x = _mm512_set1_epi32(bits);
                found[b][0] = _mm512_dpbusd_epi32(found[b][0], left, x);
                found[b][1] = _mm512_dpbusd_epi32(found[b][1], right, x);
            }
        }
        for (int b = 0; b < count; b++) {
            __m512 scale = _mm512_set1_ps(shared[b * runs + run]);
            for (int half = 0; half < 2; half++) {
                __m512 own = scale;
                if (w->bits == 4) own = _mm512_mul_ps(scale, _mm512_loadu_ps(scales + run * PANEL + 16 * half));
                sums[b][half] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(found[b][half]), own, sums[b][half]);
            }
        }
    }
    for (int half = 0; half < 2; half++) {
        long at = first + 16 * half, left = outputs - at;
        if (left <= 0) break;
        __mmask16 some = left < 16 ? (__mmask16)((1u << left) - 1) : 0xffff;
        __m512 scale = _mm512_set1_ps(1.0f / 127);
        if (w->bits == 8) scale = _mm512_mul_ps(scale, _mm512_maskz_loadu_ps(some, (const float *)w->scales + at));
        for (int b = 0; b < count; b++)
            _mm512_mask_storeu_ps(out + b * outputs + at, some, _mm512_mul_ps(sums[b][half], scale));
    }
}

WITH_VNNI static void panel_product(float *out, const int8_t *bytes, const int32_t *less, const float *shared,
                                    const Weight *w, uint8_t *panel, long rows, long outputs, long first) {
    const long width = filled_up(w->inputs), runs = width / SHARED;
    float *scales = (float *)(panel + width * PANEL);
    lay_out(panel, scales, w, first, outputs);
    for (long row = 0, count; row < rows; row += count) {
        count = rows - row < AT_ONCE ? 1 : AT_ONCE; /* known counts: the sums stay in registers */
        const int8_t *x = bytes + row * width;
        float *found = out + row * outputs;
        if (count == 1)
            through_panel(found, outputs, panel, scales, w, first, x, less + row * runs, shared + row * runs, 1);
        else
            through_panel(found, outputs, panel, scales, w, first, x, less + row * runs, shared + row * runs, AT_ONCE);
    }
}
