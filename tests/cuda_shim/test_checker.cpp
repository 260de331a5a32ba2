// Each case of checker_cases.cu in a process of its own, under several orders of the threads: the checker must report the error
// of that case and no other.
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <string>

#include "checker_cases.h"
#include "shim.h"

namespace {

// What the case wrote to stderr, and its exit code.
std::string run(const CheckerCase& one, int& code) {
  int ends[2];
  if (pipe(ends) != 0) return "pipe failed";
  std::fflush(nullptr);
  const pid_t child = fork();
  if (child == 0) {
    dup2(ends[1], 2);
    close(ends[0]);
    one.run();
    _exit(0);
  }
  close(ends[1]);
  std::string text;
  char part[512];
  for (ssize_t n; (n = read(ends[0], part, sizeof(part))) > 0;) text.append(part, size_t(n));
  close(ends[0]);
  int status = 0;
  waitpid(child, &status, 0);
  code = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
  return text;
}

}  // namespace

int main(int count, char**) {
  const bool verbose = count > 1;
  int passed = 0, failed = 0;
  for (const CheckerCase& one : checker_cases()) {
    for (unsigned seed : {1u, 2u, 3u}) {
      cuda_shim::seed = seed;
      int code = 0;
      const std::string text = run(one, code);
      const bool ok = one.error ? code == 3 && text.find(std::string(": ") + one.error + ": ") != std::string::npos
                                : code == 0 && text.empty();
      if (!ok) std::printf("%s: expected %s, exit code %d\n", one.name, one.error ? one.error : "no error", code);
      if (!ok || (verbose && seed == 1)) std::printf("  %s", text.empty() ? "no error\n" : text.c_str());
      ok ? ++passed : ++failed;
    }
  }
  std::printf("%d passed, %d failed\n", passed, failed);
  return failed != 0;
}
