/* The tightest loop around OpenVINO's C API: one request, its input set once.

   ov_loop MODEL INPUT OUTPUT THREADS DIM...

   Arguments and answers are those of ort_loop.c. Headers and library are those of the openvino package. */

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include "openvino/c/openvino.h"

static void check(ov_status_e status) {
  if (status == OK) return;
  fprintf(stderr, "%s: %s\n", ov_get_error_info(status), ov_get_last_err_msg());
  exit(1);
}

static int64_t now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return t.tv_sec * 1000000000LL + t.tv_nsec;
}

int main(int argc, char **argv) {
  if (argc < 6) return fprintf(stderr, "ov_loop MODEL INPUT OUTPUT THREADS DIM...\n"), 2;
  int64_t dims[8], count = 1;
  int rank = argc - 5;
  if (rank > 8) return 2;
  for (int i = 0; i < rank; i++) count *= dims[i] = atoll(argv[5 + i]);
  float *data = malloc(count * sizeof(float));
  FILE *file = fopen(argv[2], "rb");
  if (!data || !file || fread(data, sizeof(float), count, file) != (size_t)count)
    return fprintf(stderr, "%s does not hold %lld floats\n", argv[2], (long long)count), 2;
  fclose(file);

  ov_core_t *core;
  ov_model_t *model;
  ov_compiled_model_t *compiled;
  ov_infer_request_t *request;
  ov_shape_t shape;
  ov_tensor_t *input, *output;
  check(ov_core_create(&core));
  check(ov_core_read_model(core, argv[1], NULL, &model));
  check(ov_core_compile_model(core, model, "CPU", 6, &compiled, "INFERENCE_NUM_THREADS", argv[4],
                              "NUM_STREAMS", "1", "INFERENCE_PRECISION_HINT", "f32"));
  check(ov_compiled_model_create_infer_request(compiled, &request));
  check(ov_shape_create(rank, dims, &shape));
  check(ov_tensor_create_from_host_ptr(F32, shape, data, &input));
  check(ov_infer_request_set_input_tensor_by_index(request, 0, input));
  check(ov_infer_request_infer(request));

  size_t answers;
  void *answer;
  check(ov_infer_request_get_output_tensor_by_index(request, 0, &output));
  check(ov_tensor_get_size(output, &answers));
  check(ov_tensor_data(output, &answer));
  file = fopen(argv[3], "wb");
  if (!file || fwrite(answer, sizeof(float), answers, file) != answers || fclose(file)) return 2;

  size_t room = 1 << 24, calls;
  int64_t *samples = malloc(room * sizeof(int64_t));
  double seconds;
  while (samples && scanf("%lf", &seconds) == 1) {
    int64_t before = now(), end = before + (int64_t)(seconds * 1e9), after = before;
    for (calls = 0; calls < room && after < end; before = after) {
      check(ov_infer_request_infer(request));
      after = now();
      samples[calls++] = after - before;
    }
    printf("%zu\n", calls);
    fwrite(samples, sizeof(int64_t), calls, stdout);
    fflush(stdout);
  }
  return 0;
}
