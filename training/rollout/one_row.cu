// Kernels of one-row decoding: a weight-times-vector product with what surrounds it, and attention over the cache.
//
// Compiled at run time for one shape each; the macros K, BITS, GROUP, WARPS_K, WARPS_N, DEPTH, RESIDENT, NORM,
// GATED, BIAS, RESIDUAL, OUT_FLOAT (gemv) and HEAD_SIZE, GROUP_HEADS, THREADS, ROTARY (attend) are its parameters.
// A kernel reads ahead before it waits for the one before it in the stream, and only after that wait lets the next one
// begin to do so: what it reads ahead was written by the kernel before the last, or earlier. So the memory rarely rests.
// The primitives below are the only instructions of the device; tests compile this file for the host with their own.

typedef unsigned int u32;
typedef unsigned short u16;
typedef unsigned long long u64;

#ifndef ON_HOST
#define DEVICE static __device__ __forceinline__
#define KERNEL(threads, resident) extern "C" __global__ void __launch_bounds__(threads, resident)
#define SHARED __shared__
#define FULL 0xffffffffu
#if __CUDA_ARCH__ >= 900
DEVICE void wait_for_previous() { asm volatile("griddepcontrol.wait;" ::: "memory"); }
DEVICE void let_next_start() { asm volatile("griddepcontrol.launch_dependents;" ::: "memory"); }
DEVICE void fetch_to_cache(const void* at, u32 size) {  // into the second cache; 16 bytes and their multiples
  asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(at), "r"(size) : "memory");
}
#else
DEVICE void wait_for_previous() {}
DEVICE void let_next_start() {}
DEVICE void fetch_to_cache(const void*, u32) {}
#endif
// c [16, 8] += a [16, 16] b [16, 8] over a warp; bf16 pairs, fp32 sums
DEVICE void mma(float* c, u32 a0, u32 a1, u32 a2, u32 a3, u32 b0, u32 b1) {
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
               : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
               : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}
// a - b of two bf16 pairs (as a * 1 - b, which older devices have too)
DEVICE u32 subtract_pair(u32 a, u32 b) {
  u32 out;
  asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(out) : "r"(a), "r"(0x3F803F80u), "r"(b ^ 0x80008000u));
  return out;
}
DEVICE u32 pick_bytes(u32 word, u32 which) { return __byte_perm(word, 0, which); }
DEVICE uint4 load_weights(const void* at) {  // read once: not worth a place in the first cache
  uint4 out;
  asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0,%1,%2,%3}, [%4];"
               : "=r"(out.x), "=r"(out.y), "=r"(out.z), "=r"(out.w) : "l"(at));
  return out;
}
DEVICE float half_to_float(u16 x) {
  float out;
  asm("cvt.f32.f16 %0, %1;" : "=f"(out) : "h"(x));
  return out;
}
// two floats to a pair of bf16, `low` in the lower half
DEVICE u32 to_pair(float low, float high) {
  u32 out;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(out) : "f"(high), "f"(low));
  return out;
}
DEVICE float from_bits(u32 bits) { return __uint_as_float(bits); }
DEVICE float shuffle_xor(float x, int mask) { return __shfl_xor_sync(FULL, x, mask); }
DEVICE float inverse_root(float x) { return rsqrtf(x); }
DEVICE float power_of_two(float x) { return exp2f(x); }
#endif

DEVICE float low_of(u32 pair) { return from_bits(pair << 16); }
DEVICE float high_of(u32 pair) { return from_bits(pair & 0xffff0000u); }
DEVICE float bf16_of(u16 x) { return from_bits((u32)x << 16); }
DEVICE u16 to_bf16(float x) { return (u16)(to_pair(x, 0.0f) & 0xffffu); }

