// Prefix softmax attention on a CPU: one pass over the tokens, k and v read once, o written once. No T x T matrix, no log(T) rounds.
//
// Paper: "Attention as an RNN", arXiv 2405.13956; the equations are those of reference.py, the backward pass that of eager.py.
// Letters: B batch, T tokens, H heads, D key channels, V value channels.

#include <ATen/Parallel.h>
#include <torch/extension.h>

#include <cmath>
#include <limits>
#include <vector>

namespace {

using torch::Tensor;
using OptionalTensor = std::optional<Tensor>;

template <typename T>
T dot(const T* a, const T* b, int64_t size) {
  T sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < size; ++i) sum += a[i] * b[i];
  return sum;
}

// exp(x - y), 0 where x is minus infinity, even if y is too
template <typename T>
T exp_of_difference(T x, T y) {
  return x == -std::numeric_limits<T>::infinity() ? T(0) : std::exp(x - y);
}

// f(b, first head, end of heads) for all of the batch; memory is then walked through in order
template <typename F>
void over_heads(int64_t batch, int64_t heads, F f) {
  at::parallel_for(0, batch * heads, 1, [&](int64_t begin, int64_t end) {
    for (int64_t b = begin / heads; b * heads < end; ++b) f(b, std::max(begin - b * heads, int64_t(0)), std::min(end - b * heads, heads));
  });
}

template <typename T>
void forward_of(const Tensor& q, const Tensor& k, const Tensor& v, const OptionalTensor& mask, double scale, Tensor& o, Tensor& a,
                Tensor& c, Tensor& m, Tensor& scores, Tensor& normalizers) {
  const int64_t B = k.size(0), L = k.size(1), H = k.size(2), D = k.size(3), V = v.size(3);
  const T *q_ = q.const_data_ptr<T>(), *k_ = k.const_data_ptr<T>(), *v_ = v.const_data_ptr<T>();
  const bool* real = mask ? mask->const_data_ptr<bool>() : nullptr;
  T *o_ = o.data_ptr<T>(), *a_ = a.data_ptr<T>(), *c_ = c.data_ptr<T>(), *m_ = m.data_ptr<T>();
  T* s_ = scores.numel() ? scores.data_ptr<T>() : nullptr;
  T* n_ = scores.numel() ? normalizers.data_ptr<T>() : nullptr;
  over_heads(B, H, [&](int64_t b, int64_t first, int64_t end) {
    for (int64_t t = 0; t < L; ++t) {
      const bool read = !real || real[b * L + t];
      for (int64_t h = first; h < end; ++h) {
        const int64_t place = (b * L + t) * H + h;
        T *sum = a_ + (b * H + h) * V, *out = o_ + place * V;
        T &count = c_[b * H + h], &largest = m_[b * H + h];
        T s = -std::numeric_limits<T>::infinity();
        if (read) {
          s = T(scale) * dot(q_ + h * D, k_ + place * D, D);
          const T *values = v_ + place * V, decay = s > largest ? exp_of_difference(largest, s) : T(1);
          const T weight = s > largest ? T(1) : std::exp(s - largest);
          largest = s > largest ? s : largest;
          count = count * decay + weight;
          const T share = 1 / count;
#pragma omp simd
          for (int64_t i = 0; i < V; ++i) {
            sum[i] = sum[i] * decay + weight * values[i];
            out[i] = sum[i] * share;
          }
        } else {
          const T share = count > 0 ? 1 / count : T(0);
          for (int64_t i = 0; i < V; ++i) out[i] = sum[i] * share;
        }
        if (s_) {
          s_[place] = s;
          n_[place] = largest + std::log(count);
        }
      }
    }
  });
}

