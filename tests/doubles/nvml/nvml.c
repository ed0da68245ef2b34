/* A stand-in for NVIDIA's libnvidia-ml.so.1, which pynvml loads: it answers from the file that NVML_DOUBLE names.

   A line is a key and its value, such as `gpu0.uuid GPU-8932f937-...`; `!15` as a value is the code of nvmlReturn_t that
   the question is answered with. What the file does not have is NVML_ERROR_NOT_SUPPORTED, as for a real GPU that cannot
   tell. `hang` is for how many seconds it does not answer at all. Without a file there is no driver. Signatures and codes are those of nvml.h. */

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { OK = 0, INVALID_ARGUMENT = 2, NOT_SUPPORTED = 3, NOT_FOUND = 6, INSUFFICIENT_SIZE = 7, NOT_LOADED = 9 };
enum { MOST = 400, LINE = 200, GPUS = 8, INSTANCES = 8 };

typedef unsigned long long u64;
typedef struct { u64 total, free, used; } memory_t;
typedef struct { unsigned pid; u64 bytes; unsigned gpu_instance, compute_instance; } process_t;

static char keys[MOST][LINE], values[MOST][LINE];
static int entries;
static char handles[GPUS * (INSTANCES + 1)][24];

static int load(void) {
  const char *path = getenv("NVML_DOUBLE");
  FILE *file = path ? fopen(path, "r") : NULL;
  char line[LINE];
  if (!file) return NOT_LOADED;
  entries = 0;
  while (entries < MOST && fgets(line, sizeof line, file)) {
    char *space = strchr(line, ' ');
    line[strcspn(line, "\n")] = 0;
    if (line[0] == '#' || !space) continue;
    *space = 0;
    strcpy(keys[entries], line);
    strcpy(values[entries++], space + 1);
  }
  fclose(file);
  return OK;
}

static int look(const char *owner, const char *what, const char **value) {
  char key[LINE];
  snprintf(key, sizeof key, owner ? "%s.%s" : "%s%s", owner ? owner : "", what);
  for (int i = 0; i < entries; i++)
    if (!strcmp(keys[i], key)) {
      *value = values[i];
      return values[i][0] == '!' ? atoi(values[i] + 1) : OK;
    }
  return NOT_SUPPORTED;
}

static int number(const char *owner, const char *what, u64 *to) {
  const char *value;
  int status = look(owner, what, &value);
  if (!status) *to = strtoull(value, NULL, 10);
  return status;
}

static int whole(const char *owner, const char *what, unsigned *to) {
  u64 value;
  int status = number(owner, what, &value);
  if (!status) *to = (unsigned)value;
  return status;
}

static int text(const char *owner, const char *what, char *to, unsigned size) {
  const char *value;
  int status = look(owner, what, &value);
  if (!status) snprintf(to, size, "%s", value);
  return status;
}

static int both(const char *owner, const char *what, unsigned *current, unsigned *pending) {
  int status = whole(owner, what, current);
  if (!status) *pending = *current;
  return status;
}

int nvmlInitWithFlags(unsigned flags) {
  const char *value;
  int status = load();
  (void)flags;
  if (status) return status;
  if (!look(NULL, "hang", &value)) sleep((unsigned)atoi(value));
  status = look(NULL, "init", &value);
  return status == NOT_SUPPORTED ? OK : status;
}
int nvmlInit_v2(void) { return nvmlInitWithFlags(0); }
int nvmlShutdown(void) { return OK; }

const char *nvmlErrorString(int code) {
  switch (code) {
    case 3: return "Not Supported";
    case 4: return "Insufficient Permissions";
    case 8: return "Insufficient External Power";
    case 9: return "Driver Not Loaded";
    case 15: return "GPU is lost";
    case 16: return "GPU requires reset";
    case 18: return "Driver/library version mismatch";
    default: return "Unknown Error";
  }
}

int nvmlSystemGetDriverVersion(char *to, unsigned size) { return text(NULL, "driver", to, size); }
int nvmlSystemGetCudaDriverVersion_v2(int *to) { return whole(NULL, "cuda", (unsigned *)to); }
int nvmlDeviceGetCount_v2(unsigned *to) { return whole(NULL, "count", to); }

