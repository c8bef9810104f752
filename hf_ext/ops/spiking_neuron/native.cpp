// Leaky integrate-and-fire neurons on a CPU: one task per block of channels walks along time with its membranes in cache.
//
// Equations and arguments are those of eager.py. Tensors are (batch, time, channels), contiguous, float or double. Nothing is kept for the
// backward pass but the input: it walks forward again, a block's membranes in cache, then back.

#include <ATen/Parallel.h>
#include <torch/extension.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <memory>
#include <optional>
#include <tuple>
#include <type_traits>
#include <vector>

namespace {

using torch::Tensor;
using OptionalTensor = std::optional<Tensor>;

constexpr int64_t BLOCK = 128;  // channels of a task

// e^x for x <= 0, a series around the nearest power of two; about two units in the last place off
inline float decaying(float x) {
  constexpr float SHIFT = 12582912;  // 1.5 * 2^23: what is added to it is rounded to a whole number, which its last bits then hold
  x = std::max(x, -87.0f);
  const float shifted = x * 1.44269504f + SHIFT, n = shifted - SHIFT;
  const float r = (x - n * 0.693145752f) - n * 1.42860677e-6f;
  float series = 1 + r * (1.0f / 7);
  series = 1 + r * (1.0f / 6) * series;
  series = 1 + r * 0.2f * series;
  series = 1 + r * 0.25f * series;
  series = 1 + r * (1.0f / 3) * series;
  series = 1 + r * 0.5f * series;
  series = 1 + r * series;
  const auto exponent = (std::bit_cast<uint32_t>(shifted) << 23) + (127u << 23);
  return series * std::bit_cast<float>(exponent);
}

inline double decaying(double x) { return std::exp(x); }

// HARD: a spike sets the membrane to `rest`, rather than taking the threshold off. DECAY: the current is divided by tau too.
template <typename T, bool HARD, bool DECAY>
struct Neuron {
  T tau, threshold, rest, alpha, detach_reset;  // the last is 1 or 0

  T charge(T v, T current) const {
    const T leak = v - rest;
    return DECAY ? v + (current - leak) / tau : v - leak / tau + current;
  }

  T discharge(T charged) const { return charged < threshold ? charged : HARD ? rest : charged - threshold; }

  T slope(T charged) const {
    const T e = decaying(-alpha * std::abs(charged - threshold));
    return alpha * e / ((1 + e) * (1 + e));
  }

  // The gradient of the charged membrane, from those of the spike and of the membrane after the reset
  T gradient(T charged, T ds, T dv) const {
    const T through_reset = dv * (1 - detach_reset) * (HARD ? charged - rest : threshold);
    const T kept = HARD && charged >= threshold ? T(0) : dv;
    return kept + (ds - through_reset) * slope(charged);
  }
};

struct Sizes {
  explicit Sizes(const Tensor& x) : batch(x.size(0)), time(x.size(1)), channels(x.size(2)) {}
  int64_t batch, time, channels;
};

// `walk(b, first, width)` for every block of `width` channels of every item
template <typename Walk>
void over_blocks(const Sizes& size, const Walk& walk) {
  const int64_t blocks = (size.channels + BLOCK - 1) / BLOCK;
  at::parallel_for(0, size.batch * blocks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) {
      const int64_t first = task % blocks * BLOCK;
      walk(task / blocks, first, std::min(BLOCK, size.channels - first));
    }
  });
}

// Loops are on plain pointers and a neuron of their own: nothing that they write may be a part of it, so they are vectorised.

template <typename T, bool HARD, bool DECAY>
void step(Neuron<T, HARD, DECAY> neuron, int64_t width, const T* current, T* v, T* spikes) {
#pragma omp simd
  for (int64_t c = 0; c < width; ++c) {
    const T charged = neuron.charge(v[c], current[c]);
    spikes[c] = charged >= neuron.threshold ? T(1) : T(0);
    v[c] = neuron.discharge(charged);
  }
}

template <typename T, bool HARD, bool DECAY>
void charge(Neuron<T, HARD, DECAY> neuron, int64_t width, const T* current, T* v, T* charged) {
#pragma omp simd
  for (int64_t c = 0; c < width; ++c) {
    charged[c] = neuron.charge(v[c], current[c]);
    v[c] = neuron.discharge(charged[c]);
  }
}

template <typename T, bool HARD, bool DECAY>
void step_back(Neuron<T, HARD, DECAY> neuron, int64_t width, const T* charged, const T* ds, T* dv, T* dx) {
  const T gain = DECAY ? 1 / neuron.tau : T(1), keep = 1 - 1 / neuron.tau;
#pragma omp simd
  for (int64_t c = 0; c < width; ++c) {
    const T gradient = neuron.gradient(charged[c], ds[c], dv[c]);
    dx[c] = gradient * gain;
    dv[c] = gradient * keep;
  }
}

