/* Vectors of LANES 64-bit integers (vi) and doubles (vf) in the instruction set of REVGRAD_ISA.
 *
 * No include guard: kernels.h takes this file once per set. Compilers give vi and vf
 * the operators + - & | ^; what has none is named here. Masks (vm) say which lanes are meant.
 * Nothing may come to depend on how a double was rounded: every set yields the same bits.
 */
#undef LANES
#undef vi
#undef vf
#undef vm
#undef every
#undef every_real
#undef load
#undef store
#undef load_u32
#undef store_u32
#undef load_reals
#undef load_floats
#undef store_reals
#undef store_floats
#undef times_low
#undef times
#undef shift_left
#undef shift_right
#undef shift_signed
#undef below
#undef differ
#undef differ_masks
#undef none
#undef how_many
#undef lanes_of
#undef MAGIC
#undef SIGN
#undef choose
#undef real
#undef small_real
#undef floor_small
#undef coarse
#undef floor_times
#undef floor_bits
#undef FLOOR_BITS
#undef all_of
#undef any_bit
#undef push_words
#undef can_pop
#undef pop_words
#undef round_to_even
#undef not_encodable
#undef negative
#undef lanes_as_ones
#undef choose_reals
#undef in_doubt

#if REVGRAD_ISA == REVGRAD_AVX512

#define LANES 8
#define vi __m512i
#define vf __m512d
#define vm __mmask8
#define every(k) _mm512_set1_epi64(k)
#define every_real(c) _mm512_set1_pd(c)
#define load(p) _mm512_loadu_si512((const void *)(p))
#define store(p, a) _mm512_storeu_si512((void *)(p), a)
#define load_u32(p) _mm512_cvtepu32_epi64(_mm256_loadu_si256((const __m256i *)(p)))
#define store_u32(p, a) _mm256_storeu_si256((__m256i *)(p), _mm512_cvtepi64_epi32(a))
#define load_reals(p) _mm512_loadu_pd(p)
#define load_floats(p) _mm512_cvtps_pd(_mm256_loadu_ps(p))
#define store_reals(p, a) _mm512_storeu_pd(p, a)
#define store_floats(p, a) _mm256_storeu_ps(p, _mm512_cvtpd_ps(a))
/* unsigned product of the low halves; product mod 2^64, b in [0, 2^32) */
#define times_low(a, b) _mm512_mul_epu32(a, b)
#define times(a, b) _mm512_mullo_epi64(a, b)
#define shift_left(a, k) _mm512_slli_epi64(a, k)
#define shift_right(a, k) _mm512_srli_epi64(a, k)
#define shift_signed(a, k) _mm512_srai_epi64(a, k)
#define below(a, b) _mm512_cmplt_epi64_mask(a, b)
#define differ(a, b) _mm512_cmpneq_epi64_mask(a, b)
#define negative(a) _mm512_movepi64_mask(a)
#define differ_masks(m, k) ((m) ^ (k))
#define none(m) ((m) == 0)
#define all_of(m, k) (((m) & ~(k)) == 0)
#define any_bit(a, b) (_mm512_test_epi64_mask(a, b) != 0)
#define lanes_as_ones(m) _mm512_movm_epi64(m)
#define how_many(m) __builtin_popcount(m)
#define choose(m, a, b) _mm512_mask_blend_epi64(m, b, a)
#define choose_reals(f, a, b) \
    _mm512_mask_blend_pd(_mm512_cmp_pd_mask(f, every_real(0.0), _CMP_NEQ_UQ), b, a)
/* int64 to double, rounded once; the same below 2^52; floor(f*up) in [0, 2^51);
 * f*up - LAG, give or take 2^12, mod 2^64 */
#define real(a) _mm512_cvtepi64_pd(a)
#define small_real(a) _mm512_cvtepi64_pd(a)
#define floor_times(f, up) _mm512_cvttpd_epi64((f) * (up))
/* floor(f*up) + FLOOR_BITS, whose low 32 bits say all where that is below 2^32 */
#define FLOOR_BITS 0x4330000000000000
#define floor_bits(f, up) _mm512_castpd_si512(_mm512_fmadd_round_pd( \
    f, up, every_real(4503599627370496.0), _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC))
#define coarse(f, up) _mm512_cvtpd_epi64(_mm512_fmsub_pd(f, up, every_real(LAG)))
/* The low words of the lanes in m, compressed in a register: into memory it would be slow. */
#define push_words(words, m, z) \
    _mm_storeu_si128((__m128i *)(words), \
                     _mm512_cvtepi64_epi16(_mm512_maskz_compress_epi64(m, z)))
