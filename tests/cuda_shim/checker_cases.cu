// The launches of the kernels of checker_kernels.cuh, and what the checker must say of each.
#include "checker_cases.h"
#include "checker_kernels.cuh"

namespace {

using cuda_shim::Buffer;

void with_xy(void (*kernel)(const float*, float*)) {
  const Buffer<float> x(std::vector<float>(kBlock, 1.0f), "x");
  Buffer<float> y(kBlock, "y");
  ADVNAS_LAUNCH(kernel, 1, kBlock, 0, nullptr)(x.data(), y.data());
}

void with_y(void (*kernel)(float*), unsigned blocks = 1) {
  Buffer<float> y(kBlock * blocks, "y");
  ADVNAS_LAUNCH(kernel, blocks, kBlock, 0, nullptr)(y.data());
  for (float value : y.host()) {
    if (!(value >= 0)) cuda_shim::fail("wrong result", "NaN");
  }
}

void indexed(void (*kernel)(float*, int), int index, unsigned blocks = 1, size_t shared = 0, size_t size = kBlock) {
  Buffer<float> y(size, "y");
  ADVNAS_LAUNCH(kernel, blocks, blocks > 1 ? 1 : kBlock, shared, nullptr)(y.data(), index);
}

void copied(int from, int to, size_t filled = 64) {
  Buffer<float> x(64, "x"), y(64, "y");
  cuda_shim::copy(x.data(), std::vector<float>(filled, 1.0f).data(), filled * 4);
  ADVNAS_LAUNCH(copy_at, 1, 1, 0, nullptr)(x.data(), y.data(), from, to);
}

void vector(void (*kernel)(const float*, float*, int), int from) {
  const Buffer<float> x(std::vector<float>(64, 1.0f), "x");
  Buffer<float> y(4, "y");
  ADVNAS_LAUNCH(kernel, 1, 1, 0, nullptr)(x.data(), y.data(), from);
}

void counted(void (*kernel)(unsigned*)) {
  Buffer<unsigned> n(std::vector<unsigned>(1), "n");
  ADVNAS_LAUNCH(kernel, 1, kBlock, 0, nullptr)(n.data());
  if (n.host()[0] != kBlock) cuda_shim::fail("wrong result", "count");
}

void last(void (*kernel)(float*, unsigned*, float*)) {
  constexpr unsigned kBlocks = 5;
  Buffer<float> partial(kBlocks * kBlock, "partial"), sum(1, "sum");
  Buffer<unsigned> counter(std::vector<unsigned>(1), "counter");
  ADVNAS_LAUNCH(kernel, kBlocks, kBlock, 0, nullptr)(partial.data(), counter.data(), sum.data());
}

template <class T>
void multiplied(int shift, int ld, int lanes = 32, bool synced = true) {
  std::vector<T> values(32 * 24, T(1.0f));
  const Buffer<T> a(values, "a");
  Buffer<float> c(256, "c");
  ADVNAS_LAUNCH(multiply<T>, 1, 32, 0, nullptr)(a.data(), c.data(), shift, ld, lanes, synced);
  for (float value : c.host()) {
    if (value != 16) cuda_shim::fail("wrong result", "product");
  }
}

void table() {
  const Buffer<float> x(std::vector<float>(kBlock, 1.0f), "x");
  Buffer<float> y(kBlock, "y");
  ADVNAS_LAUNCH(with_table, 1, kBlock, 0, nullptr)(Table{x.data(), y.data(), {}});
  if (y.host()[5] != 2) cuda_shim::fail("wrong result", "table");
}

void launched(dim3 grid, dim3 block, size_t shared, int allowed = 0) {
  Buffer<float> y(1, "y");
  if (allowed) cudaFuncSetAttribute(same_word, cudaFuncAttributeMaxDynamicSharedMemorySize, allowed);
  ADVNAS_LAUNCH(same_word, grid, block, shared, nullptr)(y.data(), 0);
}

// What the log says of one launch that is known by hand: two blocks of 64 threads read the same 64 floats, write 64 each.
void traffic() {
  const Buffer<float> x(std::vector<float>(kBlock, 1.0f), "x");
  Buffer<float> y(2 * kBlock, "y");
  ADVNAS_LAUNCH(broadcast, 2, kBlock, 0, nullptr)(x.data(), y.data());
  const cuda_shim::Launch& launch = cuda_shim::launches().back();
  const auto is = [](const cuda_shim::Traffic& t, uint64_t requested, uint64_t unique, uint64_t sectors) {
    return t.requested == requested && t.unique == unique && t.sectors == sectors;
  };
  if (launch.kernel != "broadcast" || !is(launch.read, 512, 256, 512) || !is(launch.written, 512, 512, 512)) {
    cuda_shim::fail("wrong result", "traffic");
  }
}

}  // namespace

