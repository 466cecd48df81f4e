// Reads PTX: declarations, scopes of registers and labels, and instructions.
#include <algorithm>
#include <cctype>
#include <cstring>
#include <unordered_map>

#include "fault.hpp"
#include "program.hpp"

namespace ptx {

namespace {

const std::unordered_map<std::string, Type> kTypes = {
    {"pred", Type::pred}, {"b8", Type::b8},       {"b16", Type::b16},       {"b32", Type::b32},
    {"b64", Type::b64},   {"u8", Type::u8},       {"u16", Type::u16},       {"u32", Type::u32},
    {"u64", Type::u64},   {"s8", Type::s8},       {"s16", Type::s16},       {"s32", Type::s32},
    {"s64", Type::s64},   {"f16", Type::f16},     {"bf16", Type::bf16},     {"f32", Type::f32},
    {"f64", Type::f64},   {"f16x2", Type::f16x2}, {"bf16x2", Type::bf16x2}, {"f32x2", Type::f32x2},
    {"e4m3", Type::e4m3}, {"e5m2", Type::e5m2},   {"e4m3x2", Type::e4m3x2}, {"e5m2x2", Type::e5m2x2},
    {"tf32", Type::tf32}, {"b128", Type::other}};

const char* const kSpecials[] = {"%tid.x",
                                 "%tid.y",
                                 "%tid.z",
                                 "%ntid.x",
                                 "%ntid.y",
                                 "%ntid.z",
                                 "%ctaid.x",
                                 "%ctaid.y",
                                 "%ctaid.z",
                                 "%nctaid.x",
                                 "%nctaid.y",
                                 "%nctaid.z",
                                 "%laneid",
                                 "%warpid",
                                 "%nwarpid",
                                 "%clusterid.x",
                                 "%clusterid.y",
                                 "%clusterid.z",
                                 "%nclusterid.x",
                                 "%nclusterid.y",
                                 "%nclusterid.z",
                                 "%cluster_ctaid.x",
                                 "%cluster_ctaid.y",
                                 "%cluster_ctaid.z",
                                 "%cluster_nctaid.x",
                                 "%cluster_nctaid.y",
                                 "%cluster_nctaid.z",
                                 "%cluster_ctarank",
                                 "%cluster_nctarank",
                                 "%lanemask_eq",
                                 "%lanemask_le",
                                 "%lanemask_lt",
                                 "%lanemask_ge",
                                 "%lanemask_gt",
                                 "%smid",
                                 "%nsmid",
                                 "%clock",
                                 "%dynamic_smem_size",
                                 "%is_explicit_cluster"};

struct Scope {
  int parent;
  std::unordered_map<std::string, std::int32_t> registers, labels;
  std::unordered_map<std::string, Type> prefixes;  // of `%r<10>`
};

bool is_name(char c) { return std::isalnum(static_cast<unsigned char>(c)) || c == '_' || c == '$' || c == '%'; }

class Parser {
 public:
  explicit Parser(const std::string& text) : text_(text) {}

  Program run() {
    while (skip(), at_ < text_.size()) {
      const std::string word = read_word();
      if (word == ".version" || word == ".address_size" || word == ".file" || word == ".loc") {
        rest_of_line();
      } else if (word == ".target") {
        program_.target = trim(rest_of_line());
      } else if (word == ".section") {
        until('{');
        until('}');
      } else if (word == ".visible" || word == ".weak" || word == ".common") {
      } else if (word == ".extern") {
        extern_ = true;
      } else if (word == ".entry") {
        entry();
      } else if (word == ".shared") {
        shared();
      } else if (word == ".global" || word == ".const") {
        global();
      } else {
        fail("`" + word + "` is not known at this place");
      }
    }
    return std::move(program_);
  }

 private:
  [[noreturn]] void fail(const std::string& what) const {
    throw Fault("unsupported", line_, what, "the emulator reads what kernels/emulator/README.md lists");
  }

  void skip() {
    while (at_ < text_.size()) {
      const char c = text_[at_];
      if (c == '\n') line_++;
      if (std::isspace(static_cast<unsigned char>(c))) {
        at_++;
      } else if (text_.compare(at_, 2, "//") == 0) {
        while (at_ < text_.size() && text_[at_] != '\n') at_++;
      } else if (text_.compare(at_, 2, "/*") == 0) {
        while (at_ < text_.size() && text_.compare(at_, 2, "*/") != 0) line_ += text_[at_++] == '\n';
        at_ += 2;
      } else {
        return;
      }
    }
  }

