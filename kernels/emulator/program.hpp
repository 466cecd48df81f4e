// A kernel as the machine runs it: instructions with their operands resolved, and what it declares of memory.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

namespace ptx {

enum class Type : std::uint8_t {
  none,
  pred,
  b8,
  b16,
  b32,
  b64,
  u8,
  u16,
  u32,
  u64,
  s8,
  s16,
  s32,
  s64,
  f16,
  bf16,
  f32,
  f64,
  f16x2,
  bf16x2,
  f32x2,
  e4m3,
  e5m2,
  e4m3x2,
  e5m2x2,
  tf32,
  other
};

int width_of(Type type);  // bits; 0 for none
bool is_signed(Type type);
bool is_float(Type type);

enum class Special : std::uint8_t {
  tid_x,
  tid_y,
  tid_z,
  ntid_x,
  ntid_y,
  ntid_z,
  ctaid_x,
  ctaid_y,
  ctaid_z,
  nctaid_x,
  nctaid_y,
  nctaid_z,
  laneid,
  warpid,
  nwarpid,
  clusterid_x,
  clusterid_y,
  clusterid_z,
  nclusterid_x,
  nclusterid_y,
  nclusterid_z,
  cluster_ctaid_x,
  cluster_ctaid_y,
  cluster_ctaid_z,
  cluster_nctaid_x,
  cluster_nctaid_y,
  cluster_nctaid_z,
  cluster_ctarank,
  cluster_nctarank,
  lanemask_eq,
  lanemask_le,
  lanemask_lt,
  lanemask_ge,
  lanemask_gt,
  smid,
  nsmid,
  clock,
  dynamic_shared,
  is_cluster
};

struct Operand {
  enum Kind : std::uint8_t { none, reg, imm, special, shared, local, vec, address, pair, sink };
  Kind kind = none;
  bool negated = false;        // !%p
  std::int32_t number = -1;    // of the register, or the Special
  std::uint64_t value = 0;     // immediate, or offset: of the symbol in shared or local memory, of the address
  std::vector<Operand> parts;  // vec; pair: two; address: the base, and a vec of coordinates if there are any
};

struct Instr {
  std::uint32_t line = 0;
  std::int32_t guard = -1;  // a predicate
  bool guard_negated = false;
  std::int32_t target = -1;  // of a branch
  Type type = Type::none;    // the last in the name
  Type from = Type::none;    // the one before it, of which cvt, mul.wide and mma have two
  std::uint16_t handler = 0;
  std::uint8_t sub = 0;  // what distinguishes an instruction within its handler
  std::uint8_t flags = 0;
  bool copies = false;    // mov: compilers put them anywhere, and ptxas makes nothing of them
  std::int32_t size = 0;  // a number of the name, where it has one (x32, N of m64nNk16)
  std::uint64_t (*pure)(const Instr&, const std::uint64_t*) = nullptr;
  std::vector<std::string> parts;  // the name, split at dots
  std::vector<Operand> args;

  bool has(const char* part) const {
    for (const std::string& p : parts)
      if (p == part) return true;
    return false;
  }
  std::string name() const {
    std::string joined;
    for (const std::string& p : parts) joined += (joined.empty() ? "" : ".") + p;
    return joined;
  }
};

struct Parameter {
  std::uint32_t offset, size;
};

struct Kernel {
  std::string name;
  std::vector<Parameter> parameters;
  std::uint32_t parameter_bytes = 0;
  std::uint32_t cluster[3] = {1, 1, 1};  // .reqnctapercluster
  bool cluster_given = false;
  std::uint32_t shared_bytes = 0;  // declared, from kSharedBase on; dynamic shared memory begins there
  std::uint32_t dynamic_alignment = 16;
  std::uint32_t local_bytes = 0;
  std::vector<Instr> code;
  std::vector<Type> registers;  // the type of each
};

struct GlobalVariable {
  std::uint64_t address = 0;
  std::vector<std::uint8_t> bytes;
};

struct Program {
  std::string target;
  std::map<std::string, Kernel> kernels;
  std::map<std::string, GlobalVariable> globals;
};

// The windows of the generic address space.
constexpr std::uint64_t kSharedWindow = 0x0700'0000'0000, kLocalWindow = 0x0600'0000'0000,
                        kParameterWindow = 0x0500'0000'0000, kGlobalVariables = 0x0400'0000'0000,
                        kBuffers = 0x0100'0000'0000;
// A block's shared memory begins after what the system keeps, as on the device.
constexpr std::uint32_t kSharedBase = 1024;
// Shared addresses carry the rank of their block in the cluster, as on the device.
constexpr int kRankShift = 24;

// Throws Fault where the text is no PTX that this machine runs.
Program parse(const std::string& text);

}  // namespace ptx
