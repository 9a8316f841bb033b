// GPT-2's forward pass on the CPU: one row or many, every weight read once per pass.
//
// Linear layers are kept in panels of 16 outputs, so that one vector holds one product of each and a thread reads its
// weights as one stream. Of a panel, the inputs follow each other in groups: 1 of float32, 2 of bfloat16, 4 of int8 and
// int4. Activations meet int8 weights as 16 bits, cut into two planes of unsigned bytes, and int4 weights as 8 bits with
// one step per 32 inputs. Whole numbers are summed exactly; floating-point sums are taken in one order, whatever other
// rows are computed beside a row and however many threads there are: an answer does not depend on company.
#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

#if defined(_OPENMP)
#include <omp.h>
#endif

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512VNNI__)
#define GPT2_AVX512 1
#include <immintrin.h>
#elif defined(__AVX2__) && defined(__FMA__)
#define GPT2_AVX2 1
#include <immintrin.h>
#endif

#if defined(GPT2_AVX512) && defined(__AMX_INT8__) && defined(__AMX_BF16__) && defined(__linux__)
#define GPT2_AMX 1
#include <sys/syscall.h>
#include <unistd.h>
#endif

extern "C" {

enum Kind : int32_t { kFloat32, kBfloat16, kInt8, kInt4 };

struct Linear {
  const void* weight;  // (panels, inputs / group, 16, group); int4: two groups of 4 inputs in the halves of 64 bytes
  const void* scale;   // int8: float (panels * 16); int4: bfloat16 (panels, inputs / 32, 16)
  const int32_t* sum;  // int8: 128 times the sum of each output's weights, as activations are stored with 128 * 256 added
  const float* bias;   // (panels * 16)
  int32_t kind, outputs, inputs;  // inputs are a multiple of 64, of which those beyond the layer's are zeros
};

struct Block {
  const float *norm1_weight, *norm1_bias, *norm2_weight, *norm2_bias;
  Linear attention_in, attention_out, inner, outer;
};

struct Model {
  const Block* blocks;
  const float *norm_weight, *norm_bias, *positions;  // positions (context, width)
  Linear embedding, head;
  int32_t layers, width, heads, wide;  // keys and values are bfloat16 if wide is 0, float if it is 1
  float epsilon;
};

}  // extern "C"

namespace {

constexpr int kLanes = 16;  // outputs of a panel, positions of a block of the cache
constexpr int kGroup = 32;  // inputs that share a scale in int4
constexpr int kFew = 4;     // so many rows are prepared by each thread for itself: cheaper than to wait for each other

float from_bfloat16(uint16_t bits) {
  uint32_t wide = uint32_t(bits) << 16;
  float value;
  std::memcpy(&value, &wide, sizeof value);
  return value;
}

uint16_t to_bfloat16(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return uint16_t((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

// -- 16 numbers, one for each output of a panel -----------------------------------------------------------------------

// Ask for weights that will be read soon: processors do not look that far ahead by themselves.
inline void ahead(const void* from) {
#if defined(GPT2_AVX512) || defined(GPT2_AVX2)
  _mm_prefetch(static_cast<const char*>(from) + 4096, _MM_HINT_T0);
#endif
}

#if defined(GPT2_AVX512)

constexpr int kTogether = 7;   // rows that share the loads of a panel
constexpr int kAttending = 8;  // ... and those of keys and values, without tiles

struct Floats {
  __m512 v = _mm512_setzero_ps();
  void add(Floats w, float x) { v = _mm512_fmadd_ps(w.v, _mm512_set1_ps(x), v); }
};
struct Ints {
  __m512i v = _mm512_setzero_si512();
};
using Sums = Ints;
struct Bytes {
  __m512i v;
};

Floats load(const float* from) {
  ahead(from);
  return {_mm512_loadu_ps(from)};
}
Floats load_bfloat16(const uint16_t* from) {
  return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)from)), 16))};
}
void load_pairs(const uint16_t* from, Floats& first, Floats& second) {
  ahead(from);
  __m512i both = _mm512_loadu_si512(from);
  first.v = _mm512_castsi512_ps(_mm512_slli_epi32(both, 16));
  second.v = _mm512_castsi512_ps(_mm512_and_si512(both, _mm512_set1_epi32(int(0xffff0000))));
}
Bytes load_bytes(const void* from) {
  ahead(from);
  return {_mm512_loadu_si512(from)};
}
Bytes low_halves(Bytes b) { return {_mm512_and_si512(b.v, _mm512_set1_epi8(15))}; }
Bytes high_halves(Bytes b) { return {_mm512_and_si512(_mm512_srli_epi16(b.v, 4), _mm512_set1_epi8(15))}; }
int32_t four(const void* from) {
  int32_t bytes;
  std::memcpy(&bytes, from, sizeof bytes);
  return bytes;
}
// sum += 4 signed weights of each output times 4 unsigned activations
void add_signed(Ints& sum, Bytes w, const uint8_t* x) { sum.v = _mm512_dpbusd_epi32(sum.v, _mm512_set1_epi32(four(x)), w.v); }
// sum += 4 unsigned weights of each output times 4 signed activations
void add_unsigned(Ints& sum, Bytes w, const int8_t* x) { sum.v = _mm512_dpbusd_epi32(sum.v, w.v, _mm512_set1_epi32(four(x))); }
Ints all(int32_t value) { return {_mm512_set1_epi32(value)}; }
Ints operator+(Ints a, Ints b) { return {_mm512_add_epi32(a.v, b.v)}; }
Sums operator-(Sums a, Sums b) { return {_mm512_sub_epi32(a.v, b.v)}; }
Sums total(Ints a) { return a; }
Sums load(const int32_t* from) { return {_mm512_loadu_si512(from)}; }
Floats operator+(Floats a, Floats b) { return {_mm512_add_ps(a.v, b.v)}; }
Floats operator*(Floats a, Floats b) { return {_mm512_mul_ps(a.v, b.v)}; }
Floats operator*(Floats a, float b) { return {_mm512_mul_ps(a.v, _mm512_set1_ps(b))}; }
void add(Floats& sum, Floats a, Floats b) { sum.v = _mm512_fmadd_ps(a.v, b.v, sum.v); }
Floats to_floats(Ints a) { return {_mm512_cvtepi32_ps(a.v)}; }
void store(float* to, Floats a) { _mm512_storeu_ps(to, a.v); }

#elif defined(GPT2_AVX2)

constexpr int kTogether = 2, kAttending = 4;

struct Floats {
  __m256 a = _mm256_setzero_ps(), b = _mm256_setzero_ps();
  void add(Floats w, float x) {
    a = _mm256_fmadd_ps(w.a, _mm256_set1_ps(x), a);
    b = _mm256_fmadd_ps(w.b, _mm256_set1_ps(x), b);
  }
};
struct Ints {  // two sums for each output, side by side
  __m256i v[4] = {};
};
struct Sums {
  __m256i a, b;
};
struct Bytes {
  __m256i a, b;
};

