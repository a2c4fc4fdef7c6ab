// One program for processors with different vector instructions. Functions whose time counts
// (kernels) are compiled once for each of several instruction sets, every copy into a table of
// function pointers, and one of the tables is chosen at run time. smalltalk_add_kernels() in
// ci/cmake/Kernels.cmake compiles the copies, keeps them apart by a namespace and lists them, as
// ST_COPIES, for the source that makes KernelCopies of them.
//
// A copy may leave no function behind that other code would share, such as one of the standard
// library: the linker keeps one of several, and a processor without the instructions would run it.
// ci/check_kernel_symbols.sh looks for them.
#pragma once

#include <initializer_list>
#include <string_view>
#include <vector>

namespace smalltalk {

// Those of this processor, best first: "avx512", "avx2", "sse2"; "neon".
std::vector<std::string_view> processor_instruction_sets();

// Those that kernels are chosen from, best first: the processor's, or where the environment
// variable SMALLTALK_ISA names one of them, only from that one on. Error: it names another.
const std::vector<std::string_view>& chosen_instruction_sets();

// A Table has a member `instruction_set`, the name of its own. Not every table has a copy for every
// set, but for the last one of a processor it has.
template <typename Table>
struct KernelCopies {
  std::vector<const Table*> runnable;  // by this processor, best first
  const Table* best;                   // of the chosen sets: the one that the program uses

  KernelCopies(std::initializer_list<const Table*> copies)
      : runnable(those_of(processor_instruction_sets(), copies)),
        best(those_of(chosen_instruction_sets(), copies).front()) {}

 private:
  static std::vector<const Table*> those_of(const std::vector<std::string_view>& sets,
                                            std::initializer_list<const Table*> copies) {
    std::vector<const Table*> result;
    for (const std::string_view set : sets) {
      for (const Table* copy : copies) {
        if (copy->instruction_set == set) result.push_back(copy);
      }
    }
    return result;
  }
};

}  // namespace smalltalk
