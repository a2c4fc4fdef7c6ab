// A long call into a library that cannot be asked to stop, made where it can be ended.
#pragma once

#include <functional>
#include <string>

namespace smalltalk {

// What `compute` returns, called in a copy of this process. Throws Stopped, and ends the copy, if
// this process is asked to stop meanwhile. Error: what `compute` threw; "<what> ended by signal 9".
// The copy ends when this process does.
std::string in_child_process(const std::string& what, const std::function<std::string()>& compute);

}  // namespace smalltalk