Floats load(const float* from) {
  ahead(from);
  return {_mm256_loadu_ps(from), _mm256_loadu_ps(from + 8)};
}
__m256 eight(const uint16_t* from) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)from)), 16));
}
Floats load_bfloat16(const uint16_t* from) { return {eight(from), eight(from + 8)}; }
void load_pairs(const uint16_t* from, Floats& first, Floats& second) {
  ahead(from);
  __m256i a = _mm256_loadu_si256((const __m256i*)from), b = _mm256_loadu_si256((const __m256i*)(from + 16));
  __m256i high = _mm256_set1_epi32(int(0xffff0000));
  first = {_mm256_castsi256_ps(_mm256_slli_epi32(a, 16)), _mm256_castsi256_ps(_mm256_slli_epi32(b, 16))};
  second = {_mm256_castsi256_ps(_mm256_and_si256(a, high)), _mm256_castsi256_ps(_mm256_and_si256(b, high))};
}
Bytes load_bytes(const void* from) {
  ahead(from);
  auto at = static_cast<const __m256i*>(from);
  return {_mm256_loadu_si256(at), _mm256_loadu_si256(at + 1)};
}
__m256i halves(__m256i v, int shift) { return _mm256_and_si256(_mm256_srli_epi16(v, shift), _mm256_set1_epi8(15)); }
Bytes low_halves(Bytes b) { return {halves(b.a, 0), halves(b.b, 0)}; }
Bytes high_halves(Bytes b) { return {halves(b.a, 4), halves(b.b, 4)}; }
void add_wide(Ints& sum, Bytes w, __m128i x) {  // 4 activations as int16 meet the weights, all of which fit int8
  __m256i activations = _mm256_broadcastq_epi64(x);
  auto quarter = [&](int i, __m128i bytes) {
    sum.v[i] = _mm256_add_epi32(sum.v[i], _mm256_madd_epi16(_mm256_cvtepi8_epi16(bytes), activations));
  };
  quarter(0, _mm256_castsi256_si128(w.a));
  quarter(1, _mm256_extracti128_si256(w.a, 1));
  quarter(2, _mm256_castsi256_si128(w.b));
  quarter(3, _mm256_extracti128_si256(w.b, 1));
}
__m128i four(const void* from) {
  int32_t bytes;
  std::memcpy(&bytes, from, sizeof bytes);
  return _mm_cvtsi32_si128(bytes);
}
void add_signed(Ints& sum, Bytes w, const uint8_t* x) { add_wide(sum, w, _mm_cvtepu8_epi16(four(x))); }
void add_unsigned(Ints& sum, Bytes w, const int8_t* x) { add_wide(sum, w, _mm_cvtepi8_epi16(four(x))); }
Ints all(int32_t value) {
  __m256i half = _mm256_set1_epi64x(uint32_t(value));
  return {{half, half, half, half}};
}
Ints operator+(Ints a, Ints b) {
  for (int i = 0; i < 4; ++i) a.v[i] = _mm256_add_epi32(a.v[i], b.v[i]);
  return a;
}
Sums operator-(Sums x, Sums y) { return {_mm256_sub_epi32(x.a, y.a), _mm256_sub_epi32(x.b, y.b)}; }
__m256i joined(__m256i a, __m256i b) { return _mm256_permute4x64_epi64(_mm256_hadd_epi32(a, b), 0xd8); }
Sums total(Ints a) { return {joined(a.v[0], a.v[1]), joined(a.v[2], a.v[3])}; }
Sums load(const int32_t* from) {
  auto at = reinterpret_cast<const __m256i*>(from);
  return {_mm256_loadu_si256(at), _mm256_loadu_si256(at + 1)};
}
Floats operator+(Floats x, Floats y) { return {_mm256_add_ps(x.a, y.a), _mm256_add_ps(x.b, y.b)}; }
Floats operator*(Floats x, Floats y) { return {_mm256_mul_ps(x.a, y.a), _mm256_mul_ps(x.b, y.b)}; }
Floats operator*(Floats x, float y) { return {_mm256_mul_ps(x.a, _mm256_set1_ps(y)), _mm256_mul_ps(x.b, _mm256_set1_ps(y))}; }
void add(Floats& sum, Floats x, Floats y) {
  sum.a = _mm256_fmadd_ps(x.a, y.a, sum.a);
  sum.b = _mm256_fmadd_ps(x.b, y.b, sum.b);
}
Floats to_floats(Sums x) { return {_mm256_cvtepi32_ps(x.a), _mm256_cvtepi32_ps(x.b)}; }
void store(float* to, Floats x) {
  _mm256_storeu_ps(to, x.a);
  _mm256_storeu_ps(to + 8, x.b);
}

#else

constexpr int kTogether = 1, kAttending = 1;

struct Floats {
  float v[kLanes] = {};
  void add(const Floats& w, float x) {
    for (int i = 0; i < kLanes; ++i) v[i] += w.v[i] * x;
  }
};
struct Ints {
  int32_t v[kLanes] = {};
};
using Sums = Ints;
struct Bytes {
  uint8_t v[4 * kLanes];
};

Floats load(const float* from) {
  Floats out;
  std::memcpy(out.v, from, sizeof out.v);
  return out;
}
Floats load_bfloat16(const uint16_t* from) {
  Floats out;
  for (int i = 0; i < kLanes; ++i) out.v[i] = from_bfloat16(from[i]);
  return out;
}
void load_pairs(const uint16_t* from, Floats& first, Floats& second) {
  for (int i = 0; i < kLanes; ++i) first.v[i] = from_bfloat16(from[2 * i]), second.v[i] = from_bfloat16(from[2 * i + 1]);
}
Bytes load_bytes(const void* from) {
  Bytes out;
  std::memcpy(out.v, from, sizeof out.v);
  return out;
}
Bytes low_halves(Bytes b) {
  for (uint8_t& v : b.v) v &= 15;
  return b;
}
Bytes high_halves(Bytes b) {
  for (uint8_t& v : b.v) v >>= 4;
  return b;
}
void add_signed(Ints& sum, const Bytes& w, const uint8_t* x) {
  for (int i = 0; i < kLanes; ++i)
    for (int j = 0; j < 4; ++j) sum.v[i] += int8_t(w.v[4 * i + j]) * x[j];
}
void add_unsigned(Ints& sum, const Bytes& w, const int8_t* x) {
  for (int i = 0; i < kLanes; ++i)
    for (int j = 0; j < 4; ++j) sum.v[i] += w.v[4 * i + j] * x[j];
}
Ints all(int32_t value) {
  Ints out;
  std::fill(out.v, out.v + kLanes, value);
  return out;
}
Ints operator+(Ints a, const Ints& b) {
  for (int i = 0; i < kLanes; ++i) a.v[i] += b.v[i];
  return a;
}
Sums operator-(Sums a, const Sums& b) {
  for (int i = 0; i < kLanes; ++i) a.v[i] -= b.v[i];
  return a;
}
Sums total(const Ints& a) { return a; }
Sums load(const int32_t* from) {
  Sums out;
  std::memcpy(out.v, from, sizeof out.v);
  return out;
}
Floats operator*(Floats a, const Floats& b) {
  for (int i = 0; i < kLanes; ++i) a.v[i] *= b.v[i];
  return a;
}
Floats operator+(Floats a, const Floats& b) {
  for (int i = 0; i < kLanes; ++i) a.v[i] += b.v[i];
  return a;
}
Floats operator*(Floats a, float b) {
  for (float& v : a.v) v *= b;
  return a;
}
void add(Floats& sum, const Floats& a, const Floats& b) {
  for (int i = 0; i < kLanes; ++i) sum.v[i] += a.v[i] * b.v[i];
}
Floats to_floats(const Ints& a) {
  Floats out;
  for (int i = 0; i < kLanes; ++i) out.v[i] = float(a.v[i]);
  return out;
}
void store(float* to, const Floats& a) { std::memcpy(to, a.v, sizeof a.v); }