#define can_pop(count, p) ((count) >= (p))
#define pop_words(words, count, m, p) \
    _mm512_maskz_expand_epi64(m, _mm512_cvtepu16_epi64(_mm_maskz_loadu_epi16( \
        (__mmask8)((1u << (p)) - 1u), (const void *)((words) + (count) - (p)))))
/* rint(f) as int64 for f in [-2^63, 2^63); whether some f may be outside or NaN; where it is */
#define round_to_even(f) _mm512_cvtpd_epi64(f)
#define in_doubt(v) (_mm512_cmpeq_epi64_mask(v, every((int64_t)(1ull << 63))) != 0)
#define not_encodable(f) \
    ((vm)~(_mm512_cmp_pd_mask(f, every_real(-INT64_END), _CMP_GE_OQ) \
           & _mm512_cmp_pd_mask(f, every_real(INT64_END), _CMP_LT_OQ)))

#elif REVGRAD_ISA == REVGRAD_AVX2

#define LANES 4
#define vi __m256i
#define vf __m256d
#define vm __m256i /* all bits of a lane, or none */
#define every(k) _mm256_set1_epi64x(k)
#define every_real(c) _mm256_set1_pd(c)
#define load(p) _mm256_loadu_si256((const __m256i *)(p))
#define store(p, a) _mm256_storeu_si256((__m256i *)(p), a)
#define load_u32(p) _mm256_cvtepu32_epi64(_mm_loadu_si128((const __m128i *)(p)))
#define store_u32(p, a) \
    _mm_storeu_si128((__m128i *)(p), _mm256_castsi256_si128(_mm256_permutevar8x32_epi32( \
        a, _mm256_setr_epi32(0, 2, 4, 6, 0, 0, 0, 0))))
#define load_reals(p) _mm256_loadu_pd(p)
#define load_floats(p) _mm256_cvtps_pd(_mm_loadu_ps(p))
#define store_reals(p, a) _mm256_storeu_pd(p, a)
#define store_floats(p, a) _mm_storeu_ps(p, _mm256_cvtpd_ps(a))
#define times_low(a, b) _mm256_mul_epu32(a, b)
#define times avx2_times
#define shift_left(a, k) _mm256_slli_epi64(a, k)
#define shift_right(a, k) _mm256_srli_epi64(a, k)
#define SIGN every((int64_t)(1ull << 63))
#define shift_signed(a, k) (_mm256_srli_epi64((a) ^ SIGN, k) - every(1ll << (63 - (k))))
#define below(a, b) _mm256_cmpgt_epi64(b, a)
#define differ(a, b) (_mm256_cmpeq_epi64(a, b) ^ every(-1))
#define negative(a) below(a, _mm256_setzero_si256())
#define differ_masks(m, k) ((m) ^ (k))
#define none(m) _mm256_testz_si256(m, m)
#define all_of(m, k) _mm256_testc_si256(k, m)
#define any_bit(a, b) (!_mm256_testz_si256(a, b))
#define lanes_as_ones(m) (m)
#define how_many(m) __builtin_popcount(lanes_of(m))
#define choose(m, a, b) _mm256_blendv_epi8(b, a, m)
#define choose_reals(f, a, b) \
    _mm256_blendv_pd(b, a, _mm256_cmp_pd(f, every_real(0.0), _CMP_NEQ_UQ))
#define real avx2_real
#define small_real(a) \
    (_mm256_castsi256_pd((a) | every(0x4330000000000000)) - every_real(4503599627370496.0))
/* f*up is no integer, or 0; one rounding does not move f*up - 1/2 across one */
#define floor_times(f, up) avx2_nearest(_mm256_fmsub_pd(f, up, every_real(0.5)))
#define FLOOR_BITS 0x4338000000000000
#define floor_bits(f, up) _mm256_castpd_si256(_mm256_fmsub_pd(f, up, every_real(0.5)) + MAGIC)
/* adding 1.5*2^64 leaves the sum in units of 2^12 */
#define coarse(f, up) _mm256_slli_epi64( \
    _mm256_castpd_si256((f) * (up) + every_real(0x1.8p64)) - every(0x43f8000000000000 + LAG / 4096), 12)
#define push_words avx2_push_words
#define can_pop(count, p) ((count) >= LANES || (p) == 0) /* it reads the four topmost */
#define pop_words(words, count, m, p) avx2_pop_words(words, count, m)
#define round_to_even avx2_round_to_even
#define in_doubt(v) 1
#define not_encodable(f) _mm256_castpd_si256(_mm256_or_pd( \
    _mm256_cmp_pd(f, every_real(-INT64_END), _CMP_NGE_UQ), \
    _mm256_cmp_pd(f, every_real(INT64_END), _CMP_NLT_UQ)))

