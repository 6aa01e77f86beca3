/* BCN of contiguous float32 tensors on CPU.

   The mathematics and its names are those of bcn_algebra.py; x is `samples` x `channels` rows of `positions`. Nothing
   that BCN computes crosses the border of a group of channels, so each thread takes whole groups, reduces and maps them
   while they are in its cache, and no thread waits for another. Sums are taken in float over short stretches and in
   double over the stretches, and around the mean, so that a mean of a thousand deviations does no harm. */

#include <math.h>
#include <stdint.h>

enum { ESTIMATED, BATCH, FROZEN };
enum { STRETCH = 512 };

typedef struct {
    int64_t samples, channels, positions, groups, statistics, relu, threads;
    float eps;
} Problem;

typedef struct {
    const float *weight, *bias, *group_weight, *group_bias; /* each may be NULL; the last two (groups) or (channels) */
    int64_t group_weight_size, group_bias_size;
} Affines;

typedef struct {
    float *mean, *var;
} Pair;

static float or_else(const float *values, int64_t i, float otherwise) { return values ? values[i] : otherwise; }

static float of_channel(const float *values, int64_t size, int64_t channel, const Problem *p, float otherwise)
{
    return values ? values[channel / (p->channels / size)] : otherwise;
}

static void row_moments(const float *restrict x, int64_t positions, float *mean, float *var)
{
    double sum = 0, drift = 0, squares = 0;
    for (int64_t start = 0; start < positions; start += STRETCH) {
        int64_t end = start + STRETCH < positions ? start + STRETCH : positions;
        float part = 0;
#pragma omp simd reduction(+ : part)
        for (int64_t i = start; i < end; i++)
            part += x[i];
        sum += part;
    }
    float m = (float)(sum / positions);
    for (int64_t start = 0; start < positions; start += STRETCH) {
        int64_t end = start + STRETCH < positions ? start + STRETCH : positions;
        float part = 0, square = 0;
#pragma omp simd reduction(+ : part, square)
        for (int64_t i = start; i < end; i++) {
            float d = x[i] - m;
            part += d;
            square += d * d;
        }
        drift += part;
        squares += square;
    }
    drift /= positions; /* what rounding the mean to float left over */
    *mean = m;
    *var = (float)fmax(squares / positions - drift * drift, 0);
}

static int64_t group_width(const Problem *p) { return p->channels / p->groups; }

/* For the channels of group g. */
static void choose_half(const Problem *p, int64_t g, Pair moments, const float *running_mean, const float *running_var,
                        float rate, Pair batch, Pair half)
{
    for (int64_t c = g * group_width(p); c < (g + 1) * group_width(p); c++) {
        double mean = 0, second = 0;
        for (int64_t n = 0; n < p->samples; n++)
            mean += moments.mean[n * p->channels + c];
        mean /= p->samples;
        double centre = p->statistics == ESTIMATED ? running_mean[c] : mean;
        for (int64_t n = 0; n < p->samples; n++) {
            double d = moments.mean[n * p->channels + c] - centre;
            second += moments.var[n * p->channels + c] + d * d;
        }
        batch.mean[c] = p->statistics == FROZEN ? running_mean[c] : (float)mean;
        batch.var[c] = p->statistics == FROZEN ? running_var[c] : (float)(second / p->samples);
        half.mean[c] = batch.mean[c];
        half.var[c] = batch.var[c];
        if (p->statistics == ESTIMATED) { /* rounded as torch.lerp does, which moves the buffers */
            float mean_step = batch.mean[c] - running_mean[c], var_step = batch.var[c] - running_var[c];
            half.mean[c] = rate < 0.5f ? running_mean[c] + rate * mean_step : batch.mean[c] - mean_step * (1 - rate);
            half.var[c] = rate < 0.5f ? running_var[c] + rate * var_step : batch.var[c] - var_step * (1 - rate);
        }
    }
}

