// FlashRNN on a CPU: one task per head (and block of the batch) walks along the tokens with its states and recurrent weights in cache.
//
// Paper: "FlashRNN: Optimizing Traditional RNNs on Modern Hardware", arXiv 2412.07752; the equations are those of reference.py.
// Per step: one matrix product of the hidden state with the head's packed weights, which adds to pre-activations that already hold the
// input and the bias, then one pass over the channels. Backward walks the other way; the weights' gradient is gathered as one matrix
// product per few hundred rows. Written from the equations: nothing is taken from the authors' code.
//
// Letters: B batch, T tokens, N heads, D channels of a head, S states, P pre-activations (one per bias), m rows (items of a batch block).

#include <ATen/Parallel.h>
#include <torch/extension.h>

#include <cmath>
#include <cstring>
#include <string>
#include <vector>

namespace {

using torch::Tensor;
using OptionalTensor = std::optional<Tensor>;

#ifdef __AVX512F__
constexpr int BYTES = 64, VECTORS = 4;
#else
constexpr int BYTES = 32, VECTORS = 2;
#endif
constexpr int ROWS = 6;          // of a tile: ROWS * VECTORS sums stay in registers
constexpr int64_t DEPTH = 256;   // rows of a panel that are used before the next panel's turn

template <typename T>
struct Vector {
  typedef T type __attribute__((vector_size(BYTES), aligned(alignof(T)), may_alias));
  static constexpr int lanes = BYTES / sizeof(T);
  static constexpr int64_t panel = VECTORS * lanes;
};

template <typename T>
int64_t padded(int64_t columns) {
  return (columns + Vector<T>::panel - 1) / Vector<T>::panel * Vector<T>::panel;
}

// (depth, columns) with the given strides -> panels of `Vector<T>::panel` columns, zeros behind the last column
template <typename T>
void pack(const T* source, int64_t depth, int64_t columns, int64_t row_stride, int64_t column_stride, T* panels) {
  constexpr int64_t width = Vector<T>::panel;
  for (int64_t first = 0; first < columns; first += width) {
    const int64_t used = std::min(width, columns - first);
    for (int64_t k = 0; k < depth; ++k, panels += width) {
      const T* row = source + k * row_stride + first * column_stride;
      for (int64_t j = 0; j < used; ++j) panels[j] = row[j * column_stride];
      std::fill(panels + used, panels + width, T(0));
    }
  }
}

template <typename T, int M>
void tile(int64_t depth, const T* a, int64_t a_row, int64_t a_depth, const T* panel, T* c, int64_t c_row) {
  using V = typename Vector<T>::type;
  constexpr int lanes = Vector<T>::lanes;
  V sums[M][VECTORS] = {};
  for (int64_t k = 0; k < depth; ++k) {
    const V* row = reinterpret_cast<const V*>(panel + k * Vector<T>::panel);
    for (int i = 0; i < M; ++i) {
      const T factor = a[i * a_row + k * a_depth];
      for (int v = 0; v < VECTORS; ++v) sums[i][v] += factor * row[v];
    }
  }
  for (int i = 0; i < M; ++i)
    for (int v = 0; v < VECTORS; ++v) *reinterpret_cast<V*>(c + i * c_row + v * lanes) += sums[i][v];
}

template <typename T, int M>
void tile_of(int64_t rows, int64_t depth, const T* a, int64_t a_row, int64_t a_depth, const T* panel, T* c, int64_t c_row) {
  if constexpr (M > 1) {
    if (rows < M) return tile_of<T, M - 1>(rows, depth, a, a_row, a_depth, panel, c, c_row);
  }
  tile<T, M>(depth, a, a_row, a_depth, panel, c, c_row);
}

// c (m, columns) += a (m, depth) b (depth, columns); b is packed, columns are a multiple of the panel's width
template <typename T>
void multiply_add(int64_t m, int64_t columns, int64_t depth, const T* a, int64_t a_row, int64_t a_depth, const T* b, T* c, int64_t c_row) {
  constexpr int64_t width = Vector<T>::panel;
  for (int64_t k = 0; k < depth; k += DEPTH)
    for (int64_t j = 0; j < columns; j += width)
      for (int64_t i = 0; i < m; i += ROWS)
        tile_of<T, ROWS>(m - i, std::min(DEPTH, depth - k), a + i * a_row + k * a_depth, a_row, a_depth,
                         b + j * depth + k * width, c + i * c_row + j, c_row);
}

typedef Vector<float>::type Floats;
typedef Vector<double>::type Doubles;
typedef int32_t Bits __attribute__((vector_size(BYTES)));

// Relative error about 1e-7
inline Floats exponential(Floats x) {
  x = x > 88.0f ? Floats{} + 88.0f : x;
  x = x < -87.3f ? Floats{} - 87.3f : x;
  const Floats shifted = x * 1.44269504f + 12582912.0f;  // the last bits hold round(x / ln 2)
  const Floats n = shifted - 12582912.0f;
  const Floats r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  Floats p = r * 1.9875691500e-4f + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  const Bits power = ((Bits)shifted << 23) + 0x3f800000;
  return (p * r * r + r + 1.0f) * (Floats)power;
}

inline Floats tangent(Floats x) {
  const Floats s = x * x;
  const Floats near = x * (1.0f + s * (-0.333333333f + s * (0.133333333f - s * 0.0539682540f)));
  const Floats far = 2.0f / (1.0f + exponential(-2.0f * x)) - 1.0f;
  return s < 0.01f ? near : far;
}

// log(1 + y) for y in [0, 1]
inline Floats log_of_one_plus(Floats y) {
  const Floats s = y / (2.0f + y), q = s * s;
  return 2.0f * s * (1.0f + q * (1.0f / 3 + q * (0.2f + q * (1.0f / 7 + q * (1.0f / 9 + q * (1.0f / 11 + q * (1.0f / 13)))))));
}

template <double (*function)(double)>
Doubles each(Doubles x) {
  for (int i = 0; i < Vector<double>::lanes; ++i) x[i] = function(x[i]);
  return x;
}
inline Doubles exponential(Doubles x) { return each<std::exp>(x); }
inline Doubles tangent(Doubles x) { return each<std::tanh>(x); }
inline Doubles log_of_one_plus(Doubles y) { return each<std::log1p>(y); }

template <typename V>
inline V sigmoid(V x) {
  return 1 / (1 + exponential(-x));
}

template <typename V>
inline V log_sigmoid(V x) {
  return (x < 0 ? x : V{}) - log_of_one_plus(exponential(x < 0 ? x : -x));
}

// A cell's two passes for as many channels as a vector has: p pre-activations, s states before, u states after, d gradients of u, dp of
// p, ds of s (without what comes through the recurrent weights). Inputs add to pre-activations FIRST_INPUT ..., recurrent products to
// 0 ... RECURRENT - 1.

struct Lstm {
  static constexpr int STATES = 2, PRE = 4, FIRST_INPUT = 0, INPUTS = 4, RECURRENT = 4;
  template <typename V>
  static void forward(const V* p, const V* s, V* u) {
    u[1] = sigmoid(p[1]) * s[1] + sigmoid(p[0]) * tangent(p[2]);
    u[0] = sigmoid(p[3]) * tangent(u[1]);
  }
  template <typename V>
  static void backward(const V* p, const V* s, const V* u, const V* d, V* dp, V* ds) {
    const V i = sigmoid(p[0]), f = sigmoid(p[1]), z = tangent(p[2]), o = sigmoid(p[3]), c = tangent(u[1]);
    const V dc = d[1] + d[0] * o * (1 - c * c);
    dp[0] = dc * z * i * (1 - i);
    dp[1] = dc * s[1] * f * (1 - f);
    dp[2] = dc * i * (1 - z * z);
    dp[3] = d[0] * c * o * (1 - o);
    ds[0] = V{};
    ds[1] = dc * f;
  }
};

struct Gru {
  static constexpr int STATES = 1, PRE = 4, FIRST_INPUT = 1, INPUTS = 3, RECURRENT = 3;
  template <typename V>
  static void forward(const V* p, const V* s, V* u) {
    const V z = sigmoid(p[2]);
    u[0] = z * s[0] + (1 - z) * tangent(p[3] + sigmoid(p[1]) * p[0]);
  }
  template <typename V>
  static void backward(const V* p, const V* s, const V* u, const V* d, V* dp, V* ds) {
    const V r = sigmoid(p[1]), z = sigmoid(p[2]), n = tangent(p[3] + r * p[0]);
    const V dn = d[0] * (1 - z) * (1 - n * n);
    dp[0] = dn * r;
    dp[1] = dn * p[0] * r * (1 - r);
    dp[2] = d[0] * (s[0] - n) * z * (1 - z);
    dp[3] = dn;
    ds[0] = d[0] * z;
  }
};

struct Elman {
  static constexpr int STATES = 1, PRE = 1, FIRST_INPUT = 0, INPUTS = 1, RECURRENT = 1;
  template <typename V>
  static void forward(const V* p, const V* s, V* u) {
    u[0] = tangent(p[0]);
  }
  template <typename V>
  static void backward(const V* p, const V* s, const V* u, const V* d, V* dp, V* ds) {
    const V h = tangent(p[0]);
    dp[0] = d[0] * (1 - h * h);
    ds[0] = V{};
  }
};

struct Slstm {
  static constexpr int STATES = 4, PRE = 4, FIRST_INPUT = 0, INPUTS = 4, RECURRENT = 4;
  static constexpr int LIMIT = 80;  // of the exponent of a first step's forget gate, which meets only zeros
  template <typename V>
  static void gates(const V* p, const V* s, V& l, V& m, V& ig, V& fg) {
    l = log_sigmoid(p[1]) + s[3];
    m = (s[2] == 0) | (p[0] > l) ? p[0] : l;
    ig = exponential(p[0] - m);
    fg = exponential(l - m > LIMIT ? V{} + LIMIT : l - m);
  }
  template <typename V>
  static void forward(const V* p, const V* s, V* u) {
    V l, m, ig, fg;
    gates(p, s, l, m, ig, fg);
    const V n = fg * s[2] + ig;
    u[1] = fg * s[1] + ig * tangent(p[2]);
    u[2] = n > 1 ? n : V{} + 1;
    u[3] = m;
    u[0] = sigmoid(p[3]) * u[1] / u[2];
  }
  template <typename V>
  static void backward(const V* p, const V* s, const V* u, const V* d, V* dp, V* ds) {
    V l, m, ig, fg;
    gates(p, s, l, m, ig, fg);
    const V z = tangent(p[2]), o = sigmoid(p[3]), y = u[1] / u[2];
    const V dc = d[1] + d[0] * o / u[2];
    const V dn_out = d[2] - d[0] * o * y / u[2];
    const V dn = fg * s[2] + ig < 1 ? V{} : dn_out;
    const V di = (dc * z + dn) * ig, dl = (dc * s[1] + dn * s[2]) * fg;
    const V dm = d[3] - di - dl;
    const auto from_input = (s[2] == 0) | (p[0] > l);
    const V dl_all = dl + (from_input ? V{} : dm);
    dp[0] = di + (from_input ? dm : V{});
    dp[1] = dl_all * (1 - sigmoid(p[1]));
    dp[2] = dc * ig * (1 - z * z);
    dp[3] = d[0] * y * o * (1 - o);
    ds[0] = V{};
    ds[1] = dc * fg;
    ds[2] = dn * fg;
    ds[3] = dl_all;
  }
};

template <typename F>
void with_cell(const std::string& function, F f) {
  if (function == "lstm") return f(Lstm());
  if (function == "gru") return f(Gru());
  if (function == "elman") return f(Elman());
  TORCH_CHECK(function == "slstm", "no cell ", function);
  f(Slstm());
}

template <typename T>
typename Vector<T>::type load(const T* source, int64_t count) {
  typename Vector<T>::type x = {};
  std::memcpy(&x, source, count * sizeof(T));
  return x;
}

template <typename T>
void store(const typename Vector<T>::type& x, T* target, int64_t count) {
  std::memcpy(target, &x, count * sizeof(T));
}

// f(first channel, how many) for all channels, a vector at a time: `how many` is a constant save for the last
template <typename T, typename F>
void over_channels(int64_t D, F f) {
  constexpr int64_t lanes = Vector<T>::lanes;
  int64_t d = 0;
  for (; d + lanes <= D; d += lanes) f(d, std::integral_constant<int64_t, lanes>());
  if (d < D) f(d, D - d);
}

template <typename T, typename Cell>
void step(int64_t D, const T* pre, T* states, int64_t stride, T clip) {
  using V = typename Vector<T>::type;
  over_channels<T>(D, [&](int64_t d, auto count) {
    V p[Cell::PRE], s[Cell::STATES], u[Cell::STATES];
    for (int k = 0; k < Cell::PRE; ++k) p[k] = load(pre + k * D + d, count);
    for (int k = 0; k < Cell::STATES; ++k) s[k] = load(states + k * stride + d, count);
    Cell::forward(p, s, u);
    u[0] = u[0] > clip ? V{} + clip : u[0];
    u[0] = u[0] < -clip ? V{} - clip : u[0];
    for (int k = 0; k < Cell::STATES; ++k) store(u[k], states + k * stride + d, count);
  });
}

// `after` and `grads` stand `after_stride` apart; `carried` holds the gradients from later steps and gets those for earlier ones
template <typename T, typename Cell>
void step_back(int64_t D, const T* pre, const T* before, const T* after, const T* grads, int64_t before_stride, int64_t after_stride,
               T* carried, int64_t stride, T* dpre, T clip) {
  using V = typename Vector<T>::type;
  over_channels<T>(D, [&](int64_t d, auto count) {
    V p[Cell::PRE], s[Cell::STATES], u[Cell::STATES], total[Cell::STATES], dp[Cell::PRE], ds[Cell::STATES];
    for (int k = 0; k < Cell::PRE; ++k) p[k] = load(pre + k * D + d, count);
    for (int k = 0; k < Cell::STATES; ++k) {
      s[k] = load(before + k * before_stride + d, count);
      u[k] = load(after + k * after_stride + d, count);
      total[k] = load(carried + k * stride + d, count) + load(grads + k * after_stride + d, count);
    }
    total[0] = (u[0] < clip) & (u[0] > -clip) ? total[0] : V{};
    Cell::backward(p, s, u, total, dp, ds);
    for (int k = 0; k < Cell::PRE; ++k) store(dp[k], dpre + k * D + d, count);
    for (int k = 0; k < Cell::STATES; ++k) store(ds[k], carried + k * stride + d, count);
  });
}

// A head's channels stand far apart from one token to the next, where no hardware sees what comes: so the next token's are asked for early
template <typename T>
void prefetch(const T* row, int64_t D) {
  for (int64_t d = 0; d < D; d += 64 / sizeof(T)) __builtin_prefetch(row + d);
}

// Heads are independent; where there are fewer of them than threads, the batch is cut too.
struct Tasks {
  int64_t heads, batch, blocks;
  Tasks(int64_t heads, int64_t batch) : heads(heads), batch(batch) {
    const int64_t wanted = (at::get_num_threads() + heads - 1) / heads;
    blocks = std::max<int64_t>(1, std::min(wanted, batch / ROWS));
  }
  int64_t first(int64_t block) const { return batch * block / blocks; }
  template <typename F>
  void run(F f) const {
    at::parallel_for(0, heads * blocks, 1, [&](int64_t begin, int64_t end) {
      for (int64_t task = begin; task < end; ++task) f(task % heads, task / heads);
    });
  }
};

template <typename T>
T limit(std::optional<double> clip) {
  return clip ? T(*clip) : std::numeric_limits<T>::infinity();
}

// Wx (B,T,G,N,D), R (G,N,D,D), b (P,N,D), initial (S,B,1,N,D), mask (B,T) bytes -> states (S,B,T,N,D), last (S,B,1,N,D), pre (N,T,B,P,D)
template <typename T, typename Cell>
void forward_of(const Tensor& Wx, const Tensor& R, const Tensor& b, const OptionalTensor& initial, const OptionalTensor& mask, T clip,
                Tensor& states, Tensor& last, Tensor& pre) {
  constexpr int S = Cell::STATES, P = Cell::PRE, G = Cell::RECURRENT;
  const int64_t B = Wx.size(0), L = Wx.size(1), N = Wx.size(3), D = Wx.size(4);
  const int64_t columns = padded<T>(G * D), width = std::max(columns, P * D);
  const T *wx = Wx.const_data_ptr<T>(), *r = R.const_data_ptr<T>(), *bias = b.const_data_ptr<T>();
  const T* start = initial ? initial->const_data_ptr<T>() : nullptr;
  const bool* real = mask ? mask->const_data_ptr<bool>() : nullptr;
  T *out = states.data_ptr<T>(), *end_states = last.data_ptr<T>();
  T* saved = pre.numel() ? pre.data_ptr<T>() : nullptr;
  const Tasks tasks(N, B);
  tasks.run([&](int64_t n, int64_t block) {
    const int64_t b0 = tasks.first(block), m = tasks.first(block + 1) - b0;
    std::vector<T> weights(D * columns), gates(m * width), state(S * m * D, T(0)), head_bias(P * D), rows(G * D * D);
    for (int g = 0; g < G; ++g) std::copy_n(r + (g * N + n) * D * D, D * D, rows.data() + g * D * D);
    pack<T>(rows.data(), D, G * D, 1, D, weights.data());
    for (int k = 0; k < P; ++k) std::copy_n(bias + (k * N + n) * D, D, head_bias.data() + k * D);
    if (start)
      for (int s = 0; s < S; ++s)
        for (int64_t i = 0; i < m; ++i) std::copy_n(start + ((s * B + b0 + i) * N + n) * D, D, state.data() + (s * m + i) * D);
    for (int64_t t = 0; t < L; ++t) {
      for (int64_t i = 0; i < m; ++i) {
        T* row = gates.data() + i * width;
        std::copy_n(head_bias.data(), P * D, row);
        for (int k = 0; k < Cell::INPUTS; ++k) {
          const T* x = wx + ((((b0 + i) * L + t) * Cell::INPUTS + k) * N + n) * D;
          T* target = row + (Cell::FIRST_INPUT + k) * D;
          if (t + 1 < L) prefetch(x + Cell::INPUTS * N * D, D);
          for (int64_t d = 0; d < D; ++d) target[d] += x[d];
        }
      }
      multiply_add<T>(m, columns, D, state.data(), D, 1, weights.data(), gates.data(), width);
      for (int64_t i = 0; i < m; ++i) {
        T* row = gates.data() + i * width;
        if (!real || real[(b0 + i) * L + t]) step<T, Cell>(D, row, state.data() + i * D, m * D, clip);
        for (int s = 0; s < S; ++s) std::copy_n(state.data() + (s * m + i) * D, D, out + (((s * B + b0 + i) * L + t) * N + n) * D);
        if (saved) std::copy_n(row, P * D, saved + ((n * L + t) * B + b0 + i) * P * D);
      }
    }
    for (int s = 0; s < S; ++s)
      for (int64_t i = 0; i < m; ++i) std::copy_n(state.data() + (s * m + i) * D, D, end_states + ((s * B + b0 + i) * N + n) * D);
  });
}

template <typename T, typename Cell>
void backward_of(const Tensor& grad_states, const Tensor& grad_last, const Tensor& R, const OptionalTensor& initial,
                 const OptionalTensor& mask, const Tensor& states, const Tensor& pre, bool cut, T gradient_clip, T clip, Tensor& dWx,
                 Tensor& dR, Tensor& db, Tensor& dinitial) {
  constexpr int S = Cell::STATES, P = Cell::PRE, G = Cell::RECURRENT;
  const int64_t B = states.size(1), L = states.size(2), N = states.size(3), D = states.size(4);
  const int64_t columns = padded<T>(D), step_stride = B * L * N * D;
  const T *r = R.const_data_ptr<T>(), *grads = grad_states.const_data_ptr<T>(), *grads_last = grad_last.const_data_ptr<T>();
  const T *h = states.const_data_ptr<T>(), *saved = pre.const_data_ptr<T>();
  const T* start = initial ? initial->const_data_ptr<T>() : nullptr;
  const bool* real = mask ? mask->const_data_ptr<bool>() : nullptr;
  T *dwx = dWx.data_ptr<T>(), *dr = dR.data_ptr<T>(), *dbias = db.data_ptr<T>(), *dstart = dinitial.data_ptr<T>();
  const Tasks tasks(N, B);
  tasks.run([&](int64_t n, int64_t block) {
    const int64_t b0 = tasks.first(block), m = tasks.first(block + 1) - b0, capacity = std::max(m, DEPTH / m * m);
    std::vector<T> weights(G * D * columns), rows(G * D * D), carried(S * m * D), dh(m * columns), sums(P * D, T(0)), zeros(S * D, T(0));
    std::vector<T> dgates(capacity * P * D), hidden(capacity * D), panels(capacity * columns), dweights(G * D * columns, T(0));
    for (int g = 0; g < G; ++g) std::copy_n(r + (g * N + n) * D * D, D * D, rows.data() + g * D * D);
    pack<T>(rows.data(), G * D, D, D, 1, weights.data());
    for (int s = 0; s < S; ++s)
      for (int64_t i = 0; i < m; ++i) std::copy_n(grads_last + ((s * B + b0 + i) * N + n) * D, D, carried.data() + (s * m + i) * D);
    int64_t filled = 0;
    for (int64_t t = L - 1; t >= 0; --t) {
      T* dgate_rows = dgates.data() + filled * P * D;
      for (int64_t i = 0; i < m; ++i) {
        const int64_t place = (((b0 + i) * L + t) * N + n) * D;
        const T* before = t ? h + place - N * D : start ? start + ((b0 + i) * N + n) * D : zeros.data();
        const int64_t before_stride = t ? step_stride : start ? B * N * D : D;
        T *own = carried.data() + i * D, *drow = dgate_rows + i * P * D;
        for (int s = 0; t > 0 && s < S; ++s) {
          prefetch(grads + s * step_stride + place - N * D, D);
          if (t > 1) prefetch(h + s * step_stride + place - 2 * N * D, D);
        }
        if (real && !real[(b0 + i) * L + t]) {
          for (int s = 0; s < S; ++s)
            for (int64_t d = 0; d < D; ++d) own[s * m * D + d] += grads[s * step_stride + place + d];
          std::fill_n(drow, P * D, T(0));
        } else {
          step_back<T, Cell>(D, saved + ((n * L + t) * B + b0 + i) * P * D, before, h + place, grads + place, before_stride, step_stride,
                             own, m * D, drow, clip);
        }
        for (int k = 0; k < Cell::INPUTS; ++k)
          std::copy_n(drow + (Cell::FIRST_INPUT + k) * D, D, dwx + ((((b0 + i) * L + t) * Cell::INPUTS + k) * N + n) * D);
        for (int64_t d = 0; d < P * D; ++d) sums[d] += drow[d];
        std::copy_n(before, D, hidden.data() + (filled + i) * D);
      }
      std::fill(dh.begin(), dh.end(), T(0));
      if (!cut) multiply_add<T>(m, columns, G * D, dgate_rows, P * D, 1, weights.data(), dh.data(), columns);
      for (int64_t i = 0; i < m; ++i) {
        if (real && !real[(b0 + i) * L + t]) continue;
        T* own = carried.data() + i * D;
        for (int64_t d = 0; d < D; ++d) {
          const T total = own[d] + dh[i * columns + d];
          own[d] = total > gradient_clip ? gradient_clip : total < -gradient_clip ? -gradient_clip : total;
        }
      }
      filled += m;
      if (filled == capacity || t == 0) {
        pack<T>(hidden.data(), filled, D, D, 1, panels.data());
        multiply_add<T>(G * D, columns, filled, dgates.data(), 1, P * D, panels.data(), dweights.data(), columns);
        filled = 0;
      }
    }
    for (int64_t row = 0; row < G * D; ++row)
      std::copy_n(dweights.data() + row * columns, D, dr + (((block * G + row / D) * N + n) * D + row % D) * D);
    for (int k = 0; k < P; ++k) std::copy_n(sums.data() + k * D, D, dbias + ((block * P + k) * N + n) * D);
    for (int s = 0; s < S; ++s)
      for (int64_t i = 0; i < m; ++i) std::copy_n(carried.data() + (s * m + i) * D, D, dstart + ((s * B + b0 + i) * N + n) * D);
  });
}

std::tuple<Tensor, Tensor, Tensor> forward(const Tensor& Wx, const Tensor& R, const Tensor& b, const OptionalTensor& initial,
                                           const OptionalTensor& mask, const std::string& function, bool, std::optional<double>,
                                           std::optional<double> forward_clip, bool save) {
  Tensor states, last, pre;
  with_cell(function, [&](auto cell) {
    using Cell = decltype(cell);
    const int64_t B = Wx.size(0), L = Wx.size(1), N = Wx.size(3), D = Wx.size(4);
    states = Wx.new_empty({Cell::STATES, B, L, N, D});
    last = Wx.new_empty({Cell::STATES, B, 1, N, D});
    pre = save ? Wx.new_empty({N, L, B, Cell::PRE, D}) : Wx.new_empty({0});
    AT_DISPATCH_FLOATING_TYPES(Wx.scalar_type(), "flashrnn", [&] {
      forward_of<scalar_t, Cell>(Wx, R, b, initial, mask, limit<scalar_t>(forward_clip), states, last, pre);
    });
  });
  return {states, last, pre};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> backward(const Tensor& grad_states, const Tensor& grad_last, const Tensor& R,
                                                    const OptionalTensor& initial, const OptionalTensor& mask, const Tensor& states,
                                                    const Tensor& pre, const std::string& function, bool cut,
                                                    std::optional<double> gradient_clip, std::optional<double> forward_clip) {
  Tensor dWx, dR, db, dinitial;
  with_cell(function, [&](auto cell) {
    using Cell = decltype(cell);
    const int64_t B = states.size(1), L = states.size(2), N = states.size(3), D = states.size(4), blocks = Tasks(N, B).blocks;
    dWx = states.new_empty({B, L, Cell::INPUTS, N, D});
    dR = states.new_empty({blocks, Cell::RECURRENT, N, D, D});
    db = states.new_empty({blocks, Cell::PRE, N, D});
    dinitial = states.new_empty({Cell::STATES, B, 1, N, D});
    AT_DISPATCH_FLOATING_TYPES(states.scalar_type(), "flashrnn_backward", [&] {
      backward_of<scalar_t, Cell>(grad_states, grad_last, R, initial, mask, states, pre, cut, limit<scalar_t>(gradient_clip),
                                  limit<scalar_t>(forward_clip), dWx, dR, db, dinitial);
    });
  });
  return {dWx, dR.sum(0), db.sum(0), dinitial};
}

}  // namespace

PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {
  m.def("forward", &forward, pybind11::call_guard<pybind11::gil_scoped_release>());
  m.def("backward", &backward, pybind11::call_guard<pybind11::gil_scoped_release>());
}
