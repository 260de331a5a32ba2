// Launches of small kernels, each wrong in one way, and of the right ones beside them.
#pragma once

#include <vector>

struct CheckerCase {
  const char* name;
  const char* error;  // what the checker must report; null: it must report nothing
  void (*run)();
};

const std::vector<CheckerCase>& checker_cases();