#define lanes_of(m) _mm256_movemask_pd(_mm256_castsi256_pd(m))
#define MAGIC every_real(6755399441055744.0) /* 1.5 * 2^52: adding it rounds to integers */

static inline vi avx2_times(vi a, vi b)
{
    vi high = _mm256_mul_epu32(_mm256_srli_epi64(a, 32), b);
    return _mm256_mul_epu32(a, b) + _mm256_slli_epi64(high, 32);
}

/* The halves as the doubles 2^84 + 2^63 + high*2^32 and 2^52 + low; only the last sum rounds. */
static inline vf avx2_real(vi a)
{
    vi high = _mm256_srli_epi64(a, 32) ^ every(0x4530000080000000);
    vi low = _mm256_blend_epi32(a, every(0x4330000000000000), 0xaa);
    return (_mm256_castsi256_pd(high) - every_real(0x1.00000801p84)) + _mm256_castsi256_pd(low);
}

/* rint(f), |f| < 2^51 */
static inline vi avx2_nearest(vf f)
{
    return _mm256_castpd_si256(f + MAGIC) - _mm256_castpd_si256(MAGIC);
}

/* rint(f), f in [-2^63, 2^63), in halves that a double holds exactly */
static inline vi avx2_round_to_even(vf f)
{
    vf rounded = _mm256_round_pd(f, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    vf high = _mm256_floor_pd(rounded * every_real(0x1p-32));
    vf low = rounded - high * every_real(0x1p32);
    return _mm256_slli_epi64(avx2_nearest(high), 32) + avx2_nearest(low);
}

/* Row m: the doublewords that hold the low halves of the lanes in m, then any. */
#define ROW(a, b, c, d) {2 * a, 2 * b, 2 * c, 2 * d, 0, 0, 0, 0}
static const int32_t avx2_compressed[16][8] = {
    ROW(0, 0, 0, 0), ROW(0, 0, 0, 0), ROW(1, 0, 0, 0), ROW(0, 1, 0, 0),
    ROW(2, 0, 0, 0), ROW(0, 2, 0, 0), ROW(1, 2, 0, 0), ROW(0, 1, 2, 0),
    ROW(3, 0, 0, 0), ROW(0, 3, 0, 0), ROW(1, 3, 0, 0), ROW(0, 1, 3, 0),
    ROW(2, 3, 0, 0), ROW(0, 2, 3, 0), ROW(1, 2, 3, 0), ROW(0, 1, 2, 3),
};
#undef ROW
/* Row m: for each lane in m its place among the four topmost words, for other lanes any. */
#define ROW(a, b, c, d) {2 * a, 2 * a + 1, 2 * b, 2 * b + 1, 2 * c, 2 * c + 1, 2 * d, 2 * d + 1}
static const int32_t avx2_expanded[16][8] = {
    ROW(0, 0, 0, 0), ROW(3, 0, 0, 0), ROW(0, 3, 0, 0), ROW(2, 3, 0, 0),
    ROW(0, 0, 3, 0), ROW(2, 0, 3, 0), ROW(0, 2, 3, 0), ROW(1, 2, 3, 0),
    ROW(0, 0, 0, 3), ROW(2, 0, 0, 3), ROW(0, 2, 0, 3), ROW(1, 2, 0, 3),
    ROW(0, 0, 2, 3), ROW(1, 0, 2, 3), ROW(0, 1, 2, 3), ROW(0, 1, 2, 3),
};
#undef ROW

static inline void avx2_push_words(uint16_t *words, vm m, vi z)
{
    vi order = load(avx2_compressed[lanes_of(m)]);
    __m128i low = _mm256_castsi256_si128(_mm256_permutevar8x32_epi32(z, order));
    low = _mm_shuffle_epi8(low, _mm_setr_epi8(0, 1, 4, 5, 8, 9, 12, 13, 0, 0, 0, 0, 0, 0, 0, 0));
    _mm_storel_epi64((__m128i *)words, low);
}

static inline vi avx2_pop_words(const uint16_t *words, int64_t count, vm m)
{
    static const uint16_t nothing[4];
    const uint16_t *top = count < 4 ? nothing : words + count - 4;
    vi four = _mm256_cvtepu16_epi64(_mm_loadl_epi64((const __m128i *)top));
    return _mm256_permutevar8x32_epi32(four, load(avx2_expanded[lanes_of(m)]));
}

#endif
