/* An NVIDIA driver's library with one GPU, as far as the agent asks it. THROTTLE_REASONS: what slows the GPU down. */
typedef unsigned int u32;
typedef unsigned long long u64;

struct memory {
  u32 version;
  u64 total, reserved, free, used;
};

struct utilization {
  u32 gpu, memory;
};

int nvmlInit_v2(void) { return 0; }
int nvmlShutdown(void) { return 0; }
int nvmlDeviceGetHandleByIndex_v2(u32 index, void **device) {
  *device = (void *)1;
  return index == 0 ? 0 : 2;
}
int nvmlDeviceGetPowerUsage(void *device, u32 *milliwatts) {
  *milliwatts = 179500;
  return 0;
}
int nvmlDeviceGetTemperature(void *device, int sensor, u32 *celsius) {
  *celsius = 81;
  return 0;
}
int nvmlDeviceGetUtilizationRates(void *device, struct utilization *rates) {
  rates->gpu = 97;
  rates->memory = 60;
  return 0;
}
int nvmlDeviceGetMemoryInfo_v2(void *device, struct memory *info) {
  info->total = 8ull << 30;
  info->used = 1249ull << 20;
  info->free = info->total - info->used;
  return 0;
}
int nvmlDeviceGetCurrentClocksThrottleReasons(void *device, u64 *reasons) {
  *reasons = THROTTLE_REASONS;
  return 0;
}
