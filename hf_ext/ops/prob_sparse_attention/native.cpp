// ProbSparse attention's measure in one pass: a query row stays in cache, its sampled key rows are read where they lie.
//
// Dimensions: B batch, Q queries, K keys, H heads, D head channels, N sampled keys.

#include <ATen/Parallel.h>
#include <torch/extension.h>

#include <limits>
#include <optional>

// q (B, Q, H, D) and k (B, K, H, D) in float32, their last axis contiguous; index (Q, N) int64; key_mask (B, K) bool.
// Returns M (B, H, Q): max_j q_i k_s(i,j) - sum_j q_i k_s(i,j) / K over the sampled keys that the mask shows.
at::Tensor measure(const at::Tensor& q, const at::Tensor& k, const at::Tensor& index, const std::optional<at::Tensor>& key_mask) {
  const int64_t B = q.size(0), Q = q.size(1), H = q.size(2), D = q.size(3), K = k.size(1), N = index.size(1);
  TORCH_CHECK(q.stride(3) == 1 && k.stride(3) == 1 && index.is_contiguous(), "rows must be contiguous");
  const int64_t* samples = index.data_ptr<int64_t>();
  for (int64_t i = 0; i < Q * N; ++i) TORCH_CHECK_INDEX(samples[i] >= 0 && samples[i] < K, "index_sample holds ", samples[i], ", there are ", K, " keys");
  const at::Tensor shown = key_mask ? key_mask->contiguous() : at::Tensor();
  const bool* mask = key_mask ? shown.data_ptr<bool>() : nullptr;
  at::Tensor result = at::empty({B, H, Q}, q.options());
  const float* queries = q.data_ptr<float>();
  const float* keys = k.data_ptr<float>();
  float* out = result.data_ptr<float>();
  at::parallel_for(0, B * H, 1, [&](int64_t begin, int64_t end) {
    for (int64_t bh = begin; bh < end; ++bh) {
      const int64_t b = bh / H, h = bh % H;
      const float* head = keys + b * k.stride(0) + h * k.stride(2);
      for (int64_t i = 0; i < Q; ++i) {
        const float* query = queries + b * q.stride(0) + i * q.stride(1) + h * q.stride(2);
        float largest = -std::numeric_limits<float>::infinity(), sum = 0;
        for (int64_t j = 0; j < N; ++j) {
          const int64_t sample = samples[i * N + j];
          if (mask && !mask[b * K + sample]) continue;
          const float* key = head + sample * k.stride(1);
          float score = 0;
#pragma omp simd reduction(+ : score)
          for (int64_t d = 0; d < D; ++d) score += query[d] * key[d];
          largest = std::max(largest, score);
          sum += score;
        }
        out[bh * Q + i] = largest - sum / K;
      }
    }
  });
  return result;
}

PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) { m.def("measure", &measure); }
