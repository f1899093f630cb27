// Purpose: the loops of kernels_pruning.h. Included by kernels/all.inl in a namespace of its own. Loops that the
// compiler vectorises well are plain; those that compact, scatter or permute name their instructions.

static inline uint32_t magnitude(const float* x) {
  uint32_t bits;
  __builtin_memcpy(&bits, x, 4);
  return bits & 0x7fffffff;
}

// ---- top-k
// -----------------------------------------------------------------------------------------------------------

static void histogram(const float* x, size_t n, uint32_t low, uint32_t width, int shift, uint32_t* bins) {
  size_t i = 0;
#if defined(__AVX512F__)
  alignas(64) uint32_t found[16];
  for (; i < n; i += 16) {
    __mmask16 valid = n - i >= 16 ? 0xffff : static_cast<__mmask16>((1u << (n - i)) - 1);
    __m512i bits = _mm512_and_si512(_mm512_maskz_loadu_epi32(valid, x + i), _mm512_set1_epi32(0x7fffffff));
    __m512i offset = _mm512_sub_epi32(bits, _mm512_set1_epi32(static_cast<int>(low)));
    __mmask16 in = _mm512_mask_cmple_epu32_mask(valid, offset, _mm512_set1_epi32(static_cast<int>(width)));
    if (in == 0) continue;
    offset = _mm512_maskz_srl_epi32(in, offset, _mm_cvtsi32_si128(shift));
    _mm512_store_si512(found, _mm512_maskz_compress_epi32(in, offset));
    for (int j = 0, count = __builtin_popcount(in); j < count; j++) bins[found[j]]++;
  }
#else
#if defined(__AVX2__)
  alignas(32) uint32_t found[8];
  __m256i widths = _mm256_set1_epi32(static_cast<int>(width));
  for (; i + 8 <= n; i += 8) {
    __m256i bits = _mm256_and_si256(_mm256_castps_si256(_mm256_loadu_ps(x + i)), _mm256_set1_epi32(0x7fffffff));
    __m256i offset = _mm256_sub_epi32(bits, _mm256_set1_epi32(static_cast<int>(low)));
    __m256i in = _mm256_cmpeq_epi32(_mm256_min_epu32(offset, widths), offset);
    uint32_t lanes = static_cast<uint32_t>(_mm256_movemask_ps(_mm256_castsi256_ps(in)));
    if (lanes == 0) continue;
    _mm256_store_si256(reinterpret_cast<__m256i*>(found), _mm256_srl_epi32(offset, _mm_cvtsi32_si128(shift)));
    for (; lanes != 0; lanes &= lanes - 1) bins[found[__builtin_ctz(lanes)]]++;
  }
#endif
  for (; i < n; i++) {
    uint32_t offset = magnitude(x + i) - low;
    if (offset <= width) bins[offset >> shift]++;
  }
#endif
}

static size_t collect(const float* x, size_t n, uint32_t low, uint32_t high, float* inside, uint32_t* above) {
  size_t count = 0, larger = 0, i = 0;
#if defined(__AVX512F__)
  // Compacted in a register and stored whole: a compacting store to memory is slow on some processors.
  for (; i < n; i += 16) {
    __mmask16 valid = n - i >= 16 ? 0xffff : static_cast<__mmask16>((1u << (n - i)) - 1);
    __m512i bits = _mm512_and_si512(_mm512_maskz_loadu_epi32(valid, x + i), _mm512_set1_epi32(0x7fffffff));
    __mmask16 over = _mm512_mask_cmpgt_epu32_mask(valid, bits, _mm512_set1_epi32(static_cast<int>(high)));
    __mmask16 reached = _mm512_mask_cmpge_epu32_mask(valid, bits, _mm512_set1_epi32(static_cast<int>(low)));
    __mmask16 in = reached & static_cast<__mmask16>(~over);
    larger += static_cast<size_t>(__builtin_popcount(over));
    _mm512_storeu_si512(inside + count, _mm512_maskz_compress_epi32(in, bits));
    count += static_cast<size_t>(__builtin_popcount(in));
  }
#else
#if defined(__AVX2__)
  for (; i + 8 <= n; i += 8) {
    __m256i bits = _mm256_and_si256(_mm256_castps_si256(_mm256_loadu_ps(x + i)), _mm256_set1_epi32(0x7fffffff));
    __m256i over = _mm256_cmpgt_epi32(bits, _mm256_set1_epi32(static_cast<int>(high)));
    __m256i reached = _mm256_cmpgt_epi32(bits, _mm256_set1_epi32(static_cast<int>(low) - 1));
    uint32_t in = static_cast<uint32_t>(_mm256_movemask_ps(_mm256_castsi256_ps(_mm256_andnot_si256(over, reached))));
    larger += static_cast<size_t>(__builtin_popcount(_mm256_movemask_ps(_mm256_castsi256_ps(over))));
    for (; in != 0; in &= in - 1) {
      uint32_t found = magnitude(x + i + __builtin_ctz(in));
      __builtin_memcpy(inside + count++, &found, 4);
    }
  }
#endif
  for (; i < n; i++) {
    uint32_t bits = magnitude(x + i);
    __builtin_memcpy(inside + count, &bits, 4);
    count += bits >= low && bits <= high;
    larger += bits > high;
  }
#endif
  *above += static_cast<uint32_t>(larger);
  return count;
}

