// Stage: collectives. The kernels of reductions: see the header. Each is a plain loop that the
// compiler turns into vector instructions; f16 and bf16 go through f32 in blocks that stay in L1.
#include "collectives/reduce.h"

#include <algorithm>
#include <complex>
#include <cstddef>
#include <type_traits>

#include "collectives/half.h"
#include "engine/c_api.h"

namespace tent {

namespace {

constexpr std::size_t kBlock = 512;  // elements of a 16-bit float that are widened at a time

struct DtypeInfo {
  const char* name;
  std::uint64_t bytes;
  bool is_integer, is_complex;
};
constexpr DtypeInfo kDtypes[] = {
    {"uint8", 1, true, false},     {"int8", 1, true, false},        {"int16", 2, true, false},
    {"int32", 4, true, false},     {"int64", 8, true, false},       {"float16", 2, false, false},
    {"bfloat16", 2, false, false}, {"float32", 4, false, false},    {"float64", 8, false, false},
    {"complex64", 8, false, true}, {"complex128", 16, false, true}, {"bool", 1, true, false},
    {"uint16", 2, true, false},    {"uint32", 4, true, false},      {"uint64", 8, true, false},
};
static_assert(std::size(kDtypes) == TENT_U64 + 1);
constexpr const char* kReduces[] = {"SUM", "AVG", "PRODUCT", "MIN", "MAX", "BAND", "BOR", "BXOR"};
static_assert(std::size(kReduces) == TENT_BXOR + 1);

bool known_dtype(std::int32_t dtype) { return dtype >= 0 && dtype <= TENT_U64; }
bool known_reduce(std::int32_t reduce) { return reduce >= 0 && reduce <= TENT_BXOR; }

// Integers are added and multiplied as unsigned numbers of at least 32 bits: signed overflow, and
// the product of two promoted 16-bit numbers, would be undefined.
template <class T>
using Wide = std::conditional_t<sizeof(T) == 8, std::uint64_t, std::uint32_t>;

struct Sum {
  template <class T>
  static T of(T a, T b) {
    if constexpr (std::is_integral_v<T>)
      return T(Wide<T>(a) + Wide<T>(b));
    else
      return a + b;
  }
};
struct Product {
  template <class T>
  static T of(T a, T b) {
    if constexpr (std::is_integral_v<T>)
      return T(Wide<T>(a) * Wide<T>(b));
    else
      return a * b;
  }
  // As torch multiplies, without the standard's extra care for infinities.
  template <class T>
  static std::complex<T> of(std::complex<T> a, std::complex<T> b) {
    return {a.real() * b.real() - a.imag() * b.imag(), a.real() * b.imag() + a.imag() * b.real()};
  }
};
struct Min {
  template <class T>
  static T of(T a, T b) {
    return a < b || a != a ? a : b;
  }
};
struct Max {
  template <class T>
  static T of(T a, T b) {
    return a > b || a != a ? a : b;
  }
};
struct And {
  template <class T>
  static T of(T a, T b) {
    return T(a & b);
  }
};
struct Or {
  template <class T>
  static T of(T a, T b) {
    return T(a | b);
  }
};
struct Xor {
  template <class T>
  static T of(T a, T b) {
    return T(a ^ b);
  }
};

template <class Op, class T>
void loop(T* to, const T* left, const T* right, std::size_t count) {
#pragma GCC ivdep  // `to` is `left`, `right` or apart from both: no step depends on an earlier one
  for (std::size_t i = 0; i < count; ++i) to[i] = Op::of(left[i], right[i]);
}

template <class Op, class T>
void typed(void* to, const void* left, const void* right, std::uint64_t bytes) {
  loop<Op>(static_cast<T*>(to), static_cast<const T*>(left), static_cast<const T*>(right),
           bytes / sizeof(T));
}

using Widen = void (*)(const std::uint16_t*, float*, std::size_t);
using Narrow = void (*)(const float*, std::uint16_t*, std::size_t);

template <class Op, Widen widen, Narrow narrow>
void through_f32(void* to, const void* left, const void* right, std::uint64_t bytes) {
  alignas(64) float a[kBlock], b[kBlock];
  const auto *l = static_cast<const std::uint16_t*>(left),
             *r = static_cast<const std::uint16_t*>(right);
  auto* out = static_cast<std::uint16_t*>(to);
  for (std::size_t i = 0, count = bytes / 2; i < count; i += kBlock) {
    const std::size_t n = std::min(kBlock, count - i);
    widen(l + i, a, n);
    widen(r + i, b, n);
    loop<Op>(a, a, b, n);
    narrow(a, out + i, n);
  }
}

template <class Op>
void arithmetic(std::int32_t dtype, void* to, const void* left, const void* right,
                std::uint64_t bytes) {
  switch (dtype) {
    case TENT_U8:
      return typed<Op, std::uint8_t>(to, left, right, bytes);
    case TENT_I8:
      return typed<Op, std::int8_t>(to, left, right, bytes);
    case TENT_I16:
      return typed<Op, std::int16_t>(to, left, right, bytes);
    case TENT_I32:
      return typed<Op, std::int32_t>(to, left, right, bytes);
    case TENT_I64:
      return typed<Op, std::int64_t>(to, left, right, bytes);
    case TENT_U16:
      return typed<Op, std::uint16_t>(to, left, right, bytes);
    case TENT_U32:
      return typed<Op, std::uint32_t>(to, left, right, bytes);
    case TENT_U64:
      return typed<Op, std::uint64_t>(to, left, right, bytes);
    case TENT_F32:
      return typed<Op, float>(to, left, right, bytes);
    case TENT_F64:
      return typed<Op, double>(to, left, right, bytes);
    case TENT_F16:
      return through_f32<Op, widen_f16, narrow_f16>(to, left, right, bytes);
    case TENT_BF16:
      return through_f32<Op, widen_bf16, narrow_bf16>(to, left, right, bytes);
    default:
      break;
  }
  if constexpr (std::is_same_v<Op, Sum> || std::is_same_v<Op, Product>) {
    if (dtype == TENT_C64) return typed<Op, std::complex<float>>(to, left, right, bytes);
    if (dtype == TENT_C128) return typed<Op, std::complex<double>>(to, left, right, bytes);
  }
}

template <class Op>
void bitwise(void* to, const void* left, const void* right, std::uint64_t bytes) {
  typed<Op, std::uint8_t>(to, left, right, bytes);
}

template <class T, class By>
void divide_typed(void* to, std::uint64_t bytes, By by) {
  auto* values = static_cast<T*>(to);
  for (std::size_t i = 0; i < bytes / sizeof(T); ++i) values[i] = T(values[i] / by);
}

template <Widen widen, Narrow narrow>
void divide_through_f32(void* to, std::uint64_t bytes, float by) {
  alignas(64) float wide[kBlock];
  auto* values = static_cast<std::uint16_t*>(to);
  for (std::size_t i = 0, count = bytes / 2; i < count; i += kBlock) {
    const std::size_t n = std::min(kBlock, count - i);
    widen(values + i, wide, n);
    for (std::size_t k = 0; k < n; ++k) wide[k] /= by;
    narrow(wide, values + i, n);
  }
}

}  // namespace

std::uint64_t element_bytes(std::int32_t dtype) {
  return known_dtype(dtype) ? kDtypes[dtype].bytes : 0;
}

const char* dtype_name(std::int32_t dtype) {
  return known_dtype(dtype) ? kDtypes[dtype].name : "unknown dtype";
}

const char* reduce_name(std::int32_t reduce) {
  return known_reduce(reduce) ? kReduces[reduce] : "unknown reduction";
}

std::string why_not(std::int32_t reduce, std::int32_t dtype) {
  if (!known_dtype(dtype)) return "dtype " + std::to_string(dtype) + " cannot be reduced";
  if (!known_reduce(reduce)) return "reduction " + std::to_string(reduce) + " is not known";
  const DtypeInfo& info = kDtypes[dtype];
  const bool is_bitwise = reduce == TENT_BAND || reduce == TENT_BOR || reduce == TENT_BXOR;
  if (is_bitwise && !info.is_integer)
    return std::string("Cannot use ReduceOp.") + kReduces[reduce] + " with non-integral dtype " +
           info.name;
  if (info.is_complex && (reduce == TENT_MIN || reduce == TENT_MAX))
    return std::string("Cannot use ReduceOp.") + kReduces[reduce] + " with " + info.name +
           ": complex numbers have no order";
  if (dtype == TENT_BOOL && reduce == TENT_AVG) return "Cannot use ReduceOp.AVG with bool";
  return "";
}

void combine(std::int32_t reduce, std::int32_t dtype, void* to, const void* left, const void* right,
             std::uint64_t bytes) {
  const bool is_bool = dtype == TENT_BOOL;
  switch (reduce) {
    case TENT_SUM:
    case TENT_AVG:
      if (is_bool) return bitwise<Or>(to, left, right, bytes);
      return arithmetic<Sum>(dtype, to, left, right, bytes);
    case TENT_PRODUCT:
      if (is_bool) return bitwise<And>(to, left, right, bytes);
      return arithmetic<Product>(dtype, to, left, right, bytes);
    case TENT_MIN:
      if (is_bool) return bitwise<And>(to, left, right, bytes);
      return arithmetic<Min>(dtype, to, left, right, bytes);
    case TENT_MAX:
      if (is_bool) return bitwise<Or>(to, left, right, bytes);
      return arithmetic<Max>(dtype, to, left, right, bytes);
    case TENT_BAND:
      return bitwise<And>(to, left, right, bytes);
    case TENT_BOR:
      return bitwise<Or>(to, left, right, bytes);
    case TENT_BXOR:
      return bitwise<Xor>(to, left, right, bytes);
    default:
      return;
  }
}

void divide(std::int32_t dtype, void* to, std::uint64_t bytes, std::int32_t by) {
  switch (dtype) {
    case TENT_U8:
      return divide_typed<std::uint8_t>(to, bytes, by);
    case TENT_I8:
      return divide_typed<std::int8_t>(to, bytes, by);
    case TENT_I16:
      return divide_typed<std::int16_t>(to, bytes, by);
    case TENT_I32:
      return divide_typed<std::int32_t>(to, bytes, by);
    case TENT_I64:
      return divide_typed<std::int64_t>(to, bytes, by);
    case TENT_U16:
      return divide_typed<std::uint16_t>(to, bytes, by);
    case TENT_U32:
      return divide_typed<std::uint32_t>(to, bytes, std::uint32_t(by));
    case TENT_U64:
      return divide_typed<std::uint64_t>(to, bytes, std::uint64_t(by));
    case TENT_F32:
      return divide_typed<float>(to, bytes, float(by));
    case TENT_F64:
      return divide_typed<double>(to, bytes, double(by));
    case TENT_F16:
      return divide_through_f32<widen_f16, narrow_f16>(to, bytes, float(by));
    case TENT_BF16:
      return divide_through_f32<widen_bf16, narrow_bf16>(to, bytes, float(by));
    case TENT_C64:
      return divide_typed<float>(to, bytes, float(by));
    case TENT_C128:
      return divide_typed<double>(to, bytes, double(by));
    default:
      return;
  }
}

}  // namespace tent