  std::string read_word() {
    skip();
    const std::size_t begin = at_;
    if (at_ < text_.size() && text_[at_] == '.') at_++;
    while (at_ < text_.size() && is_name(text_[at_])) at_++;
    if (at_ == begin) at_++;
    return text_.substr(begin, at_ - begin);
  }

  std::string rest_of_line() {
    const std::size_t begin = at_;
    while (at_ < text_.size() && text_[at_] != '\n') at_++;
    return text_.substr(begin, at_ - begin);
  }

  // The text up to `end`, which is passed; without comments.
  std::string until(char end) {
    std::string found;
    while (at_ < text_.size() && text_[at_] != end) {
      if (text_.compare(at_, 2, "//") == 0) {
        while (at_ < text_.size() && text_[at_] != '\n') at_++;
        continue;
      }
      line_ += text_[at_] == '\n';
      found += text_[at_++];
    }
    if (at_ >= text_.size()) fail(std::string("there is no `") + end + "`");
    at_++;
    return found;
  }

  static std::string trim(const std::string& s) {
    const auto begin = s.find_first_not_of(" \t\n\r"), end = s.find_last_not_of(" \t\n\r");
    return begin == std::string::npos ? "" : s.substr(begin, end - begin + 1);
  }

  static std::vector<std::string> split(const std::string& s, char at) {
    std::vector<std::string> found(1);
    int depth = 0;
    for (const char c : s) {
      depth += c == '{' || c == '[' || c == '(';
      depth -= c == '}' || c == ']' || c == ')';
      if (c == at && depth == 0)
        found.emplace_back();
      else
        found.back() += c;
    }
    for (std::string& part : found) part = trim(part);
    return found;
  }

  // `.align 8 .b8 name[16]`, `.u64 .ptr .global .align 1 name`: name, bytes, alignment.
  struct Declaration {
    std::string name, values;
    std::uint64_t bytes = 0, align = 0, element = 1;
    bool unsized = false;
  };
  Declaration declaration(const std::string& text) {
    Declaration d;
    std::string head = text;
    if (const auto equal = head.find('='); equal != std::string::npos) {
      d.values = trim(head.substr(equal + 1));
      head = head.substr(0, equal);
    }
    std::string word;
    std::vector<std::string> words;
    for (const char c : head + " ")
      if (std::isspace(static_cast<unsigned char>(c))) {
        if (!word.empty()) words.push_back(word);
        word.clear();
      } else {
        word += c;
      }
    bool pointer = false;
    for (std::size_t i = 0; i < words.size(); i++) {
      if (words[i] == ".align" && i + 1 < words.size()) {
        if (!pointer) d.align = std::stoull(words[i + 1]);
        i++;
      } else if (words[i] == ".ptr") {
        pointer = true;
      } else if (words[i][0] == '.') {
        const auto type = kTypes.find(words[i].substr(1));
        if (type != kTypes.end()) d.element = static_cast<std::uint64_t>(std::max(width_of(type->second), 8) / 8);
      } else {
        d.name += words[i];
      }
    }
    std::uint64_t count = 1;
    if (const auto bracket = d.name.find('['); bracket != std::string::npos) {
      const std::string size = d.name.substr(bracket + 1, d.name.find(']') - bracket - 1);
      d.unsized = size.empty();
      count = d.unsized ? 0 : std::stoull(size);
      d.name = d.name.substr(0, bracket);
    }
    d.bytes = d.element * count;
    if (d.align == 0) d.align = d.element;
    return d;
  }

  static std::uint64_t round_up(std::uint64_t x, std::uint64_t to) { return (x + to - 1) / to * to; }

  void shared() {
    const Declaration d = declaration(until(';'));
    if (d.unsized) {
      dynamic_.push_back(d.name);
      dynamic_alignment_ = std::max<std::uint64_t>(dynamic_alignment_, d.align);
    } else {
      shared_end_ = round_up(shared_end_, d.align);
      shared_[d.name] = shared_end_;
      shared_end_ += d.bytes;
    }
    extern_ = false;
  }

  void global() {
    const Declaration d = declaration(until(';'));
    GlobalVariable variable;
    variable.bytes.resize(d.bytes);
    variable.address = next_global_ = round_up(next_global_, std::max<std::uint64_t>(d.align, 16));
    next_global_ += d.bytes + 64;
    if (!d.values.empty()) {
      std::string values = d.values;
      std::replace(values.begin(), values.end(), '{', ' ');
      std::replace(values.begin(), values.end(), '}', ' ');
      std::size_t i = 0;
      for (const std::string& value : split(values, ',')) {
        if (value.empty()) continue;
        const std::uint64_t number = immediate(value).value;
        if ((i + 1) * d.element <= d.bytes) std::memcpy(&variable.bytes[i++ * d.element], &number, d.element);
      }
    }
    program_.globals[d.name] = variable;
  }