#endif

// Call do_with(n) with a number of rows, from 1 to MOST, that the compiler knows.
template <int MOST, typename Do>
void with_rows(int n, Do do_with) {
  if (n == MOST)
    do_with(std::integral_constant<int, MOST>());
  else if constexpr (MOST > 1)
    with_rows<MOST - 1>(n, do_with);
}

// -- activations as a linear layer takes them -------------------------------------------------------------------------

struct Rows {
  char* data;     // float32, bfloat16 (AMX): (rows, inputs); int8: two planes (2, capacity, inputs); int4: (rows, inputs)
  float* step;    // what one step of an activation stands for; int8: (rows); int4: (rows / 16, inputs / 32, 16)
  int32_t* minus8;  // int4: -8 times the sum of the activations of a group, as weights are stored from 0 to 15
  size_t capacity;
};

bool use_tiles = false;  // of AMX; gpt2_instructions asks the system for them

int bytes_per_input(int kind) {
  if (kind == kBfloat16 && use_tiles) return 2;
  return kind == kInt8 || kind == kInt4 ? 1 : 4;
}

inline float largest(const float* x, int n) {
  float most = x[0];
#pragma omp simd reduction(max : most)
  for (int i = 0; i < n; ++i) most = x[i] > most ? x[i] : most;
  return most;
}

inline float largest_magnitude(const float* x, int n) {  // never 0, as it divides
  float most = 0;
#pragma omp simd reduction(max : most)
  for (int i = 0; i < n; ++i) most = std::fabs(x[i]) > most ? std::fabs(x[i]) : most;
  return std::max(most, 1e-30f);
}

// 0 if all n numbers are finite, else no number: what is rounded to whole numbers would hide it.
inline float nothing_of(const float* x, int n) {
  float sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int i = 0; i < n; ++i) sum += x[i] * 0.0f;
  return sum;
}

size_t place_of_step(size_t row, int group, int groups) {
  return (row / kLanes * groups + group) * kLanes + row % kLanes;
}

// Write row r, whose `inputs` numbers end with zeros, in the form that weights of `kind` meet.
void prepare(int kind, const float* x, int inputs, const Rows& rows, size_t r) {
  char* row = rows.data + r * inputs * bytes_per_input(kind);
  const float nothing = kind == kInt8 || kind == kInt4 ? nothing_of(x, inputs) : 0.0f;
  if (kind == kInt8) {
    float most = largest_magnitude(x, inputs), factor = 32767.0f / most;
    uint8_t *high = reinterpret_cast<uint8_t*>(row), *low = high + rows.capacity * inputs;
#pragma omp simd
    for (int i = 0; i < inputs; ++i) {
      int32_t value = int32_t(std::nearbyint(x[i] * factor)) + 32768;
      high[i] = uint8_t(value >> 8);
      low[i] = uint8_t(value);
    }
    rows.step[r] = most / 32767.0f + nothing;
  } else if (kind == kInt4) {
    int8_t* to = reinterpret_cast<int8_t*>(row);
    for (int g = 0; g < inputs / kGroup; ++g) {
      const float* part = x + g * kGroup;
      float most = largest_magnitude(part, kGroup), factor = 127.0f / most;
      int32_t values[kGroup], sum = 0;  // three loops, as one would mix vectors of two sizes
      for (int i = 0; i < kGroup; ++i) values[i] = int32_t(std::nearbyint(part[i] * factor));
      for (int i = 0; i < kGroup; ++i) sum += values[i];
      for (int i = 0; i < kGroup; ++i) to[g * kGroup + i] = int8_t(values[i]);
      rows.step[place_of_step(r, g, inputs / kGroup)] = most / 127.0f + nothing;
      rows.minus8[place_of_step(r, g, inputs / kGroup)] = -8 * sum;
    }
  } else if (bytes_per_input(kind) == 2) {
    uint16_t* to = reinterpret_cast<uint16_t*>(row);
#pragma omp simd
    for (int i = 0; i < inputs; ++i) to[i] = to_bfloat16(x[i]);
  } else {
    std::memcpy(row, x, size_t(inputs) * 4);
  }
}

// -- products of a panel with ROWS rows ------------------------------------------------------------------------------

template <int ROWS>
void multiply_float32(const float* weight, int inputs, const float* x, Floats* out) {
  Floats sum[ROWS][4];
  for (int i = 0; i < inputs; i += 4)
    for (int j = 0; j < 4; ++j) {
      Floats w = load(weight + size_t(i + j) * kLanes);
      for (int r = 0; r < ROWS; ++r) sum[r][j].add(w, x[size_t(r) * inputs + i + j]);
    }
  for (int r = 0; r < ROWS; ++r) out[r] = (sum[r][0] + sum[r][1]) + (sum[r][2] + sum[r][3]);
}

template <int ROWS>
void multiply_bfloat16(const uint16_t* weight, int inputs, const float* x, Floats* out) {
  Floats sum[ROWS][4];
  for (int i = 0; i < inputs; i += 4)
    for (int j = 0; j < 4; j += 2) {
      Floats first, second;
      load_pairs(weight + size_t(i + j) * kLanes, first, second);
      for (int r = 0; r < ROWS; ++r) {
        sum[r][j].add(first, x[size_t(r) * inputs + i + j]);
        sum[r][j + 1].add(second, x[size_t(r) * inputs + i + j + 1]);
      }
    }
  for (int r = 0; r < ROWS; ++r) out[r] = (sum[r][0] + sum[r][1]) + (sum[r][2] + sum[r][3]);
}

// What the sums over both planes of 16-bit activations stand for.
Floats joined_planes(const Linear& l, int panel, Sums high, Sums low, float step) {
  Floats whole = to_floats(low);
  whole.add(to_floats(high - load(l.sum + panel * kLanes)), 256.0f);
  return whole * (load(static_cast<const float*>(l.scale) + panel * kLanes) * step);
}

template <int ROWS>
void multiply_int8(const Linear& l, int panel, const Rows& rows, size_t row, Floats* out) {
  constexpr int kParts = ROWS == 1 ? 4 : ROWS == 2 ? 2 : 1;  // enough sums to hide the latency of one
  const int8_t* weight = static_cast<const int8_t*>(l.weight) + size_t(panel) * kLanes * l.inputs;
  const uint8_t* high = reinterpret_cast<const uint8_t*>(rows.data) + row * l.inputs;
  const uint8_t* low = high + rows.capacity * l.inputs;
  Ints sum[ROWS][2][kParts];
  for (int i = 0; i < l.inputs; i += 4 * kParts)
    for (int p = 0; p < kParts; ++p) {
      Bytes w = load_bytes(weight + size_t(i + 4 * p) * kLanes);
      for (int r = 0; r < ROWS; ++r) {
        add_signed(sum[r][0][p], w, high + size_t(r) * l.inputs + i + 4 * p);
        add_signed(sum[r][1][p], w, low + size_t(r) * l.inputs + i + 4 * p);
      }
    }
  for (int r = 0; r < ROWS; ++r) {
    for (int p = 1; p < kParts; ++p)
      for (int plane = 0; plane < 2; ++plane) sum[r][plane][0] = sum[r][plane][0] + sum[r][plane][p];
    out[r] = joined_planes(l, panel, total(sum[r][0][0]), total(sum[r][1][0]), rows.step[row + r]);
  }
}

