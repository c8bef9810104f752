// The selective scan in one pass over the tokens, float32, forward and backward (arXiv 2312.00752, 2411.12537).
//
// Tokens of all sequences lie along one axis; `borders` says where each sequence starts. A block of channels is scanned with its states in
// registers and first-level cache. The backward pass keeps the state before every STRIDE-th token and computes the others again.
//
// Letters: D channels, N numbers of state per channel.

#include <ATen/Parallel.h>
#include <torch/extension.h>

#include <algorithm>
#include <cstring>
#include <mutex>
#include <vector>

namespace {

constexpr int64_t BLOCK = 8;    // channels scanned together
constexpr int64_t STRIDE = 64;  // tokens between the states that the backward pass keeps

// Cephes' expf, in a form that compilers vectorise; about one unit in the last place off.
inline float exponential(float x) {
  x = std::min(std::max(x, -87.0f), 88.0f);
  const float n = std::nearbyint(x * 1.44269504088896341f);
  const float r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  const int32_t bits = (static_cast<int32_t>(n) + 127) << 23;
  float power;
  std::memcpy(&power, &bits, sizeof power);
  return p * power;
}

// a = factor * exp(dt * A) - shift; (1, 0) for the range [0, 1] and (2, 1) for [-1, 1]
struct Range {
  float factor, shift;
  explicit Range(bool negative) : factor(negative ? 2.0f : 1.0f), shift(negative ? 1.0f : 0.0f) {}
};

// state = a * state + input * B for one token of one channel
inline void advance(float* state, const float* A, const float* B, float dt, float input, Range range, int64_t N) {
#pragma omp simd
  for (int64_t n = 0; n < N; ++n) {
    state[n] = (range.factor * exponential(dt * A[n]) - range.shift) * state[n] + input * B[n];
  }
}

template <int64_t FIXED>
void scan(const float* x, const float* dt, const float* A, const float* B, const float* C, const int64_t* borders, int64_t sequences,
          int64_t D, int64_t size, Range range, float* state, float* y) {
  const int64_t N = FIXED ? FIXED : size;
  at::parallel_for(0, sequences * ((D + BLOCK - 1) / BLOCK), 1, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) {
      const int64_t s = task % sequences, first = task / sequences * BLOCK, last = std::min(D, first + BLOCK);
      for (int64_t t = borders[s]; t < borders[s + 1]; ++t) {
        for (int64_t d = first; d < last; ++d) {
          float* h = state + (s * D + d) * N;
          advance(h, A + d * N, B + t * N, dt[t * D + d], dt[t * D + d] * x[t * D + d], range, N);
          float sum = 0;
#pragma omp simd reduction(+ : sum)
          for (int64_t n = 0; n < N; ++n) sum += h[n] * C[t * N + n];
          y[t * D + d] = sum;
        }
      }
    }
  });
}

// The gradient of one block of channels through the tokens of one sequence.
template <int64_t FIXED>
struct Differentiator {
  const float *x, *dt, *A, *B, *C, *dy;
  int64_t D, size;
  Range range;
  float *dx, *ddt, *dA;
  float *dB, *dC;  // of this thread

  void run(int64_t first, int64_t last, int64_t start, int64_t stop, const float* initial, float* g, std::vector<float>& kept,
           std::vector<float>& local) const {
    const int64_t N = FIXED ? FIXED : size, width = (last - first) * N;
    if (start == stop) return;
    kept.resize(((stop - start - 1) / STRIDE + 1) * width);
    local.resize((STRIDE + 1) * width);
    std::vector<float> h(initial + first * N, initial + last * N);
    for (int64_t t = start; t < stop; ++t) {
      if ((t - start) % STRIDE == 0) std::copy(h.begin(), h.end(), kept.begin() + (t - start) / STRIDE * width);
      for (int64_t d = first; d < last; ++d) {
        advance(h.data() + (d - first) * N, A + d * N, B + t * N, dt[t * D + d], dt[t * D + d] * x[t * D + d], range, N);
      }
    }
    for (int64_t piece = (stop - start - 1) / STRIDE; piece >= 0; --piece) {
      const int64_t begin = start + piece * STRIDE, end = std::min(stop, begin + STRIDE);
      std::copy_n(kept.begin() + piece * width, width, local.begin());
      for (int64_t t = begin; t < end; ++t) {
        float* after = local.data() + (t - begin + 1) * width;
        std::copy_n(after - width, width, after);
        for (int64_t d = first; d < last; ++d) {
          advance(after + (d - first) * N, A + d * N, B + t * N, dt[t * D + d], dt[t * D + d] * x[t * D + d], range, N);
        }
      }
      for (int64_t t = end - 1; t >= begin; --t) {
        for (int64_t d = first; d < last; ++d) {
          const float* before = local.data() + (t - begin) * width + (d - first) * N;
          token(t, d, before, before + width, g + d * N, N);
        }
      }
    }
  }

