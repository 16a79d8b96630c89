// What lies between the matrix products of BDH on a GPU, each in one pass over the neurons; rows of the width are read again
// while they are in a cache.
//
// Compiled twice from this text: by NVRTC for the GPU at hand, when a training starts, and by the host's compiler within
// `emulation.cpp`, which is how the tests run it without a GPU, all but the one instruction that rounds to bf16. Includes nothing, because NVRTC has no
// headers to find. Letters as in the paper: N rows (sequence after sequence, T tokens each), D width, H heads, M neurons per
// head, V bytes known. Matrices lie row after row, heads first: a head's neurons are N x M.
//
// NUMBER_BF16: 1 where the products' operands are bf16, 0 where they are f32. All arithmetic is f32.
// PAIRS: pairs of neighbouring neurons that a thread takes at once; M is a multiple of twice that.

typedef unsigned int u32;
typedef unsigned long long u64;

#ifndef KERNEL
#define KERNEL extern "C" __global__ void
#endif

// ---- numbers ----

#if NUMBER_BF16
typedef unsigned short Number;

__device__ inline float read(Number number) { return __uint_as_float(u32(number) << 16); }

// To the nearest, ties to even; a NaN stays one.
__device__ inline Number round_to_number(float value) {
#ifdef __CUDA_ARCH__
  Number number;
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(number) : "f"(value));
  return number;
#else
  const u32 bits = __float_as_uint(value);
  if ((bits & 0x7FFFFFFFu) > 0x7F800000u) return Number(bits >> 16 | 0x40u);
  return Number((bits + 0x7FFFu + (bits >> 16 & 1u)) >> 16);
#endif
}
#else
typedef float Number;

__device__ inline float read(Number number) { return number; }
__device__ inline Number round_to_number(float value) { return value; }
#endif

// relu. A NaN stays one, so that a training that went astray is noticed.
__device__ inline float rectified(Number number) {
  const float value = read(number);
  return value < 0.0f ? 0.0f : value;
}

// As many neurons as a thread takes at once: one access to memory in bf16, two in f32.
struct alignas(sizeof(Number) * 2 * PAIRS) Chunk {
  Number at[2 * PAIRS];
};

// The cosine and sine of a pair's phase.
struct alignas(8) Phase {
  float cos, sin;
};

struct alignas(8 * PAIRS) Phases {
  Phase at[PAIRS];
};

// ---- dropout: `dropout.rs` says why and how ----

__device__ inline u64 mix(u64 word) {
  word += 0x9E3779B97F4A7C15ull;
  word = (word ^ (word >> 30)) * 0xBF58476D1CE4E5B9ull;
  word = (word ^ (word >> 27)) * 0x94D049BB133111EBull;
  return word ^ (word >> 31);
}

// The key of row `row` of the (H, N) rows.
__device__ inline u64 row_key(u64 stream, u32 layer, u64 first_sequence, u32 row, u32 rows_per_head, u32 tokens) {
  const u32 head = row / rows_per_head, place = row % rows_per_head;
  const u64 line = u64(layer) << 32 | head;
  const u64 token = (first_sequence + place / tokens) << 32 | place % tokens;
  return mix(mix(stream ^ line) + token);
}

__device__ inline bool is_kept(u64 key, u32 neuron, u32 threshold) {
  u32 word = neuron ^ u32(key);
  word ^= word >> 16;
  word = word * 0x7FEB352Du ^ u32(key >> 32);
  word ^= word >> 15;
  word *= 0x846CA68Bu;
  return (word ^ (word >> 16)) >= threshold;
}

// ---- neurons: a block takes rows of M. q and v are kept as the products gave them, and rectified wherever they are read ----

// The rope's kernels take the same token of some lines (a line is a head of a sequence) one after another: their phases, wider
// than the neurons themselves, are read once for all of them.
#define LINES_AT_ONCE 8u