template <typename T>
void backward_of(const Tensor& grad_o, const Tensor& q, const Tensor& k, const Tensor& v, const OptionalTensor& start, const Tensor& o,
                 const Tensor& scores, const Tensor& normalizers, double scale, Tensor& dq, Tensor& dk, Tensor& dv, Tensor& later,
                 Tensor& later_dot) {
  const int64_t B = k.size(0), L = k.size(1), H = k.size(2), D = k.size(3), V = v.size(3);
  const T *g_ = grad_o.const_data_ptr<T>(), *q_ = q.const_data_ptr<T>(), *k_ = k.const_data_ptr<T>(), *v_ = v.const_data_ptr<T>();
  const T *o_ = o.const_data_ptr<T>(), *s_ = scores.const_data_ptr<T>(), *n_ = normalizers.const_data_ptr<T>();
  const T* start_ = start ? start->const_data_ptr<T>() : nullptr;
  T *dq_ = dq.data_ptr<T>(), *dk_ = dk.data_ptr<T>(), *dv_ = dv.data_ptr<T>(), *r_ = later.data_ptr<T>(), *d_ = later_dot.data_ptr<T>();
  over_heads(B, H, [&](int64_t b, int64_t first, int64_t end) {
    for (int64_t t = L - 1; t >= 0; --t)
      for (int64_t h = first; h < end; ++h) {
        const int64_t place = (b * L + t) * H + h;
        const T decay = t + 1 < L ? exp_of_difference(n_[place], n_[place + H]) : T(1);
        const T weight = exp_of_difference(s_[place], n_[place]);
        const T *g = g_ + place * V, *out = o_ + place * V, *values = v_ + place * V, *keys = k_ + place * D, *query = q_ + h * D;
        T *r = r_ + (b * H + h) * V, *dvalues = dv_ + place * V, *dkeys = dk_ + place * D, *dquery = dq_ + (b * H + h) * D;
        T with_output = 0, with_values = 0;
#pragma omp simd reduction(+ : with_output, with_values)
        for (int64_t i = 0; i < V; ++i) {
          r[i] = r[i] * decay + g[i];
          dvalues[i] = weight * r[i];
          with_output += g[i] * out[i];
          with_values += values[i] * r[i];
        }
        T& d = d_[b * H + h];
        d = d * decay + with_output;
        const T ds = weight * (with_values - d) * T(scale);
#pragma omp simd
        for (int64_t i = 0; i < D; ++i) {
          dkeys[i] = ds * query[i];
          dquery[i] += ds * keys[i];
        }
      }
    for (int64_t h = first; h < end; ++h) {
      const T decay = start_ ? exp_of_difference(start_[b * H + h], n_[b * L * H + h]) : T(0);
      for (int64_t i = 0; i < V; ++i) r_[(b * H + h) * V + i] *= decay;
      d_[b * H + h] *= decay;
    }
  });
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> forward(const Tensor& q, const Tensor& k, const Tensor& v,
                                                                   const OptionalTensor& mask, const OptionalTensor& a,
                                                                   const OptionalTensor& c, const OptionalTensor& m, double scale,
                                                                   bool save) {
  const int64_t B = k.size(0), L = k.size(1), H = k.size(2), V = v.size(3);
  Tensor o = v.new_empty({B, L, H, V});
  Tensor sums = a ? a->clone() : v.new_zeros({B, H, V}), counts = c ? c->clone() : v.new_zeros({B, H});
  Tensor largest = m ? m->clone() : v.new_full({B, H}, -std::numeric_limits<double>::infinity());
  Tensor scores = save ? v.new_empty({B, L, H}) : v.new_empty({0}), normalizers = v.new_empty(scores.sizes());
  AT_DISPATCH_FLOATING_TYPES(v.scalar_type(), "prefix_softmax_attention", [&] {
    forward_of<scalar_t>(q, k, v, mask, scale, o, sums, counts, largest, scores, normalizers);
  });
  return {o, sums, counts, largest, scores, normalizers};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> backward(const Tensor& grad_o, const Tensor& grad_a, const Tensor& grad_c,
                                                            const Tensor& q, const Tensor& k, const Tensor& v, const OptionalTensor& m,
                                                            const Tensor& o, const Tensor& last_c, const Tensor& scores,
                                                            const Tensor& normalizers, double scale) {
  Tensor dq = k.new_zeros({k.size(0), k.size(2), k.size(3)}), dk = torch::empty_like(k), dv = torch::empty_like(v);
  Tensor later = last_c.unsqueeze(-1) * grad_a, later_dot = -last_c * grad_c;
  AT_DISPATCH_FLOATING_TYPES(v.scalar_type(), "prefix_softmax_attention_backward", [&] {
    backward_of<scalar_t>(grad_o, q, k, v, m, o, scores, normalizers, scale, dq, dk, dv, later, later_dot);
  });
  return {dq.sum(0), dk, dv, later, -later_dot};
}

}  // namespace

PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {
  m.def("forward", &forward, pybind11::call_guard<pybind11::gil_scoped_release>());
  m.def("backward", &backward, pybind11::call_guard<pybind11::gil_scoped_release>());
}
