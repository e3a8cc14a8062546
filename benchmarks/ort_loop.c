/* The tightest loop around ONNX Runtime's C API: one session, inputs and outputs allocated once.

   ort_loop MODEL INPUT OUTPUT THREADS DIM...

   INPUT and OUTPUT are raw float32 files: what is fed, and what the first call answers. Then, for every
   line on standard input with a number of seconds, calls are made for that long; the answer is their
   count on a line and the nanoseconds of each as little-endian int64.

   The functions of the C API keep their places in its table for ever ("MUST NOT be changed",
   onnxruntime_c_api.h), so that no header is needed. */

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

typedef const struct {
  void *const *(*GetApi)(uint32_t version);
  const char *(*GetVersionString)(void);
} OrtApiBase;
extern OrtApiBase *OrtGetApiBase(void);

enum {
  GetErrorMessage = 2, CreateEnv = 3, CreateSession = 7, Run = 9, CreateSessionOptions = 10,
  SetIntraOpNumThreads = 24, SetInterOpNumThreads = 25, SessionGetInputName = 36,
  SessionGetOutputName = 37, CreateTensorWithDataAsOrtValue = 49, GetTensorMutableData = 51,
  GetTensorShapeElementCount = 64, GetTensorTypeAndShape = 65, CreateCpuMemoryInfo = 69,
  GetAllocatorWithDefaultOptions = 78
};
enum { WARNING = 2, ARENA = 1, DEFAULT_MEMORY = 0, FLOAT = 1, API_VERSION = 1 };

static void *const *api;

static void check(void *status) {
  if (status == NULL) return;
  fprintf(stderr, "%s\n", ((const char *(*)(void *))api[GetErrorMessage])(status));
  exit(1);
}
#define CALL(function, types, ...) check(((void *(*)types)api[function])(__VA_ARGS__))

static int64_t now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return t.tv_sec * 1000000000LL + t.tv_nsec;
}

int main(int argc, char **argv) {
  if (argc < 6) return fprintf(stderr, "ort_loop MODEL INPUT OUTPUT THREADS DIM...\n"), 2;
  api = OrtGetApiBase()->GetApi(API_VERSION);
  void *env, *options, *session, *memory, *input, *output = NULL, *allocator, *info;
  char *input_name, *output_name;
  CALL(CreateEnv, (int, const char *, void **), WARNING, "ort_loop", &env);
  CALL(CreateSessionOptions, (void **), &options);
  CALL(SetIntraOpNumThreads, (void *, int), options, atoi(argv[4]));
  CALL(SetInterOpNumThreads, (void *, int), options, 1);
  CALL(CreateSession, (void *, const char *, void *, void **), env, argv[1], options, &session);
  CALL(GetAllocatorWithDefaultOptions, (void **), &allocator);
  CALL(SessionGetInputName, (void *, size_t, void *, char **), session, 0, allocator, &input_name);
  CALL(SessionGetOutputName, (void *, size_t, void *, char **), session, 0, allocator, &output_name);

  int64_t dims[8], count = 1;
  int rank = argc - 5;
  if (rank > 8) return 2;
  for (int i = 0; i < rank; i++) count *= dims[i] = atoll(argv[5 + i]);
  float *data = malloc(count * sizeof(float));
  FILE *file = fopen(argv[2], "rb");
  if (!data || !file || fread(data, sizeof(float), count, file) != (size_t)count)
    return fprintf(stderr, "%s does not hold %lld floats\n", argv[2], (long long)count), 2;
  fclose(file);
  CALL(CreateCpuMemoryInfo, (int, int, void **), ARENA, DEFAULT_MEMORY, &memory);
  CALL(CreateTensorWithDataAsOrtValue,
       (void *, void *, size_t, const int64_t *, size_t, int, void **), memory, data,
       count * sizeof(float), dims, rank, FLOAT, &input);

  void *inputs[] = {input};
  const char *input_names[] = {input_name}, *output_names[] = {output_name};
#define RUN()                                                                                     \
  CALL(Run, (void *, void *, const char **, void **, size_t, const char **, size_t, void **),      \
       session, NULL, input_names, inputs, 1, output_names, 1, &output)
  RUN(); /* allocates the output, which later calls write to */
  size_t answers;
  float *answer;
  CALL(GetTensorTypeAndShape, (void *, void **), output, &info);
  CALL(GetTensorShapeElementCount, (void *, size_t *), info, &answers);
  CALL(GetTensorMutableData, (void *, void **), output, (void **)&answer);
  file = fopen(argv[3], "wb");
  if (!file || fwrite(answer, sizeof(float), answers, file) != answers || fclose(file)) return 2;

  size_t room = 1 << 24, calls;
  int64_t *samples = malloc(room * sizeof(int64_t));
  double seconds;
  while (samples && scanf("%lf", &seconds) == 1) {
    int64_t before = now(), end = before + (int64_t)(seconds * 1e9), after = before;
    for (calls = 0; calls < room && after < end; before = after) {
      RUN();
      after = now();
      samples[calls++] = after - before;
    }
    printf("%zu\n", calls);
    fwrite(samples, sizeof(int64_t), calls, stdout);
    fflush(stdout);
  }
  return 0;
}