// r = rope(relu(q))
KERNEL rope(const Number* q, const Phase* angles, Number* r, u32 neurons, u32 tokens, u32 lines) {
  const u32 token = blockIdx.x % tokens, line = blockIdx.x / tokens * LINES_AT_ONCE;
  const u32 count = lines - line < LINES_AT_ONCE ? lines - line : LINES_AT_ONCE;
  const u64 start = (u64(line) * tokens + token) * neurons, stride = u64(tokens) * neurons;
  for (u32 first = threadIdx.x * 2 * PAIRS; first < neurons; first += blockDim.x * 2 * PAIRS) {
    const Phases by = *(const Phases*)(angles + u64(token) * (neurons / 2) + first / 2);
    for (u32 i = 0; i < count; ++i) {
      const u64 at = start + i * stride + first;
      const Chunk now = *(const Chunk*)(q + at);
      Chunk turned;
      for (u32 pair = 0; pair < PAIRS; ++pair) {
        const float a = rectified(now.at[2 * pair]), b = rectified(now.at[2 * pair + 1]);
        const Phase phase = by.at[pair];
        turned.at[2 * pair] = round_to_number(a * phase.cos - b * phase.sin);
        turned.at[2 * pair + 1] = round_to_number(b * phase.cos + a * phase.sin);
      }
      *(Chunk*)(r + at) = turned;
    }
  }
}

// dq = the derivative by q: what comes by the gate (dq) and by the rope (dr, turned back), where q is above 0.
KERNEL rope_backward(const Number* q, const Number* dr, const Phase* angles, Number* dq, u32 neurons, u32 tokens, u32 lines) {
  const u32 token = blockIdx.x % tokens, line = blockIdx.x / tokens * LINES_AT_ONCE;
  const u32 count = lines - line < LINES_AT_ONCE ? lines - line : LINES_AT_ONCE;
  const u64 start = (u64(line) * tokens + token) * neurons, stride = u64(tokens) * neurons;
  for (u32 first = threadIdx.x * 2 * PAIRS; first < neurons; first += blockDim.x * 2 * PAIRS) {
    const Phases by = *(const Phases*)(angles + u64(token) * (neurons / 2) + first / 2);
    for (u32 i = 0; i < count; ++i) {
      const u64 at = start + i * stride + first;
      const Chunk on = *(const Chunk*)(q + at), by_rope = *(const Chunk*)(dr + at);
      Chunk sum = *(const Chunk*)(dq + at);
      for (u32 pair = 0; pair < PAIRS; ++pair) {
        const u32 even = 2 * pair, odd = even + 1;
        const float a = read(by_rope.at[even]), b = read(by_rope.at[odd]);
        const Phase phase = by.at[pair];
        const float back_a = a * phase.cos + b * phase.sin, back_b = b * phase.cos - a * phase.sin;
        sum.at[even] = read(on.at[even]) <= 0.0f ? Number(0) : round_to_number(read(sum.at[even]) + back_a);
        sum.at[odd] = read(on.at[odd]) <= 0.0f ? Number(0) : round_to_number(read(sum.at[odd]) + back_b);
      }
      *(Chunk*)(dq + at) = sum;
    }
  }
}

// g = dropout(relu(q) relu(v))
KERNEL gate(const Number* q, const Number* v, Number* g, u32 neurons, u32 tokens, u32 rows_per_head, u64 stream, u64 first_sequence,
            u32 layer, u32 threshold, float scale) {
  __shared__ u64 key;
  if (threadIdx.x == 0) key = row_key(stream, layer, first_sequence, blockIdx.x, rows_per_head, tokens);
  __syncthreads();
  const u64 row = u64(blockIdx.x) * neurons;
  for (u32 first = threadIdx.x * 2 * PAIRS; first < neurons; first += blockDim.x * 2 * PAIRS) {
    const Chunk on = *(const Chunk*)(q + row + first), gates = *(const Chunk*)(v + row + first);
    Chunk gated;
    for (u32 place = 0; place < 2 * PAIRS; ++place) {
      const float neuron = rectified(on.at[place]), open = rectified(gates.at[place]);
      gated.at[place] = round_to_number(is_kept(key, first + place, threshold) ? neuron * open * scale : 0.0f);
    }
    *(Chunk*)(g + row + first) = gated;
  }
}