static float batch_scale(const Problem *p, int64_t c, Pair half, const Affines *affines)
{
    return or_else(affines->weight, c, 1) / sqrtf(half.var[c] + p->eps);
}

/* For one (sample, group): u - mu of its channels into `offset`; returns r. */
static float chain(const Problem *p, int64_t n, int64_t g, Pair moments, Pair half, const Affines *affines,
                   float *offset)
{
    int64_t width = group_width(p), first = n * p->channels + g * width;
    double mu = 0, var = 0;
    for (int64_t k = 0; k < width; k++) {
        int64_t c = g * width + k;
        offset[k] = batch_scale(p, c, half, affines) * (moments.mean[first + k] - half.mean[c]);
        offset[k] += or_else(affines->bias, c, 0);
        mu += offset[k];
    }
    mu /= width;
    for (int64_t k = 0; k < width; k++) {
        double a = batch_scale(p, g * width + k, half, affines);
        offset[k] -= (float)mu;
        var += a * a * moments.var[first + k] + (double)offset[k] * offset[k];
    }
    return (float)(1 / sqrt(var / width + p->eps));
}

/* For one (sample, group): scale and shift of y = scale (x - m) + shift. */
static void output_map(const Problem *p, int64_t n, int64_t g, Pair moments, Pair half, const Affines *affines,
                       float *scale, float *shift)
{
    float r = chain(p, n, g, moments, half, affines, shift);
    for (int64_t k = 0; k < group_width(p); k++) {
        int64_t c = g * group_width(p) + k;
        float gamma = of_channel(affines->group_weight, affines->group_weight_size, c, p, 1);
        float beta = of_channel(affines->group_bias, affines->group_bias_size, c, p, 0);
        scale[k] = batch_scale(p, c, half, affines) * r * gamma;
        shift[k] = r * gamma * shift[k] + beta;
    }
}

static void map_row(const float *restrict x, const float *restrict residual, float *restrict y, int64_t positions,
                    float m, float scale, float shift, int relu)
{
    if (residual) {
#pragma omp simd
        for (int64_t i = 0; i < positions; i++) {
            float value = scale * (x[i] - m) + shift + residual[i];
            y[i] = relu && value < 0 ? 0 : value; /* NaN stays */
        }
    } else {
#pragma omp simd
        for (int64_t i = 0; i < positions; i++) {
            float value = scale * (x[i] - m) + shift;
            y[i] = relu && value < 0 ? 0 : value;
        }
    }
}

void bcn_forward(const Problem *p, const float *x, const float *residual, const float *running_mean,
                 const float *running_var, const Affines *affines, float rate, float *y, float *batch_mean,
                 float *batch_var, float *half_mean, float *half_var, float *mean, float *var, float *scratch)
{
    Pair moments = {mean, var}, batch = {batch_mean, batch_var}, half = {half_mean, half_var};
    int64_t rows = p->samples * p->channels, positions = p->positions, width = group_width(p);
    float *scale = scratch, *shift = scratch + rows;
#pragma omp parallel for schedule(static) num_threads(p->threads)
    for (int64_t g = 0; g < p->groups; g++) {
        for (int64_t n = 0; n < p->samples; n++)
            for (int64_t row = n * p->channels + g * width; row < n * p->channels + (g + 1) * width; row++)
                row_moments(x + row * positions, positions, mean + row, var + row);
        choose_half(p, g, moments, running_mean, running_var, rate, batch, half);
        for (int64_t n = 0; n < p->samples; n++) {
            int64_t first = n * p->channels + g * width;
            output_map(p, n, g, moments, half, affines, scale + first, shift + first);
            for (int64_t row = first; row < first + width; row++) {
                const float *added = residual ? residual + row * positions : 0;
                map_row(x + row * positions, added, y + row * positions, positions, mean[row], scale[row], shift[row],
                        (int)p->relu);
            }
        }
    }
}

/* How ReLU's mask of one row is known: from the output where it was kept, else made again; NULL and 0 without ReLU. */
typedef struct {
    const float *out;
    float scale, shift;
    int relu;
} Mask;

