// Blockwise integers on a CPU: rounding in one pass, and a linear layer that multiplies integers as they are stored.
//
// The definition is that of reference.py. Products of a piece of 64 columns are summed in int32, scaled by a power of two, which is
// exact, and added up in float32. Weights are read as unsigned q + offset, because the processor multiplies unsigned by signed bytes; what
// the offset adds is known from the inputs alone and is where each sum starts.
// Letters: M tokens, N output features, K input features, P pieces of 64 columns, B block.

#include <ATen/Parallel.h>
#include <torch/extension.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <vector>

#if defined(__AVX512VNNI__) && defined(__AVX512BW__) && defined(__AVX512VL__)
#include <immintrin.h>
#define HF_EXT_INTEGER_PRODUCTS 1
#else
#define HF_EXT_INTEGER_PRODUCTS 0
#endif

namespace {

using torch::Tensor;
using OptionalTensor = std::optional<Tensor>;

constexpr int64_t PIECE = 64;

// 2^i for i from -128 to 128
const std::array<float, 257> POWERS = [] {
  std::array<float, 257> table{};
  for (int i = -128; i <= 128; ++i) table[i + 128] = std::ldexp(1.0f, i);
  return table;
}();

float power(int exponent) { return POWERS[exponent + 128]; }

// The shift of a block; `finite` turns false where it holds an infinity or no number
int shift_of(const float* x, int64_t size, int bits, bool& finite) {
  uint32_t largest = 0;
  for (int64_t i = 0; i < size; ++i) {
    uint32_t pattern;
    std::memcpy(&pattern, x + i, sizeof(pattern));
    largest = std::max(largest, pattern & 0x7fffffffu);
  }
  finite = largest < 0x7f800000u;
  if (!largest) return 0;
  return std::clamp(bits - 1 - (int(largest >> 23) - 126), -128, 127);
}

// Half to even; |x| is below 2^22
float to_integer(float x, float limit) {
  constexpr float magic = 12582912.0f;  // 1.5 * 2^23
  return std::min(std::max((x + magic) - magic, -limit), limit);
}

float limit_of(int bits) { return float((1 << (bits - 1)) - 1); }

// Elements that a block scales by 2^127 or less stay far below 2^22 after scaling, so `to_integer` applies
void round_row(const float* x, float* y, int64_t size, int bits, int64_t block) {
  const float limit = limit_of(bits);
  for (int64_t start = 0; start < size; start += block) {
    const int64_t length = std::min(block, size - start);
    bool finite;
    const int shift = shift_of(x + start, length, bits, finite);
    const float scale = power(shift), back = finite ? power(-shift) : std::numeric_limits<float>::quiet_NaN();
    for (int64_t i = start; i < start + length; ++i) y[i] = to_integer(x[i] * scale, limit) * back;
  }
}

void round_rows(const float* x, float* y, int64_t rows, int64_t size, int bits, int64_t block) {
  const int64_t grain = std::max<int64_t>(1, 16384 / std::max<int64_t>(size, 1));
  at::parallel_for(0, rows, grain, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) round_row(x + row * size, y + row * size, size, bits, block);
  });
}

Tensor rounded(const Tensor& x, int64_t bits, int64_t block) {
  Tensor y = torch::empty_like(x);
  const int64_t size = x.size(-1);
  if (x.numel()) round_rows(x.const_data_ptr<float>(), y.data_ptr<float>(), x.numel() / size, size, bits, block);
  return y;
}

#if HF_EXT_INTEGER_PRODUCTS

// A unit is 64 bytes of a row of weights: one piece, or two where weights are packed. Inputs are in the order in which a unit's weights come
// out: as they are, or the even columns of both pieces and then the odd ones.
template <bool packed>
struct Unit {
  static constexpr int64_t columns = packed ? 2 * PIECE : PIECE;
  static constexpr int offset = packed ? 8 : 128;
};

// Inputs as integers: q (M, units, columns); start (M, units, 16), what the offset of the weights adds, negative; scale (M, units, columns /
// 64)
struct Inputs {
  std::vector<int8_t> q;
  std::vector<int32_t> start;
  std::vector<float> scale;
  int64_t units;
};

