// Functions that stop in the middle and are gone on with later, each on a stack of its own, all on one thread of the system.
#pragma once

#include <setjmp.h>
#include <ucontext.h>

#include <cstddef>
#include <functional>

namespace emulated {

// Not copied, not moved: its context holds its own address. One that is destroyed before its function ended leaves that function's frames
// as they are: no destructor runs.
class Fiber {
 public:
  Fiber();
  ~Fiber();
  Fiber(const Fiber&) = delete;
  Fiber& operator=(const Fiber&) = delete;

  // Have the next resume() begin `body`, which must live until it has ended. The stack is that of the body before it.
  void start(const std::function<void()>& body);

  // Go on until the body stops or ends. True: it stopped.
  bool resume();

  // Called by the body: go back to who resumed it.
  static void stop();

 private:
  static void enter();
  static void switch_back();

  char* memory_;
  const std::function<void()>* body_ = nullptr;
  ucontext_t first_;  // where it begins, once; afterwards jumps are enough, and many times faster
  bool entered_ = false;
  bool ended_ = true;
  jmp_buf place_;
  void* sanitizer_state_ = nullptr;
};

}  // namespace emulated
