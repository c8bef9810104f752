// The norm on a CPU: a row is read once for its sums and, while it is in cache, once more to be scaled.
//
// Equations and arguments are those of eager.py. Tensors are contiguous: x (..., channels) in float, double, bfloat16 or half, which is
// computed on as float; weight and bias (channels,) and the scales (rows,) in double for double x, in float otherwise.

#include <ATen/OpMathType.h>
#include <ATen/Parallel.h>
#include <torch/extension.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <optional>
#include <tuple>
#include <vector>

namespace {

using torch::Tensor;
using OptionalTensor = std::optional<Tensor>;

constexpr int64_t LANES = 64;       // partial sums: enough of them that no addition waits for the one before
constexpr int64_t GRAIN = 1 << 15;  // numbers of a task

inline float load(float x) { return x; }
inline double load(double x) { return x; }
inline float load(at::BFloat16 x) { return std::bit_cast<float>(uint32_t(x.x) << 16); }

inline void store(float x, float& place) { place = x; }
inline void store(double x, double& place) { place = x; }

// To the nearest, of two equally near ones to the even one. Without branches, unlike torch's own conversion, so loops are vectorised.
inline void store(float x, at::BFloat16& place) {
  const auto bits = std::bit_cast<uint32_t>(x);
  const uint32_t rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
  place.x = static_cast<uint16_t>(x == x ? rounded : 0x7fc0);
}

template <typename Acc>
struct Sums {
  Acc products = 0, values = 0;
};

// sums of a * b and, where TOTAL, of b
template <typename Acc, bool TOTAL, typename A, typename B>
Sums<Acc> sums(const A* a, const B* b, int64_t width) {
  Acc products[LANES] = {}, values[LANES] = {};
  int64_t i = 0;
  for (; i + LANES <= width; i += LANES) {
#pragma omp simd
    for (int64_t j = 0; j < LANES; ++j) {
      const Acc right = load(b[i + j]);
      products[j] += load(a[i + j]) * right;
      if (TOTAL) values[j] += right;
    }
  }
  Sums<Acc> total;
  for (int64_t j = 0; j < LANES; ++j) {
    total.products += products[j];
    total.values += values[j];
  }
  for (; i < width; ++i) {
    const Acc right = load(b[i]);
    total.products += load(a[i]) * right;
    total.values += right;
  }
  return total;
}

template <typename Row>
void over_rows(int64_t rows, int64_t width, const Row& row) {
  at::parallel_for(0, rows, std::max<int64_t>(1, GRAIN / width), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) row(i);
  });
}

// AFFINE: 0 neither weight nor bias, 1 a weight, 2 both
template <typename T, typename Acc, bool COMPRESSED, int AFFINE>
void run_forward(int64_t rows, int64_t width, const T* x, const Acc* weight, const Acc* bias, Acc eps, T* y, Acc* scales) {
  over_rows(rows, width, [=](int64_t i) {
    const T* in = x + i * width;
    T* out = y + i * width;
    const auto [squares, total] = sums<Acc, COMPRESSED>(in, in, width);
    const Acc mean = COMPRESSED ? (squares + total * total) / (width + 1) : squares / width;
    const Acc scale = 1 / std::sqrt(mean + eps);
    if (scales) scales[i] = scale;
#pragma omp simd
    for (int64_t c = 0; c < width; ++c) {
      Acc value = load(in[c]) * scale;
      if (AFFINE > 0) value *= weight[c];
      if (AFFINE > 1) value += bias[c];
      store(value, out[c]);
    }
  });
}

template <typename T, typename Acc, bool COMPRESSED>
void run_backward(int64_t rows, int64_t width, const T* grad, const T* x, const Acc* weight, const Acc* scales, T* dx) {
  over_rows(rows, width, [=](int64_t i) {
    const T *in = x + i * width, *g = grad + i * width;
    T* out = dx + i * width;
    const Acc scale = scales[i];
    Acc dot = 0, total = 0;
    if (weight) {
#pragma omp simd reduction(+ : dot)
      for (int64_t c = 0; c < width; ++c) dot += load(g[c]) * weight[c] * load(in[c]);
    } else {
      dot = sums<Acc, false>(g, in, width).products;
    }
    if (COMPRESSED) total = sums<Acc, true>(in, in, width).values;
    const Acc common = dot * scale * scale * scale / (width + COMPRESSED);
    if (weight) {
#pragma omp simd
      for (int64_t c = 0; c < width; ++c) {
        store(load(g[c]) * weight[c] * scale - common * (load(in[c]) + total), out[c]);
      }
    } else {
#pragma omp simd
      for (int64_t c = 0; c < width; ++c) {
        store(load(g[c]) * scale - common * (load(in[c]) + total), out[c]);
      }
    }
  });
}