static inline float masked(float dy, float centred, Mask mask, int64_t i)
{
    float value = mask.out ? mask.out[i] : mask.scale * centred + mask.shift;
    return mask.relu && value <= 0 ? 0 : dy;
}

static inline __attribute__((always_inline)) void sum_row_as(const float *restrict dy, const float *restrict x,
                                                             int64_t positions, float m, Mask mask, double *dy_sum,
                                                             double *dyx_sum)
{
    double sum = 0, centred_sum = 0;
    for (int64_t start = 0; start < positions; start += STRETCH) {
        int64_t end = start + STRETCH < positions ? start + STRETCH : positions;
        float part = 0, centred_part = 0;
#pragma omp simd reduction(+ : part, centred_part)
        for (int64_t i = start; i < end; i++) {
            float centred = x[i] - m;
            float dz = masked(dy[i], centred, mask, i);
            part += dz;
            centred_part += dz * centred;
        }
        sum += part;
        centred_sum += centred_part;
    }
    *dy_sum = sum;
    *dyx_sum = centred_sum;
}

static inline __attribute__((always_inline)) void gradient_row_as(const float *restrict dy, const float *restrict x,
                                                                  float *restrict dx, float *restrict dz_out,
                                                                  int64_t positions, float m, Mask mask, float p,
                                                                  float q, float s)
{
#pragma omp simd
    for (int64_t i = 0; i < positions; i++) {
        float centred = x[i] - m;
        float dz = masked(dy[i], centred, mask, i);
        dx[i] = p * dz + q * centred + s;
        if (dz_out)
            dz_out[i] = dz;
    }
}

/* The compiler makes one loop without branches for each kind of mask. */
static void sum_row(const float *dy, const float *x, int64_t positions, float m, Mask mask, double *dy_sum,
                    double *dyx_sum)
{
    if (!mask.relu)
        sum_row_as(dy, x, positions, m, (Mask){0, 0, 0, 0}, dy_sum, dyx_sum);
    else if (!mask.out)
        sum_row_as(dy, x, positions, m, (Mask){0, mask.scale, mask.shift, 1}, dy_sum, dyx_sum);
    else
        sum_row_as(dy, x, positions, m, (Mask){mask.out, 0, 0, 1}, dy_sum, dyx_sum);
}

static void gradient_row(const float *dy, const float *x, float *dx, float *dz_out, int64_t positions, float m,
                         Mask mask, float p, float q, float s)
{
    if (!mask.relu)
        gradient_row_as(dy, x, dx, 0, positions, m, (Mask){0, 0, 0, 0}, p, q, s);
    else if (!mask.out)
        gradient_row_as(dy, x, dx, 0, positions, m, (Mask){0, mask.scale, mask.shift, 1}, p, q, s);
    else
        gradient_row_as(dy, x, dx, dz_out, positions, m, (Mask){mask.out, 0, 0, 1}, p, q, s);
}

typedef struct {
    float *weight, *bias, *group_weight, *group_bias; /* per channel, zero before */
} Gradients;

