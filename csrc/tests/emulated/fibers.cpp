// Checks of longjmp() against the stack it is called on would refuse to change stacks.
#undef _FORTIFY_SOURCE
#include "fibers.h"

#include <sys/mman.h>

#include <new>

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

namespace emulated {
namespace {

constexpr size_t kGuard = 4096;  // below every stack, so that one that is too small is an error at once
constexpr size_t kStack = 128 * 1024;

Fiber* running = nullptr;
jmp_buf resumer;
const void* resumer_stack = nullptr;
size_t resumer_size = 0;

// AddressSanitizer has to know on which stack it is; nothing without it.
void leave([[maybe_unused]] void** state, [[maybe_unused]] const void* stack, [[maybe_unused]] size_t size) {
#ifdef __SANITIZE_ADDRESS__
  __sanitizer_start_switch_fiber(state, stack, size);
#endif
}

void arrive([[maybe_unused]] void* state, [[maybe_unused]] const void** stack, [[maybe_unused]] size_t* size) {
#ifdef __SANITIZE_ADDRESS__
  __sanitizer_finish_switch_fiber(state, stack, size);
#endif
}

void forget_what_lay([[maybe_unused]] void* stack) {
#ifdef __SANITIZE_ADDRESS__
  __asan_unpoison_memory_region(stack, kStack);
#endif
}

}  // namespace

Fiber::Fiber() {
  void* const memory = mmap(nullptr, kGuard + kStack, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED || mprotect(memory, kGuard, PROT_NONE) != 0 || getcontext(&first_) != 0) throw std::bad_alloc();
  memory_ = static_cast<char*>(memory);
  forget_what_lay(memory_ + kGuard);
  first_.uc_stack.ss_sp = memory_ + kGuard;
  first_.uc_stack.ss_size = kStack;
  first_.uc_link = nullptr;
  makecontext(&first_, enter, 0);
}

Fiber::~Fiber() {
  forget_what_lay(memory_ + kGuard);
  munmap(memory_, kGuard + kStack);
}

void Fiber::start(const std::function<void()>& body) {
  body_ = &body;
  ended_ = false;
}

bool Fiber::resume() {
  void* state = nullptr;
  running = this;
  leave(&state, memory_ + kGuard, kStack);
  if (_setjmp(resumer) == 0) {
    if (entered_) _longjmp(place_, 1);
    entered_ = true;
    setcontext(&first_);
  }
  arrive(state, nullptr, nullptr);
  return !ended_;
}

void Fiber::stop() { switch_back(); }

void Fiber::switch_back() {
  Fiber* const self = running;
  leave(&self->sanitizer_state_, resumer_stack, resumer_size);
  if (_setjmp(self->place_) == 0) _longjmp(resumer, 1);
  arrive(running->sanitizer_state_, &resumer_stack, &resumer_size);
}

void Fiber::enter() {
  arrive(nullptr, &resumer_stack, &resumer_size);
  for (;;) {
    (*running->body_)();
    running->ended_ = true;
    switch_back();
  }
}

}  // namespace emulated
