#include "arithmetic.hpp"

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>
#include <string>
#include <unordered_map>

#include "numbers.hpp"

namespace ptx {

namespace {

using U = std::uint64_t;
using S = std::int64_t;

U masked(U x, int width) { return width >= 64 ? x : x & ((U{1} << width) - 1); }
S extended(U x, int width) {
  return width >= 64 ? static_cast<S>(x) : static_cast<S>(x << (64 - width)) >> (64 - width);
}

double f64(U x) { return std::bit_cast<double>(x); }
U bits64(double x) { return std::bit_cast<U>(x); }

// A float operation on each element of the type. F::run(a, b, c) for float and double.
template <class F>
U floats(const Instr& i, const U* in) {
  const auto halves = [&](auto widen, auto round, int count) {
    U result = 0;
    for (int j = 0; j < count; j++) {
      const int shift = 16 * j;
      const float y = F::run(widen(in[0] >> shift), widen(in[1] >> shift), widen(in[2] >> shift));
      result |= U{round(y)} << shift;
    }
    return result;
  };
  switch (i.type) {
    case Type::f16:
      return halves(from_f16, to_f16, 1);
    case Type::f16x2:
      return halves(from_f16, to_f16, 2);
    case Type::bf16:
      return halves(from_bf16, to_bf16, 1);
    case Type::bf16x2:
      return halves(from_bf16, to_bf16, 2);
    case Type::f64:
      return bits64(F::run(f64(in[0]), f64(in[1]), f64(in[2])));
    case Type::f32x2: {
      const U low = bits(F::run(f32(in[0]), f32(in[1]), f32(in[2])));
      return low | U{bits(F::run(f32(in[0] >> 32), f32(in[1] >> 32), f32(in[2] >> 32)))} << 32;
    }
    default: {
      float y = F::run(f32(in[0]), f32(in[1]), f32(in[2]));
      if (i.sub) y = std::isnan(y) ? 0.0f : std::clamp(y, 0.0f, 1.0f);  // .sat
      return bits(y);
    }
  }
}

// An integer operation; signed types run as such.
template <class F>
U integers(const Instr& i, const U* in) {
  const int w = width_of(i.type);
  if (is_signed(i.type)) return static_cast<U>(F::run(extended(in[0], w), extended(in[1], w), extended(in[2], w)));
  return F::run(masked(in[0], w), masked(in[1], w), masked(in[2], w));
}

template <class F>
U numbers(const Instr& i, const U* in) {
  return is_float(i.type) ? floats<F>(i, in) : integers<F>(i, in);
}

struct Add {
  template <class T>
  static T run(T a, T b, T) {
    if constexpr (std::is_same_v<T, S>)
      return static_cast<S>(static_cast<U>(a) + static_cast<U>(b));
    else
      return a + b;
  }
};
struct Sub {
  template <class T>
  static T run(T a, T b, T) {
    if constexpr (std::is_same_v<T, S>)
      return static_cast<S>(static_cast<U>(a) - static_cast<U>(b));
    else
      return a - b;
  }
};
struct Mul {
  template <class T>
  static T run(T a, T b, T) {
    if constexpr (std::is_same_v<T, S>)
      return static_cast<S>(static_cast<U>(a) * static_cast<U>(b));
    else
      return a * b;
  }
};
struct Fma {
  template <class T>
  static T run(T a, T b, T c) {
    return std::fma(a, b, c);
  }
};
struct Mad {
  template <class T>
  static T run(T a, T b, T c) {
    return static_cast<T>(static_cast<U>(a) * static_cast<U>(b) + static_cast<U>(c));
  }
};
struct Div {
  template <class T>
  static T run(T a, T b, T) {
    if constexpr (std::is_integral_v<T>)
      return b == 0 ? static_cast<T>(-1) : a / b;
    else
      return a / b;
  }
};
struct Rem {
  template <class T>
  static T run(T a, T b, T) {
    return b == 0 ? a : a % b;
  }
};
struct Min {
  template <class T>
  static T run(T a, T b, T) {
    if constexpr (std::is_integral_v<T>)
      return std::min(a, b);
    else
      return std::fmin(a, b);
  }
};
struct Max {
  template <class T>
  static T run(T a, T b, T) {
    if constexpr (std::is_integral_v<T>)
      return std::max(a, b);
    else
      return std::fmax(a, b);
  }
};
struct MinNan {
  template <class T>
  static T run(T a, T b, T) {
    return std::isnan(a) || std::isnan(b) ? std::numeric_limits<T>::quiet_NaN() : std::fmin(a, b);
  }
};
struct MaxNan {
  template <class T>
  static T run(T a, T b, T) {
    return std::isnan(a) || std::isnan(b) ? std::numeric_limits<T>::quiet_NaN() : std::fmax(a, b);
  }
};
struct Max3 {
  template <class T>
  static T run(T a, T b, T c) {
    return std::fmax(std::fmax(a, b), c);
  }
};
struct Min3 {
  template <class T>
  static T run(T a, T b, T c) {
    return std::fmin(std::fmin(a, b), c);
  }
};
struct Abs {
  template <class T>
  static T run(T a, T, T) {
    if constexpr (std::is_same_v<T, U>)
      return a;
    else if constexpr (std::is_same_v<T, S>)
      return a < 0 ? -a : a;
    else
      return std::fabs(a);
  }
};
struct Neg {
  template <class T>
  static T run(T a, T, T) {
    if constexpr (std::is_integral_v<T>)
      return static_cast<T>(U{0} - static_cast<U>(a));
    else
      return -a;
  }
};
struct Sqrt {
  template <class T>
  static T run(T a, T, T) {
    return std::sqrt(a);
  }
};
struct Rsqrt {
  template <class T>
  static T run(T a, T, T) {
    return 1 / std::sqrt(a);
  }
};
struct Rcp {
  template <class T>
  static T run(T a, T, T) {
    return 1 / a;
  }
};
struct Ex2 {
  template <class T>
  static T run(T a, T, T) {
    return std::exp2(a);
  }
};
struct Lg2 {
  template <class T>
  static T run(T a, T, T) {
    return std::log2(a);
  }
};
struct Sin {
  template <class T>
  static T run(T a, T, T) {
    return std::sin(a);
  }
};
struct Cos {
  template <class T>
  static T run(T a, T, T) {
    return std::cos(a);
  }
};
struct Tanh {
  template <class T>
  static T run(T a, T, T) {
    return std::tanh(a);
  }
};
struct And {
  static U run(U a, U b, U) { return a & b; }
};
struct Or {
  static U run(U a, U b, U) { return a | b; }
};
struct Xor {
  static U run(U a, U b, U) { return a ^ b; }
};

template <class F>
U plain(const Instr&, const U* in) {
  return F::run(in[0], in[1], in[2]);
}

U move(const Instr&, const U* in) { return in[0]; }
U invert(const Instr& i, const U* in) { return i.type == Type::pred ? !in[0] : ~in[0]; }

U mul_wide(const Instr& i, const U* in) {
  const int w = width_of(i.type);
  return is_signed(i.type) ? static_cast<U>(extended(in[0], w) * extended(in[1], w))
                           : masked(in[0], w) * masked(in[1], w);
}
U mad_wide(const Instr& i, const U* in) { return mul_wide(i, in) + in[2]; }
U mul_hi(const Instr& i, const U* in) {
  const int w = width_of(i.type);
  if (is_signed(i.type)) return static_cast<U>((static_cast<__int128>(extended(in[0], w)) * extended(in[1], w)) >> w);
  return static_cast<U>((static_cast<unsigned __int128>(masked(in[0], w)) * masked(in[1], w)) >> w);
}
U mad_hi(const Instr& i, const U* in) { return mul_hi(i, in) + in[2]; }

U shift_left(const Instr& i, const U* in) {
  return (in[1] & 0xffffffff) >= static_cast<U>(width_of(i.type)) ? 0 : in[0] << (in[1] & 63);
}
U shift_right(const Instr& i, const U* in) {
  const int w = width_of(i.type);
  const U by = std::min<U>(in[1] & 0xffffffff, static_cast<U>(w));
  if (is_signed(i.type)) return static_cast<U>(extended(in[0], w) >> std::min<U>(by, 63));
  return by >= 64 ? 0 : masked(in[0], w) >> by;
}
U funnel_left(const Instr& i, const U* in) {
  const U by = i.sub ? std::min<U>(in[2] & 0xffffffff, 32) : in[2] & 31;
  return ((masked(in[1], 32) << 32 | masked(in[0], 32)) << by) >> 32;
}
U funnel_right(const Instr& i, const U* in) {
  const U by = i.sub ? std::min<U>(in[2] & 0xffffffff, 32) : in[2] & 31;
  return (masked(in[1], 32) << 32 | masked(in[0], 32)) >> by;
}
U field(const Instr& i, const U* in) {
  const int w = width_of(i.type);
  const U at = in[1] & 255, length = in[2] & 255, x = masked(in[0], w);
  if (length == 0) return 0;
  const U moved = at >= 64 ? 0 : x >> at;
  const U bits_of = length >= 64 ? moved : masked(moved, static_cast<int>(length));
  if (!is_signed(i.type)) return bits_of;
  const U sign_at = std::min<U>(at + length - 1, static_cast<U>(w - 1));
  const bool negative = x >> sign_at & 1;
  return negative && length < 64 ? bits_of | ~U{0} << std::min<U>(length, sign_at + 1 - std::min(at, sign_at))
                                 : bits_of;
}
U insert(const Instr& i, const U* in) {
  const U at = in[2] & 255, length = in[3] & 255;
  if (at >= static_cast<U>(width_of(i.type)) || length == 0) return in[1];
  const U mask = (length >= 64 ? ~U{0} : (U{1} << length) - 1) << at;
  return (in[1] & ~mask) | (in[0] << at & mask);
}
U reverse(const Instr& i, const U* in) {
  U result = 0;
  const int w = width_of(i.type);
  for (int j = 0; j < w; j++) result |= (in[0] >> j & 1) << (w - 1 - j);
  return result;
}
U leading(const Instr& i, const U* in) {
  const int w = width_of(i.type);
  return static_cast<U>(std::countl_zero(masked(in[0], w)) - (64 - w));
}
U population(const Instr& i, const U* in) { return static_cast<U>(std::popcount(masked(in[0], width_of(i.type)))); }
U find_leading(const Instr& i, const U* in) {
  const int w = width_of(i.type);
  U x = masked(in[0], w);
  if (is_signed(i.type) && x >> (w - 1) & 1) x = masked(~x, w);
  if (x == 0) return 0xffffffff;
  const U at = static_cast<U>(63 - std::countl_zero(x));
  return i.sub ? static_cast<U>(w - 1) - at : at;  // .shiftamt
}
U logic3(const Instr&, const U* in) {
  U result = 0;
  for (unsigned j = 0; j < 8; j++)
    if (in[3] >> j & 1) result |= (j & 4 ? in[0] : ~in[0]) & (j & 2 ? in[1] : ~in[1]) & (j & 1 ? in[2] : ~in[2]);
  return result;
}
U permute(const Instr& i, const U* in) {
  const U both = masked(in[1], 32) << 32 | masked(in[0], 32);
  U selector = in[2];
  if (i.sub) {  // .f4e, .b4e, .rc8, .ecl, .ecr, .rc16
    static constexpr std::uint16_t tables[6][4] = {{0x3210, 0x4321, 0x5432, 0x6543}, {0x5670, 0x6701, 0x7012, 0x0123},
                                                   {0x0000, 0x1111, 0x2222, 0x3333}, {0x3210, 0x3211, 0x3222, 0x3333},
                                                   {0x0000, 0x1110, 0x2210, 0x3210}, {0x1010, 0x3232, 0x1010, 0x3232}};
    selector = tables[i.sub - 1][in[2] & 3];
  }
  U result = 0;
  for (int j = 0; j < 4; j++) {
    const U nibble = selector >> (4 * j) & 15;
    U byte = both >> (8 * (nibble & 7)) & 255;
    if (nibble & 8) byte = byte >> 7 ? 255 : 0;
    result |= byte << (8 * j);
  }
  return result;
}
U select(const Instr&, const U* in) { return in[2] ? in[0] : in[1]; }
U copysign(const Instr&, const U* in) { return (in[0] & 0x80000000) | (in[1] & 0x7fffffff); }
U from_shared(const Instr&, const U* in) { return in[0] | kSharedWindow; }
U to_shared(const Instr&, const U* in) { return in[0] & 0xffffffff; }

// setp: `sub` is the comparison; `flags` the operation with a third predicate.
enum Compare : std::uint8_t { eq, ne, lt, le, gt, ge, equ, neu, ltu, leu, gtu, geu, num, nan };
template <class T>
bool compare(std::uint8_t how, T a, T b) {
  switch (how) {
    case eq:
      return a == b;
    case ne:
      return a < b || a > b;
    case lt:
      return a < b;
    case le:
      return a <= b;
    case gt:
      return a > b;
    case ge:
      return a >= b;
    default:
      break;
  }
  bool unordered = false;
  if constexpr (std::is_floating_point_v<T>) unordered = std::isnan(a) || std::isnan(b);
  switch (how) {
    case equ:
      return unordered || a == b;
    case neu:
      return unordered || a != b;
    case ltu:
      return unordered || a < b;
    case leu:
      return unordered || a <= b;
    case gtu:
      return unordered || a > b;
    case geu:
      return unordered || a >= b;
    case num:
      return !unordered;
    default:
      return unordered;
  }
}
U set_predicate(const Instr& i, const U* in) {
  const int w = width_of(i.type);
  bool result;
  switch (i.type) {
    case Type::f32:
      result = compare(i.sub, f32(in[0]), f32(in[1]));
      break;
    case Type::f64:
      result = compare(i.sub, f64(in[0]), f64(in[1]));
      break;
    case Type::f16:
      result = compare(i.sub, from_f16(in[0]), from_f16(in[1]));
      break;
    case Type::bf16:
      result = compare(i.sub, from_bf16(in[0]), from_bf16(in[1]));
      break;
    default:
      result = is_signed(i.type) ? compare(i.sub, extended(in[0], w), extended(in[1], w))
                                 : compare(i.sub, masked(in[0], w), masked(in[1], w));
  }
  switch (i.flags) {
    case 1:
      return result && in[2];
    case 2:
      return result || in[2];
    case 3:
      return result != (in[2] != 0);
    default:
      return result;
  }
}

// cvt: from `from` to `type`; `sub` is the rounding to an integer, `flags` 1: saturate, 2: relu.
double widened(Type type, U x) {
  const int w = width_of(type);
  switch (type) {
    case Type::f16:
      return from_f16(x);
    case Type::bf16:
      return from_bf16(x);
    case Type::f32:
    case Type::tf32:
      return f32(x);
    case Type::f64:
      return f64(x);
    case Type::e4m3:
      return E4M3::widen(x & 255);
    case Type::e5m2:
      return E5M2::widen(x & 255);
    default:
      return is_signed(type) ? static_cast<double>(extended(x, w)) : static_cast<double>(masked(x, w));
  }
}
U narrowed(Type type, double y, bool saturate) {
  switch (type) {
    case Type::f16:
      return F16::round(y, saturate);
    case Type::bf16:
      return Small<8, 7, true>::round(y, saturate);
    case Type::f32:
      return bits(static_cast<float>(y));
    case Type::tf32:
      return (bits(static_cast<float>(y)) + 0x1000) & ~U{0x1fff};
    case Type::f64:
      return bits64(y);
    case Type::e4m3:
      return E4M3::round(y, saturate);
    case Type::e5m2:
      return E5M2::round(y, saturate);
    default:
      return 0;
  }
}
double rounded(std::uint8_t how, double y) {
  switch (how) {
    case 1:
      return std::nearbyint(y);
    case 2:
      return std::floor(y);
    case 3:
      return std::ceil(y);
    default:
      return std::trunc(y);
  }
}
Type element(Type type) {
  switch (type) {
    case Type::f16x2:
      return Type::f16;
    case Type::bf16x2:
      return Type::bf16;
    case Type::e4m3x2:
      return Type::e4m3;
    case Type::e5m2x2:
      return Type::e5m2;
    default:
      return type;
  }
}
U convert(const Instr& i, const U* in) {
  // A name has the target's type before the source's.
  const Type to = i.from, from = i.type;
  const bool saturate = i.flags & 1;
  const auto relu = [&](double y) { return i.flags & 2 && !(y > 0) ? 0.0 : y; };
  if (element(to) != to) {
    const int w = width_of(element(to));
    double low, high;
    if (element(from) != from) {
      const int narrow = width_of(element(from));
      low = widened(element(from), in[0]);
      high = widened(element(from), in[0] >> narrow);
    } else {
      high = widened(from, in[0]);
      low = widened(from, in[1]);
    }
    return narrowed(element(to), relu(high), saturate) << w | narrowed(element(to), relu(low), saturate);
  }
  if (is_float(to) && is_float(from)) {
    double y = relu(widened(from, in[0]));
    if (i.sub && to == from) y = rounded(i.sub, y);
    if (saturate && (to == Type::f32 || to == Type::f16)) y = std::isnan(y) ? 0 : std::clamp(y, 0.0, 1.0);
    return narrowed(to, y, false);
  }
  const int w = width_of(to);
  if (is_float(from)) {
    const double y = rounded(i.sub, widened(from, in[0]));
    if (std::isnan(y)) return 0;
    const double low = is_signed(to) ? -std::ldexp(1.0, w - 1) : 0, high = std::ldexp(1.0, is_signed(to) ? w - 1 : w);
    if (y <= low) return static_cast<U>(is_signed(to) ? S{-1} << (w - 1) : 0);
    if (y >= high) return is_signed(to) ? (U{1} << (w - 1)) - 1 : masked(~U{0}, w);
    return is_signed(to) ? static_cast<U>(static_cast<S>(y)) : static_cast<U>(y);
  }
  const int narrow = width_of(from);
  if (is_float(to)) {
    if (to == Type::f32)
      return bits(is_signed(from) ? static_cast<float>(extended(in[0], narrow))
                                  : static_cast<float>(masked(in[0], narrow)));
    return narrowed(to, widened(from, in[0]), false);
  }
  const S value = is_signed(from) ? extended(in[0], narrow) : static_cast<S>(masked(in[0], narrow));
  if (saturate) {
    const S low = is_signed(to) ? S{-1} << (w - 1) : 0, high = is_signed(to)
                                                                   ? static_cast<S>((U{1} << (w - 1)) - 1)
                                                                   : static_cast<S>(masked(~U{0}, std::min(w, 63)));
    return static_cast<U>(std::clamp(value, low, high));
  }
  return masked(static_cast<U>(value), w);
}

Pure of_multiply(Instr& i, bool add) {
  if (i.has("wide")) return add ? mad_wide : mul_wide;
  if (i.has("hi")) return add ? mad_hi : mul_hi;
  if (is_float(i.type)) return add ? floats<Fma> : floats<Mul>;
  return add ? integers<Mad> : integers<Mul>;
}

const std::unordered_map<std::string, Compare> kCompares = {
    {"eq", eq},   {"ne", ne},   {"lt", lt},   {"le", le},   {"gt", gt},   {"ge", ge},
    {"lo", lt},   {"ls", le},   {"hi", gt},   {"hs", ge},   {"equ", equ}, {"neu", neu},
    {"ltu", ltu}, {"leu", leu}, {"gtu", gtu}, {"geu", geu}, {"num", num}, {"nan", nan}};

}  // namespace

Pure find_pure(Instr& i) {
  const std::string& op = i.parts[0];
  static const std::unordered_map<std::string, Pure> simple = {
      {"add", numbers<Add>},  {"sub", numbers<Sub>},  {"fma", floats<Fma>},     {"and", plain<And>},
      {"or", plain<Or>},      {"xor", plain<Xor>},    {"not", invert},          {"abs", numbers<Abs>},
      {"neg", numbers<Neg>},  {"sqrt", floats<Sqrt>}, {"rsqrt", floats<Rsqrt>}, {"rcp", floats<Rcp>},
      {"ex2", floats<Ex2>},   {"lg2", floats<Lg2>},   {"sin", floats<Sin>},     {"cos", floats<Cos>},
      {"tanh", floats<Tanh>}, {"div", numbers<Div>},  {"rem", integers<Rem>},   {"shl", shift_left},
      {"shr", shift_right},   {"bfe", field},         {"bfi", insert},          {"brev", reverse},
      {"clz", leading},       {"popc", population},   {"lop3", logic3},         {"selp", select},
      {"copysign", copysign}};
  if (op == "cvta") {
    if (i.has("shared") || i.has("shared::cta") || i.has("shared::cluster"))
      return i.has("to") ? to_shared : from_shared;
    return move;  // other windows have the same addresses in the generic space
  }
  if (const auto found = simple.find(op); found != simple.end()) {
    if (i.has("cc")) return nullptr;
    i.sub = i.has("sat") && i.type == Type::f32;
    return found->second;
  }
  if (op == "mov" && !i.args.empty() && i.args[0].kind != Operand::vec && i.args[1].kind != Operand::vec) return move;
  if (op == "mul" || op == "mad") return of_multiply(i, op == "mad");
  if (op == "mul24") return integers<Mul>;
  if (op == "min" || op == "max") {
    const bool max = op == "max";
    if (i.has("xorsign")) return nullptr;
    if (i.args.size() == 4) return max ? floats<Max3> : floats<Min3>;
    if (i.has("NaN")) return max ? floats<MaxNan> : floats<MinNan>;
    return max ? numbers<Max> : numbers<Min>;
  }
  if (op == "shf") {
    i.sub = i.has("clamp");
    return i.has("l") ? funnel_left : funnel_right;
  }
  if (op == "bfind") {
    i.sub = i.has("shiftamt");
    return find_leading;
  }
  if (op == "prmt") {
    static const char* const modes[] = {"f4e", "b4e", "rc8", "ecl", "ecr", "rc16"};
    for (std::uint8_t m = 0; m < 6; m++)
      if (i.has(modes[m])) i.sub = m + 1;
    return permute;
  }
  if (op == "setp" && i.args[0].kind != Operand::pair) {
    i.sub = kCompares.at(i.parts[1]);
    i.flags = i.has("and") ? 1 : i.has("or") ? 2 : i.has("xor") ? 3 : 0;
    return set_predicate;
  }
  if (op == "cvt") {
    if (i.from == Type::none || i.has("pack") || i.has("rs")) return nullptr;
    i.sub = i.has("rni") ? 1 : i.has("rmi") ? 2 : i.has("rpi") ? 3 : i.has("rzi") ? 4 : 0;
    i.flags = static_cast<std::uint8_t>((i.has("sat") || i.has("satfinite") ? 1 : 0) | (i.has("relu") ? 2 : 0));
    return convert;
  }
  return nullptr;
}

}  // namespace ptx