// The gate again and its derivative: g anew; in dg's place the derivative by relu(q), in v's place that by v.
KERNEL gate_backward(const Number* q, Number* v, Number* dg, Number* g, u32 neurons, u32 tokens, u32 rows_per_head, u64 stream,
                     u64 first_sequence, u32 layer, u32 threshold, float scale) {
  __shared__ u64 key;
  if (threadIdx.x == 0) key = row_key(stream, layer, first_sequence, blockIdx.x, rows_per_head, tokens);
  __syncthreads();
  const u64 row = u64(blockIdx.x) * neurons;
  for (u32 first = threadIdx.x * 2 * PAIRS; first < neurons; first += blockDim.x * 2 * PAIRS) {
    const Chunk on = *(const Chunk*)(q + row + first);
    Chunk gates = *(const Chunk*)(v + row + first), by_gated = *(const Chunk*)(dg + row + first), gated;
    for (u32 place = 0; place < 2 * PAIRS; ++place) {
      const float neuron = rectified(on.at[place]), open = rectified(gates.at[place]);
      const float factor = is_kept(key, first + place, threshold) ? scale : 0.0f;
      const float derivative = read(by_gated.at[place]) * factor;
      gated.at[place] = round_to_number(neuron * open * factor);
      by_gated.at[place] = round_to_number(derivative * open);
      gates.at[place] = open <= 0.0f ? Number(0) : round_to_number(derivative * neuron);
    }
    *(Chunk*)(g + row + first) = gated;
    *(Chunk*)(dg + row + first) = by_gated;
    *(Chunk*)(v + row + first) = gates;
  }
}

// ---- rows of D or V: a warp takes one ----

#define LANES 32
#define NORM_EPSILON 1e-5f
#define NO_NUMBER __uint_as_float(0x7FC00000u)

__device__ inline float sum_of_warp(float value) {
  for (u32 distance = LANES / 2; distance > 0; distance /= 2) value += __shfl_xor_sync(0xFFFFFFFFu, value, distance);
  return value;
}

__device__ inline float max_of_warp(float value) {
  for (u32 distance = LANES / 2; distance > 0; distance /= 2)
    value = fmaxf(value, __shfl_xor_sync(0xFFFFFFFFu, value, distance));
  return value;
}

__device__ inline u32 warp_row() { return blockIdx.x * (blockDim.x / LANES) + threadIdx.x / LANES; }
__device__ inline u32 lane() { return threadIdx.x % LANES; }

// The mean and the reciprocal deviation of a row whose numbers `at` gives.
template <class At>
__device__ inline void moments(u32 width, At at, float& mean, float& reciprocal) {
  float sum = 0.0f;
  for (u32 i = lane(); i < width; i += LANES) sum += at(i);
  mean = sum_of_warp(sum) / float(width);
  float squares = 0.0f;
  for (u32 i = lane(); i < width; i += LANES) squares += (at(i) - mean) * (at(i) - mean);
  reciprocal = 1.0f / sqrtf(sum_of_warp(squares) / float(width) + NORM_EPSILON);
}

// What the derivative of a norm needs of a row of it, `y`, and the derivative by it, `dy`: both means.
template <class Y, class Dy>
__device__ inline void back_means(u32 width, Y y, Dy dy, float& mean, float& mean_along) {
  float sum = 0.0f, along = 0.0f;
  for (u32 i = lane(); i < width; i += LANES) {
    sum += dy(i);
    along += dy(i) * y(i);
  }
  mean = sum_of_warp(sum) / float(width);
  mean_along = sum_of_warp(along) / float(width);
}