template <int ROWS>
void multiply_int4(const Linear& l, int panel, const Rows& rows, size_t row, Floats* out) {
  const int groups = l.inputs / kGroup;
  const char* weight = static_cast<const char*>(l.weight) + size_t(panel) * kLanes * l.inputs / 2;
  const uint16_t* scale = static_cast<const uint16_t*>(l.scale) + size_t(panel) * kLanes * groups;
  const int8_t* x = reinterpret_cast<const int8_t*>(rows.data) + row * l.inputs;
  Floats sum[ROWS];
  for (int g = 0; g < groups; ++g) {
    Ints part[ROWS][2];
    for (int r = 0; r < ROWS; ++r) part[r][0] = all(rows.minus8[place_of_step(row + r, g, groups)]);
    for (int i = 0; i < kGroup; i += 8) {
      Bytes both = load_bytes(weight + size_t(g * kGroup + i) * kLanes / 2);
      Bytes first = low_halves(both), second = high_halves(both);
      for (int r = 0; r < ROWS; ++r) {
        const int8_t* at = x + size_t(r) * l.inputs + g * kGroup + i;
        add_unsigned(part[r][0], first, at);
        add_unsigned(part[r][1], second, at + 4);
      }
    }
    Floats scales = load_bfloat16(scale + size_t(g) * kLanes);
    for (int r = 0; r < ROWS; ++r) {
      const float step = rows.step[place_of_step(row + r, g, groups)];
      add(sum[r], to_floats(total(part[r][0] + part[r][1])), scales * step);
    }
  }
  for (int r = 0; r < ROWS; ++r) out[r] = sum[r];
}

template <int ROWS>
void multiply(const Linear& l, int panel, const Rows& rows, size_t row, Floats* out) {
  const size_t first = size_t(panel) * kLanes * l.inputs;
  const float* x = reinterpret_cast<const float*>(rows.data) + row * l.inputs;
  switch (l.kind) {
    case kFloat32: return multiply_float32<ROWS>(static_cast<const float*>(l.weight) + first, l.inputs, x, out);
    case kBfloat16: return multiply_bfloat16<ROWS>(static_cast<const uint16_t*>(l.weight) + first, l.inputs, x, out);
    case kInt8: return multiply_int8<ROWS>(l, panel, rows, row, out);
    default: return multiply_int4<ROWS>(l, panel, rows, row, out);
  }
}

#if defined(GPT2_AMX)

// Two panels times two tiles of 16 rows: out (2 tiles of rows, 2 panels, 16 rows, 16 outputs).
template <bool INT8, bool FIRST>
void multiply_tiles(const char* w0, const char* w1, int steps, const char* x0, const char* x1, size_t stride, void* out) {
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  for (int s = 0; s < steps; ++s) {
    for (int i = 0; FIRST && i < 16; ++i) {  // later rows find the weights in the cache
      ahead(w0 + s * 1024 + i * 64);
      ahead(w1 + s * 1024 + i * 64);
    }
    _tile_loadd(4, x0 + s * 64, stride);
    _tile_loadd(6, w0 + s * 1024, 64);
    _tile_loadd(7, w1 + s * 1024, 64);
    _tile_loadd(5, x1 + s * 64, stride);
    if (INT8) {
      _tile_dpbusd(0, 4, 6);
      _tile_dpbusd(1, 4, 7);
      _tile_dpbusd(2, 5, 6);
      _tile_dpbusd(3, 5, 7);
    } else {
      _tile_dpbf16ps(0, 4, 6);
      _tile_dpbf16ps(1, 4, 7);
      _tile_dpbf16ps(2, 5, 6);
      _tile_dpbf16ps(3, 5, 7);
    }
  }
  char* to = static_cast<char*>(out);
  _tile_stored(0, to, 64);
  _tile_stored(1, to + 1024, 64);
  _tile_stored(2, to + 2048, 64);
  _tile_stored(3, to + 3072, 64);
}

struct TileConfig {  // Intel SDM volume 1, chapter 18
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t bytes_per_row[16] = {};
  uint8_t rows[16] = {};
};

struct Tiles {  // of this thread: 0 to 3 for sums, 4 and 5 for activations, 6 and 7 for weights
  Tiles() {
    if (use_tiles) configure(64);
  }
  ~Tiles() {
    if (use_tiles) _tile_release();
  }
  // Let a tile hold so many bytes of each row of activations, and as many rows of 4 bytes of weights.
  static void configure(int bytes) {
    TileConfig config;
    for (int i = 0; i < 8; ++i) config.bytes_per_row[i] = 64, config.rows[i] = 16;
    config.bytes_per_row[4] = config.bytes_per_row[5] = uint16_t(bytes);
    config.rows[6] = config.rows[7] = uint8_t(bytes / 4);
    _tile_loadconfig(&config);
  }
  // For so many rows of queries: 4 takes them, 5 keys, 6 shares of 16 positions and 7 their values.
  static void configure_attention(int rows) {
    TileConfig config;
    for (int i = 0; i < 8; ++i) config.bytes_per_row[i] = 64, config.rows[i] = uint8_t(rows);
    config.rows[5] = 16;
    config.bytes_per_row[6] = 32;
    config.rows[7] = 8;
    _tile_loadconfig(&config);
  }
};

// Cut the halves of a panel of int4 into whole numbers from -8 to 7: (inputs / 4, 16, 4).
void unpack_panel(const char* from, int inputs, char* to) {
  const __m512i eight = _mm512_set1_epi8(8);
  for (int i = 0; i < inputs; i += 8, to += 8 * kLanes, from += 4 * kLanes) {
    Bytes both = load_bytes(from);
    _mm512_store_si512(to, _mm512_sub_epi8(low_halves(both).v, eight));
    _mm512_store_si512(to + 4 * kLanes, _mm512_sub_epi8(high_halves(both).v, eight));
  }
}