const std::vector<CheckerCase>& checker_cases() {
  static const std::vector<CheckerCase> cases = {
      {"barrier after shared write", nullptr, [] { with_xy(reverse<true>); }},
      {"no barrier after shared write", "race in a block", [] { with_xy(reverse<false>); }},
      {"barrier between rounds", nullptr, [] { with_xy(rounds<true>); }},
      {"no barrier between rounds", "race in a block", [] { with_xy(rounds<false>); }},
      {"syncwarp between lanes", nullptr, [] { with_xy(warp_exchange<true>); }},
      {"no syncwarp between lanes", "race in a block", [] { with_xy(warp_exchange<false>); }},
      {"shuffle instead of syncwarp", "race in a block", [] { with_xy(shuffle_for_barrier); }},
      {"shared all written", nullptr, [] { with_y(half_filled<true>); }},
      {"shared partly written", "uninitialised shared read", [] { with_y(half_filled<false>); }},
      {"shared of the block before", "uninitialised shared read", [] { with_y(left_over, 2); }},
      {"static index inside", nullptr, [] { indexed(static_index, kBlock - 1); }},
      {"static index at the end", "shared out of bounds", [] { indexed(static_index, kBlock); }},
      {"static index before the start", "shared out of bounds", [] { indexed(static_index, -1); }},
      {"dynamic index inside", nullptr, [] { indexed(dynamic_index, kBlock - 1, 1, kBlock * 4); }},
      {"dynamic index at the end", "shared out of bounds", [] { indexed(dynamic_index, kBlock, 1, kBlock * 4); }},
      {"dynamic index before the start", "shared out of bounds", [] { indexed(dynamic_index, -1, 1, kBlock * 4); }},
      {"two halves of a word", nullptr,
       [] {
         Buffer<__half> y(kBlock, "y");
         ADVNAS_LAUNCH(neighbours, 1, kBlock, 0, nullptr)(y.data());
       }},
      {"copy inside", nullptr, [] { copied(63, 63); }},
      {"read at the end", "global out of bounds", [] { copied(64, 0); }},
      {"read before the start", "global out of bounds", [] { copied(-1, 0); }},
      {"write at the end", "global out of bounds", [] { copied(0, 64); }},
      {"write before the start", "global out of bounds", [] { copied(0, -1); }},
      {"read of what the host filled", nullptr, [] { copied(9, 0, 10); }},
      {"read of what nobody wrote", "uninitialised global read", [] { copied(10, 0, 10); }},
      {"read of a freed buffer", "use after free",
       [] {
         float *x, *y;
         cudaMalloc(&x, 64), cudaMalloc(&y, 64);
         cudaFree(x);
         ADVNAS_LAUNCH(copy_at, 1, 1, 0, nullptr)(x, y, 0, 0);
       }},
      {"read of host memory", "host memory",
       [] {
         std::vector<float> host(4, 1.0f);
         Buffer<const float*> x(std::vector<const float*>{host.data()}, "x");
         Buffer<float> y(1, "y");
         ADVNAS_LAUNCH(of_host, 1, 1, 0, nullptr)(x.data(), y.data());
       }},
      {"aligned vector", nullptr, [] { vector(copy_vector, 4); }},
      {"misaligned vector", "misaligned access", [] { vector(copy_vector, 1); }},
      {"aligned ldcg", nullptr, [] { vector(load_vector, 8); }},
      {"misaligned ldcg", "misaligned access", [] { vector(load_vector, 2); }},
      {"one block writes a word", nullptr, [] { indexed(same_word, 1, 3); }},
      {"two blocks write a word", "race between blocks", [] { indexed(same_word, 2, 3); }},
      {"own word", nullptr, [] { indexed(read_other_block, 0, 3); }},
      {"word of another block", "race between blocks", [] { indexed(read_other_block, 1, 3); }},
      {"write of what other blocks read", "race between blocks",
       [] {
         Buffer<float> x(std::vector<float>(4), "x");
         ADVNAS_LAUNCH(overwrite_read, 3, 1, 0, nullptr)(x.data(), x.data(), 2);
       }},
      {"read of what an earlier block will have overwritten", "race between blocks",
       [] {
         Buffer<float> x(std::vector<float>(4), "x");
         ADVNAS_LAUNCH(overwrite_read, 3, 1, 0, nullptr)(x.data(), x.data(), 0);
       }},
      {"atomic count", nullptr, [] { counted(count<true>); }},
      {"count without atomic", "race in a block", [] { counted(count<false>); }},
      {"last block, all fence", nullptr, [] { last(last_block<Fence::kEach, Sync::kBoth>); }},
      {"last block, one fences after the barrier", nullptr, [] { last(last_block<Fence::kOne, Sync::kBoth>); }},
      {"last block, no fence", "race between blocks", [] { last(last_block<Fence::kNone, Sync::kBoth>); }},
      {"last block, fence too late", "race between blocks", [] { last(last_block<Fence::kLate, Sync::kBoth>); }},
      {"last block, no barrier before the atomic", "race between blocks",
       [] { last(last_block<Fence::kEach, Sync::kNotBefore>); }},
      {"last block, no barrier after the atomic", "race between blocks", [] { last(last_block<Fence::kEach, Sync::kNotAfter>); }},
      {"reader with atomic", nullptr, [] { last(read_without_atomic<true>); }},
      {"reader without atomic", "race between blocks", [] { last(read_without_atomic<false>); }},
      {"divergent barrier", "divergent barrier", [] { with_y(divergent); }},
      {"barrier of half a warp", "absent lane", [] { with_y(half_barrier); }},
      {"shuffle of a whole warp", nullptr, [] { indexed(shuffle_some<kAll>, 32); }},
      {"shuffle of half a warp", nullptr, [] { indexed(shuffle_some<0xffffu>, 16); }},
      {"shuffle with an absent lane", "absent lane", [] { indexed(shuffle_some<kAll>, 31); }},
      {"shuffle outside of the mask", "lane outside its mask", [] { indexed(shuffle_some<0xffffu>, 20); }},
      {"shuffles of segments, votes", nullptr, [] { with_y(segments); }},
      {"wmma half", nullptr, [] { multiplied<__half>(0, 16); }},
      {"wmma bfloat16", nullptr, [] { multiplied<__nv_bfloat16>(16, 24); }},
      {"wmma misaligned pointer", "misaligned wmma", [] { multiplied<__half>(8, 16); }},
      {"wmma misaligned rows", "misaligned wmma", [] { multiplied<__half>(0, 20); }},
      {"wmma with absent lanes", "absent lane", [] { multiplied<__half>(0, 16, 31); }},
      {"wmma without syncwarp", "race in a block", [] { multiplied<__half>(0, 16, 32, false); }},
      {"largest launch", nullptr, [] { launched(dim3(1, 1, 3), 1024, 227 << 10, 227 << 10); }},
      {"empty grid", "invalid launch", [] { launched(0, 32, 0); }},
      {"too many threads", "invalid launch", [] { launched(1, 1025, 0); }},
      {"grid too high", "invalid launch", [] { launched(dim3(1, 65536), 32, 0); }},
      {"shared memory not allowed", "invalid launch", [] { launched(1, 32, (48 << 10) + 1); }},
      {"shared memory over the limit", "invalid launch", [] { launched(1, 32, (227 << 10) + 1, (227 << 10) + 1); }},
      {"arguments in a struct, constant data", nullptr, table},
      {"traffic", nullptr, traffic},
  };
  return cases;
}
