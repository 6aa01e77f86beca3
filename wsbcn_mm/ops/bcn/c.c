/* BCN of float32 tensors on CPU, contiguous or channels last.

   The mathematics and its names are those of algebra.py. A row is one (sample, channel). Its positions are adjacent,
   or `channels` apart in channels last, where the rows of a span of channels are handled together. BCN never crosses
   the border of a group of channels. Each thread therefore takes whole groups, and reduces and maps them while they are
   in its cache; no thread waits for another. Sums use float over short stretches and double over the stretches. They
   are taken around the mean, so that a mean of a thousand deviations costs no precision. */

#include <math.h>
#include <stdint.h>

enum { ESTIMATED, BATCH, FROZEN };
enum { STRETCH = 512, SPAN = 64 };

#define INLINE static inline __attribute__((always_inline))
#define MIN(a, b) ((a) < (b) ? (a) : (b))

typedef struct {
    int64_t samples, channels, positions, groups, statistics, relu, threads;
    int64_t channels_last, groups_per_task;
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
        int64_t end = MIN(start + STRETCH, positions);
        float part = 0;
#pragma omp simd reduction(+ : part)
        for (int64_t i = start; i < end; i++)
            part += x[i];
        sum += part;
    }
    float m = (float)(sum / positions);
    for (int64_t start = 0; start < positions; start += STRETCH) {
        int64_t end = MIN(start + STRETCH, positions);
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
    drift /= positions; /* the rounding error of the mean in float */
    *mean = m;
    *var = (float)fmax(squares / positions - drift * drift, 0);
}

INLINE void span_moments_as(const float *restrict x, int64_t positions, int64_t stride, float *mean, float *var,
                            int64_t width)
{
    double sum[SPAN] = {0}, drift[SPAN] = {0}, squares[SPAN] = {0};
    float m[SPAN], part[SPAN], square[SPAN];
    for (int64_t start = 0; start < positions; start += STRETCH) {
        for (int64_t c = 0; c < width; c++)
            part[c] = 0;
        for (int64_t i = start; i < MIN(start + STRETCH, positions); i++)
#pragma omp simd
            for (int64_t c = 0; c < width; c++)
                part[c] += x[i * stride + c];
        for (int64_t c = 0; c < width; c++)
            sum[c] += part[c];
    }
    for (int64_t c = 0; c < width; c++)
        m[c] = (float)(sum[c] / positions);
    for (int64_t start = 0; start < positions; start += STRETCH) {
        for (int64_t c = 0; c < width; c++)
            part[c] = square[c] = 0;
        for (int64_t i = start; i < MIN(start + STRETCH, positions); i++)
#pragma omp simd
            for (int64_t c = 0; c < width; c++) {
                float d = x[i * stride + c] - m[c];
                part[c] += d;
                square[c] += d * d;
            }
        for (int64_t c = 0; c < width; c++) {
            drift[c] += part[c];
            squares[c] += square[c];
        }
    }
    for (int64_t c = 0; c < width; c++) {
        drift[c] /= positions;
        mean[c] = m[c];
        var[c] = (float)fmax(squares[c] / positions - drift[c] * drift[c], 0);
    }
}

/* Calls f(..., width); the widths that fill vector registers are constants for the compiler. */
#define WITH_WIDTH(width, f, ...)                                                                                      \
    do {                                                                                                               \
        if ((width) == 16)                                                                                             \
            f(__VA_ARGS__, 16);                                                                                        \
        else if ((width) == 32)                                                                                        \
            f(__VA_ARGS__, 32);                                                                                        \
        else if ((width) == SPAN)                                                                                      \
            f(__VA_ARGS__, SPAN);                                                                                      \
        else                                                                                                           \
            f(__VA_ARGS__, width);                                                                                     \
    } while (0)

