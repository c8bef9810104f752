// Blocks of dilated depthwise convolutions with residual connections, forward and backward (arXiv 2312.05605).
//
// Channels never mix, so one vector of channels goes through all blocks for the whole sequence while it lies in the cache: x is read once,
// the result written once. A sequence is kept as rows of one vector; a tile of ROWS rows has its sums in registers.
//
// Letters: B batch, L tokens, D channels, K taps, N convolutions; `before` counts the places that a convolution reads before the present.

#include <ATen/Parallel.h>
#include <torch/extension.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

namespace {

using at::Tensor;

constexpr int64_t BYTES = 64;  // of a vector; compilers split it where registers are shorter
#ifdef __AVX512F__
constexpr int64_t ROWS = 8;
#else
constexpr int64_t ROWS = 4;
#endif

template <typename T>
struct Lanes {
  typedef T Vector __attribute__((vector_size(BYTES)));
  static constexpr int64_t count = BYTES / sizeof(T);
};
template <typename T>
using Vector = typename Lanes<T>::Vector;
template <typename T>
using Rows = std::vector<Vector<T>>;

struct Shape {
  int64_t B, L, D, K, blocks, layers, factor;
  bool causal;
  int64_t convolutions() const { return blocks * layers; }
  int64_t before(int64_t dilation) const { return causal ? (K - 1) * dilation : (K - 1) * dilation / 2; }
};

// The places of one convolution: tap k of row t reads row t - before + k * dilation, of rows first ... L - 1
struct Taps {
  int64_t K, dilation, before, first, L;
  int64_t begin(int64_t t) const { return std::clamp<int64_t>((first + before - t + dilation - 1) / dilation, 0, K); }
  int64_t end(int64_t t) const { return std::clamp<int64_t>((L + before - t + dilation - 1) / dilation, 0, K); }
};

template <typename T>
void load(const T* from, int64_t stride, int64_t rows, int64_t lanes, Vector<T>* to) {
  for (int64_t t = 0; t < rows; ++t) {
    Vector<T> row{};
    if (lanes == Lanes<T>::count) std::memcpy(&row, from + t * stride, BYTES);
    else std::memcpy(&row, from + t * stride, lanes * sizeof(T));
    to[t] = row;
  }
}

template <typename T>
void store(const Vector<T>* from, int64_t stride, int64_t rows, int64_t lanes, T* to) {
  for (int64_t t = 0; t < rows; ++t) {
    if (lanes == Lanes<T>::count) std::memcpy(to + t * stride, from + t, BYTES);
    else std::memcpy(to + t * stride, from + t, lanes * sizeof(T));
  }
}

// y_t = start + sum_k w_k x_{t - before + k * dilation}
template <typename T>
void convolve(const Vector<T>* x, const Vector<T>* w, Vector<T> start, const Taps& taps, Vector<T>* y) {
  int64_t t = 0;
  for (; t + ROWS <= taps.L; t += ROWS) {
    Vector<T> sum[ROWS];
    const int64_t low = taps.begin(t), high = std::max(low, taps.end(t + ROWS - 1));
    const Vector<T>* from = x + t - taps.before;
    for (int64_t r = 0; r < ROWS; ++r) sum[r] = start;
    for (int64_t k = low; k < high; ++k)
      for (int64_t r = 0; r < ROWS; ++r) sum[r] += w[k] * from[k * taps.dilation + r];
    for (int64_t r = 0; r < ROWS; ++r) {  // taps that only some rows of the tile have
      for (int64_t k = taps.begin(t + r); k < std::min(low, taps.end(t + r)); ++k) sum[r] += w[k] * from[k * taps.dilation + r];
      for (int64_t k = high; k < taps.end(t + r); ++k) sum[r] += w[k] * from[k * taps.dilation + r];
      y[t + r] = sum[r];
    }
  }
  for (; t < taps.L; ++t) {
    Vector<T> sum = start;
    for (int64_t k = taps.begin(t); k < taps.end(t); ++k) sum += w[k] * x[t - taps.before + k * taps.dilation];
    y[t] = sum;
  }
}

// dw_k = sum_t da_t x_{t - before + k * dilation}
template <typename T>
void weight_gradient(const Vector<T>* x, const Vector<T>* da, const Taps& taps, Vector<T>* dw) {
  for (int64_t k = 0; k < taps.K; ++k) {
    const int64_t shift = k * taps.dilation - taps.before;
    const int64_t end = std::min(taps.L, taps.L - shift);
    int64_t t = std::max<int64_t>(0, taps.first - shift);
    Vector<T> sum[ROWS] = {};
    for (; t + ROWS <= end; t += ROWS)
      for (int64_t r = 0; r < ROWS; ++r) sum[r] += da[t + r] * x[t + r + shift];
    for (; t < end; ++t) sum[0] += da[t] * x[t + shift];
    for (int64_t r = 1; r < ROWS; ++r) sum[0] += sum[r];
    dw[k] = sum[0];
  }
}

struct Relu {
  template <typename T>
  static T value(T x) { return x > 0 ? x : 0; }
  template <typename T>
  static T slope(T x) { return x > 0 ? 1 : 0; }
};
struct Silu {
  template <typename T>
  static T value(T x) { return x / (1 + std::exp(-x)); }
  template <typename T>
  static T slope(T x) {
    const T gate = 1 / (1 + std::exp(-x));
    return gate * (1 + x * (1 - gate));
  }
};
struct Gelu {
  template <typename T>
  static T normal(T x) { return T(0.5) * (1 + std::erf(x * T(M_SQRT1_2))); }
  template <typename T>
  static T value(T x) { return x * normal(x); }
  template <typename T>
  static T slope(T x) { return normal(x) + x * std::exp(-x * x / 2) * T(0.5 * M_2_SQRTPI * M_SQRT1_2); }
};
struct None {
  template <typename T>
  static T value(T x) { return x; }
  template <typename T>
  static T slope(T) { return 1; }
};

template <typename Function>
void with_activation(const std::string& name, Function function) {
  if (name == "relu") function(Relu{});
  else if (name == "silu") function(Silu{});
  else if (name == "gelu") function(Gelu{});
  else function(None{});
}

// What one vector of channels of one sequence needs: its place, and the weights of its convolutions
template <typename T>
struct Task {
  int64_t b, channel, lanes;
  Task(int64_t index, const Shape& s) : b(index % s.B), channel(index / s.B * Lanes<T>::count), lanes(std::min(Lanes<T>::count, s.D - channel)) {}
  Vector<T> gather(const T* from, int64_t stride) const {
    Vector<T> values{};
    for (int64_t i = 0; i < lanes; ++i) values[i] = from[i * stride];
    return values;
  }
  // rows of a history lie before those of the sequence itself
  void load_history(const T* history, int64_t places, int64_t first, int64_t size, int64_t D, Vector<T>* to) const {
    if (history) load<T>(history + (b * places + first) * D + channel, D, size, lanes, to);
  }
};

template <typename T>
void run(const Shape& s, const std::function<void(const Task<T>&)>& task) {
  at::parallel_for(0, s.B * ((s.D + Lanes<T>::count - 1) / Lanes<T>::count), 1, [&](int64_t begin, int64_t end) {
    for (int64_t index = begin; index < end; ++index) task(Task<T>(index, s));
  });
}

template <typename T, typename Activation>
void forward_of(const Shape& s, const T* x, const T* weight, const T* bias, const T* history, int64_t places, T* h, T* inputs, T* pre) {
  run<T>(s, [&](const Task<T>& task) {
    int64_t longest = 0, first = 0, dilation = 1;
    for (int64_t i = 1; i < s.blocks; ++i) longest = (dilation *= s.factor);
    longest = history ? (s.K - 1) * std::max<int64_t>(longest, 1) : 0;
    Rows<T> source(longest + s.L), sums(s.L), result(s.L), taps(s.K);
    Vector<T>* rows = source.data() + longest;
    load<T>(x + task.b * s.L * s.D + task.channel, s.D, s.L, task.lanes, sums.data());
    dilation = 1;
    for (int64_t n = 0; n < s.convolutions(); ++n) {
      if (n && n % s.layers == 0) dilation *= s.factor;
      const int64_t size = (s.K - 1) * dilation, place = ((n * s.B + task.b) * s.L) * s.D + task.channel;
      task.load_history(history, places, first, size, s.D, rows - (history ? size : 0));
      std::copy_n(n % s.layers ? result.data() : sums.data(), s.L, rows);
      for (int64_t k = 0; k < s.K; ++k) taps[k] = task.gather(weight + (n * s.D + task.channel) * s.K + k, s.K);
      const Taps places_read{s.K, dilation, s.before(dilation), history ? -size : 0, s.L};
      convolve<T>(rows, taps.data(), task.gather(bias + n * s.D + task.channel, 1), places_read, result.data());
      if (inputs) {
        store<T>(rows, s.D, s.L, task.lanes, inputs + place);
        store<T>(result.data(), s.D, s.L, task.lanes, pre + place);
      }
      for (int64_t t = 0; t < s.L; ++t)
        for (int64_t i = 0; i < Lanes<T>::count; ++i) result[t][i] = Activation::value(result[t][i]);
      if (n % s.layers == s.layers - 1)
        for (int64_t t = 0; t < s.L; ++t) sums[t] += result[t];
      first += size;
    }
    store<T>(sums.data(), s.D, s.L, task.lanes, h + task.b * s.L * s.D + task.channel);
  });
}

template <typename T, typename Activation>
void backward_of(const Shape& s, const T* grad_h, const T* weight, const T* history, int64_t places, const T* inputs, const T* pre, T* dx,
                 T* dweight, T* dbias) {
  run<T>(s, [&](const Task<T>& task) {
    int64_t dilation = 1, first = places;
    for (int64_t i = 1; i < s.blocks; ++i) dilation *= s.factor;
    const int64_t longest = history ? (s.K - 1) * dilation : 0;
    Rows<T> source(longest + s.L), sums(s.L), dy(s.L), da(s.L), taps(s.K), dtaps(s.K);
    Vector<T>* rows = source.data() + longest;
    load<T>(grad_h + task.b * s.L * s.D + task.channel, s.D, s.L, task.lanes, sums.data());
    for (int64_t n = s.convolutions() - 1; n >= 0; --n) {
      const int64_t size = (s.K - 1) * dilation, place = ((n * s.B + task.b) * s.L) * s.D + task.channel;
      const int64_t before = s.before(dilation);
      first -= size;
      if (n % s.layers == s.layers - 1) std::copy_n(sums.data(), s.L, dy.data());
      load<T>(pre + place, s.D, s.L, task.lanes, da.data());
      load<T>(inputs + place, s.D, s.L, task.lanes, rows);
      task.load_history(history, places, first, size, s.D, rows - (history ? size : 0));
      Vector<T> total{};
      for (int64_t t = 0; t < s.L; ++t) {
        for (int64_t i = 0; i < Lanes<T>::count; ++i) da[t][i] = Activation::slope(da[t][i]);
        total += da[t] *= dy[t];
      }
      weight_gradient<T>(rows, da.data(), Taps{s.K, dilation, before, history ? -size : 0, s.L}, dtaps.data());
      for (int64_t k = 0; k < s.K; ++k) taps[s.K - 1 - k] = task.gather(weight + (n * s.D + task.channel) * s.K + k, s.K);
      convolve<T>(da.data(), taps.data(), Vector<T>{}, Taps{s.K, dilation, size - before, 0, s.L}, dy.data());
      const int64_t channel = (task.b * s.convolutions() + n) * s.D + task.channel;
      for (int64_t i = 0; i < task.lanes; ++i) {
        dbias[channel + i] = total[i];
        for (int64_t k = 0; k < s.K; ++k) dweight[(channel + i) * s.K + k] = dtaps[k][i];
      }
      if (n % s.layers == 0) {
        for (int64_t t = 0; t < s.L; ++t) sums[t] += dy[t];
        dilation /= s.factor;
      }
    }
    store<T>(sums.data(), s.D, s.L, task.lanes, dx + task.b * s.L * s.D + task.channel);
  });
}

Shape shape_of(const Tensor& x, const Tensor& weight, int64_t factor, bool causal) {
  return {x.size(0), x.size(1), x.size(2), weight.size(3), weight.size(0), weight.size(1), factor, causal};
}

std::tuple<Tensor, Tensor, Tensor> forward(const Tensor& x, const Tensor& weight, const Tensor& bias, const std::optional<Tensor>& history,
                                           int64_t factor, const std::string& activation, bool causal, bool save) {
  const Shape s = shape_of(x, weight, factor, causal);
  Tensor h = at::empty_like(x), inputs = x.new_empty({0}), pre = x.new_empty({0});
  if (save) inputs = x.new_empty({s.convolutions(), s.B, s.L, s.D}), pre = at::empty_like(inputs);
  AT_DISPATCH_FLOATING_TYPES(x.scalar_type(), "ema_tcn", [&] {
    with_activation(activation, [&](auto act) {
      forward_of<scalar_t, decltype(act)>(s, x.const_data_ptr<scalar_t>(), weight.const_data_ptr<scalar_t>(), bias.const_data_ptr<scalar_t>(),
                                          history ? history->const_data_ptr<scalar_t>() : nullptr, history ? history->size(1) : 0,
                                          h.data_ptr<scalar_t>(), save ? inputs.data_ptr<scalar_t>() : nullptr,
                                          save ? pre.data_ptr<scalar_t>() : nullptr);
    });
  });
  return {h, inputs, pre};
}

std::tuple<Tensor, Tensor, Tensor> backward(const Tensor& grad_h, const Tensor& weight, const std::optional<Tensor>& history,
                                            const Tensor& inputs, const Tensor& pre, int64_t factor, const std::string& activation,
                                            bool causal) {
  const Shape s = shape_of(grad_h, weight, factor, causal);
  Tensor dx = at::empty_like(grad_h), dweight = weight.new_empty({s.B, s.blocks, s.layers, s.D, s.K});
  Tensor dbias = weight.new_empty({s.B, s.blocks, s.layers, s.D});
  AT_DISPATCH_FLOATING_TYPES(grad_h.scalar_type(), "ema_tcn_backward", [&] {
    with_activation(activation, [&](auto act) {
      backward_of<scalar_t, decltype(act)>(s, grad_h.const_data_ptr<scalar_t>(), weight.const_data_ptr<scalar_t>(),
                                           history ? history->const_data_ptr<scalar_t>() : nullptr, history ? history->size(1) : 0,
                                           inputs.const_data_ptr<scalar_t>(), pre.const_data_ptr<scalar_t>(), dx.data_ptr<scalar_t>(),
                                           dweight.data_ptr<scalar_t>(), dbias.data_ptr<scalar_t>());
    });
  });
  return {dx, dweight.sum(0), dbias.sum(0)};
}

}  // namespace

PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {
  m.def("forward", &forward, pybind11::call_guard<pybind11::gil_scoped_release>());
  m.def("backward", &backward, pybind11::call_guard<pybind11::gil_scoped_release>());
}
