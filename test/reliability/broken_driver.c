/* A CUDA driver that is broken: FAKE_CUDA says how. Writes a line to FAKE_CUDA_LOG when it is loaded, and one when
 * it is initialised. */
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static void tell(const char *line) {
  const char *path = getenv("FAKE_CUDA_LOG");
  if (path == NULL) return;
  const int file = open(path, O_WRONLY | O_APPEND | O_CREAT, 0644);
  if (file < 0) return;
  if (write(file, line, strlen(line)) < 0) abort();
  close(file);
}

static int asked(const char *kind) {
  const char *value = getenv("FAKE_CUDA");
  return value != NULL && strcmp(value, kind) == 0;
}

__attribute__((constructor)) static void loaded(void) {
  tell("loaded\n");
  if (asked("abort-load")) abort();
  while (asked("hang-load")) pause();
}

int cuInit(unsigned flags) {
  (void)flags;
  tell("cuInit\n");
  if (asked("abort")) abort();
  while (asked("hang")) pause();
  return 999;
}

int cuDriverGetVersion(int *version) {
  *version = 13000;
  return 0;
}

int cuGetErrorName(int error, const char **text) {
  (void)error;
  *text = "CUDA_ERROR_UNKNOWN";
  return 0;
}

int cuGetErrorString(int error, const char **text) {
  (void)error;
  *text = "unknown error";
  return 0;
}