  void entry() {
    kernel_ = Kernel();
    kernel_.name = read_word();
    parameters_.clear();
    scopes_.assign(1, Scope{-1, {}, {}, {}});
    scope_ = 0;
    skip();
    if (text_[at_] == '(') {
      at_++;
      for (const std::string& text : split(until(')'), ',')) {
        if (text.empty()) continue;
        const Declaration d = declaration(text.substr(text.find(' ') == std::string::npos ? 0 : 6));  // after `.param`
        kernel_.parameter_bytes = static_cast<std::uint32_t>(round_up(kernel_.parameter_bytes, d.align));
        parameters_[d.name] = kernel_.parameter_bytes;
        kernel_.parameters.push_back({kernel_.parameter_bytes, static_cast<std::uint32_t>(d.bytes)});
        kernel_.parameter_bytes += static_cast<std::uint32_t>(d.bytes);
      }
    }
    const std::string directives = until('{');
    if (const auto at = directives.find(".reqnctapercluster"); at != std::string::npos) {
      kernel_.cluster_given = true;
      const std::string sizes = directives.substr(at + 18, directives.find('.', at + 18) - at - 18);
      int i = 0;
      for (const std::string& size : split(sizes, ','))
        if (i < 3 && !size.empty()) kernel_.cluster[i++] = static_cast<std::uint32_t>(std::stoul(size));
    }
    body();
    program_.kernels[kernel_.name] = std::move(kernel_);
  }

  void body() {
    struct Branch {
      std::size_t instr;
      int scope;
      std::string label;
    };
    std::vector<Branch> branches;
    for (;;) {
      skip();
      if (at_ >= text_.size()) fail("the kernel does not end");
      const char c = text_[at_];
      if (c == '{') {
        at_++;
        scopes_.push_back({scope_, {}, {}, {}});
        scope_ = static_cast<int>(scopes_.size()) - 1;
        continue;
      }
      if (c == '}') {
        at_++;
        if (scope_ == 0) break;
        scope_ = scopes_[static_cast<std::size_t>(scope_)].parent;
        continue;
      }
      if (c == ';') {
        at_++;
        continue;
      }
      if (c == '.') {
        directive();
        continue;
      }
      std::size_t end = at_;
      while (end < text_.size() && is_name(text_[end])) end++;
      std::size_t colon = end;
      while (colon < text_.size() && (text_[colon] == ' ' || text_[colon] == '\t')) colon++;
      if (c != '@' && colon < text_.size() && text_[colon] == ':' && text_.compare(colon, 2, "::") != 0) {
        scopes_[static_cast<std::size_t>(scope_)].labels[text_.substr(at_, end - at_)] =
            static_cast<std::int32_t>(kernel_.code.size());
        at_ = colon + 1;
        continue;
      }
      const std::uint32_t line = line_;
      const std::string statement = until(';');
      Instr instr;
      instr.line = line;
      const std::string label = instruction(trim(statement), instr);
      if (!label.empty()) branches.push_back({kernel_.code.size(), scope_, label});
      kernel_.code.push_back(std::move(instr));
    }
    for (const Branch& branch : branches) {
      std::int32_t target = -1;
      for (int s = branch.scope; s >= 0 && target < 0; s = scopes_[static_cast<std::size_t>(s)].parent) {
        const auto& labels = scopes_[static_cast<std::size_t>(s)].labels;
        if (const auto found = labels.find(branch.label); found != labels.end()) target = found->second;
      }
      line_ = kernel_.code[branch.instr].line;
      if (target < 0) fail("there is no label `" + branch.label + "`");
      kernel_.code[branch.instr].target = target;
    }
    Instr end;
    end.line = line_;
    end.parts = {"exit"};
    kernel_.code.push_back(end);
    kernel_.shared_bytes = static_cast<std::uint32_t>(shared_end_ - kSharedBase);
    kernel_.dynamic_alignment = static_cast<std::uint32_t>(dynamic_alignment_);
    kernel_.local_bytes = static_cast<std::uint32_t>(local_end_);
  }