template <bool packed>
void quantize_row(const float* x, int64_t K, int bits, int64_t block, int64_t units, int8_t* q, int32_t* start, float* scale) {
  constexpr int64_t columns = Unit<packed>::columns;
  const float limit = limit_of(bits);
  for (int64_t begin = 0; begin < K; begin += block) {
    const int64_t end = std::min(begin + block, K);
    bool finite;
    const int shift = shift_of(x + begin, end - begin, bits, finite);
    const float up = power(shift), back = finite ? power(-shift) : std::numeric_limits<float>::quiet_NaN();
    for (int64_t piece = begin; piece < end; piece += PIECE) {
      const int64_t size = std::min(PIECE, end - piece);
      scale[piece / PIECE] = back;
      if constexpr (packed) {
        int8_t* even = q + piece / columns * columns + piece % columns / 2;
        for (int64_t i = 0; i < size; ++i) even[(i & 1) * PIECE + i / 2] = int8_t(to_integer(x[piece + i] * up, limit));
      } else {
        for (int64_t i = 0; i < size; ++i) q[piece + i] = int8_t(to_integer(x[piece + i] * up, limit));
      }
    }
  }
  const __m512i offset = _mm512_set1_epi8(char(Unit<packed>::offset));
  for (int64_t u = 0; u < units; ++u) {
    __m512i sum = _mm512_setzero_si512();
    for (int64_t i = 0; i < columns; i += 64) sum = _mm512_dpbusd_epi32(sum, offset, _mm512_loadu_si512(q + u * columns + i));
    _mm512_storeu_si512(start + u * 16, _mm512_sub_epi32(_mm512_setzero_si512(), sum));
  }
}

template <bool packed>
Inputs quantized(const float* x, int64_t M, int64_t K, int bits, int64_t block) {
  constexpr int64_t columns = Unit<packed>::columns, pieces = columns / PIECE;
  const int64_t units = (K + columns - 1) / columns;
  Inputs inputs{std::vector<int8_t>(M * units * columns), std::vector<int32_t>(M * units * 16), std::vector<float>(M * units * pieces), units};
  at::parallel_for(0, M, std::max<int64_t>(1, 8192 / K), [&](int64_t begin, int64_t end) {
    for (int64_t m = begin; m < end; ++m)
      quantize_row<packed>(x + m * K, K, bits, block, units, inputs.q.data() + m * units * columns, inputs.start.data() + m * units * 16,
                           inputs.scale.data() + m * units * pieces);
  });
  return inputs;
}

// y[m][n] of `tokens` rows and `outputs` columns; `scale` (units, columns / 64) of this row of blocks
template <bool packed, int tokens, int outputs>
void tile(const int8_t* q, const int32_t* start, const float* q_scale, const int8_t* weight, const float* scale, int64_t units, int64_t bytes,
          const float* bias, float* y, int64_t N) {
  constexpr int64_t columns = Unit<packed>::columns, pieces = columns / PIECE;
  const __m512i nibble = _mm512_set1_epi8(0x0f), flip = _mm512_set1_epi8(char(packed ? 0x88 : 0x80));
  __m512 sums[tokens][outputs];
  for (auto& row : sums)
    for (auto& sum : row) sum = _mm512_setzero_ps();
  for (int64_t u = 0; u < units; ++u) {
    const int64_t left = bytes - u * 64;
    const __mmask64 there = left >= 64 ? ~__mmask64(0) : (__mmask64(1) << left) - 1;
    __m512i even[outputs];
    [[maybe_unused]] __m512i odd[outputs];
    for (int n = 0; n < outputs; ++n) {
      even[n] = _mm512_xor_si512(_mm512_maskz_loadu_epi8(there, weight + n * bytes + u * 64), flip);
      if constexpr (packed) {
        odd[n] = _mm512_and_si512(_mm512_srli_epi16(even[n], 4), nibble);
        even[n] = _mm512_and_si512(even[n], nibble);
      }
    }
    for (int m = 0; m < tokens; ++m) {
      const int64_t place = m * units + u;
      const __m512i first = _mm512_loadu_si512(start + place * 16), x = _mm512_loadu_si512(q + place * columns);
      __m512 factor = _mm512_set1_ps(q_scale[place * pieces] * scale[u * pieces]);
      [[maybe_unused]] __m512i x_odd;
      if constexpr (packed) {
        x_odd = _mm512_loadu_si512(q + place * columns + 64);
        factor = _mm512_insertf32x8(factor, _mm256_set1_ps(q_scale[place * pieces + 1] * scale[u * pieces + 1]), 1);
      }
      for (int n = 0; n < outputs; ++n) {
        __m512i sum = _mm512_dpbusd_epi32(first, even[n], x);
        if constexpr (packed) sum = _mm512_dpbusd_epi32(sum, odd[n], x_odd);
        sums[m][n] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum), factor, sums[m][n]);
      }
    }
  }
  for (int m = 0; m < tokens; ++m)
    for (int n = 0; n < outputs; ++n) y[m * N + n] = _mm512_reduce_add_ps(sums[m][n]) + (bias ? bias[n] : 0.0f);
}