static size_t countAbove(const float* x, size_t n, int32_t above) {
  uint32_t count = 0;
  size_t i = 0;
#if defined(__AVX512F__)
  const __m512i bound = _mm512_set1_epi32(above), sign = _mm512_set1_epi32(INT32_MAX), one = _mm512_set1_epi32(1);
  __m512i sums[2] = {_mm512_setzero_si512(), _mm512_setzero_si512()};
  for (; i + 32 <= n; i += 32)
    for (size_t j = 0; j < 2; j++) {
      __m512i bits = _mm512_and_si512(_mm512_loadu_si512(x + i + 16 * j), sign);
      sums[j] = _mm512_mask_add_epi32(sums[j], _mm512_cmpgt_epi32_mask(bits, bound), sums[j], one);
    }
  Words lanes = reinterpret_cast<Words>(_mm512_add_epi32(sums[0], sums[1]));
  for (size_t j = 0; j < floatLanes; j++) count += lanes[j];
#endif
  for (; i < n; i++) count += static_cast<int32_t>(magnitude(x + i)) > above;
  return count;
}

static int32_t largestUpTo(const float* x, size_t n, int32_t most) {
  int32_t largest = -1;
  for (size_t i = 0; i < n; i++) {
    int32_t bits = static_cast<int32_t>(magnitude(x + i));
    bits = bits <= most ? bits : -1;
    largest = bits > largest ? bits : largest;
  }
  return largest;
}

static size_t countEqual(const float* x, size_t n, uint32_t bits) {
  uint32_t count = 0;
  for (size_t i = 0; i < n; i++) count += magnitude(x + i) == bits;
  return count;
}

static void maskAbove(const float* __restrict x, uint8_t* __restrict mask, int32_t above, size_t n) {
  size_t i = 0;
#if defined(__AVX512F__)
  for (; i + 16 <= n; i += 16) {
    __m512i bits = _mm512_and_si512(_mm512_loadu_si512(x + i), _mm512_set1_epi32(0x7fffffff));
    __mmask16 kept = _mm512_cmpgt_epi32_mask(bits, _mm512_set1_epi32(above));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(mask + i), _mm_maskz_set1_epi8(kept, 1));
  }
#endif
  for (; i < n; i++) mask[i] = static_cast<int32_t>(magnitude(x + i)) > above;
}

// Groups up to this size are ranked by comparing every pair.
static constexpr int64_t largestRanked = 32;

// Any small group: 16 groups side by side, one lane each, so that a pair is compared in 16 groups at once.
static void rankColumns(const float* x, uint8_t* mask, size_t n, int64_t kept, int64_t group) {
  int32_t keys[largestRanked][16] = {}, ranks[largestRanked][16];
  size_t size = static_cast<size_t>(group), groups = n / size;
  for (size_t first = 0; first < groups; first += 16) {
    size_t count = groups - first < 16 ? groups - first : 16;
    const float* from = x + first * size;
    uint8_t* to = mask + first * size;
    for (size_t lane = 0; lane < count; lane++)
      for (size_t j = 0; j < size; j++) keys[j][lane] = static_cast<int32_t>(magnitude(from + lane * size + j));
    for (size_t j = 0; j < size; j++) {
      for (int lane = 0; lane < 16; lane++) ranks[j][lane] = 0;
      for (size_t i = 0; i < j; i++) {  // i stands before j: it wins a tie
        for (int lane = 0; lane < 16; lane++) {
          int32_t before = keys[i][lane] >= keys[j][lane];
          ranks[j][lane] += before;
          ranks[i][lane] += 1 - before;
        }
      }
    }
    for (size_t lane = 0; lane < count; lane++)
      for (size_t j = 0; j < size; j++) to[lane * size + j] = ranks[j][lane] < kept;
  }
}

