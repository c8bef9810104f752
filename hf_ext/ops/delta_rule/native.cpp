// The delta rule token by token, float32, forward: a slice of a head's state stays in first-level cache (arXiv 2406.06484, eq. 1).
//
// Tokens of all sequences lie along one axis; `borders` says where each sequence starts.
//
// Letters: H heads, K key channels, V value channels.

#include <ATen/Parallel.h>
#include <torch/extension.h>

#include <algorithm>
#include <vector>

namespace {

constexpr int64_t WIDTH = 16;             // floats of a vector
constexpr int64_t SLICE = 2 * WIDTH;      // value channels taken together
typedef float Vector __attribute__((vector_size(WIDTH * sizeof(float)), aligned(sizeof(float))));

struct Pair {
  Vector low, high;
};

inline Pair load(const float* from) { return {*reinterpret_cast<const Vector*>(from), *reinterpret_cast<const Vector*>(from + WIDTH)}; }

inline void store(float* to, const Pair& x) {
  *reinterpret_cast<Vector*>(to) = x.low;
  *reinterpret_cast<Vector*>(to + WIDTH) = x.high;
}

// One token: recalled = S^T k, S += k (beta (v - recalled))^T, returns S^T q. The state is (K, SLICE), two rows of it at a time.
inline Pair token(float* state, const float* q, const float* k, const Pair& v, float beta, int64_t K) {
  Pair even{}, odd{};
  int64_t i = 0;
  for (; i + 1 < K; i += 2) {
    const Pair first = load(state + i * SLICE), second = load(state + (i + 1) * SLICE);
    even.low += k[i] * first.low;
    even.high += k[i] * first.high;
    odd.low += k[i + 1] * second.low;
    odd.high += k[i + 1] * second.high;
  }
  if (i < K) {
    const Pair last = load(state + i * SLICE);
    even.low += k[i] * last.low;
    even.high += k[i] * last.high;
  }
  const Pair error{beta * (v.low - even.low - odd.low), beta * (v.high - even.high - odd.high)};
  Pair output{}, other{};
  for (i = 0; i + 1 < K; i += 2) {
    Pair first = load(state + i * SLICE), second = load(state + (i + 1) * SLICE);
    first.low += k[i] * error.low;
    first.high += k[i] * error.high;
    second.low += k[i + 1] * error.low;
    second.high += k[i + 1] * error.high;
    store(state + i * SLICE, first);
    store(state + (i + 1) * SLICE, second);
    output.low += q[i] * first.low;
    output.high += q[i] * first.high;
    other.low += q[i + 1] * second.low;
    other.high += q[i + 1] * second.high;
  }
  if (i < K) {
    Pair last = load(state + i * SLICE);
    last.low += k[i] * error.low;
    last.high += k[i] * error.high;
    store(state + i * SLICE, last);
    output.low += q[i] * last.low;
    output.high += q[i] * last.high;
  }
  return {output.low + other.low, output.high + other.high};
}

}  // namespace

// q, k (tokens, H, K), v (tokens, H, V), beta (tokens, H), start (sequences, H, K, V), borders (sequences + 1,); contiguous, float32 save
// `borders`. Returns o (tokens, H, V) and the final states.
std::tuple<at::Tensor, at::Tensor> forward(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const at::Tensor& beta,
                                           double scale, const at::Tensor& start, const at::Tensor& borders) {
  const int64_t H = q.size(1), K = q.size(2), V = v.size(2), sequences = start.size(0), slices = (V + SLICE - 1) / SLICE;
  auto o = at::empty_like(v), final_state = at::empty_like(start);
  const float *q_data = q.const_data_ptr<float>(), *k_data = k.const_data_ptr<float>(), *v_data = v.const_data_ptr<float>();
  const float *beta_data = beta.const_data_ptr<float>(), *start_data = start.const_data_ptr<float>();
  float *o_data = o.data_ptr<float>(), *final_data = final_state.data_ptr<float>();
  const int64_t* border = borders.const_data_ptr<int64_t>();
  const float factor = static_cast<float>(scale);
  at::parallel_for(0, sequences * H * slices, 1, [&](int64_t begin, int64_t end) {
    std::vector<float> state(K * SLICE);
    float values[SLICE], output[SLICE];
    for (int64_t task = begin; task < end; ++task) {
      const int64_t head = task / slices, first = task % slices * SLICE, width = std::min(SLICE, V - first);
      const int64_t sequence = head / H, h = head % H;
      std::fill(state.begin(), state.end(), 0.0f);
      for (int64_t i = 0; i < K; ++i) std::copy_n(start_data + (head * K + i) * V + first, width, state.data() + i * SLICE);
      std::fill_n(values, SLICE, 0.0f);
      for (int64_t t = border[sequence]; t < border[sequence + 1]; ++t) {
        const int64_t row = t * H + h;
        std::copy_n(v_data + row * V + first, width, values);
        store(output, token(state.data(), q_data + row * K, k_data + row * K, load(values), beta_data[row], K));
        for (int64_t j = 0; j < width; ++j) o_data[row * V + first + j] = factor * output[j];
      }
      for (int64_t i = 0; i < K; ++i) std::copy_n(state.data() + i * SLICE, width, final_data + (head * K + i) * V + first);
    }
  });
  return {o, final_state};
}

PYBIND11_MODULE(TORCH_EXTENSION_NAME, module) { module.def("forward", &forward, py::call_guard<py::gil_scoped_release>()); }