template <int value>
using Count = std::integral_constant<int, value>;

template <bool packed>
void products(const Inputs& inputs, int64_t M, const int8_t* weight, const int8_t* shift, const float* bias, int64_t N, int64_t K,
              int64_t block, float* y) {
  constexpr int64_t columns = Unit<packed>::columns, pieces = columns / PIECE;
  const int64_t units = inputs.units, bytes = packed ? (K + 1) / 2 : K, across = (K + block - 1) / block;
  at::parallel_for(0, (N + block - 1) / block, 1, [&](int64_t begin, int64_t end) {
    std::vector<float> scale(units * pieces);
    for (int64_t b = begin; b < end; ++b) {
      for (int64_t p = 0; p * PIECE < K; ++p) scale[p] = power(-shift[b * across + p * PIECE / block]);
      const int64_t last = std::min(N, (b + 1) * block);
      int64_t m = 0, n = b * block;
      const auto run = [&](auto tokens, auto outputs) {
        tile<packed, tokens, outputs>(inputs.q.data() + m * units * columns, inputs.start.data() + m * units * 16,
                                      inputs.scale.data() + m * units * pieces, weight + n * bytes, scale.data(), units, bytes,
                                      bias ? bias + n : nullptr, y + m * N + n, N);
        m += tokens;
      };
      for (int64_t wide; n < last; n += wide) {
        wide = n + 4 <= last ? 4 : 1;
        for (m = 0; m + 4 <= M;) wide == 4 ? run(Count<4>{}, Count<4>{}) : run(Count<4>{}, Count<1>{});
        while (m < M) wide == 4 ? run(Count<1>{}, Count<4>{}) : run(Count<1>{}, Count<1>{});
      }
    }
  });
}

template <bool packed>
void multiply(const float* x, const int8_t* weight, const int8_t* shift, const float* bias, int64_t M, int64_t N, int64_t K, int bits,
              int64_t block, float* y) {
  products<packed>(quantized<packed>(x, M, K, bits, block), M, weight, shift, bias, N, K, block, y);
}

#endif

// Whether `linear` can serve: the processor multiplies bytes, and blocks are whole pieces
bool has_linear(int64_t block) { return HF_EXT_INTEGER_PRODUCTS && block % PIECE == 0; }

Tensor linear(const Tensor& x, const Tensor& weight, const Tensor& shift, const OptionalTensor& bias, bool packed, int64_t bits,
              int64_t block) {
#if HF_EXT_INTEGER_PRODUCTS
  const int64_t K = x.size(-1), N = weight.size(0), M = x.numel() / K;
  auto sizes = x.sizes().vec();
  sizes.back() = N;
  Tensor y = torch::empty(sizes, x.options());
  if (!y.numel()) return y;
  float* out = y.data_ptr<float>();
  const auto run = packed ? multiply<true> : multiply<false>;
  run(x.const_data_ptr<float>(), weight.const_data_ptr<int8_t>(), shift.const_data_ptr<int8_t>(),
      bias ? bias->const_data_ptr<float>() : nullptr, M, N, K, bits, block, out);
  round_rows(out, out, M, N, bits, block);
  return y;
#else
  TORCH_CHECK(false, "this processor has no byte products; has_linear says so");
#endif
}

}  // namespace

PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {
  m.def("rounded", &rounded);
  m.def("has_linear", &has_linear);
  m.def("linear", &linear);
}