template <typename T, bool HARD, bool DECAY>
void run_forward(const Sizes& size, Neuron<T, HARD, DECAY> neuron, const T* x, T* spikes, T* membranes, T* last) {
  over_blocks(size, [&](int64_t b, int64_t first, int64_t width) {
    T* v = last + b * size.channels + first;
    for (int64_t t = 0; t < size.time; ++t) {
      const int64_t place = (b * size.time + t) * size.channels + first;
      step(neuron, width, x + place, v, spikes + place);
      if (membranes) std::copy_n(v, width, membranes + place);
    }
  });
}

// `membrane` and `gradient` are one row per item: the first membrane, and the last one's gradient, which becomes the first one's
template <typename T, bool HARD, bool DECAY>
void run_backward(const Sizes& size, Neuron<T, HARD, DECAY> neuron, const T* ds, const T* x, const T* membrane, T* dx, T* gradient) {
  over_blocks(size, [&](int64_t b, int64_t first, int64_t width) {
    const int64_t row = b * size.channels + first, start = b * size.time * size.channels + first;
    const auto charged = std::make_unique_for_overwrite<T[]>(size.time * width);
    std::vector<T> v(membrane + row, membrane + row + width);
    for (int64_t t = 0; t < size.time; ++t) {
      charge(neuron, width, x + start + t * size.channels, v.data(), charged.get() + t * width);
    }
    for (int64_t t = size.time - 1; t >= 0; --t) {
      const int64_t place = start + t * size.channels;
      step_back(neuron, width, charged.get() + t * width, ds + place, gradient + row, dx + place);
    }
  });
}

// `run(neuron)` with the neuron that the arguments describe
template <typename T, typename Run>
void with_neuron(double tau, double threshold, std::optional<double> reset, bool decay_input, bool detach_reset, double alpha, const Run& run) {
  const auto make = [&]<bool HARD, bool DECAY>(std::bool_constant<HARD>, std::bool_constant<DECAY>) {
    run(Neuron<T, HARD, DECAY>{T(tau), T(threshold), T(reset.value_or(0)), T(alpha), T(detach_reset)});
  };
  const auto choose = [&](auto hard) { decay_input ? make(hard, std::true_type{}) : make(hard, std::false_type{}); };
  reset ? choose(std::true_type{}) : choose(std::false_type{});
}

Tensor starting(const Tensor& x, const OptionalTensor& membrane, std::optional<double> reset) {
  return membrane ? membrane->clone() : at::full({x.size(0), 1, x.size(2)}, reset.value_or(0), x.options());
}

}  // namespace

std::tuple<Tensor, Tensor, Tensor> forward(const Tensor& x, const OptionalTensor& membrane, double tau, double threshold,
                                           std::optional<double> reset, bool decay_input, bool detach_reset, double alpha, bool output_membranes) {
  auto spikes = at::empty_like(x), membranes = output_membranes ? at::empty_like(x) : at::empty({0}, x.options());
  auto last = starting(x, membrane, reset);
  AT_DISPATCH_FLOATING_TYPES(x.scalar_type(), "lif", [&] {
    with_neuron<scalar_t>(tau, threshold, reset, decay_input, detach_reset, alpha, [&](auto neuron) {
      run_forward(Sizes(x), neuron, x.const_data_ptr<scalar_t>(), spikes.data_ptr<scalar_t>(),
                  output_membranes ? membranes.data_ptr<scalar_t>() : nullptr, last.data_ptr<scalar_t>());
    });
  });
  return {spikes, membranes, last};
}

std::tuple<Tensor, Tensor> backward(const Tensor& grad_spikes, const Tensor& grad_last, const Tensor& x, const OptionalTensor& membrane,
                                    double tau, double threshold, std::optional<double> reset, bool decay_input, bool detach_reset,
                                    double alpha) {
  auto grad_x = at::empty_like(x), grad_membrane = grad_last.clone();
  const auto first_membrane = starting(x, membrane, reset);
  AT_DISPATCH_FLOATING_TYPES(x.scalar_type(), "lif_backward", [&] {
    with_neuron<scalar_t>(tau, threshold, reset, decay_input, detach_reset, alpha, [&](auto neuron) {
      run_backward(Sizes(x), neuron, grad_spikes.const_data_ptr<scalar_t>(), x.const_data_ptr<scalar_t>(),
                   first_membrane.const_data_ptr<scalar_t>(), grad_x.data_ptr<scalar_t>(), grad_membrane.data_ptr<scalar_t>());
    });
  });
  return {grad_x, grad_membrane};
}

PYBIND11_MODULE(TORCH_EXTENSION_NAME, module) {
  module.def("forward", &forward, py::call_guard<py::gil_scoped_release>());
  module.def("backward", &backward, py::call_guard<py::gil_scoped_release>());
}