#if defined(__AVX2__)
#if defined(__AVX512F__)
static constexpr int lanes = 16;
#else
static constexpr int lanes = 8;
#endif
typedef int32_t Lanes __attribute__((vector_size(lanes * 4)));
typedef uint8_t LaneBytes __attribute__((vector_size(lanes)));

// x[lane[0]], x[lane[1]], ...
static inline Lanes permuted(Lanes x, Lanes lane) {
#if defined(__AVX512F__)
  return reinterpret_cast<Lanes>(
      _mm512_maskz_permutexvar_epi32(0xffff, reinterpret_cast<__m512i>(lane), reinterpret_cast<__m512i>(x)));
#else
  return reinterpret_cast<Lanes>(
      _mm256_permutevar8x32_epi32(reinterpret_cast<__m256i>(x), reinterpret_cast<__m256i>(lane)));
#endif
}

// For each turn of a group by r places: the lane that each lane meets, and 1 where that one stands before it in the
// group.
template <int group>
struct Turns {
  alignas(64) int32_t lane[group][lanes] = {}, before[group][lanes] = {};
  constexpr Turns() {
    for (int r = 1; r < group; r++) {
      for (int l = 0; l < lanes; l++) {
        lane[r][l] = (l / group) * group + (l + r) % group;
        before[r][l] = lane[r][l] < l;
      }
    }
  }
};

// Groups that divide a vector: each lane meets the others of its group by turning the groups in place. Returns how many
// values it has done, all but the last ones that fill no vector.
template <int group>
static size_t rankLanes(const float* x, uint8_t* mask, size_t n, int64_t kept) {
  static constexpr Turns<group> turns;
  size_t i = 0;
  for (; i + lanes <= n; i += lanes) {
    Lanes bits, rank = {};
    __builtin_memcpy(&bits, x + i, sizeof bits);
    bits &= 0x7fffffff;
#pragma GCC unroll 8
    for (int r = 1; r < group; r++) {
      Lanes lane, before;
      __builtin_memcpy(&lane, turns.lane[r], sizeof lane);
      __builtin_memcpy(&before, turns.before[r], sizeof before);
      rank -= permuted(bits, lane) > bits - before;  // larger, or equal and before; a comparison gives −1
    }
    LaneBytes keep = __builtin_convertvector((rank < static_cast<int32_t>(kept)) & 1, LaneBytes);
    __builtin_memcpy(mask + i, &keep, sizeof keep);
  }
  return i;
}
#endif

// A large group: its threshold, bit by bit from the top, is the largest t that at least `kept` magnitudes reach.
static void bisectGroup(const float* x, uint8_t* mask, int64_t kept, int64_t group) {
  int32_t threshold = 0;
  for (int bit = 30; bit >= 0; bit--) {
    int32_t trial = threshold | (1 << bit);
    int32_t reached = 0;
    for (int64_t j = 0; j < group; j++) reached += static_cast<int32_t>(magnitude(x + j)) >= trial;
    if (reached >= kept) threshold = trial;
  }
  int64_t ties = kept;
  for (int64_t j = 0; j < group; j++) ties -= static_cast<int32_t>(magnitude(x + j)) > threshold;
  for (int64_t j = 0; j < group; j++) {
    int32_t bits = static_cast<int32_t>(magnitude(x + j));
    mask[j] = bits > threshold || (bits == threshold && ties-- > 0);
  }
}

static void groupMask(const float* x, uint8_t* mask, size_t n, int64_t kept, int64_t group) {
  size_t done = 0;
  if (kept == 0 || kept == group) {
    __builtin_memset(mask, kept > 0, n);
    return;
  }
  if (group > largestRanked) {
    for (; done < n; done += static_cast<size_t>(group)) bisectGroup(x + done, mask + done, kept, group);
    return;
  }
#if defined(__AVX2__)
  if (group == 2) done = rankLanes<2>(x, mask, n, kept);
  if (group == 4) done = rankLanes<4>(x, mask, n, kept);
  if (group == 8) done = rankLanes<8>(x, mask, n, kept);
#endif
  if (done < n) rankColumns(x + done, mask + done, n - done, kept, group);
}

