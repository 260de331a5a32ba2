// What the checker reads of the running program: its __shared__ variables, its constant data, the line of an instruction.
#pragma once

#include <cxxabi.h>
#include <dlfcn.h>
#include <elf.h>
#include <link.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>
#include <memory>
#include <set>
#include <string>
#include <vector>

namespace cuda_shim {

struct Range {
  uintptr_t low, high;
  bool has(uintptr_t address) const { return address >= low && address < high; }
};

inline std::string program_path() {
  char path[4096];
  const ssize_t length = readlink("/proc/self/exe", path, sizeof(path));
  return length > 0 ? std::string(path, size_t(length)) : std::string();
}

// Mapped files without write access: constant data and code.
inline std::vector<Range> constant_ranges() {
  std::vector<Range> ranges;
  std::ifstream maps("/proc/self/maps");
  std::string line;
  while (std::getline(maps, line)) {
    unsigned long low = 0, high = 0;
    char access[8] = {};
    if (std::sscanf(line.c_str(), "%lx-%lx %7s", &low, &high, access) != 3) continue;
    if (access[0] == 'r' && access[1] == '-' && line.find('/') != std::string::npos) ranges.push_back({low, high});
  }
  return ranges;
}

inline std::string demangled(const char* name) {
  int status = 0;
  const std::unique_ptr<char, void (*)(void*)> text(abi::__cxa_demangle(name, nullptr, nullptr, &status), std::free);
  return text ? text.get() : name;
}

struct Variable {
  char* address;
  size_t size;
  std::string name;
};

// The __shared__ variables of the program or library that holds this function; none if it is stripped. A section of their own
// would be simpler, but g++ forgets the section of variables in templates. The macro __shared__ puts a red zone beside each
// instead: every other static variable of a function with red zones is __shared__.
inline std::vector<Variable> shared_variables() {
  std::vector<Variable> variables;
  Dl_info object;
  if (!dladdr(reinterpret_cast<void*>(&shared_variables), &object)) return variables;
  const std::string path = std::strstr(object.dli_fname, ".so") ? object.dli_fname : program_path();
  std::ifstream file(path, std::ios::binary);
  const std::string bytes((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
  if (bytes.size() < sizeof(Elf64_Ehdr) || std::memcmp(bytes.data(), ELFMAG, SELFMAG) != 0) return variables;
  const auto* header = reinterpret_cast<const Elf64_Ehdr*>(bytes.data());
  char* base = header->e_type == ET_DYN ? static_cast<char*>(object.dli_fbase) : nullptr;
  const auto* sections = reinterpret_cast<const Elf64_Shdr*>(bytes.data() + header->e_shoff);
  for (unsigned i = 0; i < header->e_shnum; ++i) {
    if (sections[i].sh_type != SHT_SYMTAB) continue;
    const auto* symbols = reinterpret_cast<const Elf64_Sym*>(bytes.data() + sections[i].sh_offset);
    const size_t count = sections[i].sh_size / sizeof(Elf64_Sym);
    const char* strings = bytes.data() + sections[sections[i].sh_link].sh_offset;
    std::set<std::string> functions;  // up to the E of _ZZ<function>E<length><name>
    const auto before_length = [](const char* name, const char* end) {
      while (end > name && end[-1] >= '0' && end[-1] <= '9') --end;
      return std::string(name, end);
    };
    for (size_t k = 0; k < count; ++k) {
      const char* name = strings + symbols[k].st_name;
      if (const char* redzone = std::strstr(name, "cuda_shim_redzone_")) functions.insert(before_length(name, redzone));
    }
    for (size_t k = 0; k < count; ++k) {
      const Elf64_Sym& symbol = symbols[k];
      const char* name = strings + symbol.st_name;
      if (ELF64_ST_TYPE(symbol.st_info) != STT_OBJECT || symbol.st_shndx >= header->e_shnum ||
          !(sections[symbol.st_shndx].sh_flags & SHF_WRITE) || std::strstr(name, "cuda_shim_redzone_")) {
        continue;
      }
      for (const char* e = std::strchr(name, 'E'); e; e = std::strchr(e + 1, 'E')) {
        if (!functions.count(std::string(name, e + 1))) continue;
        variables.push_back({base + symbol.st_value, symbol.st_size, demangled(name)});
        break;
      }
    }
  }
  std::sort(variables.begin(), variables.end(), [](const Variable& a, const Variable& b) { return a.address < b.address; });
  return variables;
}

// "gate.cu:55" of an instruction, or of the call of the shim that it is in; if addr2line is installed.
inline std::string line_of(const void* instruction) {
  uintptr_t base = 0;  // where the program was loaded: the first object that the loader lists
  const auto first = [](dl_phdr_info* info, size_t, void* result) {
    *static_cast<uintptr_t*>(result) = info->dlpi_addr;
    return 1;
  };
  dl_iterate_phdr(first, &base);
  char command[4500], answer[4096];
  std::snprintf(command, sizeof(command), "addr2line -i -e '%s' 0x%lx 2>/dev/null", program_path().c_str(),
                static_cast<unsigned long>(reinterpret_cast<uintptr_t>(instruction) - 1 - base));
  FILE* pipe = popen(command, "r");
  if (!pipe) return "";
  std::string found;
  while (std::fgets(answer, sizeof(answer), pipe)) {
    std::string line = answer;
    line = line.substr(0, line.find_first_of(" \n"));
    line = line.substr(line.rfind('/') + 1);
    const std::string name = line.substr(0, line.find(':'));
    const bool of_shim = name == "cuda_runtime.h" || name == "cuda_fp16.h" || name == "cuda_bf16.h" || name == "mma.h";
    if (found.empty() && !of_shim && line[0] != '?') found = line;
  }
  pclose(pipe);
  return found;
}

}  // namespace cuda_shim