#ifdef BITS
// x [K] times a matrix [outputs, K] transposed. The matrix is the left operand of the tensor cores, 16 rows at a time;
// the right one is the vector, the same in all eight columns. A quad of lanes reads 64 bytes of a row, and lane l
// holds rows l / 4 and l / 4 + 8 of the tile; warps share the inputs (WARPS_K) and the rows (WARPS_N).
constexpr int SPAN = BITS == 4 ? 128 : BITS == 8 ? 64 : 32;  // inputs in those 64 bytes
constexpr int SPANS = (K + SPAN - 1) / SPAN;
constexpr int MINE = (SPANS + WARPS_K - 1) / WARPS_K;  // spans of a warp
constexpr int GROUPS = BITS == 4 ? K / GROUP : 1;
constexpr int SPAN_GROUPS = BITS == 4 ? SPAN / GROUP : 1;
constexpr int WARPS = WARPS_K * WARPS_N;
constexpr int CHUNKS = (SPANS * SPAN / 8 + 32 * WARPS - 1) / (32 * WARPS);  // of eight inputs, for each thread

struct Piece {  // what a lane reads of one span: 16 bytes of each of its two rows, and their scales and offsets
  uint4 data[2];
#if BITS == 4
  u16 scale[2][SPAN_GROUPS], offset[2][SPAN_GROUPS];
#endif
};

DEVICE void load(Piece& piece, const char* const* rows, const u16* const* scales, const u16* const* offsets, int span) {
#pragma unroll
  for (int r = 0; r < 2; r++) {
    piece.data[r] = load_weights(rows[r] + span * 64);
#if BITS == 4
#pragma unroll
    for (int i = 0; i < SPAN_GROUPS; i++) {
      int group = span * SPAN_GROUPS + i;
      group = group < GROUPS ? group : GROUPS - 1;  // beyond the last input the vector is zero
      piece.scale[r][i] = scales[r][group];
      piece.offset[r][i] = offsets[r][group];
    }
#endif
  }
}

DEVICE u32 word_of(uint4 v, int i) { return i == 0 ? v.x : i == 1 ? v.y : i == 2 ? v.z : v.w; }

// 128 + nibble, exactly: nibbles i and i + 4 of a word as a pair of bf16
DEVICE u32 nibbles(u32 word, int i) { return ((word >> (4 * i)) & 0x000F000Fu) | 0x43004300u; }

// int8 values of two bytes as a pair of bf16: (128 + low seven bits) - (128 + 128 * sign)
DEVICE u32 bytes(u32 word, u32 which) {
  u32 pair = pick_bytes(word, which);
  return subtract_pair((pair & 0x007F007Fu) | 0x43004300u, (pair & 0x00800080u) | 0x43004300u);
}

// Adds a span's products to the totals of the lane's two rows (int4), or to the accumulators.
DEVICE void multiply(const Piece& piece, const uint4* x, const float* sums, int lane, float (*c)[4], float* total) {
  int quad = lane % 4;
  uint4 top = piece.data[0], bottom = piece.data[1];
#if BITS == 16
  uint4 b = x[quad];
  mma(c[0], top.x, bottom.x, top.y, bottom.y, b.x, b.y);
  mma(c[1], top.z, bottom.z, top.w, bottom.w, b.z, b.w);
#elif BITS == 8
#pragma unroll
  for (int q = 0; q < 4; q++) {
    uint4 b = x[2 * quad + q / 2];
    u32 first = word_of(top, q), second = word_of(bottom, q);
    mma(c[q % 2], bytes(first, 0x4140), bytes(second, 0x4140), bytes(first, 0x4342), bytes(second, 0x4342),
        q % 2 ? b.z : b.x, q % 2 ? b.w : b.y);
  }
#else
#pragma unroll
  for (int q = 0; q < 4; q++) {
    uint4 b = x[4 * q + quad];
    u32 first = word_of(top, q), second = word_of(bottom, q);
    mma(c[0], nibbles(first, 0), nibbles(second, 0), nibbles(first, 1), nibbles(second, 1), b.x, b.y);
    mma(c[1], nibbles(first, 2), nibbles(second, 2), nibbles(first, 3), nibbles(second, 3), b.z, b.w);
    if ((q + 1) * 32 % GROUP == 0) {  // w = nibble * scale + offset, and the sums hold 128 + nibble
      int i = q * 32 / GROUP;
      float sum = sums[i];
#pragma unroll
      for (int r = 0; r < 2; r++) {
        float scale = half_to_float(piece.scale[r][i]), offset = half_to_float(piece.offset[r][i]);
        total[r] += scale * (c[0][2 * r] + c[1][2 * r]) + (offset - 128.0f * scale) * sum;
      }
#pragma unroll
      for (int j = 0; j < 4; j++) c[0][j] = c[1][j] = 0.0f;
    }
  }
#endif
}

