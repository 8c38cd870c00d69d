// The passes of passes.py on a CPU, each in one read and one write. Loaded through ctypes: plain pointers, no torch.
//
// Activations are [N, D, P, C] in memory (channels last; P = H W), float or bfloat16; all else is float. Work is shared
// among threads by (n, d), and sums over P are written per (n, d), so results do not depend on the number of threads.

#include <cstdint>
#include <cstring>

using integer = std::int64_t;

struct bfloat16 {
    std::uint16_t bits;
};

static inline float read(float x) { return x; }
static inline float read(bfloat16 x) {
    std::uint32_t bits = std::uint32_t(x.bits) << 16;
    float value;
    std::memcpy(&value, &bits, 4);
    return value;
}
static inline void write(float &target, float x) { target = x; }
static inline void write(bfloat16 &target, float x) {  // to nearest, ties to even, as torch
    std::uint32_t bits;
    std::memcpy(&bits, &x, 4);
    // A NaN must not round to infinity.
    std::uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    target.bits = std::uint16_t(x == x ? rounded : 0x7fc0);
}

// Two shuffled channels, x[0] and x[1]; bfloat16 as one word, because reading every second half-word is not vectorised.
static inline void read_pair(const float *x, float &first, float &second) {
    first = x[0];
    second = x[1];
}
static inline void read_pair(const bfloat16 *x, float &first, float &second) {
    std::uint32_t word, low, high;
    std::memcpy(&word, x, 4);
    low = word << 16;
    high = word & 0xffff0000u;
    std::memcpy(&first, &low, 4);
    std::memcpy(&second, &high, 4);
}

constexpr integer MOST = 2048;  // channels of a part

// The width of a part as a constant where it is a common one: the loop over channels is then a few vector operations.
#define BY_WIDTH(function, T, PARTS, ...)                 \
    switch (h) {                                          \
    case 8: function<T, 8, PARTS>(__VA_ARGS__); break;    \
    case 16: function<T, 16, PARTS>(__VA_ARGS__); break;  \
    case 32: function<T, 32, PARTS>(__VA_ARGS__); break;  \
    case 64: function<T, 64, PARTS>(__VA_ARGS__); break;  \
    default: function<T, 0, PARTS>(__VA_ARGS__);          \
    }

// y = leaky_relu(x * scale + rows + noise * strength), where x is `a` (parts = 1) or a and b shuffled, a0 b0 a1 b1 ...
// h: channels of a part. scale [N, C] or null; rows [rows_n, rows_d, C] or null; noise [noise_n, D, P] or null.
template <typename T, int H, int PARTS>
static void finish_planes(const T *a, const T *b, const float *scale, const float *rows, const float *noise,
                          float strength, float slope, T *y, integer n, integer depth, integer plane, integer h_, integer rows_n,
                          integer rows_d, integer noise_n) {
    const integer h = H ? H : h_, channels = h * PARTS;
#pragma omp parallel for schedule(static)
    for (integer nd = 0; nd < n * depth; ++nd) {
        const integer i = nd / depth, d = nd % depth;
        float s[PARTS][H ? H : MOST], r[PARTS][H ? H : MOST];
        const float *row = rows ? rows + ((rows_n > 1 ? i : 0) * rows_d + (rows_d > 1 ? d : 0)) * channels : nullptr;
        for (integer c = 0; c < h; ++c)
            for (int k = 0; k < PARTS; ++k) {
                s[k][c] = scale ? scale[i * channels + c * PARTS + k] : 1.0f;
                r[k][c] = row ? row[c * PARTS + k] : 0.0f;
            }
        const float *grain = noise ? noise + ((noise_n > 1 ? i : 0) * depth + d) * plane : nullptr;
        for (integer p = 0; p < plane; ++p) {
            const float add = grain ? grain[p] * strength : 0.0f;
            const T *pa = a + (nd * plane + p) * h;
            const T *pb = PARTS == 2 ? b + (nd * plane + p) * h : nullptr;
            T *out = y + (nd * plane + p) * channels;
#pragma omp simd
            for (integer c = 0; c < h; ++c) {
                float u = read(pa[c]) * s[0][c] + r[0][c] + add;
                write(out[c * PARTS], u > 0 ? u : u * slope);
                if (PARTS == 2) {
                    float v = read(pb[c]) * s[PARTS - 1][c] + r[PARTS - 1][c] + add;
                    write(out[c * PARTS + PARTS - 1], v > 0 ? v : v * slope);
                }
            }
        }
    }
}