// y = norm(x), in the operands' kind
KERNEL layer_norm(const Number* x, Number* y, float* reciprocals, u32 rows, u32 width) {
  const u32 row = warp_row();
  if (row >= rows) return;
  x += u64(row) * width;
  y += u64(row) * width;
  float mean, reciprocal;
  moments(width, [=](u32 i) { return read(x[i]); }, mean, reciprocal);
  for (u32 i = lane(); i < width; i += LANES) y[i] = round_to_number((read(x[i]) - mean) * reciprocal);
  if (lane() == 0) reciprocals[row] = reciprocal;
}

// The derivative before a norm that gave `y`, in dy's place.
KERNEL layer_norm_backward(const Number* y, const float* reciprocals, Number* dy, u32 rows, u32 width) {
  const u32 row = warp_row();
  if (row >= rows) return;
  y += u64(row) * width;
  dy += u64(row) * width;
  float mean, along;
  back_means(width, [=](u32 i) { return read(y[i]); }, [=](u32 i) { return read(dy[i]); }, mean, along);
  for (u32 i = lane(); i < width; i += LANES)
    dy[i] = round_to_number(reciprocals[row] * (read(dy[i]) - mean - read(y[i]) * along));
}

// x = norm(rows of `table`): the residual stream before the first layer, in f32 and as an operand.
KERNEL embed(const float* table, const long long* bytes, float* x, float* reciprocals, Number* operand, u32 rows, u32 width,
             u32 vocabulary) {
  const u32 row = warp_row();
  if (row >= rows) return;
  const bool is_known = u64(bytes[row]) < vocabulary;
  table += is_known ? u64(bytes[row]) * width : 0;
  float mean, reciprocal;
  moments(width, [=](u32 i) { return table[i]; }, mean, reciprocal);
  for (u32 i = lane(); i < width; i += LANES) {
    const u64 at = u64(row) * width + i;
    x[at] = is_known ? (table[i] - mean) * reciprocal : NO_NUMBER;
    operand[at] = round_to_number(x[at]);
  }
  if (lane() == 0) reciprocals[row] = reciprocal;
}

// dx = the derivative before `embed`'s norm, in its place.
KERNEL embed_backward(const float* x, const float* reciprocals, float* dx, u32 rows, u32 width) {
  const u32 row = warp_row();
  if (row >= rows) return;
  x += u64(row) * width;
  dx += u64(row) * width;
  float mean, along;
  back_means(width, [=](u32 i) { return x[i]; }, [=](u32 i) { return dx[i]; }, mean, along);
  for (u32 i = lane(); i < width; i += LANES) dx[i] = reciprocals[row] * (dx[i] - mean - x[i] * along);
}

// y = norm(the sum of the heads' parts, H x N x D), x' = norm(x + y)
KERNEL residual(const float* x, const Number* parts, float* y, float* y_reciprocals, float* next, float* next_reciprocals,
                Number* operand, u32 rows, u32 width, u32 heads) {
  const u32 row = warp_row();
  if (row >= rows) return;
  const u64 start = u64(row) * width, head = u64(rows) * width;
  x += start;
  parts += start;
  y += start;
  next += start;
  float mean, reciprocal;
  for (u32 i = lane(); i < width; i += LANES) {
    float sum = 0.0f;
    for (u32 h = 0; h < heads; ++h) sum += read(parts[h * head + i]);
    y[i] = sum;
  }
  moments(width, [=](u32 i) { return y[i]; }, mean, reciprocal);
  for (u32 i = lane(); i < width; i += LANES) y[i] = (y[i] - mean) * reciprocal;
  if (lane() == 0) y_reciprocals[row] = reciprocal;
  moments(width, [=](u32 i) { return x[i] + y[i]; }, mean, reciprocal);
  for (u32 i = lane(); i < width; i += LANES) {
    next[i] = (x[i] + y[i] - mean) * reciprocal;
    operand[start + i] = round_to_number(next[i]);
  }
  if (lane() == 0) next_reciprocals[row] = reciprocal;
}

