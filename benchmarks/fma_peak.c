/* Fused multiply-adds on registers alone: as fast as the processor ever computes in float32.
 *
 * Compiled and called by machine.py, once per thread.
 */
#if defined(__AVX512F__)
#define VECTOR_BYTES 64
#elif defined(__AVX__)
#define VECTOR_BYTES 32
#else
#define VECTOR_BYTES 16
#endif

typedef float vector __attribute__((vector_size(VECTOR_BYTES)));

/* Enough to hide the latency (4 cycles on two ports), few enough for 16 registers. */
#define CHAINS 12

/* Runs the chains and returns how many floating-point operations that was. */
long run_chains(long rounds, float *sink) {
  /* read at run time and different in every chain: the compiler can neither foresee nor merge them */
  const vector factor = *sink + (vector){0}, step = factor * factor;
  vector sums[CHAINS];
  for (int chain = 0; chain < CHAINS; ++chain) sums[chain] = factor * (float)chain;
  for (long round = 0; round < rounds; ++round) {
#pragma GCC unroll 12
    for (int chain = 0; chain < CHAINS; ++chain) sums[chain] = sums[chain] * factor + step;
  }
  vector total = {0};
  for (int chain = 0; chain < CHAINS; ++chain) total += sums[chain];
  *sink = total[0];
  return rounds * CHAINS * (VECTOR_BYTES / 4) * 2;
}
