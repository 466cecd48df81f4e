// Operands on heap buffers of exactly their size, so that AddressSanitizer sees what reads or writes past them; and how
// a kernel is called on them.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <initializer_list>
#include <map>
#include <memory>
#include <new>
#include <random>
#include <string>
#include <vector>

#include "check.hpp"
#include "kernel.hpp"

namespace tsk::tests {

constexpr const char* isas[] = {"avx512_bf16", "avx512", "avx2"};
constexpr int most_workers = 3;

// Runs a test with each instruction set of this processor.
inline void on_each_isa(const std::function<void()>& test) {
  const char* before = isa();
  for (const char* name : isas)
    if (has_isa(name)) {
      use_isa(name);
      test();
    }
  if (before) use_isa(before);
}

inline std::int64_t bytes_of(DType dtype) { return dtype == DType::bf16 ? 2 : dtype == DType::u8 ? 1 : 4; }

class Random {
 public:
  explicit Random(std::uint32_t seed) : engine_(seed) {}
  float next() { return std::uniform_real_distribution<float>(-1, 1)(engine_); }
  std::int32_t below(std::int32_t limit) { return std::uniform_int_distribution<std::int32_t>(0, limit - 1)(engine_); }

 private:
  std::mt19937 engine_;
};

using Sizes = std::vector<std::int64_t>;

// Rows one after the other, or, as those of a joint product, `apart` more elements from each other. Copies share them.
class Array {
 public:
  Array(DType dtype, const Sizes& sizes, std::int64_t apart = 0) {
    tensor_.dtype = dtype;
    tensor_.dims = static_cast<int>(sizes.size());
    std::int64_t stride = 1;
    for (int d = tensor_.dims - 1; d >= 0; --d) {
      tensor_.sizes[d] = sizes[d];
      tensor_.strides[d] = stride;
      stride *= sizes[d];
    }
    row_elements_ = tensor_.row_elements();
    tensor_.strides[0] += apart;
    // The last row has nothing after it.
    const std::int64_t elements = (tensor_.rows() - 1) * tensor_.strides[0] + row_elements_;
    bytes_ = std::make_shared<std::vector<std::byte>>(elements * bytes_of(dtype), std::byte{0xff});  // NaN
    tensor_.data = bytes_->data();
  }

  const Tensor& tensor() const { return tensor_; }
  std::int64_t size() const { return tensor_.rows() * row_elements_; }
  template <class Element>
  Element& raw(std::int64_t index) const {
    return *(tensor_.at<Element>(index / row_elements_) + index % row_elements_);
  }
  double at(std::int64_t index) const {
    return tensor_.dtype == DType::bf16 ? widen(raw<bf16>(index)) : raw<float>(index);
  }
  void set(std::int64_t index, float value) {
    if (tensor_.dtype == DType::bf16)
      narrow_to(value, &raw<bf16>(index));
    else
      raw<float>(index) = value;
  }
  Array& fill(Random& random, float scale = 1) {
    for (std::int64_t i = 0; i < size(); ++i) set(i, scale * random.next());
    return *this;
  }
  bool same_bits(const Array& other) const { return *bytes_ == *other.bytes_; }

 private:
  std::shared_ptr<std::vector<std::byte>> bytes_;
  Tensor tensor_;
  std::int64_t row_elements_;
};

inline Array integers(const std::vector<std::int32_t>& values, const Sizes& sizes) {
  Array array(DType::i32, sizes);
  for (std::size_t i = 0; i < values.size(); ++i) array.raw<std::int32_t>(static_cast<std::int64_t>(i)) = values[i];
  return array;
}

// One call of a kernel by so many workers, with no more scratch memory than it asks for.
inline void run(const char* name, std::initializer_list<const Array*> operands, const Array& out,
                std::initializer_list<double> numbers = {}, int workers = 1, const std::vector<float>& constants = {}) {
  struct Job {
    Call call;
    const Kernel* kernel;
  } job{{}, find_kernel(name)};
  if (!job.kernel) tsrun::tests::fail(__FILE__, __LINE__, name);
  for (const Array* operand : operands) job.call.operands[job.call.num_operands++] = operand->tensor();
  job.call.out = out.tensor();
  std::copy(numbers.begin(), numbers.end(), job.call.numbers);
  job.call.constants = constants.data();
  job.call.num_constants = static_cast<std::int64_t>(constants.size());
  constexpr std::align_val_t alignment{64};
  const auto release = [](void* memory) { ::operator delete(memory, alignment); };
  const std::int64_t bytes = job.kernel->scratch_bytes ? job.kernel->scratch_bytes(job.call, workers) : 0;
  const std::unique_ptr<void, decltype(release)> scratch(::operator new(bytes, alignment), release);
  job.call.scratch = static_cast<std::byte*>(scratch.get());
  if (job.kernel->prepare) job.kernel->prepare(job.call);
  static std::map<int, Team> teams;
  teams.try_emplace(workers, workers, std::vector<int>{})
      .first->second.run(
          [](void* given, const Worker& worker) {
            const Job& some = *static_cast<const Job*>(given);
            some.kernel->run(some.call, worker);
          },
          &job);
}

// Of results of order one: sums in other orders, and the rounding of the result.
inline double tolerance(DType dtype) { return dtype == DType::bf16 ? 0x1p-7 : 0x1p-18; }

#define CHECK_CLOSE(array, index, expected)                                                                   \
  do {                                                                                                        \
    const double wanted_ = (expected), bound_ = ::tsk::tests::tolerance((array).tensor().dtype);              \
    if (!(std::fabs((array).at(index) - wanted_) <= bound_ * (1 + std::fabs(wanted_))))                       \
      ::tsrun::tests::fail(                                                                                   \
          __FILE__, __LINE__,                                                                                 \
          (std::string(isa()) + ": " + std::to_string((array).at(index)) + " for " + std::to_string(wanted_)) \
              .c_str());                                                                                      \
  } while (false)

inline constexpr DType float_types[] = {DType::f32, DType::bf16};

}  // namespace tsk::tests