  void token(int64_t t, int64_t d, const float* before, const float* after, float* g, int64_t N) const {
    const float step = dt[t * D + d], value = x[t * D + d], output = dy[t * D + d];
    const float *a_row = A + d * N, *b_row = B + t * N, *c_row = C + t * N;
    float *da_row = dA + d * N, *db_row = dB + t * N, *dc_row = dC + t * N;
    float dinput = 0, dstep = 0;
#pragma omp simd reduction(+ : dinput, dstep)
    for (int64_t n = 0; n < N; ++n) {
      const float grown = range.factor * exponential(step * a_row[n]);  // also the derivative with respect to dt * A
      const float gradient = g[n] + output * c_row[n];
      const float dexponent = gradient * before[n] * grown;
      dc_row[n] += output * after[n];
      db_row[n] += step * value * gradient;
      da_row[n] += step * dexponent;
      dinput += gradient * b_row[n];
      dstep += dexponent * a_row[n];
      g[n] = (grown - range.shift) * gradient;
    }
    dx[t * D + d] = dinput * step;
    ddt[t * D + d] = dinput * value + dstep;
  }
};

template <int64_t FIXED>
void differentiate(Differentiator<FIXED> gradient, const int64_t* borders, int64_t sequences, const float* initial, float* g, float* dB,
                   float* dC, int64_t tokens) {
  const int64_t D = gradient.D, N = gradient.size;
  std::mutex guard;
  at::parallel_for(0, (D + BLOCK - 1) / BLOCK, 1, [&](int64_t begin, int64_t end) {
    std::vector<float> own(2 * tokens * N), kept, local;
    Differentiator<FIXED> mine = gradient;
    mine.dB = own.data();
    mine.dC = own.data() + tokens * N;
    for (int64_t block = begin; block < end; ++block) {
      for (int64_t s = 0; s < sequences; ++s) {
        mine.run(block * BLOCK, std::min(D, (block + 1) * BLOCK), borders[s], borders[s + 1], initial + s * D * N, g + s * D * N, kept,
                 local);
      }
    }
    const std::lock_guard<std::mutex> lock(guard);
    for (int64_t i = 0; i < tokens * N; ++i) {
      dB[i] += mine.dB[i];
      dC[i] += mine.dC[i];
    }
  });
}

const float* data(const at::Tensor& x) { return x.const_data_ptr<float>(); }

}  // namespace

// x, dt (tokens, D), A (D, N), B, C (tokens, N), borders (sequences + 1,), start (sequences, D, N); all contiguous, float32 save `borders`
std::tuple<at::Tensor, at::Tensor> forward(const at::Tensor& x, const at::Tensor& dt, const at::Tensor& A, const at::Tensor& B,
                                           const at::Tensor& C, const at::Tensor& borders, const at::Tensor& start, bool negative) {
  auto y = at::empty_like(x), state = start.clone();
  const auto run = A.size(1) == 16 ? scan<16> : scan<0>;
  run(data(x), data(dt), data(A), data(B), data(C), borders.const_data_ptr<int64_t>(), start.size(0), A.size(0), A.size(1),
      Range(negative), state.data_ptr<float>(), y.data_ptr<float>());
  return {y, state};
}

std::vector<at::Tensor> backward(const at::Tensor& dy, const at::Tensor& dfinal, const at::Tensor& x, const at::Tensor& dt,
                                 const at::Tensor& A, const at::Tensor& B, const at::Tensor& C, const at::Tensor& borders,
                                 const at::Tensor& start, bool negative) {
  auto dx = at::empty_like(x), ddt = at::empty_like(dt), g = dfinal.clone();
  auto dA = at::zeros_like(A), dB = at::zeros_like(B), dC = at::zeros_like(C);
  const auto run = [&]<int64_t FIXED>(std::integral_constant<int64_t, FIXED>) {
    const Differentiator<FIXED> gradient{data(x),
                                         data(dt),
                                         data(A),
                                         data(B),
                                         data(C),
                                         data(dy),
                                         A.size(0),
                                         A.size(1),
                                         Range(negative),
                                         dx.data_ptr<float>(),
                                         ddt.data_ptr<float>(),
                                         dA.data_ptr<float>(),
                                         nullptr,
                                         nullptr};
    differentiate(gradient, borders.const_data_ptr<int64_t>(), start.size(0), data(start), g.data_ptr<float>(), dB.data_ptr<float>(),
                  dC.data_ptr<float>(), x.size(0));
  };
  A.size(1) == 16 ? run(std::integral_constant<int64_t, 16>{}) : run(std::integral_constant<int64_t, 0>{});
  return {dx, ddt, dA, dB, dC, g};
}

PYBIND11_MODULE(TORCH_EXTENSION_NAME, module) {
  module.def("forward", &forward, py::call_guard<py::gil_scoped_release>());
  module.def("backward", &backward, py::call_guard<py::gil_scoped_release>());
}