// A panel of int4, unpacked, times 16 rows: the sums of multiply_int4, in the same order.
void multiply_int4_tile(const Linear& l, int panel, const char* weight, const Rows& rows, size_t row, Floats* out) {
  const int groups = l.inputs / kGroup;
  const uint16_t* scale = static_cast<const uint16_t*>(l.scale) + size_t(panel) * kLanes * groups;
  const char* x = rows.data + row * l.inputs;
  const float* step = rows.step + place_of_step(row, 0, groups);
  alignas(64) int32_t parts[4][16][kLanes];
  Floats sum[16];
  for (int g = 0; g <= groups; g += 2) {
    if (g < groups) {
      _tile_zero(0);
      _tile_zero(1);
      _tile_loadd(4, x + g * kGroup, l.inputs);
      _tile_loadd(6, weight + g * kGroup * kLanes, 64);
      _tile_loadd(5, x + (g + 1) * kGroup, l.inputs);
      _tile_loadd(7, weight + (g + 1) * kGroup * kLanes, 64);
      _tile_dpbssd(0, 4, 6);
      _tile_dpbssd(1, 5, 7);
      _tile_stored(0, parts[g % 4], 64);
      _tile_stored(1, parts[g % 4 + 1], 64);
    }
    for (int before = std::max(0, g - 2); before < g; ++before) {  // whose sums have reached the cache by now
      const Floats scales = load_bfloat16(scale + size_t(before) * kLanes);
#pragma GCC unroll 16
      for (int i = 0; i < 16; ++i) {
        add(sum[i], to_floats(load(parts[before % 4][i])), scales * step[before * kLanes + i]);
      }
    }
  }
  std::copy(sum, sum + 16, out);
}

bool ask_for_tiles() {  // Linux lends them to a process that asks: ARCH_REQ_XCOMP_PERM of XTILEDATA
  constexpr int kAsk = 0x1023, kTileData = 18;
  return syscall(SYS_arch_prctl, kAsk, kTileData) == 0;
}

#else

struct Tiles {
  Tiles() {}
};

bool ask_for_tiles() { return false; }

#endif

// -- what stands between the products ---------------------------------------------------------------------------------

inline float exponential(float x) {  // Cephes' polynomial, within 2 units in the last place
  x = std::min(std::max(x, -87.0f), 88.0f);
  float n = std::nearbyint(x * 1.44269504f);
  float f = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  float p = 1.9875691500e-4f;
  p = p * f + 1.3981999507e-3f;
  p = p * f + 8.3334519073e-3f;
  p = p * f + 4.1665795894e-2f;
  p = p * f + 1.6666665459e-1f;
  p = p * f + 5.0000001201e-1f;
  p = p * f * f + f + 1.0f;
  int32_t bits = (int32_t(n) + 127) << 23;
  float power;
  std::memcpy(&power, &bits, sizeof power);
  return p * power;
}

inline float gelu(float x) {  // the tanh form: tanh(u) = 1 - 2 / (1 + exp(2 u))
  float u = 0.7978845608028654f * (x + 0.044715f * x * x * x);
  return x / (1.0f + exponential(-2.0f * u));
}

void normalise(const float* x, const float* weight, const float* bias, int n, float epsilon, float* y) {
  float mean = 0, square = 0;
#pragma omp simd reduction(+ : mean)
  for (int i = 0; i < n; ++i) mean += x[i];
  mean /= float(n);
#pragma omp simd reduction(+ : square)
  for (int i = 0; i < n; ++i) square += (x[i] - mean) * (x[i] - mean);
  float factor = 1.0f / std::sqrt(square / float(n) + epsilon);
#pragma omp simd
  for (int i = 0; i < n; ++i) y[i] = (x[i] - mean) * factor * weight[i] + bias[i];
}

// The weights of one output times what a step stands for: the embedding of a token, which is never kept in int4.
void weights_of(const Linear& l, int output, int n, float* out) {
  const size_t first = size_t(output / kLanes) * kLanes * l.inputs, lane = output % kLanes;
  if (l.kind == kInt8) {
    const int8_t* from = static_cast<const int8_t*>(l.weight) + first + lane * 4;
    const float scale = static_cast<const float*>(l.scale)[output];
    for (int i = 0; i < n; ++i) out[i] = float(from[i / 4 * 4 * kLanes + i % 4]) * scale;
  } else if (l.kind == kBfloat16) {
    const uint16_t* from = static_cast<const uint16_t*>(l.weight) + first + lane * 2;
    for (int i = 0; i < n; ++i) out[i] = from_bfloat16(from[i / 2 * 2 * kLanes + i % 2]);
  } else {
    const float* from = static_cast<const float*>(l.weight) + first + lane;
    for (int i = 0; i < n; ++i) out[i] = from[i * kLanes];
  }
}

// -- the cache: per head, blocks of 16 positions, in which keys and values are panels ----------------------------------

template <typename T>
struct Cache;

template <>
struct Cache<float> {
  // Put 16 numbers of a key or a value, from dimension d on, at a position of a block.
  static void put_key(float* block, int position, int d, const float* numbers) {
    float* to = block + d * kLanes + position;
    for (int i = 0; i < kLanes; ++i) to[i * kLanes] = numbers[i];
  }
  static void put_value(float* block, int position, int d, const float* numbers) {
    float* to = block + (d + position) * kLanes;
    std::memcpy(to, numbers, kLanes * sizeof(float));
    if (position % 2 == 0) std::fill(to + kLanes, to + 2 * kLanes, 0.0f);  // is read with it, times zero
  }
  static void load(const float* from, Floats& first, Floats& second) {
    first = ::load(from);
    second = ::load(from + kLanes);
  }
};

template <>
struct Cache<uint16_t> {  // two dimensions of keys lie side by side, and two positions of values
  static void put_key(uint16_t* block, int position, int d, const float* numbers) {
    uint16_t* to = block + d * kLanes + 2 * position;
    for (int i = 0; i < kLanes; i += 2) {
      const uint16_t pair[2] = {to_bfloat16(numbers[i]), to_bfloat16(numbers[i + 1])};
      std::memcpy(to + i * kLanes, pair, sizeof pair);
    }
  }
  static void put_value(uint16_t* block, int position, int d, const float* numbers) {
    uint16_t* to = block + (d + position / 2 * 2) * kLanes;
    uint16_t pairs[kLanes][2];
    for (int i = 0; i < kLanes; ++i) {
      pairs[i][0] = position % 2 ? to[2 * i] : to_bfloat16(numbers[i]);
      pairs[i][1] = position % 2 ? to_bfloat16(numbers[i]) : uint16_t(0);
    }
    std::memcpy(to, pairs, sizeof pairs);
    // What comes later in the block is read with it, times zero, which must not meet infinities.
    std::memset(to + 2 * kLanes, 0, (kLanes / 2 - 1 - position / 2) * sizeof pairs);
  }
  static void load(const uint16_t* from, Floats& first, Floats& second) { load_pairs(from, first, second); }
};

// The keys or values of one head of one stream, block by block.
template <typename T>
struct Head {
  T* const* pages;
  size_t offset;  // of this head in each page
  int blocks;     // of a page
  size_t numbers;  // of a block

  T* block(int number) const { return pages[number / blocks] + offset + number % blocks * numbers; }
};

// Turn the first `seen` of `room` scores into their exponentials, relative to the largest, and the others into zeros;
// return the sum.
float raise_scores(float* row, int seen, int room) {
  std::fill(row + seen, row + room, -INFINITY);
  const float most = largest(row, room);
  float sums[kLanes] = {}, sum = 0;
  for (int t = 0; t < room; ++t) row[t] = exponential(row[t] - most);
  std::fill(row + seen, row + room, 0.0f);
  for (int t = 0; t < room; t += kLanes)
    for (int i = 0; i < kLanes; ++i) sums[i] += row[t + i];
  for (float part : sums) sum += part;
  return sum;
}