KERNEL(32 * WARPS, RESIDENT) gemv(const u16* x, const u16* norm, const char* data, const void* scale, const void* offset,
                        const u16* bias, const u16* residual, void* out, int outputs, float eps) {
  SHARED uint4 vector[SPANS * SPAN / 8];
  SHARED float group_sums[BITS == 4 ? SPANS * SPAN_GROUPS : 1];
  SHARED float partial[WARPS_N][WARPS_K][16];
  SHARED float warp_squares[WARPS];
  int thread = threadIdx.x, lane = thread % 32, warp = thread / 32;
  int warp_k = warp % WARPS_K, tile = blockIdx.x * WARPS_N + warp / WARPS_K, first = warp_k * MINE;
  constexpr int ROWS = GATED ? 8 : 16;  // outputs of a tile; gated: the other eight rows are their second factors
  int row[2];
  row[0] = tile * ROWS + lane / 4;
  row[1] = GATED ? outputs + row[0] : row[0] + 8;
  int last = GATED ? 2 * outputs - 1 : outputs - 1;
  const char* rows[2];
  const u16 *scales[2] = {0, 0}, *offsets[2] = {0, 0};
#pragma unroll
  for (int r = 0; r < 2; r++) {
    long long at = row[r] < last ? row[r] : last;
    rows[r] = data + at * (SPANS * 64ll) + (lane % 4) * 16;
    if (BITS == 4) {
      scales[r] = (const u16*)scale + at * GROUPS;
      offsets[r] = (const u16*)offset + at * GROUPS;
    }
  }
  Piece pieces[DEPTH];
#pragma unroll
  for (int d = 0; d < DEPTH; d++)
    if (d < MINE && first + d < SPANS) load(pieces[d], rows, scales, offsets, first + d);
  uint4 norms[CHUNKS];
  if (NORM) {
#pragma unroll
    for (int i = 0; i < CHUNKS; i++) {
      int at = (i * 32 * WARPS + thread) * 8;
      if (at < K) norms[i] = *(const uint4*)(norm + at);
    }
  }
  int r = thread % ROWS, output = (blockIdx.x * WARPS_N + thread / ROWS) * ROWS + r;  // what this thread writes
  bool writes = thread < WARPS_N * ROWS && output < outputs;
  float level = 1.0f, second_level = 1.0f, start = 0.0f, second_start = 0.0f, rest = 0.0f;
  if (writes) {
    int second_row = GATED ? outputs + output : output;
    if (BITS == 8) {
      level = ((const float*)scale)[output];
      second_level = ((const float*)scale)[second_row];
    }
    if (BIAS) {
      start = bf16_of(bias[output]);
      second_start = bf16_of(bias[second_row]);
    }
  }

  wait_for_previous();
  let_next_start();
  if (RESIDUAL && writes) rest = bf16_of(residual[output]);
  float squares = 0.0f;
#pragma unroll
  for (int i = 0; i < CHUNKS; i++) {
    int at = (i * 32 * WARPS + thread) * 8;
    uint4 part = {0, 0, 0, 0};
    if (at < K) part = *(const uint4*)(x + at);
    u32 words[4] = {part.x, part.y, part.z, part.w};
    float sum = 0.0f;
#pragma unroll
    for (int j = 0; j < 4; j++) {
      if (NORM) {
        float low = low_of(words[j]), high = high_of(words[j]);
        squares += low * low + high * high;
        u32 factor = at < K ? word_of(norms[i], j) : 0;
        words[j] = to_pair(low * low_of(factor), high * high_of(factor));
      }
      if (BITS == 4) sum += low_of(words[j]) + high_of(words[j]);
    }
    if (at < SPANS * SPAN) vector[at / 8] = uint4{words[0], words[1], words[2], words[3]};
    if (BITS == 4) {
#pragma unroll
      for (int step = 1; step < GROUP / 8; step *= 2) sum += shuffle_xor(sum, step);
      if (lane % (GROUP / 8) == 0 && at < SPANS * SPAN) group_sums[at / (GROUP > 0 ? GROUP : 1)] = sum;
    }
  }
  if (NORM) {
#pragma unroll
    for (int step = 1; step < 32; step *= 2) squares += shuffle_xor(squares, step);
    if (lane == 0) warp_squares[warp] = squares;
  }
  __syncthreads();

  float c[2][4] = {{0, 0, 0, 0}, {0, 0, 0, 0}}, total[2] = {0, 0};
#pragma unroll 1
  for (int base = 0; base < MINE; base += DEPTH) {
#pragma unroll
    for (int d = 0; d < DEPTH; d++) {
      int mine = base + d, span = first + mine;
      if (mine < MINE && span < SPANS) {
        Piece piece = pieces[d];
        if (mine + DEPTH < MINE && span + DEPTH < SPANS) load(pieces[d], rows, scales, offsets, span + DEPTH);
        multiply(piece, vector + span * (SPAN / 8), group_sums + span * SPAN_GROUPS, lane, c, total);
      }
    }
  }
  if (BITS != 4) {
    total[0] = c[0][0] + c[1][0];
    total[1] = c[0][2] + c[1][2];
  }
  if (lane % 4 == 0) {
    partial[warp / WARPS_K][warp_k][lane / 4] = total[0];
    partial[warp / WARPS_K][warp_k][lane / 4 + 8] = total[1];
  }
  __syncthreads();

  if (!writes) return;
  float factor = 1.0f, value = 0.0f, second = 0.0f;
  if (NORM) {
    float all = 0.0f;
#pragma unroll
    for (int i = 0; i < WARPS; i++) all += warp_squares[i];
    factor = inverse_root(all * (1.0f / K) + eps);
  }
#pragma unroll
  for (int i = 0; i < WARPS_K; i++) {
    value += partial[thread / ROWS][i][r];
    if (GATED) second += partial[thread / ROWS][i][(r + 8) % 16];
  }
  value = value * factor * level + start;
  if (GATED) {
    second = second * factor * second_level + second_start;
    value = value / (1.0f + power_of_two(-1.4426950408889634f * value)) * second;
  }
  if (RESIDUAL) value += rest;
  if (OUT_FLOAT)
    ((float*)out)[output] = value;
  else
    ((u16*)out)[output] = to_bf16(value);
}
#endif