/* Of channels `from` to `to` of sample n. */
static void moments_of(const Problem *p, const float *x, int64_t n, int64_t from, int64_t to, float *mean, float *var)
{
    int64_t row = n * p->channels;
    if (!p->channels_last) {
        for (int64_t c = from; c < to; c++)
            row_moments(x + (row + c) * p->positions, p->positions, mean + row + c, var + row + c);
        return;
    }
    for (int64_t c = from; c < to; c += SPAN)
        WITH_WIDTH(MIN(SPAN, to - c), span_moments_as, x + row * p->positions + c, p->positions, p->channels,
                   mean + row + c, var + row + c);
}

static int64_t group_width(const Problem *p) { return p->channels / p->groups; }

/* For the channels of group g. */
static void batch_half_statistics(const Problem *p, int64_t g, Pair moments, const float *running_mean,
                                  const float *running_var, float rate, Pair batch, Pair half)
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
static float apply_to_moments(const Problem *p, int64_t n, int64_t g, Pair moments, Pair half, const Affines *affines,
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
    float r = apply_to_moments(p, n, g, moments, half, affines, shift);
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

INLINE void map_span_as(const float *restrict x, const float *restrict residual, float *restrict y,
                        int64_t positions, int64_t stride, const float *restrict m, const float *restrict scale,
                        const float *restrict shift, int relu, int64_t width)
{
    for (int64_t i = 0; i < positions; i++)
#pragma omp simd
        for (int64_t c = 0; c < width; c++) {
            float value = scale[c] * (x[i * stride + c] - m[c]) + shift[c];
            if (residual)
                value += residual[i * stride + c];
            y[i * stride + c] = relu && value < 0 ? 0 : value;
        }
}

static void map_of(const Problem *p, const float *x, const float *residual, float *y, int64_t n, int64_t from,
                   int64_t to, const float *mean, const float *scale, const float *shift)
{
    int64_t row = n * p->channels;
    if (!p->channels_last) {
        for (int64_t c = from; c < to; c++) {
            int64_t at = (row + c) * p->positions;
            map_row(x + at, residual ? residual + at : 0, y + at, p->positions, mean[row + c], scale[row + c],
                    shift[row + c], (int)p->relu);
        }
        return;
    }
    for (int64_t c = from; c < to; c += SPAN) {
        int64_t at = row * p->positions + c;
        WITH_WIDTH(MIN(SPAN, to - c), map_span_as, x + at, residual ? residual + at : 0, y + at, p->positions,
                   p->channels, mean + row + c, scale + row + c, shift + row + c, (int)p->relu);
    }
}

static int64_t tasks(const Problem *p) { return (p->groups + p->groups_per_task - 1) / p->groups_per_task; }

void bcn_forward(const Problem *p, const float *x, const float *residual, const float *running_mean,
                 const float *running_var, const Affines *affines, float rate, float *y, float *batch_mean,
                 float *batch_var, float *half_mean, float *half_var, float *mean, float *var, float *scratch)
{
    Pair moments = {mean, var}, batch = {batch_mean, batch_var}, half = {half_mean, half_var};
    int64_t width = group_width(p);
    float *scale = scratch, *shift = scratch + p->samples * p->channels;
#pragma omp parallel for schedule(static) num_threads(p->threads)
    for (int64_t task = 0; task < tasks(p); task++) {
        int64_t first = task * p->groups_per_task, last = MIN(first + p->groups_per_task, p->groups);
        for (int64_t n = 0; n < p->samples; n++)
            moments_of(p, x, n, first * width, last * width, mean, var);
        for (int64_t g = first; g < last; g++)
            batch_half_statistics(p, g, moments, running_mean, running_var, rate, batch, half);
        for (int64_t n = 0; n < p->samples; n++) {
            for (int64_t g = first; g < last; g++) {
                int64_t row = n * p->channels + g * width;
                output_map(p, n, g, moments, half, affines, scale + row, shift + row);
            }
            map_of(p, x, residual, y, n, first * width, last * width, mean, scale, shift);
        }
    }
}

/* ReLU's mask of one row: from the output if it was kept, else recomputed. NULL and 0 without ReLU. */
typedef struct {
    const float *out;
    float scale, shift;
    int relu;
} Mask;

INLINE float masked_at(const float *dy, const float *out, float centred, float scale, float shift, int relu, int64_t i)
{
    float value = out ? out[i] : scale * centred + shift;
    return relu && value <= 0 ? 0 : dy[i]; /* NaN passes */
}

INLINE void sum_row_as(const float *restrict dy, const float *restrict x, int64_t positions, float m, Mask mask,
                       double *dy_sum, double *dyx_sum)
{
    double sum = 0, centred_sum = 0;
    for (int64_t start = 0; start < positions; start += STRETCH) {
        int64_t end = MIN(start + STRETCH, positions);
        float part = 0, centred_part = 0;
#pragma omp simd reduction(+ : part, centred_part)
        for (int64_t i = start; i < end; i++) {
            float centred = x[i] - m;
            float dz = masked_at(dy, mask.out, centred, mask.scale, mask.shift, mask.relu, i);
            part += dz;
            centred_part += dz * centred;
        }
        sum += part;
        centred_sum += centred_part;
    }
    *dy_sum = sum;
    *dyx_sum = centred_sum;
}

INLINE void gradient_row_as(const float *restrict dy, const float *restrict x, float *restrict dx,
                            float *restrict dz_out, int64_t positions, float m, Mask mask, float p, float q, float s)
{
#pragma omp simd
    for (int64_t i = 0; i < positions; i++) {
        float centred = x[i] - m;
        float dz = masked_at(dy, mask.out, centred, mask.scale, mask.shift, mask.relu, i);
        dx[i] = p * dz + q * centred + s;
        if (dz_out)
            dz_out[i] = dz;
    }
}

/* One loop without branches for each kind of mask. */
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

INLINE void sum_span_as(const float *restrict dy, const float *restrict x, const float *restrict out,
                        int64_t positions, int64_t stride, const float *restrict m, const float *restrict scale,
                        const float *restrict shift, int relu, double *dy_sum, double *dyx_sum, int64_t width)
{
    float part[SPAN], centred_part[SPAN];
    for (int64_t c = 0; c < width; c++)
        dy_sum[c] = dyx_sum[c] = 0;
    for (int64_t start = 0; start < positions; start += STRETCH) {
        for (int64_t c = 0; c < width; c++)
            part[c] = centred_part[c] = 0;
        for (int64_t i = start; i < MIN(start + STRETCH, positions); i++)
#pragma omp simd
            for (int64_t c = 0; c < width; c++) {
                float centred = x[i * stride + c] - m[c];
                float dz = masked_at(dy, out, centred, scale[c], shift[c], relu, i * stride + c);
                part[c] += dz;
                centred_part[c] += dz * centred;
            }
        for (int64_t c = 0; c < width; c++) {
            dy_sum[c] += part[c];
            dyx_sum[c] += centred_part[c];
        }
    }
}

INLINE void gradient_span_as(const float *restrict dy, const float *restrict x, const float *restrict out,
                             float *restrict dx, float *restrict dz_out, int64_t positions, int64_t stride,
                             const float *restrict m, const float *restrict scale, const float *restrict shift,
                             int relu, const float *restrict p, const float *restrict q, const float *restrict s,
                             int64_t width)
{
    for (int64_t i = 0; i < positions; i++)
#pragma omp simd
        for (int64_t c = 0; c < width; c++) {
            float centred = x[i * stride + c] - m[c];
            float dz = masked_at(dy, out, centred, scale[c], shift[c], relu, i * stride + c);
            dx[i * stride + c] = p[c] * dz + q[c] * centred + s[c];
            if (dz_out)
                dz_out[i * stride + c] = dz;
        }
}

typedef struct {
    float *weight, *bias, *group_weight, *group_bias; /* per channel, initially zero */
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
        double r = apply_to_moments(p, n, g, moments, half, affines, offset);
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

/* What backward reads and writes, of the size of x or of its rows. */
typedef struct {
    const float *dy, *x, *out; /* `out` is given where ReLU followed a residual */
    const float *mean, *scale, *shift;
    double *dy_sum, *dyx_sum;
    float *p, *q, *s;
    float *dx, *dz; /* `dz`, the residual's gradient, goes with `out` */
} Backward;

static Mask mask_of(const Problem *p, const Backward *b, int64_t row)
{
    return (Mask){b->out ? b->out + row * p->positions : 0, b->scale[row], b->shift[row], (int)p->relu};
}

static void sums_of(const Problem *p, const Backward *b, int64_t n, int64_t from, int64_t to)
{
    int64_t first = n * p->channels;
    if (!p->channels_last) {
        for (int64_t row = first + from; row < first + to; row++)
            sum_row(b->dy + row * p->positions, b->x + row * p->positions, p->positions, b->mean[row],
                    mask_of(p, b, row), b->dy_sum + row, b->dyx_sum + row);
        return;
    }
    for (int64_t c = from; c < to; c += SPAN) {
        int64_t at = first * p->positions + c, row = first + c;
        WITH_WIDTH(MIN(SPAN, to - c), sum_span_as, b->dy + at, b->x + at, b->out ? b->out + at : 0, p->positions,
                   p->channels, b->mean + row, b->scale + row, b->shift + row, (int)p->relu, b->dy_sum + row,
                   b->dyx_sum + row);
    }
}

static void gradient_of(const Problem *p, const Backward *b, int64_t n, int64_t from, int64_t to)
{
    int64_t first = n * p->channels;
    if (!p->channels_last) {
        for (int64_t row = first + from; row < first + to; row++) {
            int64_t at = row * p->positions;
            gradient_row(b->dy + at, b->x + at, b->dx + at, b->dz ? b->dz + at : 0, p->positions, b->mean[row],
                         mask_of(p, b, row), b->p[row], b->q[row], b->s[row]);
        }
        return;
    }
    for (int64_t c = from; c < to; c += SPAN) {
        int64_t at = first * p->positions + c, row = first + c;
        WITH_WIDTH(MIN(SPAN, to - c), gradient_span_as, b->dy + at, b->x + at, b->out ? b->out + at : 0, b->dx + at,
                   b->dz ? b->dz + at : 0, p->positions, p->channels, b->mean + row, b->scale + row, b->shift + row,
                   (int)p->relu, b->p + row, b->q + row, b->s + row);
    }
}

void bcn_backward(const Problem *p, const float *dy, const float *x, const float *out, float *half_mean,
                  float *half_var, float *mean, float *var, const Affines *affines, float *dx, float *dz,
                  float *dweight, float *dbias, float *dgroup_weight, float *dgroup_bias, double *scratch)
{
    Pair moments = {mean, var}, half = {half_mean, half_var};
    Gradients to = {dweight, dbias, dgroup_weight, dgroup_bias};
    int64_t rows = p->samples * p->channels, width = group_width(p);
    float *scale = (float *)(scratch + 2 * rows), *shift = scale + rows, *coefficients = shift + rows;
    Backward b = {dy, x, out, mean, scale, shift, scratch, scratch + rows,
                  coefficients, coefficients + rows, coefficients + 2 * rows, dx, dz};
#pragma omp parallel for schedule(static) num_threads(p->threads)
    for (int64_t task = 0; task < tasks(p); task++) {
        int64_t first = task * p->groups_per_task, last = MIN(first + p->groups_per_task, p->groups);
        for (int64_t n = 0; n < p->samples; n++) {
            for (int64_t g = first; g < last; g++) {
                int64_t row = n * p->channels + g * width;
                output_map(p, n, g, moments, half, affines, scale + row, shift + row);
            }
            sums_of(p, &b, n, first * width, last * width);
        }
        for (int64_t g = first; g < last; g++)
            gradients(p, g, moments, half, affines, b.dy_sum, b.dyx_sum, b.p, b.q, b.s, to);
        for (int64_t n = 0; n < p->samples; n++)
            gradient_of(p, &b, n, first * width, last * width);
    }
}