// softmax(q K^T / sqrt(size)) V of one head for ROWS neighbouring rows of one stream, the first of which sees `length`
// positions; q and y are `stride` apart, scores has room for ROWS times the positions, rounded up to blocks.
template <int ROWS, typename T>
void attend(const float* q, Head<T> keys, Head<T> values, int length, int size, size_t stride, float* scores, float* y) {
  const int blocks = (length + ROWS - 1 + kLanes - 1) / kLanes, room = blocks * kLanes;
  const float factor = 1.0f / std::sqrt(float(size));
  for (int block = 0; block < blocks; ++block) {
    const T* from = keys.block(block);
    Floats sum[ROWS][2];
    for (int d = 0; d < size; d += 2) {
      Floats first, second;
      Cache<T>::load(from + d * kLanes, first, second);
      for (int r = 0; r < ROWS; ++r) {
        sum[r][0].add(first, q[r * stride + d]);
        sum[r][1].add(second, q[r * stride + d + 1]);
      }
    }
    for (int r = 0; r < ROWS; ++r) store(scores + r * room + block * kLanes, (sum[r][0] + sum[r][1]) * factor);
  }
  float total[ROWS];
  for (int r = 0; r < ROWS; ++r) total[r] = raise_scores(scores + r * room, length + r, room);
  for (int d = 0; d < size; d += kLanes) {
    Floats sum[ROWS][2];
    for (int block = 0; block < blocks; ++block) {
      const T* from = values.block(block) + d * kLanes;
      for (int t = 0; t < std::min(kLanes, length + ROWS - 1 - block * kLanes); t += 2) {
        Floats first, second;
        Cache<T>::load(from + t * kLanes, first, second);
        for (int r = 0; r < ROWS; ++r) {
          const float* share = scores + r * room + block * kLanes + t;
          sum[r][0].add(first, share[0]);
          sum[r][1].add(second, share[1]);
        }
      }
    }
    for (int r = 0; r < ROWS; ++r) store(y + r * stride + d, (sum[r][0] + sum[r][1]) * (1.0f / total[r]));
  }
}

#if defined(GPT2_AMX)

// The same with tiles, for up to 16 rows: `size` is a multiple of 64, and the queries and the shares are rounded to
// bfloat16 as well. A row of scores is `room` and some more apart from the next, so that they meet in no set of the cache.
void attend_tiles(int rows, const float* q, Head<uint16_t> keys, Head<uint16_t> values, int length, int size,
                  size_t stride, float* scores, float* y) {
  const int blocks = (length + rows - 1 + kLanes - 1) / kLanes, room = blocks * kLanes;
  const size_t apart = room + kLanes;
  const float factor = 1.0f / std::sqrt(float(size));
  auto queries = reinterpret_cast<uint16_t*>(scores + 16 * apart);
  alignas(64) float sums[4][16][kLanes];
  for (int r = 0; r < rows; ++r)
#pragma omp simd
    for (int d = 0; d < size; ++d) queries[r * size + d] = to_bfloat16(q[r * stride + d] * factor);
  Tiles::configure_attention(rows);
  for (int block = 0; block < blocks; block += 2) {
    const int next = std::min(block + 1, blocks - 1);
    const uint16_t *first = keys.block(block), *second = keys.block(next);
    _tile_zero(0);
    _tile_zero(1);
    for (int d = 0; d < size; d += 32) {
      _tile_loadd(4, queries + d, size * 2);
      _tile_loadd(5, first + d * kLanes, 64);
      _tile_dpbf16ps(0, 4, 5);
      _tile_loadd(5, second + d * kLanes, 64);
      _tile_dpbf16ps(1, 4, 5);
    }
    _tile_stored(0, scores + block * kLanes, apart * 4);
    _tile_stored(1, scores + next * kLanes, apart * 4);
  }
  float total[16];
  for (int r = 0; r < rows; ++r) {
    float* row = scores + r * apart;
    total[r] = raise_scores(row, length + r, room);
    uint16_t* shares = reinterpret_cast<uint16_t*>(row);
    for (int t = 0; t < room; t += kLanes) {
      uint16_t part[kLanes];
      for (int i = 0; i < kLanes; ++i) part[i] = to_bfloat16(row[t + i]);
      std::memcpy(shares + t, part, sizeof part);
    }
  }
  for (int d = 0; d < size; d += 4 * kLanes) {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (int block = 0; block < blocks; ++block) {
      const uint16_t* from = values.block(block) + d * kLanes;
      _tile_loadd(6, scores + block * kLanes / 2, apart * 4);
      _tile_loadd(7, from, 64);
      _tile_dpbf16ps(0, 6, 7);
      _tile_loadd(7, from + kLanes * kLanes, 64);
      _tile_dpbf16ps(1, 6, 7);
      _tile_loadd(7, from + 2 * kLanes * kLanes, 64);
      _tile_dpbf16ps(2, 6, 7);
      _tile_loadd(7, from + 3 * kLanes * kLanes, 64);
      _tile_dpbf16ps(3, 6, 7);
    }
    _tile_stored(0, sums[0], 64);
    _tile_stored(1, sums[1], 64);
    _tile_stored(2, sums[2], 64);
    _tile_stored(3, sums[3], 64);
    for (int r = 0; r < rows; ++r)
      for (int part = 0; part < 4; ++part)
        store(y + r * stride + d + part * kLanes, load(sums[part][r]) * (1.0f / total[r]));
  }
}

#endif

// -- the forward pass -------------------------------------------------------------------------------------------------

constexpr int kShares = 8;  // into which a thread's part of a layer is cut, so that a slower one can leave some to others
constexpr int kPieces = 5;  // of work in a layer
constexpr size_t kAlign = 64;
size_t rounded(size_t n, size_t to = kAlign) { return (n + to - 1) / to * to; }

struct Memory {
  char* at;
  template <typename T>
  T* take(size_t count) {
    T* taken = reinterpret_cast<T*>(at);
    at += rounded(count * sizeof(T));
    return taken;
  }
};

struct Sizes {
  size_t width, inner, capacity;  // inputs of the layers, padded; rows, padded to a tile
  explicit Sizes(const Model& model, int rows)
      : width(model.blocks[0].attention_in.inputs), inner(model.blocks[0].outer.inputs), capacity(rounded(rows, 32)) {}
};

Rows take_rows(Memory& memory, size_t capacity, size_t inputs) {
  Rows rows{memory.take<char>(capacity * inputs * 4), nullptr, nullptr, capacity};
  rows.step = memory.take<float>(capacity * inputs / kGroup);
  rows.minus8 = memory.take<int32_t>(capacity * inputs / kGroup);
  return rows;
}

// What all threads share during a pass.
struct Shared {
  float *x, *queries, *mixed, *inner;
  Rows prepared;
  std::atomic<int>* taken;  // of each piece of work
};

template <typename T>
struct Pass {
  const Model& model;
  const Sizes sizes;
  const int rows;
  const int32_t* positions;
  T* const* const* pages;  // of the stream of each row
  const int page;          // positions of a page
  const Shared shared;
  int number = 0, count = 1;  // this thread, and how many there are
  int phase = 0;              // the next piece of work
  Rows own{};                 // its memory for a few rows
  float *normed = nullptr, *scores = nullptr;
  char* unpacked = nullptr;   // a panel of int4 as bytes