static size_t countChanges(const uint8_t* __restrict mask, uint8_t* __restrict previous, size_t n) {
  size_t total = 0, i = 0;
  while (i + 64 <= n) {  // 64 counters of a byte, for as many rounds as a byte can count
    uint8_t counts[64] = {0};
    for (int round = 0; round < 255 && i + 64 <= n; round++, i += 64) {
      for (int lane = 0; lane < 64; lane++) {
        counts[lane] = static_cast<uint8_t>(counts[lane] + (mask[i + lane] != previous[i + lane]));
        previous[i + lane] = mask[i + lane];
      }
    }
    for (uint8_t count : counts) total += count;
  }
  for (; i < n; i++) {
    total += mask[i] != previous[i];
    previous[i] = mask[i];
  }
  return total;
}

// ---- ADMM
// ------------------------------------------------------------------------------------------------------------

// a b + c with one rounding where the processor has that. Where a compiler chooses, two loops may round differently, or
// a loop's end and the rest of it; the state must be the same wherever it is made (int8.inl).
static inline float fused(float a, float b, float c) {
#if defined(__FMA__) || defined(__ARM_FEATURE_FMA)
  return __builtin_fmaf(a, b, c);
#else
  return a * b + c;
#endif
}

static void admmState(const float* __restrict step, const float* __restrict base, float* __restrict state,
                      const uint8_t* __restrict mask, float relaxation, size_t n) {
  const float rest = 1 - relaxation;
#if defined(__AVX512F__)
  const __m512 factor = _mm512_set1_ps(relaxation), one = _mm512_set1_ps(1), other = _mm512_set1_ps(rest);
  for (size_t i = 0; i < n; i += 16) {
    __mmask16 lanes = static_cast<__mmask16>(n - i >= 16 ? 0xffff : (1u << (n - i)) - 1);
    __m512 sum = _mm512_maskz_loadu_ps(lanes, base + i) + _mm512_maskz_loadu_ps(lanes, step + i);
    __m128i kept = _mm_maskz_loadu_epi8(lanes, mask + i);
    __m512 share = _mm512_mask_blend_ps(_mm_test_epi8_mask(kept, kept), one, other);
    __m512 before = _mm512_mul_ps(share, _mm512_maskz_loadu_ps(lanes, state + i));
    _mm512_mask_storeu_ps(state + i, lanes, _mm512_fmadd_ps(factor, sum, before));
  }
#else
  for (size_t i = 0; i < n; i++) {
    float sum = base[i] + step[i], before = state[i];
    state[i] = fused(relaxation, sum, (mask[i] ? rest : 1.0f) * before);
  }
#endif
}

static void admmY(const float* __restrict base, const float* __restrict state, const uint8_t* __restrict mask,
                  float* __restrict y, size_t n) {
  for (size_t i = 0; i < n; i++) {
    float s = state[i];
    y[i] = (mask[i] ? s : -s) - base[i];
  }
}

static void admmY16(const float* __restrict base, const float* __restrict state, const uint8_t* __restrict mask,
                    bf16_t* __restrict y, size_t n) {
#if defined(__AVX512BF16__)
  const __m512i sign = _mm512_set1_epi32(INT32_MIN);
  for (size_t i = 0; i < n; i += 16) {
    __mmask16 lanes = static_cast<__mmask16>(n - i >= 16 ? 0xffff : (1u << (n - i)) - 1);
    __m128i kept = _mm_maskz_loadu_epi8(lanes, mask + i);
    __m512i s = _mm512_maskz_loadu_epi32(lanes, state + i);
    s = _mm512_mask_xor_epi32(s, _mm_testn_epi8_mask(kept, kept), s, sign);
    __m512 rest = reinterpret_cast<__m512>(s) - _mm512_maskz_loadu_ps(lanes, base + i);
    _mm256_mask_storeu_epi16(y + i, lanes, reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(rest)));
  }
#else
  for (size_t i = 0; i < n; i++) {
    float s = state[i];
    y[i] = f32ToBf16((mask[i] ? s : -s) - base[i]);
  }
#endif
}

static void scaleOffMask(float* __restrict state, const uint8_t* __restrict mask, float factor, size_t n) {
  for (size_t i = 0; i < n; i++) state[i] = state[i] * (mask[i] ? 1.0f : factor);
}