#ifdef HEAD_SIZE
// One query head a block: rotates the new query and key, writes key and value to the cache (the first head of each
// group does), and attends to all positions up to the new one. LANES lanes hold a head vector, eight numbers each.
// Attention leaves the memory idle: blocks beyond the heads bring what the next products will read into the cache.
constexpr int LANES = HEAD_SIZE / 8;
constexpr int TEAMS = THREADS / LANES;  // keys at a time
constexpr int ATTEND_WARPS = THREADS / 32;
constexpr int UNROLL = 4;
constexpr int FETCH = 8192;  // bytes that a warp fetches

// Fetches the part of `ahead` that begins at `at`; if it ends before, moves `at` to where the next one is counted from.
DEVICE bool fetch_part(const char* ahead, long long size, long long& at) {
  long long left = size - at;
  if (left <= 0) {
    at -= (size + FETCH - 1) / FETCH * FETCH;
    return false;
  }
  if (left >= 16) fetch_to_cache(ahead + at, (u32)(left < FETCH ? left / 16 * 16 : FETCH));
  return true;
}

DEVICE void unpack(uint4 v, float* out) {
#pragma unroll
  for (int i = 0; i < 4; i++) {
    u32 word = i == 0 ? v.x : i == 1 ? v.y : i == 2 ? v.z : v.w;
    out[2 * i] = low_of(word);
    out[2 * i + 1] = high_of(word);
  }
}