  void wait() const {
#pragma omp barrier
  }

  // Prepare rows for a layer from make(r), which returns a row of padded inputs.
  template <typename Make>
  const Rows& prepared(const Linear& l, int rows, Make make) const {
    if (rows <= kFew) {
      for (int r = 0; r < rows; ++r) prepare(l.kind, make(r), l.inputs, own, r);
      return own;
    }
    for (int r = number; r < rows; r += count) prepare(l.kind, make(r), l.inputs, shared.prepared, r);
    wait();
    return shared.prepared;
  }

  const float* norm(const float* row, const float* weight, const float* bias) const {
    normalise(row, weight, bias, model.width, model.epsilon, normed);
    return normed;
  }

  // Give all threads work on numbers up to n, `most` at a time, until none is left: run(begin, end).
  template <typename Do>
  void share(int n, int most, Do run) {
    std::atomic<int>& taken = shared.taken[phase++];
    for (int begin; (begin = taken.fetch_add(most, std::memory_order_relaxed)) < n;) run(begin, std::min(begin + most, n));
  }

  // Hand outputs to put(row, first output, 16 values).
  template <typename Put>
  void apply(const Linear& l, const Rows& x, int rows, Put put) {
    const int panels = (l.outputs + kLanes - 1) / kLanes;
    const int most = count == 1 ? panels : std::max(2, panels / (count * kShares) / 2 * 2);
    auto finish = [&](int r, int panel, Floats sums) {
      put(r, panel * kLanes, l.bias ? sums + load(l.bias + panel * kLanes) : sums);
    };
    share(panels, most, [&](int begin, int end) {
#if defined(GPT2_AMX)
      if (use_tiles && l.kind == kInt4 && rows > 2 * kFew) return apply_int4_tiles(l, x, rows, begin, end, finish);
      if (use_tiles && (l.kind == kBfloat16 || (l.kind == kInt8 && rows > kFew)))
        return apply_tiles(l, x, rows, begin, end, finish);
#endif
      for (int panel = begin; panel < end; ++panel)
        for (int r = 0; r < rows; r += kTogether) {
          Floats sums[kTogether];
          const int together = std::min(kTogether, rows - r);
          with_rows<kTogether>(together, [&](auto n) { multiply<n()>(l, panel, x, r, sums); });
          for (int i = 0; i < together; ++i) finish(r + i, panel, sums[i]);
        }
    });
  }

#if defined(GPT2_AMX)
  template <typename Finish>
  void apply_int4_tiles(const Linear& l, const Rows& x, int rows, int begin, int end, Finish finish) const {
    Tiles::configure(kGroup);
    for (int panel = begin; panel < end; ++panel) {
      unpack_panel(static_cast<const char*>(l.weight) + size_t(panel) * kLanes * l.inputs / 2, l.inputs, unpacked);
      for (int r = 0; r < rows; r += 16) {
        Floats sums[16];
        multiply_int4_tile(l, panel, unpacked, x, r, sums);
        for (int i = 0; i < std::min(16, rows - r); ++i) finish(r + i, panel, sums[i]);
      }
    }
    Tiles::configure(64);
  }

  template <typename Finish>
  void apply_tiles(const Linear& l, const Rows& x, int rows, int begin, int end, Finish finish) const {
    const bool int8 = l.kind == kInt8;
    const int step = int8 ? 16 : 32;
    const size_t stride = l.inputs * (int8 ? 1 : 2), panel_bytes = size_t(kLanes) * stride;
    alignas(64) int32_t out[4][16][kLanes];
    for (int panel = begin; panel < end; panel += 2) {
      const char* w0 = static_cast<const char*>(l.weight) + panel * panel_bytes;
      const char* w1 = panel + 1 < end ? w0 + panel_bytes : w0;
      for (int r = 0; r < rows; r += step) {
        const char* x0 = x.data + r * stride;
        const char* x1 = int8 ? x0 + x.capacity * stride : x0 + (r + 16 < rows ? 16 * stride : 0);
        auto multiply = int8 ? r ? multiply_tiles<true, false> : multiply_tiles<true, true>
                             : r ? multiply_tiles<false, false> : multiply_tiles<false, true>;
        multiply(w0, w1, int(stride / 64), x0, x1, stride, out);
        for (int p = panel; p < std::min(panel + 2, end); ++p)
          for (int i = 0; i < std::min(step, rows - r); ++i)
            if (int8)
              finish(r + i, p, joined_planes(l, p, load(out[p - panel][i]), load(out[2 + p - panel][i]), x.step[r + i]));
            else
              finish(r + i, p, load(reinterpret_cast<const float*>(out[p - panel + i / 16 * 2][i % 16])));
      }
    }
  }
#endif

  void embed(const int32_t* ids) const {
    for (int r = number; r < rows; r += count) {
      float* x = shared.x + r * sizes.width;
      const float* position = model.positions + size_t(positions[r]) * model.width;
      weights_of(model.embedding, ids[r], model.width, x);
      for (int i = 0; i < model.width; ++i) x[i] += position[i];
    }
    wait();
  }

  void attention(const Block& block, int layer) {
    const int width = model.width, size = width / model.heads;
    const Rows& x = prepared(block.attention_in, rows, [&](int r) {
      return norm(shared.x + r * sizes.width, block.norm1_weight, block.norm1_bias);
    });
    int known = -1, which = 0, head = 0, d = 0;  // of the panel at hand
    apply(block.attention_in, x, rows, [&](int r, int first, Floats sums) {
      if (first != known) known = first, which = first / width, head = first % width / size, d = first % width % size;
      if (which == 0) return store(shared.queries + r * sizes.width + first, sums);
      const int at = positions[r];
      float numbers[kLanes];
      store(numbers, sums);
      if (which == 1)
        Cache<T>::put_key(keys_of(r, layer, head, size).block(at / kLanes), at % kLanes, d, numbers);
      else
        Cache<T>::put_value(values_of(r, layer, head, size).block(at / kLanes), at % kLanes, d, numbers);
    });
    wait();
    mix(layer, size);
    wait();
  }

  Head<T> keys_of(int r, int layer, int head, int size) const {
    return {pages[r], (size_t(layer) * model.heads + head) * page * size, page / kLanes, size_t(size) * kLanes};
  }
  Head<T> values_of(int r, int layer, int head, int size) const {  // behind all keys of the page
    return keys_of(r, model.layers + layer, head, size);
  }

  // Attention of all heads; neighbouring rows of one stream go through its cache together.
  void mix(int layer, int size) {
    const bool tiles = use_tiles && sizeof(T) == 2 && size % 64 == 0;
    share(model.heads, 1, [&](int head, int) {
      for (int r = 0, together; r < rows; r += together) {
        const int most = tiles ? 16 : kAttending;
        for (together = 1; together < most && r + together < rows && pages[r + together] == pages[r] &&
                           positions[r + together] == positions[r] + together;)
          ++together;
        const size_t place = r * sizes.width + head * size;
        const Head<T> k = keys_of(r, layer, head, size), v = values_of(r, layer, head, size);
        const int length = positions[r] + 1;
        const float* q = shared.queries + place;
        float* y = shared.mixed + place;
#if defined(GPT2_AMX)
        if constexpr (sizeof(T) == 2)
          if (tiles) {
            attend_tiles(together, q, k, v, length, size, sizes.width, scores, y);
            continue;
          }
#endif
        with_rows<kAttending>(together, [&](auto n) { attend<n()>(q, k, v, length, size, sizes.width, scores, y); });
      }
#if defined(GPT2_AMX)
      if (tiles) Tiles::configure(64);
#endif
    });
  }

