// Stage: api, its C++ side. Giving the GIL back for a while, and taking it on a thread that Python
// does not know, without an end in std::terminate: a daemon thread that asks for the GIL while the
// interpreter ends is unwound by Python before 3.14, and a destructor must not let that through.
// From 3.14 on it stands still for ever; here it always does.
// Thread: any.
#pragma once

#include <Python.h>
#include <unistd.h>

namespace tent::bindings {

[[noreturn]] inline void stand_still() {
  for (;;) ::pause();
}

// The calling thread has the GIL, gives it back, and has it again at the end.
class WithoutGil {
 public:
  WithoutGil() : state_(PyEval_SaveThread()) {}
  ~WithoutGil() {
    try {
      PyEval_RestoreThread(state_);
    } catch (...) {  // no exception of C++: the thread is being unwound
      stand_still();
    }
  }
  WithoutGil(const WithoutGil&) = delete;
  WithoutGil& operator=(const WithoutGil&) = delete;

 private:
  PyThreadState* const state_;
};

// The calling thread may have the GIL or not, and has it until the end.
class WithGil {
 public:
  WithGil() : state_(take()) {}
  ~WithGil() { PyGILState_Release(state_); }
  WithGil(const WithGil&) = delete;
  WithGil& operator=(const WithGil&) = delete;

 private:
  static PyGILState_STATE take() {
    try {
      return PyGILState_Ensure();
    } catch (...) {
      stand_still();
    }
  }
  const PyGILState_STATE state_;
};

}  // namespace tent::bindings
