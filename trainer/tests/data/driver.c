/* NVIDIA's driver, as far as the doctor asks it before libtorch does: INIT is what cuInit gives, CUDA the newest CUDA that it runs. */
int cuInit(unsigned int flags) { return INIT; }
int cuDriverGetVersion(int *version) {
  *version = CUDA;
  return 0;
}