  void directive() {
    const std::string word = read_word();
    if (word == ".loc" || word == ".file") {
      rest_of_line();
    } else if (word == ".reg") {
      const std::string text = trim(until(';'));
      const auto space = text.find_first_of(" \t");
      const auto type = kTypes.find(text.substr(1, space - 1));
      if (type == kTypes.end()) fail("registers of `" + text.substr(0, space) + "` are not known");
      for (const std::string& name : split(text.substr(space), ',')) {
        Scope& scope = scopes_[static_cast<std::size_t>(scope_)];
        if (const auto count = name.find('<'); count != std::string::npos)
          scope.prefixes[name.substr(0, count)] = type->second;
        else
          scope.registers[name] = new_register(type->second);
      }
    } else if (word == ".shared") {
      shared();
    } else if (word == ".local") {
      const Declaration d = declaration(until(';'));
      local_end_ = round_up(local_end_, d.align);
      local_[d.name] = local_end_;
      local_end_ += d.bytes;
    } else if (word == ".global" || word == ".const") {
      global();
    } else if (word == ".pragma") {
      until(';');
    } else {
      fail("`" + word + "` is not known");
    }
  }

  std::int32_t new_register(Type type) {
    kernel_.registers.push_back(type);
    return static_cast<std::int32_t>(kernel_.registers.size()) - 1;
  }

  std::int32_t find_register(const std::string& name) {
    std::size_t digits = name.size();
    while (digits > 0 && std::isdigit(static_cast<unsigned char>(name[digits - 1]))) digits--;
    for (int s = scope_; s >= 0; s = scopes_[static_cast<std::size_t>(s)].parent) {
      Scope& scope = scopes_[static_cast<std::size_t>(s)];
      if (const auto found = scope.registers.find(name); found != scope.registers.end()) return found->second;
      if (digits < name.size())
        if (const auto prefix = scope.prefixes.find(name.substr(0, digits)); prefix != scope.prefixes.end())
          return scope.registers[name] = new_register(prefix->second);
    }
    return -1;
  }

  Operand immediate(const std::string& text) const {
    Operand operand;
    operand.kind = Operand::imm;
    const bool minus = text[0] == '-';
    std::string digits = text.substr(minus || text[0] == '+');
    if (!digits.empty() && digits.back() == 'U') digits.pop_back();
    try {
      if (digits.size() > 2 && digits[0] == '0' && std::strchr("fFdD", digits[1]))
        operand.value = std::stoull(digits.substr(2), nullptr, 16);
      else if (digits.size() > 2 && digits[0] == '0' && std::strchr("bB", digits[1]))
        operand.value = std::stoull(digits.substr(2), nullptr, 2);
      else if (digits.find('.') != std::string::npos)
        fail("`" + text + "` is a decimal fraction");
      else
        operand.value = std::stoull(digits, nullptr, 0);
    } catch (const std::logic_error&) {
      fail("`" + text + "` is no operand that is known");
    }
    if (minus) operand.value = ~operand.value + 1;
    return operand;
  }

  Operand operand(const std::string& text) {
    Operand result;
    if (text.empty()) fail("an operand is missing");
    if (text[0] == '{') {
      result.kind = Operand::vec;
      for (const std::string& part : split(text.substr(1, text.rfind('}') - 1), ','))
        result.parts.push_back(operand(part));
      return result;
    }
    if (text[0] == '[') {
      result.kind = Operand::address;
      const auto parts = split(text.substr(1, text.rfind(']') - 1), ',');
      std::string base = parts[0];
      if (const auto plus = base.find_first_of("+-", 1); plus != std::string::npos) {
        std::string offset = trim(base.substr(plus + 1));
        if (base[plus] == '-') offset = "-" + offset;
        result.value = immediate(offset).value;
        base = trim(base.substr(0, plus));
      }
      result.parts.push_back(operand(base));
      for (std::size_t i = 1; i < parts.size(); i++) result.parts.push_back(operand(parts[i]));
      return result;
    }
    if (text[0] == '!') {
      result = operand(trim(text.substr(1)));
      result.negated = true;
      return result;
    }
    if (text == "_") {
      result.kind = Operand::sink;
      return result;
    }
    if (const auto bar = text.find('|'); bar != std::string::npos) {
      result.kind = Operand::pair;
      result.parts = {operand(trim(text.substr(0, bar))), operand(trim(text.substr(bar + 1)))};
      return result;
    }
    if (text[0] == '%') {
      for (std::size_t i = 0; i < std::size(kSpecials); i++)
        if (text == kSpecials[i]) {
          result.kind = Operand::special;
          result.number = static_cast<std::int32_t>(i);
          return result;
        }
    }
    if (std::isdigit(static_cast<unsigned char>(text[0])) || text[0] == '-') return immediate(text);
    if (const std::int32_t number = find_register(text); number >= 0) {
      result.kind = Operand::reg;
      result.number = number;
      return result;
    }
    if (const auto found = shared_.find(text); found != shared_.end()) {
      result.kind = Operand::shared;
      result.value = found->second;
      return result;
    }
    if (std::find(dynamic_.begin(), dynamic_.end(), text) != dynamic_.end()) {
      // Its place is known when all that is declared has been read.
      result.kind = Operand::shared;
      result.value = kDynamic;
      return result;
    }
    if (const auto found = local_.find(text); found != local_.end()) {
      result.kind = Operand::local;
      result.value = found->second;
      return result;
    }
    result.kind = Operand::imm;
    if (const auto found = parameters_.find(text); found != parameters_.end()) {
      result.value = kParameterWindow + found->second;
      return result;
    }
    if (const auto found = program_.globals.find(text); found != program_.globals.end()) {
      result.value = found->second.address;
      return result;
    }
    fail("`" + text + "` is not declared");
  }

