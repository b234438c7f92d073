/// LD_PRELOAD: fails one allocation that code of the addon makes, the k-th since it was armed.
///
/// FAILING_MALLOC_CONTROL names a file of three 64-bit integers, shared with the test:
///   [0] k, 0 for none   [1] allocations seen   [2] 1 once one was failed
/// FAILING_MALLOC_MODULE is part of the path of the module whose calls count, told by the return
/// address. operator new is here too: its own call of malloc would come from the C++ library.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <link.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

static _Atomic int64_t* control;
static _Atomic uintptr_t module_begin, module_end;
static __thread int busy;

__attribute__((constructor)) static void Open(void) {
  const char* path = getenv("FAILING_MALLOC_CONTROL");
  const int file = path == NULL ? -1 : open(path, O_RDWR);
  if (file < 0) return;
  void* memory = mmap(NULL, 3 * sizeof(int64_t), PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
  close(file);
  if (memory != MAP_FAILED) control = memory;
}

static int FindModule(struct dl_phdr_info* info, size_t size, void* unused) {
  (void)size;
  (void)unused;
  const char* wanted = getenv("FAILING_MALLOC_MODULE");
  if (wanted == NULL || info->dlpi_name == NULL || strstr(info->dlpi_name, wanted) == NULL) return 0;
  uintptr_t begin = UINTPTR_MAX, end = 0;
  for (int i = 0; i < info->dlpi_phnum; ++i) {
    if (info->dlpi_phdr[i].p_type != PT_LOAD) continue;
    const uintptr_t from = info->dlpi_addr + info->dlpi_phdr[i].p_vaddr;
    if (from < begin) begin = from;
    if (from + info->dlpi_phdr[i].p_memsz > end) end = from + info->dlpi_phdr[i].p_memsz;
  }
  module_begin = begin;
  module_end = end;
  return 1;
}

static int Fails(const void* caller) {
  if (busy || control == NULL || control[0] == 0) return 0;
  if (module_end == 0) {
    busy = 1;
    dl_iterate_phdr(FindModule, NULL);
    busy = 0;
  }
  const uintptr_t address = (uintptr_t)caller;
  if (address < module_begin || address >= module_end) return 0;
  if (atomic_fetch_add(&control[1], 1) + 1 != control[0]) return 0;
  control[2] = 1;
  return 1;
}

extern void* __libc_malloc(size_t);
extern void* __libc_calloc(size_t, size_t);
extern void* __libc_memalign(size_t, size_t);

void* malloc(size_t size) {
  if (!Fails(__builtin_return_address(0))) return __libc_malloc(size);
  errno = ENOMEM;
  return NULL;
}
void* calloc(size_t count, size_t size) {
  if (!Fails(__builtin_return_address(0))) return __libc_calloc(count, size);
  errno = ENOMEM;
  return NULL;
}
void* aligned_alloc(size_t alignment, size_t size) {
  if (!Fails(__builtin_return_address(0))) return __libc_memalign(alignment, size);
  errno = ENOMEM;
  return NULL;
}

static void* New(size_t size, const void* caller) {
  void* memory = Fails(caller) ? NULL : __libc_malloc(size == 0 ? 1 : size);
  if (memory != NULL) return memory;
  void (*throw_bad_alloc)(void) = (void (*)(void))dlsym(RTLD_DEFAULT, "_ZSt17__throw_bad_allocv");
  throw_bad_alloc();
  return NULL;
}
static void* NewOrNull(size_t size, const void* caller) {
  return Fails(caller) ? NULL : __libc_malloc(size == 0 ? 1 : size);
}

// operator new, new[], and both with nothrow.
void* _Znwm(size_t size) { return New(size, __builtin_return_address(0)); }
void* _Znam(size_t size) { return New(size, __builtin_return_address(0)); }
void* _ZnwmRKSt9nothrow_t(size_t size, const void* tag) {
  (void)tag;
  return NewOrNull(size, __builtin_return_address(0));
}
void* _ZnamRKSt9nothrow_t(size_t size, const void* tag) {
  (void)tag;
  return NewOrNull(size, __builtin_return_address(0));
}