int nvmlDeviceGetHandleByIndex_v2(unsigned index, char **handle) {
  const char *value;
  if (index >= GPUS) return INVALID_ARGUMENT;
  *handle = handles[index];
  snprintf(*handle, sizeof handles[0], "gpu%u", index);
  int status = look(*handle, "handle", &value);
  return status == NOT_SUPPORTED ? OK : status;
}

int nvmlDeviceGetName(const char *gpu, char *to, unsigned size) { return text(gpu, "name", to, size); }
int nvmlDeviceGetUUID(const char *gpu, char *to, unsigned size) { return text(gpu, "uuid", to, size); }
int nvmlDeviceGetPciInfo_v3(const char *gpu, char *to) { return text(gpu, "pci", to + 36, 32); } /* nvmlPciInfo_t.busId */
int nvmlDeviceGetMinorNumber(const char *gpu, unsigned *to) { return whole(gpu, "minor", to); }
int nvmlDeviceGetPersistenceMode(const char *gpu, unsigned *to) { return whole(gpu, "persistence", to); }
int nvmlDeviceGetComputeMode(const char *gpu, unsigned *to) { return whole(gpu, "compute_mode", to); }
int nvmlDeviceGetEccMode(const char *gpu, unsigned *now, unsigned *later) { return both(gpu, "ecc", now, later); }
int nvmlDeviceGetMigMode(const char *gpu, unsigned *now, unsigned *later) { return both(gpu, "mig", now, later); }

int nvmlDeviceGetTotalEccErrors(const char *gpu, int kind, int counter, u64 *to) {
  return number(gpu, kind == 1 && counter == 0 ? "ecc_uncorrected" : "ecc_other", to);
}

int nvmlDeviceGetMemoryInfo(const char *gpu, memory_t *to) {
  int status = number(gpu, "memory.total", &to->total);
  if (status) return status;
  status = number(gpu, "memory.free", &to->free);
  to->used = to->total - to->free;
  return status;
}

/* nvmlUtilization_t: of the processors, then of the memory's bus. */
int nvmlDeviceGetUtilizationRates(const char *gpu, unsigned *to) {
  to[1] = 0;
  return whole(gpu, "utilization", to);
}

int nvmlDeviceGetMaxMigDeviceCount(const char *gpu, unsigned *to) { return whole(gpu, "mig_most", to); }

int nvmlDeviceGetMigDeviceHandleByIndex(const char *gpu, unsigned index, char **handle) {
  const char *value;
  char what[24];
  if (index >= INSTANCES) return INVALID_ARGUMENT;
  snprintf(what, sizeof what, "mig%u.uuid", index);
  if (look(gpu, what, &value)) return NOT_FOUND;
  *handle = handles[GPUS + (gpu[3] - '0') * INSTANCES + index];
  snprintf(*handle, sizeof handles[0], "%.8s.mig%u", gpu, index);
  return OK;
}

static int processes(const char *gpu, const char *kind, unsigned *count, process_t *to) {
  const char *value;
  unsigned there = 0;
  char what[24];
  while (snprintf(what, sizeof what, "%s%u", kind, there), !look(gpu, what, &value)) there++;
  if (there > *count || (there && !to)) {
    *count = there;
    return INSUFFICIENT_SIZE;
  }
  *count = there;
  for (unsigned i = 0; i < there; i++) {
    snprintf(what, sizeof what, "%s%u", kind, i);
    look(gpu, what, &value);
    sscanf(value, "%u %llu", &to[i].pid, &to[i].bytes);
    to[i].gpu_instance = to[i].compute_instance = 0xFFFFFFFF;
  }
  return OK;
}

int nvmlDeviceGetGpuInstanceId(const char *gpu, unsigned *to) { return whole(gpu, "gi", to); }
int nvmlDeviceGetComputeInstanceId(const char *gpu, unsigned *to) { return whole(gpu, "ci", to); }

/* `gpu0.process0 4711 20000000000`: pid and bytes. */
int nvmlDeviceGetComputeRunningProcesses_v3(const char *gpu, unsigned *count, process_t *to) {
  return processes(gpu, "process", count, to);
}

/* As a driver from before version 3: the binding finds no newer one. */
int nvmlDeviceGetGraphicsRunningProcesses_v2(const char *gpu, unsigned *count, process_t *to) {
  return processes(gpu, "graphics", count, to);
}