  void add(const Linear& l, const Rows& x) {
    apply(l, x, rows, [&](int r, int first, Floats sums) {
      float* to = shared.x + r * sizes.width + first;
      store(to, load(to) + sums);
    });
    wait();
  }

  void layer(const Block& block, int number_of_layer) {
    attention(block, number_of_layer);
    add(block.attention_out, prepared(block.attention_out, rows, [&](int r) { return shared.mixed + r * sizes.width; }));
    const Rows& x = prepared(block.inner, rows, [&](int r) {
      return norm(shared.x + r * sizes.width, block.norm2_weight, block.norm2_bias);
    });
    apply(block.inner, x, rows, [&](int r, int first, Floats sums) {
      float* to = shared.inner + r * sizes.inner + first;
      store(to, sums);
      for (int i = 0; i < kLanes; ++i) to[i] = gelu(to[i]);
    });
    wait();
    add(block.outer, prepared(block.outer, rows, [&](int r) { return shared.inner + r * sizes.inner; }));
  }

  void score(const int32_t* wanted, int count_wanted, float* logits) {
    const Rows& x = prepared(model.head, count_wanted, [&](int i) {
      return norm(shared.x + wanted[i] * sizes.width, model.norm_weight, model.norm_bias);
    });
    const size_t stride = rounded(model.head.outputs, kLanes);
    apply(model.head, x, count_wanted, [&](int i, int first, Floats sums) { store(logits + i * stride + first, sums); });
  }
};

size_t own_bytes(const Sizes& sizes, int longest) {
  size_t widest = std::max(sizes.width, sizes.inner), few = rounded(kFew, 32);
  return rounded(few * widest * 4) + 2 * rounded(few * widest / kGroup * 4) + rounded(sizes.width * 4) + widest * kLanes +
         rounded(16 * (rounded(longest, kLanes) + 2 * kLanes) * 4) + rounded(16 * sizes.width * 2);
}

template <typename T>
void forward(const Model& model, const int32_t* ids, int rows, const int32_t* positions, void* const* const* pages,
             int page, int longest, const int32_t* wanted, int count_wanted, float* logits, char* scratch, int threads) {
  const Sizes sizes(model, rows);
  Memory memory{reinterpret_cast<char*>(rounded(reinterpret_cast<size_t>(scratch)))};
  Shared shared{};
  shared.x = memory.take<float>(sizes.capacity * sizes.width);
  shared.queries = memory.take<float>(sizes.capacity * sizes.width);
  shared.mixed = memory.take<float>(sizes.capacity * sizes.width);
  shared.inner = memory.take<float>(sizes.capacity * sizes.inner);
  shared.prepared = take_rows(memory, sizes.capacity, std::max(sizes.width, sizes.inner));
  const int pieces = kPieces * model.layers + 1;
  shared.taken = memory.take<std::atomic<int>>(pieces);
  for (int i = 0; i < pieces; ++i) shared.taken[i] = 0;
  for (int r = 0; r < rows; ++r) {  // inputs beyond the layer's
    std::fill(shared.mixed + r * sizes.width + model.width, shared.mixed + (r + 1) * sizes.width, 0.0f);
    std::fill(shared.inner + r * sizes.inner + model.blocks[0].inner.outputs, shared.inner + (r + 1) * sizes.inner, 0.0f);
  }
  const Pass<T> pass{model, sizes, rows, positions, reinterpret_cast<T* const* const*>(pages), page, shared};
  char* begin = memory.at;
#pragma omp parallel num_threads(threads)
  {
    Tiles tiles;
    Pass<T> mine = pass;
#if defined(_OPENMP)
    mine.number = omp_get_thread_num();
    mine.count = omp_get_num_threads();
#endif
    Memory own{begin + own_bytes(sizes, longest) * mine.number};
    mine.own = take_rows(own, rounded(kFew, 32), std::max(sizes.width, sizes.inner));
    mine.normed = own.take<float>(sizes.width);
    mine.unpacked = own.take<char>(std::max(sizes.width, sizes.inner) * kLanes);
    mine.scores = own.take<float>(0);
    std::fill(mine.normed + model.width, mine.normed + sizes.width, 0.0f);
    mine.embed(ids);
    for (int layer = 0; layer < model.layers; ++layer) mine.layer(model.blocks[layer], layer);
    if (count_wanted) mine.score(wanted, count_wanted, logits);
  }
}

}  // namespace

extern "C" {

// What this library was compiled for; null where the processor lacks it.
const char* gpt2_instructions() {
#if defined(GPT2_AVX512)
  if (!__builtin_cpu_supports("avx512vnni")) return nullptr;
  use_tiles = ask_for_tiles();
  return use_tiles ? "AMX" : "AVX-512 VNNI";
#elif defined(GPT2_AVX2)
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") ? "AVX2" : nullptr;
#else
  return "plain C++";
#endif
}

// The sum of all 64-bit numbers of a memory: how fast weights could be read.
int64_t gpt2_read(const int64_t* memory, int64_t bytes, int threads) {
  int64_t total = 0;
#pragma omp parallel for simd num_threads(threads) reduction(+ : total) schedule(static)
  for (int64_t i = 0; i < bytes / 8; ++i) total += memory[i];
  return total;
}

// Bytes of memory that `gpt2_forward` works in.
int64_t gpt2_scratch(const Model* model, int rows, int longest, int threads) {
  const Sizes sizes(*model, rows);
  const size_t widest = std::max(sizes.width, sizes.inner);
  return int64_t(kAlign + 3 * rounded(sizes.capacity * sizes.width * 4) + rounded(sizes.capacity * sizes.inner * 4) +
                 rounded(sizes.capacity * widest * 4) + 2 * rounded(sizes.capacity * widest / kGroup * 4) +
                 rounded((kPieces * model->layers + 1) * sizeof(std::atomic<int>)) + threads * own_bytes(sizes, longest));
}

// Run ids (rows) through the model. Row r is the token at positions[r] of its stream, whose keys and values lie in the
// pages that the table pages[r] lists: of `page` positions each, (keys and values, layers, heads, blocks of 16 positions).
// Rows of one stream share the table and come in order; `longest` is more than any position. Logits (count_wanted,
// outputs of the head) are given for the rows `wanted`.
void gpt2_forward(const Model* model, const int32_t* ids, int rows, const int32_t* positions, void* const* const* pages,
                  int page, int longest, const int32_t* wanted, int count_wanted, float* logits, void* scratch,
                  int threads) {
  auto run = model->wide ? forward<float> : forward<uint16_t>;
  run(*model, ids, rows, positions, pages, page, longest, wanted, count_wanted, logits, static_cast<char*>(scratch), threads);
}

}  // extern "C"