  // Returns the label of a branch.
  std::string instruction(std::string text, Instr& instr) {
    if (text[0] == '@') {
      instr.guard_negated = text[1] == '!';
      const auto space = text.find_first_of(" \t");
      const std::string guard = text.substr(instr.guard_negated ? 2 : 1, space - (instr.guard_negated ? 2 : 1));
      instr.guard = find_register(guard);
      if (instr.guard < 0) fail("`" + guard + "` is not declared");
      text = trim(text.substr(space));
    }
    const auto space = text.find_first_of(" \t\n");
    const std::string name = text.substr(0, space);
    instr.parts = split(name, '.');
    for (const std::string& part : instr.parts) {
      if (const auto type = kTypes.find(part); type != kTypes.end() && &part != &instr.parts[0]) {
        instr.from = instr.type;
        instr.type = type->second;
      }
      if (part.size() > 1 && part[0] == 'x' && std::isdigit(static_cast<unsigned char>(part[1])))
        instr.size = std::stoi(part.substr(1));
    }
    const std::string rest = space == std::string::npos ? "" : trim(text.substr(space));
    if (instr.parts[0] == "bra") return rest;
    if (instr.parts[0] == "call") fail("calls of functions do not run here: let the compiler inline them");
    if (!rest.empty())
      for (const std::string& part : split(rest, ',')) instr.args.push_back(operand(part));
    return "";
  }

 public:
  static constexpr std::uint64_t kDynamic = ~std::uint64_t{0};

 private:
  const std::string& text_;
  std::size_t at_ = 0;
  std::uint32_t line_ = 1;
  bool extern_ = false;
  Program program_;
  Kernel kernel_;
  std::vector<Scope> scopes_;
  int scope_ = 0;
  std::unordered_map<std::string, std::uint64_t> shared_, local_, parameters_;
  std::vector<std::string> dynamic_;
  std::uint64_t shared_end_ = kSharedBase, dynamic_alignment_ = 16, local_end_ = 0, next_global_ = kGlobalVariables;
};

void place_dynamic(Operand& operand, std::uint64_t at) {
  if (operand.kind == Operand::shared && operand.value == Parser::kDynamic) operand.value = at;
  for (Operand& part : operand.parts) place_dynamic(part, at);
}

}  // namespace

int width_of(Type type) {
  switch (type) {
    case Type::none:
      return 0;
    case Type::pred:
      return 1;
    case Type::b8:
    case Type::u8:
    case Type::s8:
    case Type::e4m3:
    case Type::e5m2:
      return 8;
    case Type::b16:
    case Type::u16:
    case Type::s16:
    case Type::f16:
    case Type::bf16:
    case Type::e4m3x2:
    case Type::e5m2x2:
      return 16;
    case Type::b64:
    case Type::u64:
    case Type::s64:
    case Type::f64:
    case Type::f32x2:
      return 64;
    case Type::other:
      return 128;
    default:
      return 32;
  }
}

bool is_signed(Type type) { return type == Type::s8 || type == Type::s16 || type == Type::s32 || type == Type::s64; }

bool is_float(Type type) { return type >= Type::f16 && type <= Type::tf32; }

Program parse(const std::string& text) {
  Program program = Parser(text).run();
  for (auto& [name, kernel] : program.kernels) {
    const std::uint64_t a = kernel.dynamic_alignment;
    const std::uint64_t at = (kSharedBase + kernel.shared_bytes + a - 1) / a * a;
    kernel.shared_bytes = static_cast<std::uint32_t>(at - kSharedBase);
    for (Instr& instr : kernel.code)
      for (Operand& operand : instr.args) place_dynamic(operand, at);
  }
  return program;
}

}  // namespace ptx