// Backward of `finish`: gradients of the parts, and per (n, d): sums[0] of the gradient before the activation,
// sums[1] of it times noise (where there is noise), sums[2] of it times x (where there is scale); each [C].
template <typename T, int H, int PARTS>
static void finish_gradient_planes(const T *grad, const T *y, const T *a, const T *b, const float *scale,
                                   const float *noise, float slope, T *grad_a, T *grad_b, float *sums, integer n,
                                   integer depth, integer plane, integer h_, integer noise_n) {
    const integer h = H ? H : h_, channels = h * PARTS;
#pragma omp parallel for schedule(static)
    for (integer nd = 0; nd < n * depth; ++nd) {
        const integer i = nd / depth, d = nd % depth;
        float s[PARTS][H ? H : MOST], sum[PARTS][H ? H : MOST], sum_noise[PARTS][H ? H : MOST],
            sum_x[PARTS][H ? H : MOST];
        for (int k = 0; k < PARTS; ++k)
            for (integer c = 0; c < h; ++c) {
                s[k][c] = scale ? scale[i * channels + c * PARTS + k] : 1.0f;
                sum[k][c] = sum_noise[k][c] = sum_x[k][c] = 0.0f;
            }
        const float *grain = noise ? noise + ((noise_n > 1 ? i : 0) * depth + d) * plane : nullptr;
        for (integer p = 0; p < plane; ++p) {
            const float add = grain ? grain[p] : 0.0f;
            const integer at = nd * plane + p;
            const T *g = grad + at * channels, *z = y + at * channels;
            if (PARTS == 1) {
#pragma omp simd
                for (integer c = 0; c < h; ++c) {
                    float u = read(g[c]);
                    u = read(z[c]) > 0 ? u : u * slope;
                    sum[0][c] += u;
                    sum_noise[0][c] += u * add;
                    if (a) sum_x[0][c] += u * read(a[at * h + c]);
                    write(grad_a[at * h + c], u * s[0][c]);
                }
            } else {
#pragma omp simd
                for (integer c = 0; c < h; ++c) {
                    float u, v, zu, zv;
                    read_pair(g + 2 * c, u, v);
                    read_pair(z + 2 * c, zu, zv);
                    u = zu > 0 ? u : u * slope;
                    v = zv > 0 ? v : v * slope;
                    sum[0][c] += u;
                    sum[PARTS - 1][c] += v;
                    sum_noise[0][c] += u * add;
                    sum_noise[PARTS - 1][c] += v * add;
                    if (a) {
                        sum_x[0][c] += u * read(a[at * h + c]);
                        sum_x[PARTS - 1][c] += v * read(b[at * h + c]);
                    }
                    write(grad_a[at * h + c], u * s[0][c]);
                    write(grad_b[at * h + c], v * s[PARTS - 1][c]);
                }
            }
        }
        for (int k = 0; k < PARTS; ++k)
            for (integer c = 0; c < h; ++c) {
                float *out = sums + nd * 3 * channels + c * PARTS + k;
                out[0] = sum[k][c];
                out[channels] = sum_noise[k][c];
                out[2 * channels] = sum_x[k][c];
            }
    }
}

// The inputs of one or two convolutions: x * scale [N, C] (or x), cut into `parts` of h channels; part k has its end
// slices repeated pad[k] times.
template <typename T, int H, int PARTS>
static void branch_planes(const T *x, const float *scale, T *const *out, const integer *pad, integer n, integer depth,
                          integer plane, integer h_) {
    const integer h = H ? H : h_, channels = h * PARTS;
#pragma omp parallel for schedule(static)
    for (integer nd = 0; nd < n * depth; ++nd) {
        const integer i = nd / depth, d = nd % depth;
        T *target[PARTS];
        for (int k = 0; k < PARTS; ++k) target[k] = out[k] + ((i * (depth + 2 * pad[k])) + d + pad[k]) * plane * h;
        for (integer p = 0; p < plane; ++p)
            for (int k = 0; k < PARTS; ++k) {
                const T *source = x + (nd * plane + p) * channels + k * h;
                T *part = target[k] + p * h;
                if (scale) {
                    const float *s = scale + i * channels + k * h;
#pragma omp simd
                    for (integer c = 0; c < h; ++c) write(part[c], read(source[c]) * s[c]);
                } else {
                    std::memcpy(part, source, h * sizeof(T));
                }
            }
        for (int k = 0; k < PARTS; ++k)
            for (integer j = 1; j <= pad[k]; ++j) {
                if (d == 0) std::memcpy(target[k] - j * plane * h, target[k], plane * h * sizeof(T));
                if (d == depth - 1) std::memcpy(target[k] + j * plane * h, target[k], plane * h * sizeof(T));
            }
    }
}

