// What the checker reads of the running program: its __shared__ variables, its constant data, the line of an instruction.
#pragma once

#include <cxxabi.h>
#include <elf.h>
#include <link.h>
#include <unistd.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>
#include <memory>
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

struct Variable {
  size_t offset, size;
  std::string name;
};

inline std::string demangled(const char* name) {
  int status = 0;
  const std::unique_ptr<char, void (*)(void*)> text(abi::__cxa_demangle(name, nullptr, nullptr, &status), std::free);
  return text ? text.get() : name;
}

// The variables of one section by the symbol table; empty if the program is stripped.
inline std::vector<Variable> variables_of(const char* section) {
  std::ifstream file(program_path(), std::ios::binary);
  const std::string bytes((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
  std::vector<Variable> variables;
  if (bytes.size() < sizeof(Elf64_Ehdr) || std::memcmp(bytes.data(), ELFMAG, SELFMAG) != 0) return variables;
  const auto* header = reinterpret_cast<const Elf64_Ehdr*>(bytes.data());
  const auto* sections = reinterpret_cast<const Elf64_Shdr*>(bytes.data() + header->e_shoff);
  const char* names = bytes.data() + sections[header->e_shstrndx].sh_offset;
  unsigned wanted = 0;
  for (unsigned i = 0; i < header->e_shnum; ++i) {
    if (std::strcmp(names + sections[i].sh_name, section) == 0) wanted = i;
  }
  if (wanted == 0) return variables;
  for (unsigned i = 0; i < header->e_shnum; ++i) {
    if (sections[i].sh_type != SHT_SYMTAB) continue;
    const auto* symbols = reinterpret_cast<const Elf64_Sym*>(bytes.data() + sections[i].sh_offset);
    const char* strings = bytes.data() + sections[sections[i].sh_link].sh_offset;
    for (size_t k = 0; k < sections[i].sh_size / sizeof(Elf64_Sym); ++k) {
      const Elf64_Sym& symbol = symbols[k];
      if (symbol.st_shndx != wanted || ELF64_ST_TYPE(symbol.st_info) != STT_OBJECT) continue;
      const std::string name = strings + symbol.st_name;
      if (name.find("cuda_shim_redzone_") != std::string::npos) continue;
      variables.push_back({symbol.st_value - sections[wanted].sh_addr, symbol.st_size, demangled(name.c_str())});
    }
  }
  return variables;
}

// "gate.cu:55" of an instruction, if addr2line is installed.
inline std::string line_of(const void* instruction) {
  uintptr_t base = 0;  // where the program was loaded: the first object that the loader lists
  const auto first = [](dl_phdr_info* info, size_t, void* result) {
    *static_cast<uintptr_t*>(result) = info->dlpi_addr;
    return 1;
  };
  dl_iterate_phdr(first, &base);
  char command[4500], answer[4096] = {};
  std::snprintf(command, sizeof(command), "addr2line -e '%s' 0x%lx 2>/dev/null", program_path().c_str(),
                static_cast<unsigned long>(reinterpret_cast<uintptr_t>(instruction) - 1 - base));
  FILE* pipe = popen(command, "r");
  if (!pipe) return "";
  const bool read = std::fgets(answer, sizeof(answer), pipe) != nullptr;
  pclose(pipe);
  std::string text = read ? answer : "";
  text = text.substr(0, text.find_first_of(" \n"));
  text = text.substr(text.rfind('/') + 1);
  return text.empty() || text[0] == '?' ? "" : text;
}

}  // namespace cuda_shim
