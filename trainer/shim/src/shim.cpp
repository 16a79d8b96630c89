// What tch has no name for. C functions over plain pointers; nothing may throw across the border.
#include <ATen/core/Tensor.h>
#include <ATen/core/grad_mode.h>
#include <ATen/Parallel.h>
#include <ATen/ops/addmm.h>
#include <ATen/ops/from_blob.h>
#include <ATen/ops/mm.h>

#include <cstdio>
#include <exception>

namespace {
struct View {
  const void* data;
  int64_t rows, columns, row_stride, column_stride;
};

at::Tensor tensor(const View& view, at::ScalarType type) {
  return at::from_blob(const_cast<void*>(view.data), {view.rows, view.columns},
                       {view.row_stride, view.column_stride}, at::TensorOptions().dtype(type));
}
}  // namespace

// c = a b, or c += a b. Through libtorch's own product and not a BLAS of ours, because every platform's libtorch brings
// the fastest one it knows (MKL, OpenBLAS, Accelerate), under names that differ. Not through tch, whose views would cost
// more than the small products. Returns 0, or 1 with libtorch's message.
extern "C" int hatchery_gemm(int is_double, const View* a, const View* b, int accumulates, const View* c,
                             char* message, size_t message_bytes) noexcept {
  try {
    at::NoGradGuard no_grad;
    const auto type = is_double ? at::kDouble : at::kFloat;
    auto out = tensor(*c, type);
    if (accumulates) {
      at::addmm_out(out, out, tensor(*a, type), tensor(*b, type));
    } else {
      at::mm_out(out, tensor(*a, type), tensor(*b, type));
    }
    return 0;
  } catch (const std::exception& error) {
    std::snprintf(message, message_bytes, "%s", error.what());
    return 1;
  }
}