// Backward of `branch`: grad_x, and per (n, d) the sums over P of gradient times x, [C], where there is scale.
template <typename T, int H, int PARTS>
static void branch_gradient_planes(const T *const *grad, const integer *pad, const T *x, const float *scale, T *grad_x,
                                   float *sums, integer n, integer depth, integer plane, integer h_) {
    const integer h = H ? H : h_, channels = h * PARTS;
#pragma omp parallel for schedule(static)
    for (integer nd = 0; nd < n * depth; ++nd) {
        const integer i = nd / depth, d = nd % depth;
        float sum[PARTS][H ? H : MOST];
        for (int k = 0; k < PARTS; ++k) {
            const T *source = grad[k] + (i * (depth + 2 * pad[k]) + d + pad[k]) * plane * h;
            const float *s = scale ? scale + i * channels + k * h : nullptr;
            for (integer c = 0; c < h; ++c) sum[k][c] = 0.0f;
            for (integer p = 0; p < plane; ++p) {
                const integer at = (nd * plane + p) * channels + k * h;
                if (scale) {
#pragma omp simd
                    for (integer c = 0; c < h; ++c) {
                        const float g = read(source[p * h + c]);
                        sum[k][c] += g * read(x[at + c]);
                        write(grad_x[at + c], g * s[c]);
                    }
                } else {
                    std::memcpy(grad_x + at, source + p * h, h * sizeof(T));
                }
            }
            // What reached the repeated slices is added to the end slice.
            for (integer j = 1; j <= pad[k]; ++j)
                for (integer side = -1; side <= 1; side += 2) {
                    if (d != (side < 0 ? 0 : depth - 1)) continue;
                    for (integer p = 0; p < plane; ++p) {
                        const integer at = (nd * plane + p) * channels + k * h;
                        for (integer c = 0; c < h; ++c) {
                            const float g = read(source[(side * j * plane + p) * h + c]);
                            if (scale) sum[k][c] += g * read(x[at + c]);
                            write(grad_x[at + c], read(grad_x[at + c]) + g * (scale ? s[c] : 1.0f));
                        }
                    }
                }
        }
        if (scale)
            for (int k = 0; k < PARTS; ++k)
                for (integer c = 0; c < h; ++c) sums[nd * channels + k * h + c] = sum[k][c];
    }
}


#define ENTRIES(T, suffix)                                                                                             \
    extern "C" void finish_##suffix(const T *a, const T *b, const float *scale, const float *rows, const float *noise, \
                                    float strength, float slope, T *y, integer n, integer depth, integer plane, integer h,     \
                                    integer rows_n, integer rows_d, integer noise_n) {                                       \
        if (b) {                                                                                                       \
            BY_WIDTH(finish_planes, T, 2, a, b, scale, rows, noise, strength, slope, y, n, depth, plane, h, rows_n,    \
                     rows_d, noise_n)                                                                                  \
        } else {                                                                                                       \
            BY_WIDTH(finish_planes, T, 1, a, b, scale, rows, noise, strength, slope, y, n, depth, plane, h, rows_n,    \
                     rows_d, noise_n)                                                                                  \
        }                                                                                                              \
    }                                                                                                                  \
    extern "C" void finish_gradient_##suffix(const T *grad, const T *y, const T *a, const T *b, const float *scale,    \
                                             const float *noise, float slope, T *grad_a, T *grad_b, float *sums,       \
                                             integer n, integer depth, integer plane, integer h, integer noise_n) {              \
        if (grad_b) {                                                                                                  \
            BY_WIDTH(finish_gradient_planes, T, 2, grad, y, a, b, scale, noise, slope, grad_a, grad_b, sums, n, depth, \
                     plane, h, noise_n)                                                                                \
        } else {                                                                                                       \
            BY_WIDTH(finish_gradient_planes, T, 1, grad, y, a, b, scale, noise, slope, grad_a, grad_b, sums, n, depth, \
                     plane, h, noise_n)                                                                                \
        }                                                                                                              \
    }                                                                                                                  \
    extern "C" void branch_##suffix(const T *x, const float *scale, T *first, T *second, integer pad_first,              \
                                    integer pad_second, integer n, integer depth, integer plane, integer h) {                    \
        T *out[2] = {first, second};                                                                                   \
        const integer pad[2] = {pad_first, pad_second};                                                                  \
        if (second) {                                                                                                  \
            BY_WIDTH(branch_planes, T, 2, x, scale, out, pad, n, depth, plane, h)                                      \
        } else {                                                                                                       \
            BY_WIDTH(branch_planes, T, 1, x, scale, out, pad, n, depth, plane, h)                                      \
        }                                                                                                              \
    }                                                                                                                  \
    extern "C" void branch_gradient_##suffix(const T *first, const T *second, integer pad_first, integer pad_second,       \
                                             const T *x, const float *scale, T *grad_x, float *sums, integer n,          \
                                             integer depth, integer plane, integer h) {                                      \
        const T *grad[2] = {first, second};                                                                            \
        const integer pad[2] = {pad_first, pad_second};                                                                  \
        if (second) {                                                                                                  \
            BY_WIDTH(branch_gradient_planes, T, 2, grad, pad, x, scale, grad_x, sums, n, depth, plane, h)              \
        } else {                                                                                                       \
            BY_WIDTH(branch_gradient_planes, T, 1, grad, pad, x, scale, grad_x, sums, n, depth, plane, h)              \
        }                                                                                                              \
    }

ENTRIES(float, float32)
ENTRIES(bfloat16, bfloat16)