// From the derivative by x' that by x, in its place, and that before y's norm, as an operand.
KERNEL residual_backward(const float* y, const float* y_reciprocals, const float* next, const float* next_reciprocals, float* dx,
                         Number* dy, u32 rows, u32 width) {
  const u32 row = warp_row();
  if (row >= rows) return;
  const u64 start = u64(row) * width;
  y += start;
  next += start;
  dx += start;
  dy += start;
  float mean, along;
  back_means(width, [=](u32 i) { return next[i]; }, [=](u32 i) { return dx[i]; }, mean, along);
  for (u32 i = lane(); i < width; i += LANES) dx[i] = next_reciprocals[row] * (dx[i] - mean - next[i] * along);
  back_means(width, [=](u32 i) { return y[i]; }, [=](u32 i) { return dx[i]; }, mean, along);
  for (u32 i = lane(); i < width; i += LANES) dy[i] = round_to_number(y_reciprocals[row] * (dx[i] - mean - y[i] * along));
}

// dx += the sums over heads of two derivatives, H x N x D each.
KERNEL add_heads(float* dx, const Number* by_neurons, const Number* by_reading, u32 size, u32 heads) {
  for (u32 i = blockIdx.x * blockDim.x + threadIdx.x; i < size; i += gridDim.x * blockDim.x) {
    float sum = dx[i];
    for (u32 h = 0; h < heads; ++h) sum += read(by_neurons[u64(h) * size + i]) + read(by_reading[u64(h) * size + i]);
    dx[i] = sum;
  }
}

// The loss of each row's target in nats; in the logits' place their derivatives, weighed by `weight`.
KERNEL cross_entropy(Number* logits, const long long* targets, float* losses, float weight, u32 rows, u32 vocabulary) {
  const u32 row = warp_row();
  if (row >= rows) return;
  logits += u64(row) * vocabulary;
  const bool is_known = u64(targets[row]) < vocabulary;
  const u32 target = is_known ? u32(targets[row]) : 0;
  float most = -__uint_as_float(0x7F800000u);
  for (u32 i = lane(); i < vocabulary; i += LANES) most = fmaxf(most, read(logits[i]));
  most = max_of_warp(most);
  float sum = 0.0f;
  for (u32 i = lane(); i < vocabulary; i += LANES) sum += expf(read(logits[i]) - most);
  sum = sum_of_warp(sum);
  // Before the logit itself is overwritten, by whichever lane has it.
  const float loss = is_known ? logf(sum) + most - read(logits[target]) : NO_NUMBER;
  __syncwarp();
  for (u32 i = lane(); i < vocabulary; i += LANES) {
    const float share = expf(read(logits[i]) - most) / sum - (i == target ? 1.0f : 0.0f);
    logits[i] = round_to_number(share * weight);
  }
  if (lane() == 0) losses[row] = loss;
}

// ---- scores: a block takes a row of T x T ----

// What a token reads of itself and of those after it: nothing.
KERNEL below_diagonal(Number* scores, u32 tokens) {
  Number* row = scores + u64(blockIdx.x) * tokens;
  for (u32 i = blockIdx.x % tokens + threadIdx.x; i < tokens; i += blockDim.x) row[i] = Number(0);
}

// d + d^T of what stands below the diagonal. Reads below it and writes on and above it alone.
KERNEL mirror(Number* d, u32 tokens) {
  const u32 row = blockIdx.x % tokens;
  Number* matrix = d + u64(blockIdx.x / tokens) * tokens * tokens;
  for (u32 i = row + threadIdx.x; i < tokens; i += blockDim.x)
    matrix[u64(row) * tokens + i] = i == row ? Number(0) : matrix[u64(i) * tokens + row];
}