// ---- conjugate gradient
// ------------------------------------------------------------------------------------------------

static void cgUpdate(const float* __restrict q, const float* __restrict direction, const uint8_t* __restrict mask,
                     float alpha, float* __restrict x, float* __restrict residual, size_t n) {
  for (size_t i = 0; i < n; i++) {
    x[i] += alpha * direction[i];
    float change = alpha * q[i];
    residual[i] -= mask[i] ? change : 0.0f;
  }
}

// Eight rows of gram[S, S] lie together, a tile's width of each in turn, from column 0 to the tile on the diagonal,
// which is whole. Behind the support's end stand zeros.
static constexpr size_t packedRows = 8;

#if defined(__AVX512F__)
// By 16 columns of gram at a time: those of a tile's support move to their lanes together, in eight rows side by side.
static constexpr size_t mostMoves = 4096;

static bool packByMoves(const float* gram, size_t stride, const uint32_t* support, size_t size, float* packed) {
  struct Move {
    uint32_t column;
    __mmask16 lanes, readable;
  } moves[mostMoves];
  uint16_t ends[mostMoves];  // of each tile's moves
  if ((stride + 15) / 16 + inTiles(size) > mostMoves) return false;
  size_t count = 0;
  for (size_t j = 0; j < size; j++) {
    uint32_t column = support[j] / 16 * 16;
    if (j % supportTile == 0 || moves[count - 1].column != column) {
      size_t left = stride - column;
      moves[count++] = {column, 0, static_cast<__mmask16>(left < 16 ? (1u << left) - 1 : 0xffff)};
    }
    moves[count - 1].lanes |= static_cast<__mmask16>(1u << j % supportTile);
    ends[j / supportTile] = static_cast<uint16_t>(count);
  }
  for (size_t first = 0; first < inTiles(size) * supportTile; first += packedRows) {
    const float* rows[packedRows];
    for (size_t r = 0; r < packedRows; r++) rows[r] = gram + support[first + r < size ? first + r : 0] * stride;
    for (size_t tile = 0, k = 0; tile <= first / supportTile; tile++, packed += packedRows * supportTile) {
      size_t left = size - tile * supportTile;
      __mmask16 inside = static_cast<__mmask16>(left < 16 ? (1u << left) - 1 : 0xffff);
      __m512i columns = _mm512_maskz_loadu_epi32(inside, support + tile * supportTile);
      __m512 lanes[packedRows];
#pragma GCC unroll 8
      for (size_t r = 0; r < packedRows; r++) lanes[r] = _mm512_setzero_ps();
      for (; k < ends[tile]; k++) {
        Move move = moves[k];
#pragma GCC unroll 8
        for (size_t r = 0; r < packedRows; r++)
          lanes[r] = _mm512_mask_permutexvar_ps(lanes[r], move.lanes, columns,
                                                _mm512_maskz_loadu_ps(move.readable, rows[r] + move.column));
      }
#pragma GCC unroll 8
      for (size_t r = 0; r < packedRows; r++)
        _mm512_storeu_ps(packed + r * supportTile, first + r < size ? lanes[r] : _mm512_setzero_ps());
    }
  }
  return true;
}
#endif

static void packSupport(const float* gram, size_t stride, const uint32_t* support, size_t size, float* packed) {
#if defined(__AVX512F__)
  if (packByMoves(gram, stride, support, size, packed)) return;
#endif
  for (size_t first = 0; first < inTiles(size) * supportTile; first += packedRows) {
    size_t tiles = first / supportTile + 1;
    for (size_t r = 0; r < packedRows; r++) {
      const float* row = gram + support[first + r < size ? first + r : 0] * stride;
      for (size_t tile = 0; tile < tiles; tile++) {
        float* to = packed + (tile * packedRows + r) * supportTile;
        size_t left = size - tile * supportTile, count = left < supportTile ? left : supportTile;
        if (first + r >= size) count = 0;
        for (size_t lane = 0; lane < count; lane++) to[lane] = row[support[tile * supportTile + lane]];
        for (size_t lane = count; lane < supportTile; lane++) to[lane] = 0;
      }
    }
    packed += packedRows * tiles * supportTile;
  }
}