// Gradients of weight and bias: every task sums a range of channels over all rows
template <typename T, typename Acc>
void sum_rows(int64_t rows, int64_t width, const T* grad, const T* x, const Acc* scales, Acc* dweight, Acc* dbias) {
  at::parallel_for(0, width, std::max<int64_t>(LANES, GRAIN / rows), [=](int64_t begin, int64_t end) {
    for (int64_t i = 0; i < rows; ++i) {
      const T *in = x + i * width, *g = grad + i * width;
      const Acc scale = scales[i];
#pragma omp simd
      for (int64_t c = begin; c < end; ++c) {
        dweight[c] += load(g[c]) * load(in[c]) * scale;
        dbias[c] += load(g[c]);
      }
    }
  });
}

template <typename Acc>
const Acc* data(const OptionalTensor& tensor) {
  return tensor ? tensor->const_data_ptr<Acc>() : nullptr;
}

Tensor forward_of(const Tensor& x, const OptionalTensor& weight, const OptionalTensor& bias, double eps, bool compressed, Tensor* scales) {
  if (x.scalar_type() == at::kHalf) return forward_of(x.to(at::kFloat), weight, bias, eps, compressed, scales).to(at::kHalf);
  auto y = at::empty_like(x);
  const int64_t width = x.size(-1), rows = x.numel() / width;
  AT_DISPATCH_FLOATING_TYPES_AND(at::kBFloat16, x.scalar_type(), "rms_norm", [&] {
    using Acc = at::opmath_type<scalar_t>;
    const auto run = [&](auto compress, auto affine) {
      run_forward<scalar_t, Acc, decltype(compress)::value, decltype(affine)::value>(
          rows, width, x.const_data_ptr<scalar_t>(), data<Acc>(weight), data<Acc>(bias), Acc(eps), y.data_ptr<scalar_t>(),
          scales ? scales->data_ptr<Acc>() : nullptr);
    };
    const auto choose = [&](auto compress) {
      if (bias) {
        run(compress, std::integral_constant<int, 2>{});
      } else if (weight) {
        run(compress, std::integral_constant<int, 1>{});
      } else {
        run(compress, std::integral_constant<int, 0>{});
      }
    };
    compressed ? choose(std::true_type{}) : choose(std::false_type{});
  });
  return y;
}

}  // namespace

std::tuple<Tensor, Tensor> forward(const Tensor& x, const OptionalTensor& weight, const OptionalTensor& bias, double eps, bool compressed) {
  auto scales = at::empty({x.numel() / x.size(-1)}, x.options().dtype(x.scalar_type() == at::kDouble ? at::kDouble : at::kFloat));
  auto y = forward_of(x, weight, bias, eps, compressed, &scales);
  return {y, scales};
}

// y alone, of an x of any strides and a weight and bias of any type; nothing where shapes do not fit
std::optional<Tensor> infer(const Tensor& x, OptionalTensor weight, OptionalTensor bias, double eps, bool compressed) {
  if (x.dim() == 0 || x.size(-1) == 0 || (bias && !weight)) return std::nullopt;
  for (auto* parameter : {&weight, &bias}) {
    if (!*parameter) continue;
    if ((*parameter)->dim() != 1 || (*parameter)->size(0) != x.size(-1)) return std::nullopt;
    *parameter = (*parameter)->to(x.scalar_type() == at::kDouble ? at::kDouble : at::kFloat).contiguous();
  }
  return forward_of(x.contiguous(), weight, bias, eps, compressed, nullptr);
}

std::tuple<Tensor, Tensor, Tensor> backward(const Tensor& grad, const Tensor& x, const OptionalTensor& weight, const Tensor& scales,
                                            bool compressed) {
  if (x.scalar_type() == at::kHalf) {
    auto [dx, dweight, dbias] = backward(grad.to(at::kFloat), x.to(at::kFloat), weight, scales, compressed);
    return {dx.to(at::kHalf), dweight, dbias};
  }
  auto dx = at::empty_like(x);
  const int64_t width = x.size(-1), rows = x.numel() / width;
  auto dweight = at::zeros({weight ? width : 0}, scales.options()), dbias = at::zeros_like(dweight);
  AT_DISPATCH_FLOATING_TYPES_AND(at::kBFloat16, x.scalar_type(), "rms_norm_backward", [&] {
    using Acc = at::opmath_type<scalar_t>;
    const auto run = compressed ? &run_backward<scalar_t, Acc, true> : &run_backward<scalar_t, Acc, false>;
    const auto *g = grad.const_data_ptr<scalar_t>(), *in = x.const_data_ptr<scalar_t>();
    run(rows, width, g, in, data<Acc>(weight), scales.const_data_ptr<Acc>(), dx.data_ptr<scalar_t>());
    if (weight) {
      sum_rows(rows, width, g, in, scales.const_data_ptr<Acc>(), dweight.data_ptr<Acc>(), dbias.data_ptr<Acc>());
    }
  });
  return {dx, dweight, dbias};
}

PYBIND11_MODULE(TORCH_EXTENSION_NAME, module) {
  module.def("forward", &forward, py::call_guard<py::gil_scoped_release>());
  module.def("infer", &infer, py::call_guard<py::gil_scoped_release>());
  module.def("backward", &backward, py::call_guard<py::gil_scoped_release>());
}