// ---- answers: N bytes of each of K streams, whose past is kept in rings of R places ----

// Where the row of this block, of (K, H, N) rows, stands.
struct Row {
  u32 stream, line, token;
  u64 position;
};

__device__ inline Row row_of_streams(const long long* positions, u32 tokens, u32 heads) {
  const u32 line = blockIdx.x / tokens, token = blockIdx.x % tokens, stream = line / heads;
  return {stream, line, token, u64(positions[stream]) + token};
}

// r = rope(relu(q)), (H, K N) rows to (K, H, N) rows, each by its own position; and the same into its place of the ring, of
// (K, H, R) rows. `frequencies` are turns a byte, in 2^-64 turns: whole turns fall away by themselves, at any position.
KERNEL remember(const Number* q, const long long* positions, const u64* frequencies, Number* r, Number* keys, u32 neurons, u32 tokens,
                u32 heads, u32 ring) {
  const Row row = row_of_streams(positions, tokens, heads);
  const u32 streams = gridDim.x / tokens / heads;
  q += ((u64(row.line % heads) * streams + row.stream) * tokens + row.token) * neurons;
  r += u64(blockIdx.x) * neurons;
  keys += (u64(row.line) * ring + row.position % ring) * neurons;
  for (u32 first = threadIdx.x * 2 * PAIRS; first < neurons; first += blockDim.x * 2 * PAIRS) {
    const Chunk now = *(const Chunk*)(q + first);
    Chunk turned;
    for (u32 pair = 0; pair < PAIRS; ++pair) {
      const float a = rectified(now.at[2 * pair]), b = rectified(now.at[2 * pair + 1]);
      const int turns = int(u32(row.position * frequencies[first / 2 + pair] >> 32));
      float sin, cos;
      sincospif(float(turns) * 4.656612873077393e-10f, &sin, &cos);  // half turns: 2^-31 of the upper half
      turned.at[2 * pair] = round_to_number(a * cos - b * sin);
      turned.at[2 * pair + 1] = round_to_number(b * cos + a * sin);
    }
    *(Chunk*)(r + first) = turned;
    *(Chunk*)(keys + first) = turned;
  }
}

// x, (K, N) rows of D, into their places of the ring, of (K, R) rows.
KERNEL remember_values(const Number* x, const long long* positions, Number* values, u32 width, u32 tokens, u32 ring) {
  const Row row = row_of_streams(positions, tokens, 1);
  x += u64(blockIdx.x) * width;
  values += (u64(row.stream) * ring + row.position % ring) * width;
  for (u32 i = threadIdx.x; i < width; i += blockDim.x) values[i] = x[i];
}

// Clears what a byte does not see, in (K, H, N) rows of R = 2 C places: all but what came before it in its own chunk of C bytes,
// and the chunk before.
KERNEL unseen(Number* scores, const long long* positions, u32 tokens, u32 heads, u32 chunk) {
  const Row row = row_of_streams(positions, tokens, heads);
  const u32 ring = 2 * chunk;
  scores += u64(blockIdx.x) * ring;
  const u64 newest = row.position - row.token + tokens - 1, start = row.position / chunk * chunk;
  const u64 oldest = start < chunk ? 0 : start - chunk;
  for (u32 place = threadIdx.x; place < ring; place += blockDim.x) {
    // A place holds the newest byte that belongs there; of those before the first byte there are none.
    const u64 back = (newest + ring - place) % ring, held = newest - back;
    if (back > newest || held >= row.position || held < oldest) scores[place] = Number(0);
  }
}

#define KERNELS(K)                                                                                                   \
  K(rope) K(rope_backward) K(gate) K(gate_backward) K(layer_norm) K(layer_norm_backward) K(embed) K(embed_backward) \
  K(residual) K(residual_backward) K(add_heads) K(cross_entropy) K(below_diagonal) K(mirror) K(remember)                  \
  K(remember_values) K(unseen)
