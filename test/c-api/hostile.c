/* Random wrong calls: whatever the fields hold, a call returns a code and leaves the outputs alone, or
 * it was right and writes them. Addresses that are not NULL lead to memory, as they must in C. */
#include "check.h"

enum { M = 3, N = 8, K = 64, R = 2, CALLS = 20000 };

static uint64_t state = 99;

static uint64_t draw(void) {
  state ^= state << 13;
  state ^= state >> 7;
  state ^= state << 17;
  return state >> 8;
}

/* A value that a field of that kind should not have, most of the time. */
static int64_t odd_size(void) {
  static const int64_t kOdd[] = {0, 1, -1, 2, 63, 65, 1 << 20, INT64_MAX, INT64_MIN, INT64_C(1) << 40};
  return kOdd[draw() % (sizeof kOdd / sizeof *kOdd)];
}

/* Only what a check reads before the memory is touched: sizes that stay within the allocation, or far
 * beyond what any other operand agrees to. */
static void spoil(DLTensor *tensor, int64_t *strides) {
  switch (draw() % 8) {
    case 0:
      tensor->shape[draw() % 2] = odd_size();
      break;
    case 1:
      strides[0] = odd_size(), strides[1] = odd_size();
      tensor->strides = strides;
      break;
    case 2:
      tensor->dtype.bits = (uint8_t)draw();
      break;
    case 3:
      tensor->dtype.code = (uint8_t)draw();
      break;
    case 4:
      tensor->ndim = (int32_t)draw() % 4 - 1;
      break;
    case 5:
      tensor->byte_offset = UINT64_MAX - draw() % 4096;
      break;
    case 6:
      tensor->device.device_type = (DLDeviceType)(draw() % 20);
      break;
    default:
      tensor->data = NULL;
  }
}

void run_hostile(void) {
  int refused = 0;
  for (int call = 0; call < CALLS; call++) {
    Tensor *x = tensor_new(F32, M, K, 1, 1), *w = tensor_new(F32, N, K, 2, 1), *a = tensor_new(F32, R, K, 3, 1);
    Tensor *b = tensor_new(F32, N, R, 4, 1), *h = tensor_new(F32, M, R, 0, 0), *y = tensor_new(F32, M, N, 0, 0);
    Tensor *all[6] = {x, a, b, h, y, w};
    DLTensor whole[6];
    int64_t shapes[6][2], strides[6][2];
    lowrank_weight *weight = NULL;
    const int spoiled = (int)(draw() % 6), more = (int)(draw() % 6);
    for (int i = 0; i < 6; i++) {
      whole[i] = all[i]->t;
      memcpy(shapes[i], all[i]->shape, sizeof shapes[i]);
      whole[i].shape = shapes[i];
    }
    spoil(&whole[spoiled], strides[spoiled]);
    if (draw() % 2) spoil(&whole[more], strides[more]);
    int32_t code = lowrank_weight_wrap(&whole[5], NULL, NULL, &weight);
    EXPECT((code == LOWRANK_OK) == (weight != NULL), "a handle exactly if there is a weight");
    lowrank_lora_forward_args args = {.size = sizeof args, .x = &whole[0], .w = weight, .lora_a = &whole[1]};
    args.lora_b = &whole[2], args.scaling = 1, args.h = &whole[3], args.y = &whole[4];
    code = lowrank_lora_forward(&args);
    if (code != LOWRANK_OK) {
      refused++;
      EXPECT(code > 0 && code <= LOWRANK_ERR_ABI && lowrank_last_error()[0] != '\0', "code %d", code);
      EXPECT(tensor_untouched(y) && tensor_untouched(h), "an output of a refused call");
    }
    if (weight != NULL) OK(lowrank_weight_release(weight));
    for (int i = 0; i < 6; i++) tensor_free(all[i]);
  }
  EXPECT(refused > CALLS * 3 / 4 && refused < CALLS, "%d of %d refused", refused, CALLS);
}