/* For group g, from the two sums of every row to p, q and s. */
static void gradients(const Problem *p, int64_t g, Pair moments, Pair half, const Affines *affines,
                      const double *dy_sum, const double *dyx_sum, float *p_row, float *q_row, float *s_row,
                      Gradients out)
{
    int64_t width = group_width(p);
    double positions = (double)p->positions;
    for (int64_t n = 0; n < p->samples; n++) {
        int64_t first = n * p->channels + g * width;
        float *offset = s_row + first;
        double r = chain(p, n, g, moments, half, affines, offset);
        double c1 = 0, c2 = 0;
        for (int64_t k = 0; k < width; k++) {
            int64_t c = g * width + k, row = first + k;
            double gamma = of_channel(affines->group_weight, affines->group_weight_size, c, p, 1);
            double dgamma = r * (batch_scale(p, c, half, affines) * dyx_sum[row] + offset[k] * dy_sum[row]);
            out.group_weight[c] += (float)dgamma;
            out.group_bias[c] += (float)dy_sum[row];
            c1 += gamma * dy_sum[row];
            c2 += gamma * dgamma;
        }
        c1 /= positions * width;
        c2 /= positions * width;
        for (int64_t k = 0; k < width; k++) {
            int64_t c = g * width + k, row = first + k;
            double gamma = of_channel(affines->group_weight, affines->group_weight_size, c, p, 1);
            double ra = r * batch_scale(p, c, half, affines), level = c1 + c2 * r * offset[k];
            double dhalf = r * (gamma * dy_sum[row] - positions * level);
            double dhalf_x = r * (gamma * dyx_sum[row] - positions * c2 * ra * moments.var[row]);
            /* the derivative by weight * k, where x' = weight k (x - e) + bias */
            out.weight[c] += (float)(dhalf_x + (moments.mean[row] - half.mean[c]) * dhalf);
            out.bias[c] += (float)dhalf;
            p_row[row] = (float)(ra * gamma);
            q_row[row] = (float)(-ra * ra * c2);
            s_row[row] = (float)(-ra * level);
        }
    }
    for (int64_t c = g * width; c < (g + 1) * width; c++) {
        double k = 1 / sqrt(half.var[c] + p->eps), weight = or_else(affines->weight, c, 1);
        if (p->statistics == BATCH) { /* the batch's own mean and variance carry gradient too */
            double count = positions * p->samples;
            double dvar = -out.weight[c] * weight * k * k * k / count;
            for (int64_t row = c; row < p->samples * p->channels; row += p->channels) {
                q_row[row] += (float)dvar;
                s_row[row] += (float)(dvar * (moments.mean[row] - half.mean[c]) - weight * k * out.bias[c] / count);
            }
        }
        out.weight[c] *= (float)k;
    }
}

/* `out` is given where ReLU followed a residual, `dz`, the residual's gradient, with it. */
void bcn_backward(const Problem *p, const float *dy, const float *x, const float *out, float *half_mean,
                  float *half_var, float *mean, float *var, const Affines *affines, float *dx, float *dz,
                  float *dweight, float *dbias, float *dgroup_weight, float *dgroup_bias, double *scratch)
{
    Pair moments = {mean, var}, half = {half_mean, half_var};
    Gradients to = {dweight, dbias, dgroup_weight, dgroup_bias};
    int64_t rows = p->samples * p->channels, positions = p->positions, width = group_width(p);
    double *dy_sum = scratch, *dyx_sum = scratch + rows;
    float *scale = (float *)(scratch + 2 * rows), *shift = scale + rows;
    float *p_row = shift + rows, *q_row = p_row + rows, *s_row = q_row + rows;
#pragma omp parallel for schedule(static) num_threads(p->threads)
    for (int64_t g = 0; g < p->groups; g++) {
        for (int64_t n = 0; n < p->samples; n++) {
            int64_t first = n * p->channels + g * width;
            output_map(p, n, g, moments, half, affines, scale + first, shift + first);
            for (int64_t row = first; row < first + width; row++) {
                Mask mask = {out ? out + row * positions : 0, scale[row], shift[row], (int)p->relu};
                sum_row(dy + row * positions, x + row * positions, positions, mean[row], mask, dy_sum + row,
                        dyx_sum + row);
            }
        }
        gradients(p, g, moments, half, affines, dy_sum, dyx_sum, p_row, q_row, s_row, to);
        for (int64_t n = 0; n < p->samples; n++)
            for (int64_t row = n * p->channels + g * width; row < n * p->channels + (g + 1) * width; row++) {
                Mask mask = {out ? out + row * positions : 0, scale[row], shift[row], (int)p->relu};
                gradient_row(dy + row * positions, x + row * positions, dx + row * positions,
                             dz ? dz + row * positions : 0, positions, mean[row], mask, p_row[row], q_row[row],
                             s_row[row]);
            }
    }
}
