/* The selective scan of selective_scan.py on a CPU, forward and backward, in single precision.

   h[t] = exp(delta[t] A) h[t-1] + delta[t] u[t] B[t] and y[t] = C[t] h[t] for one utterance: u, delta, y are (T, D), A is
   (N, D), B and C are (T, G, N). Channels are worked on LANES at a time; LANES divides D / G. */

#include <string.h>

#define LANES 16
#define CHUNK 8 /* steps between the states kept for backward: what it recomputes stays in the first-level cache */

typedef float vec __attribute__((vector_size(4 * LANES)));
typedef int ivec __attribute__((vector_size(4 * LANES)));

static inline vec load(const float *from) {
    vec v;
    memcpy(&v, from, sizeof v);
    return v;
}

static inline void store(float *to, vec v) { memcpy(to, &v, sizeof v); }

static inline vec choose(ivec condition, vec yes, vec no) {
    return (vec)((condition & (ivec)yes) | (~condition & (ivec)no));
}

/* exp(x) = 2^n exp(r), |r| <= ln(2) / 2, by Cephes' polynomial: within two units in the last place. It is 1e-38 for anything
   below -87, infinite above 88.3, and NaN for NaN. */
static inline vec exponential(vec x) {
    const vec low = (vec){0} - 87.0f, high = (vec){0} + 88.8f;
    x = choose(x < low, low, x);
    x = choose(x > high, high, x);
    const float magic = 12582912.0f; /* 1.5 * 2^23: adding it rounds to an integer, which then stands in the low bits */
    const vec shifted = x * 1.44269504089f + magic;
    const ivec n = (ivec)shifted - 0x4B400000;
    const vec whole = shifted - magic;
    vec r = x - whole * 0.693359375f; /* ln(2) in two parts, the first exact */
    r += whole * 2.12194440e-4f;
    vec p = 1.9875691500e-4f * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * (r * r) + r + 1.0f;
    return p * (vec)((n + 127) << 23);
}

static inline float sum(vec v) {
    float total = 0.0f;
    for (int i = 0; i < LANES; i++) total += v[i];
    return total;
}

int lanes(void) { return LANES; }
int chunk(void) { return CHUNK; }

/* states: (ceil(T / CHUNK), D / LANES, N, LANES), the state before each chunk, for backward; NULL keeps none. */
void scan_forward(const float *u, const float *delta, const float *A, const float *B, const float *C, float *y,
                  float *states, long T, long D, long G, long N) {
    const long tiles = D / LANES;
    for (long tile = 0; tile < tiles; tile++) {
        const long d = tile * LANES, group = d / (D / G);
        vec h[N];
        memset(h, 0, sizeof h);
        for (long t = 0; t < T; t++) {
            if (states && t % CHUNK == 0) memcpy(states + ((t / CHUNK) * tiles + tile) * N * LANES, h, sizeof h);
            const vec step = load(delta + t * D + d), x = step * load(u + t * D + d);
            const float *b = B + (t * G + group) * N, *c = C + (t * G + group) * N;
            vec out = {0};
            for (long n = 0; n < N; n++) {
                h[n] = exponential(step * load(A + n * D + d)) * h[n] + x * b[n];
                out += h[n] * c[n];
            }
            store(y + t * D + d, out);
        }
    }
}

/* From dy (T, D) the gradients du, ddelta (T, D), dA (N, D), dB, dC (T, G, N). `carry`: work space of N * D. */
void scan_backward(const float *u, const float *delta, const float *A, const float *B, const float *C,
                   const float *states, const float *dy, float *du, float *ddelta, float *dA, float *dB, float *dC,
                   float *carry, long T, long D, long G, long N) {
    const long tiles = D / LANES, per_group = tiles / G;
    memset(dA, 0, sizeof(float) * N * D);
    memset(carry, 0, sizeof(float) * N * D);
    for (long first = (T - 1) / CHUNK * CHUNK; first >= 0; first -= CHUNK) {
        const long steps = T - first < CHUNK ? T - first : CHUNK;
        for (long group = 0; group < G; group++) {
            vec sum_b[CHUNK][N], sum_c[CHUNK][N];
            memset(sum_b, 0, sizeof sum_b);
            memset(sum_c, 0, sizeof sum_c);
            for (long tile = group * per_group; tile < (group + 1) * per_group; tile++) {
                const long d = tile * LANES;
                vec h[CHUNK + 1][N], decay[CHUNK][N], g[N], grad_a[N];
                memcpy(h[0], states + ((first / CHUNK) * tiles + tile) * N * LANES, sizeof h[0]);
                for (long k = 0; k < steps; k++) {
                    const long t = first + k;
                    const vec step = load(delta + t * D + d), x = step * load(u + t * D + d);
                    const float *b = B + (t * G + group) * N;
                    for (long n = 0; n < N; n++) {
                        decay[k][n] = exponential(step * load(A + n * D + d));
                        h[k + 1][n] = decay[k][n] * h[k][n] + x * b[n];
                    }
                }
                memcpy(g, carry + tile * N * LANES, sizeof g);
                memset(grad_a, 0, sizeof grad_a); /* a sum of sums rounds less than one over all steps */
                for (long k = steps - 1; k >= 0; k--) {
                    const long t = first + k;
                    const vec step = load(delta + t * D + d), input = load(u + t * D + d), x = step * input;
                    const vec grad_y = load(dy + t * D + d);
                    const float *b = B + (t * G + group) * N, *c = C + (t * G + group) * N;
                    vec grad_x = {0}, grad_step = {0};
                    for (long n = 0; n < N; n++) {
                        const vec grad_h = g[n] + grad_y * c[n];
                        sum_c[k][n] += grad_y * h[k + 1][n];
                        sum_b[k][n] += grad_h * x;
                        grad_x += grad_h * b[n];
                        g[n] = grad_h * decay[k][n];
                        const vec grad_exponent = g[n] * h[k][n];
                        grad_step += grad_exponent * load(A + n * D + d);
                        grad_a[n] += grad_exponent * step;
                    }
                    store(du + t * D + d, grad_x * step);
                    store(ddelta + t * D + d, grad_x * input + grad_step);
                }
                memcpy(carry + tile * N * LANES, g, sizeof g);
                for (long n = 0; n < N; n++) store(dA + n * D + d, load(dA + n * D + d) + grad_a[n]);
            }
            for (long k = 0; k < steps; k++)
                for (long n = 0; n < N; n++) {
                    dB[((first + k) * G + group) * N + n] = sum(sum_b[k][n]);
                    dC[((first + k) * G + group) * N + n] = sum(sum_c[k][n]);
                }
        }
    }
}