// Each number left of the tile on the diagonal counts twice: for its row's sum, and for its column's.
static void supportTimes(const float* packed, size_t size, const float* p, float* q) {
  constexpr size_t together = floatLanes == 16 ? packedRows : packedRows / 2;
  size_t padded = inTiles(size) * supportTile;
  __builtin_memset(q, 0, padded * sizeof(float));
  for (size_t first = 0; first < padded; first += packedRows) {
    size_t diagonal = first / supportTile * supportTile;
    for (size_t part = 0; part < packedRows; part += together) {
      Floats sums[together] = {}, own[together];
      for (size_t r = 0; r < together; r++) own[r] = Floats{} + p[first + part + r];
      const float* rows = packed + part * supportTile;
      for (size_t j = 0; j < diagonal; j += supportTile, rows += packedRows * supportTile) {
#pragma GCC unroll 4
        for (size_t lane = 0; lane < supportTile; lane += floatLanes) {
          Floats other = load(p + j + lane), even = load(q + j + lane), odd = {};
#pragma GCC unroll 8
          for (size_t r = 0; r < together; r++) {
            Floats a = load(rows + r * supportTile + lane);
            sums[r] += a * other;
            (r % 2 ? odd : even) += a * own[r];
          }
          store(even + odd, q + j + lane);
        }
      }
#pragma GCC unroll 4
      for (size_t lane = 0; lane < supportTile; lane += floatLanes) {
        Floats other = load(p + diagonal + lane);
#pragma GCC unroll 8
        for (size_t r = 0; r < together; r++) sums[r] += load(rows + r * supportTile + lane) * other;
      }
#pragma GCC unroll 8
      for (size_t r = 0; r < together; r++) q[first + part + r] += sumOf(sums[r]);
    }
    packed += packedRows * (diagonal + supportTile);
  }
}

// ---- SparseGPT
// -------------------------------------------------------------------------------------------------------

static void ratios(const float* __restrict x, const float* __restrict y, float* __restrict out, size_t n) {
  for (size_t i = 0; i < n; i++) out[i] = x[i] / y[i];
}

// Errors stay in registers for the weights behind. `columns` is a constant in the usual call.
static inline __attribute__((always_inline)) void sweepSome(float* weights, const uint32_t* pruned, const float* upper,
                                                            size_t stride, size_t columns, size_t rest, float* errors) {
  constexpr size_t apart = static_cast<size_t>(sweepRows), together = floatLanes == 16 ? 2 : 1;
  for (size_t row = 0; row < apart; row += together * floatLanes) {
    Floats e[sweepColumns][together];
    for (size_t k = 0; k < columns; k++) {
      for (size_t t = 0; t < together; t++) {
        size_t at = k * apart + row + t * floatLanes;
        Floats w = load(weights + at);
        for (size_t q = 0; q < k; q++) w -= e[q][t] * upper[q * stride + k];
        Words lost;
        __builtin_memcpy(&lost, pruned + at, sizeof lost);
        e[k][t] = reinterpret_cast<Floats>(reinterpret_cast<Words>(w / upper[k * stride + k]) & lost);
        store(e[k][t], errors + at);
        store(reinterpret_cast<Floats>(reinterpret_cast<Words>(w) & ~lost), weights + at);
      }
    }
    for (size_t j = columns; j < rest; j++) {
      Floats w[together];
      for (size_t t = 0; t < together; t++) w[t] = load(weights + j * apart + row + t * floatLanes);
      for (size_t k = 0; k < columns; k++)
        for (size_t t = 0; t < together; t++) w[t] -= e[k][t] * upper[k * stride + j];
      for (size_t t = 0; t < together; t++) store(w[t], weights + j * apart + row + t * floatLanes);
    }
  }
}

static void sweep(float* weights, const uint32_t* pruned, const float* upper, size_t stride, size_t columns,
                  size_t rest, float* errors) {
  constexpr size_t most = static_cast<size_t>(sweepColumns);
  if (columns == most) return sweepSome(weights, pruned, upper, stride, most, rest, errors);
  if (columns == most / 2) return sweepSome(weights, pruned, upper, stride, most / 2, rest, errors);
  sweepSome(weights, pruned, upper, stride, columns, rest, errors);
}

static const PruningKernels pruningTable = {
    histogram, collect, countAbove,   largestUpTo, countEqual,  maskAbove,    groupMask, countChanges, admmState,
    admmY,     admmY16, scaleOffMask, cgUpdate,    packSupport, supportTimes, ratios,    sweep,
};
