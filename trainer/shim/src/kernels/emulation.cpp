// The kernels of kernels.cu on a CPU, for the tests: the same text, the same arguments as the driver gets, the threads of a
// block in turn. Each is a coroutine; all run to their next meeting point before any runs on, which is what a barrier is as long
// as all threads that have not ended meet equally often. The kernels do: only whole warps end early.
#ifdef __APPLE__
#define _XOPEN_SOURCE 700  // for ucontext
#endif
#include <ucontext.h>

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <type_traits>
#include <utility>
#include <vector>

namespace {

struct Index {
  unsigned x;
};

Index threadIdx, blockIdx, blockDim, gridDim;

constexpr std::size_t STACK_BYTES = 64 * 1024;
constexpr unsigned LANES_OF_WARP = 32;

struct Thread {
  ucontext_t context;
  std::vector<char> stack;
  bool has_ended;
};

std::vector<Thread> threads;
std::vector<float> exchanged;
std::function<void()> body;
ucontext_t scheduler;

void meet() {
  const unsigned self = threadIdx.x;
  swapcontext(&threads[self].context, &scheduler);
}

void enter() {
  const unsigned self = threadIdx.x;
  body();
  threads[self].has_ended = true;
  swapcontext(&threads[self].context, &scheduler);
}

void run_block() {
  threads.resize(blockDim.x);
  exchanged.assign(blockDim.x, 0.0f);
  for (Thread& thread : threads) {
    thread.stack.resize(STACK_BYTES);
    thread.has_ended = false;
    getcontext(&thread.context);
    thread.context.uc_stack.ss_sp = thread.stack.data();
    thread.context.uc_stack.ss_size = thread.stack.size();
    thread.context.uc_link = nullptr;
    makecontext(&thread.context, enter, 0);
  }
  for (bool is_any_left = true; is_any_left;) {
    is_any_left = false;
    for (unsigned index = 0; index < blockDim.x; ++index) {
      if (threads[index].has_ended) continue;
      threadIdx.x = index;
      swapcontext(&scheduler, &threads[index].context);
      is_any_left = is_any_left || !threads[index].has_ended;
    }
  }
}

void __syncthreads() { meet(); }
void __syncwarp() { meet(); }

float __shfl_xor_sync(unsigned, float value, unsigned distance) {
  const unsigned self = threadIdx.x;
  exchanged[self] = value;
  meet();
  const unsigned warp = self / LANES_OF_WARP * LANES_OF_WARP;
  const float other = exchanged[warp + ((self - warp) ^ distance)];
  meet();
  return other;
}

float __uint_as_float(unsigned bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

unsigned __float_as_uint(float value) {
  unsigned bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

void sincospif(float half_turns, float* sin, float* cos) {
  const double angle = double(half_turns) * 3.14159265358979323846;
  *sin = float(std::sin(angle));
  *cos = float(std::cos(angle));
}

// Takes the arguments from where the driver would.
template <class... Parameters, std::size_t... Places>
void run_grid(void (*kernel)(Parameters...), void** arguments, std::index_sequence<Places...>) {
  body = [=] { kernel(*static_cast<std::remove_cv_t<Parameters>*>(arguments[Places])...); };
  for (blockIdx.x = 0; blockIdx.x < gridDim.x; ++blockIdx.x) run_block();
}

template <class... Parameters>
bool run_grid(void (*kernel)(Parameters...), void** arguments, std::size_t count) {
  if (count != sizeof...(Parameters)) return false;
  run_grid(kernel, arguments, std::index_sequence_for<Parameters...>());
  return true;
}

}  // namespace

#define __device__ static
#define __shared__ static
#define KERNEL [[maybe_unused]] static void
#define RUN(name) \
  if (std::strcmp(wanted, #name) == 0) return run_grid(name, arguments, count);
#define VARIANT                                                                    \
  bool run(const char* wanted, void** arguments, std::size_t count) {              \
    KERNELS(RUN)                                                                   \
    return false;                                                                  \
  }

#define NUMBER_BF16 1
#define PAIRS 4
namespace bf16_by_4 {
#include "kernels.cu"
VARIANT
}  // namespace bf16_by_4
#undef PAIRS
#undef KERNELS
#undef LANES
#undef LINES_AT_ONCE
#undef NORM_EPSILON
#undef NO_NUMBER

#define PAIRS 1
namespace bf16_by_1 {
#include "kernels.cu"
VARIANT
}  // namespace bf16_by_1
#undef PAIRS
#undef NUMBER_BF16
#undef KERNELS
#undef LANES
#undef LINES_AT_ONCE
#undef NORM_EPSILON
#undef NO_NUMBER

#define NUMBER_BF16 0
#define PAIRS 4
namespace f32_by_4 {
#include "kernels.cu"
VARIANT
}  // namespace f32_by_4
#undef PAIRS
#undef KERNELS
#undef LANES
#undef LINES_AT_ONCE
#undef NORM_EPSILON
#undef NO_NUMBER

#define PAIRS 1
namespace f32_by_1 {
#include "kernels.cu"
VARIANT
}  // namespace f32_by_1

// Runs kernel `name` to its end; one at a time in the process. Returns 0: there is no such kernel, or it takes another number of
// arguments.
extern "C" int hatchery_emulate_kernel(const char* name, int is_bf16, unsigned pairs, unsigned blocks, unsigned threads_of_block,
                                       void** arguments, std::size_t count) noexcept {
  gridDim.x = blocks;
  blockDim.x = threads_of_block;
  if (is_bf16) return pairs == 4 ? bf16_by_4::run(name, arguments, count) : bf16_by_1::run(name, arguments, count);
  return pairs == 4 ? f32_by_4::run(name, arguments, count) : f32_by_1::run(name, arguments, count);
}