DEVICE uint4 pack(const float* x) {
  return uint4{to_pair(x[0], x[1]), to_pair(x[2], x[3]), to_pair(x[4], x[5]), to_pair(x[6], x[7])};
}

// eight numbers of a head vector after rotary embedding (pairs i and i + HEAD_SIZE / 2), as bf16
DEVICE uint4 rotated(const u16* vector, int part, const float* cos, const float* sin) {
  uint4 mine = *(const uint4*)(vector + part * 8);
  if (!ROTARY) return mine;
  bool lower = part < LANES / 2;
  float own[8], other[8], out[8];
  unpack(mine, own);
  unpack(*(const uint4*)(vector + (lower ? part * 8 + HEAD_SIZE / 2 : part * 8 - HEAD_SIZE / 2)), other);
#pragma unroll
  for (int i = 0; i < 8; i++) out[i] = own[i] * cos[i] + (lower ? -other[i] : other[i]) * sin[i];
  return pack(out);
}

KERNEL(THREADS, 1) attend(const u16* q, const u16* k, const u16* v, u16* key_cache, u16* value_cache,
                       const long long* slots, const long long* positions, const float* cos, const float* sin,
                       u16* out, const char* ahead0, const char* ahead1, const char* ahead2, long long cache_slot,
                       long long cache_head, float scale, int heads, long long size0, long long size1,
                       long long size2) {
  SHARED float parts[ATTEND_WARPS][HEAD_SIZE];
  SHARED float peaks[ATTEND_WARPS], totals[ATTEND_WARPS];
  int thread = threadIdx.x, lane = thread % 32, warp = thread / 32, part = thread % LANES, team = thread / LANES;
  int head = blockIdx.x, group = head / GROUP_HEADS;
  if (head >= heads) {
    long long at = ((head - heads) * (long long)ATTEND_WARPS + warp) * FETCH;
    if (lane > 0) return;
    if (fetch_part(ahead0, size0, at) || fetch_part(ahead1, size1, at)) return;
    fetch_part(ahead2, size2, at);
    return;
  }
  int position = (int)positions[0];
  long long base = slots[0] * cache_slot + group * cache_head;
  const u16 *keys = key_cache + base, *values = value_cache + base;
  uint4 key[UNROLL], value[UNROLL];
#pragma unroll
  for (int i = 0; i < UNROLL; i++) {
    int at = i * TEAMS + team;
    if (at < position) {
      key[i] = *(const uint4*)(keys + at * HEAD_SIZE + part * 8);
      value[i] = *(const uint4*)(values + at * HEAD_SIZE + part * 8);
    }
  }
  const float *cosines = cos + position * (HEAD_SIZE / 2ll), *sines = sin + position * (HEAD_SIZE / 2ll);
  float cosine[8], sine[8];
#pragma unroll
  for (int i = 0; i < 8; i++) {
    cosine[i] = ROTARY ? cosines[part % (LANES / 2) * 8 + i] : 1.0f;
    sine[i] = ROTARY ? sines[part % (LANES / 2) * 8 + i] : 0.0f;
  }
  wait_for_previous();
  let_next_start();
  float query[8], acc[8], peak = -1e30f, total = 0.0f;
  unpack(rotated(q + head * HEAD_SIZE, part, cosine, sine), query);
#pragma unroll
  for (int i = 0; i < 8; i++) acc[i] = 0.0f;
  scale *= 1.4426950408889634f;  // softmax in powers of two
  if (warp == 0) {               // the new token: from registers, and into the cache for the steps to come
    uint4 new_key = rotated(k + group * HEAD_SIZE, part, cosine, sine);
    uint4 new_value = *(const uint4*)(v + group * HEAD_SIZE + part * 8);
    float wide[8], score = 0.0f;
    unpack(new_key, wide);
#pragma unroll
    for (int i = 0; i < 8; i++) score += query[i] * wide[i];
#pragma unroll
    for (int step = 1; step < LANES; step *= 2) score += shuffle_xor(score, step);
    if (team == 0) {
      if (head % GROUP_HEADS == 0) {
        *(uint4*)(key_cache + base + position * (long long)HEAD_SIZE + part * 8) = new_key;
        *(uint4*)(value_cache + base + position * (long long)HEAD_SIZE + part * 8) = new_value;
      }
      peak = score * scale;
      total = 1.0f;
      unpack(new_value, acc);
    }
  }
  for (int first = 0; first < position; first += UNROLL * TEAMS) {
    float scores[UNROLL], highest = peak;
#pragma unroll
    for (int i = 0; i < UNROLL; i++) {
      bool inside = first + i * TEAMS + team < position;
      float wide[8], score = 0.0f;
      unpack(key[i], wide);
#pragma unroll
      for (int j = 0; j < 8; j++) score += inside ? query[j] * wide[j] : 0.0f;
#pragma unroll
      for (int step = 1; step < LANES; step *= 2) score += shuffle_xor(score, step);
      scores[i] = inside ? score * scale : -2e30f;
      highest = scores[i] > highest ? scores[i] : highest;
    }
    float shrink = power_of_two(peak - highest);
    peak = highest;
    total *= shrink;
#pragma unroll
    for (int j = 0; j < 8; j++) acc[j] *= shrink;
#pragma unroll
    for (int i = 0; i < UNROLL; i++) {
      int at = first + i * TEAMS + team;
      float weight = at < position ? power_of_two(scores[i] - peak) : 0.0f, wide[8];
      total += weight;
      unpack(value[i], wide);
#pragma unroll
      for (int j = 0; j < 8; j++) acc[j] += at < position ? weight * wide[j] : 0.0f;
      at += UNROLL * TEAMS;
      if (at < position) {
        key[i] = *(const uint4*)(keys + at * HEAD_SIZE + part * 8);
        value[i] = *(const uint4*)(values + at * HEAD_SIZE + part * 8);
      }
    }
  }
#pragma unroll
  for (int step = LANES; step < 32; step *= 2) {  // join the teams of a warp, then the warps
    float other = shuffle_xor(peak, step), highest = other > peak ? other : peak;
    float shrink = power_of_two(peak - highest);
    peak = highest;
    total *= shrink;
    total += shuffle_xor(total, step);
#pragma unroll
    for (int j = 0; j < 8; j++) {
      acc[j] *= shrink;
      acc[j] += shuffle_xor(acc[j], step);
    }
  }
  if (lane < LANES)
    for (int j = 0; j < 8; j++) parts[warp][part * 8 + j] = acc[j];
  if (lane == 0) {
    peaks[warp] = peak;
    totals[warp] = total;
  }
  __syncthreads();
  if (thread < HEAD_SIZE) {
    float highest = peaks[0], sum = 0.0f, whole = 0.0f;
    for (int i = 1; i < ATTEND_WARPS; i++) highest = peaks[i] > highest ? peaks[i] : highest;
    for (int i = 0; i < ATTEND_WARPS; i++) {
      float weight = power_of_two(peaks[i] - highest);
      sum += weight * parts[i][thread];
      whole += weight * totals[i];
    }
    out[head * HEAD_SIZE + thread] = to_bf16(sum / whole);
  }
}
#endif
