// Runs a CUDA kernel of this project on the host: a fiber for each thread of a block, blocks one after another.
// Give it before the kernel's source. What lanes do together (matrix products, shuffles, barriers) is written out here.

#define ON_HOST
#define DEVICE static inline
#define KERNEL(threads, resident) static void
#define SHARED static
#include <ucontext.h>

#include <cmath>
#include <cstring>
#include <functional>
#include <vector>

struct uint4 {
  unsigned x, y, z, w;
};
static struct {
  int x;
} threadIdx, blockIdx;

namespace host {
const int MOST = 1024;
static ucontext_t scheduler, fibers[MOST];
static std::vector<char> stacks[MOST];
static bool done[MOST];
static int current, threads;
static std::function<void()> body;
struct Barrier {
  int arrived, turn;
};
static Barrier block_barrier, warp_barriers[MOST / 32];
static unsigned slots[MOST][6];

static void wait_at(Barrier& barrier, int count) {
  int turn = barrier.turn;
  if (++barrier.arrived == count) {
    barrier.arrived = 0;
    barrier.turn++;
  }
  while (barrier.turn == turn) swapcontext(&fibers[current], &scheduler);
}

static void start() {
  body();
  done[current] = true;
  swapcontext(&fibers[current], &scheduler);
}

static void run(int blocks, int count, std::function<void()> kernel) {
  body = kernel;
  threads = count;
  for (blockIdx.x = 0; blockIdx.x < blocks; blockIdx.x++) {
    for (int i = 0; i < count; i++) {
      stacks[i].resize(1 << 16);
      getcontext(&fibers[i]);
      fibers[i].uc_stack = {stacks[i].data(), 0, stacks[i].size()};
      makecontext(&fibers[i], start, 0);
      done[i] = false;
    }
    for (int left = count; left > 0;) {
      for (int i = 0; i < count; i++) {
        if (done[i]) continue;
        current = threadIdx.x = i;
        swapcontext(&scheduler, &fibers[i]);
        left -= done[i];
      }
    }
  }
}

static void warp_wait() { wait_at(warp_barriers[current / 32], 32); }
static float bf16(unsigned pair, int high) {
  unsigned bits = high ? pair & 0xffff0000u : pair << 16;
  float out;
  memcpy(&out, &bits, 4);
  return out;
}
}  // namespace host

static void __syncthreads() { host::wait_at(host::block_barrier, host::threads); }
static void wait_for_previous() {}
static void let_next_start() {}
extern "C" long long fetched;
long long fetched = 0;
static void fetch_to_cache(const void* at, unsigned size) {
  volatile char touched = *(const char*)at + ((const char*)at)[size - 1];
  fetched += size;
}

static float from_bits(unsigned bits) {
  float out;
  memcpy(&out, &bits, 4);
  return out;
}
static unsigned to_pair(float low, float high) {
  unsigned out[2];
  float in[2] = {low, high};
  for (int i = 0; i < 2; i++) {
    memcpy(&out[i], &in[i], 4);
    out[i] = (out[i] + 0x7fff + ((out[i] >> 16) & 1)) >> 16;
  }
  return out[0] | out[1] << 16;
}
static unsigned subtract_pair(unsigned a, unsigned b) {
  return to_pair(host::bf16(a, 0) - host::bf16(b, 0), host::bf16(a, 1) - host::bf16(b, 1));
}
static unsigned pick_bytes(unsigned word, unsigned which) {
  unsigned out = 0;
  for (int i = 0; i < 4; i++) {
    unsigned from = (which >> (4 * i)) & 7;
    out |= (from < 4 ? (word >> (8 * from)) & 255 : 0) << (8 * i);
  }
  return out;
}
static uint4 load_weights(const void* at) { return *(const uint4*)at; }
static float half_to_float(unsigned short x) {
  int exponent = (x >> 10) & 31, fraction = x & 1023;
  float value = exponent ? ldexpf(1024 + fraction, exponent - 25) : ldexpf(fraction, -24);
  return x & 0x8000 ? -value : value;
}
static float inverse_root(float x) { return 1 / sqrtf(x); }
static float power_of_two(float x) { return exp2f(x); }

static float shuffle_xor(float x, int mask) {
  int me = host::current;
  memcpy(&host::slots[me][0], &x, 4);
  host::warp_wait();
  float out;
  memcpy(&out, &host::slots[me ^ mask][0], 4);
  host::warp_wait();
  return out;
}

static void mma(float* c, unsigned a0, unsigned a1, unsigned a2, unsigned a3, unsigned b0, unsigned b1) {
  unsigned mine[6] = {a0, a1, a2, a3, b0, b1};
  int me = host::current, base = me / 32 * 32, lane = me % 32;
  memcpy(host::slots[me], mine, sizeof mine);
  host::warp_wait();
  for (int i = 0; i < 4; i++) {
    int row = lane / 4 + 8 * (i / 2), column = lane % 4 * 2 + i % 2;
    double sum = 0;
    for (int k = 0; k < 16; k++) {
      const unsigned* a = host::slots[base + row % 8 * 4 + k % 8 / 2];
      const unsigned* b = host::slots[base + column * 4 + k % 8 / 2];
      sum += (double)host::bf16(a[row / 8 + k / 8 * 2], k % 2) * host::bf16(b[4 + k / 8], k % 2);
    }
    c[i] += sum;
  }
  host::warp_wait();
}
