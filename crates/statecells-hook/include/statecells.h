/* Run-time arithmetic of dictionary-coded weights, called by the patched llama.cpp.
 *
 * Shapes are in ggml order, innermost dimension first. No function unwinds, aborts or keeps a pointer longer than
 * stated. Functions that can fail return 0 on success and write one line into `error` otherwise. */
#pragma once

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define STATECELLS_ABI_VERSION    7
#define STATECELLS_FORMAT_VERSION 1 /* of the tensors in the file, docs/format.md */

/* A coded matrix, checked and ready to run. Immutable: any number of threads may use it at once. */
typedef struct statecells_matrix statecells_matrix;

/* One sidecar tensor, `blk.N.ffn_X.<suffix>`. */
typedef struct statecells_tensor {
    const char * suffix;
    int32_t      type;    /* enum ggml_type */
    int64_t      ne[4];
    const void * data;    /* null while the data is not loaded */
    size_t       n_bytes; /* of data */
} statecells_tensor;

/* How a product is laid out as graph nodes:
 *   q = prepared_ne0 > 0 ? statecells_prepare(x) : x          [prepared_ne0, prepared_columns * n_tokens] of prepared_type
 *   p = project ? ggml_mul_mat(dict, q) : q
 *   y = statecells_apply(x, p)                                [d_out, n_tokens] F32 */
typedef struct statecells_plan {
    int64_t prepared_ne0;
    int64_t prepared_columns; /* per token */
    int32_t prepared_type; /* enum ggml_type */
    int32_t project;
} statecells_plan;

/* STATECELLS_ABI_VERSION of the library. */
int32_t statecells_abi_version(void);

/* Version of the library, the host may show it. */
const char * statecells_version(void);

/* The kernels that run on this machine, and by which of their environment variables if one is set. */
const char * statecells_kernels(void);

/* Every suffix that a sidecar may have; ends with a null. */
const char * const * statecells_suffixes(void);

/* The flag of the programs, without its dashes, that runs matrices of this scheme from their codes; `<flag>.enable` is its
 * metadata override. Of a scheme that is unknown here: the flag under which statecells_plan_matrix refuses it. Never null. */
const char * statecells_flag(const char * scheme);

/* 0 if the weight `tensor` (its name in the file, blk.N.ffn_X.weight), of n_dims dimensions in the model, may be coded in a
 * model of this architecture (general.architecture): its product then has to pass through the functions below. */
int32_t statecells_may_code(const char * arch, const char * tensor, size_t n_dims, char * error, size_t error_size);

/* Checks types and shapes of the sidecars of a [d_in, d_out] matrix without looking at data, and fills `plan`. */
int32_t statecells_plan_matrix(const char * scheme, int64_t d_in, int64_t d_out,
                               const statecells_tensor * tensors, size_t n_tensors,
                               statecells_plan * plan, char * error, size_t error_size);

/* Checks everything, data included. The data must stay in place and unchanged until statecells_matrix_free.
 * Returns null and writes `error` if something is wrong. */
statecells_matrix * statecells_matrix_new(const char * scheme, int64_t d_in, int64_t d_out,
                                          const statecells_tensor * tensors, size_t n_tensors,
                                          char * error, size_t error_size);

/* Accepts null. */
void statecells_matrix_free(statecells_matrix * matrix);

/* 1 if what `a` prepares of an input does for `b` as well: their dictionaries are the same. */
int32_t statecells_matrix_prepares_like(const statecells_matrix * a, const statecells_matrix * b);

/* Called by all `nth` threads of the pool with their own `ith`; each does its share. There is a barrier between
 * prepare and apply. x: [d_in, n_tokens] F32, contiguous. Non-zero if the call was refused or failed: the host must not use
 * the product. This thread's share of y is then NaN, so that the failure shows; where matrix, n_tokens, ith, nth or y itself
 * is what was refused, nothing is written. */
int32_t statecells_prepare(const statecells_matrix * matrix, const float * x, int64_t n_tokens,
                           void * prepared, size_t prepared_bytes, int32_t ith, int32_t nth);
int32_t statecells_apply(const statecells_matrix * matrix, const float * x, const void * prepared, size_t prepared_bytes,
                         int64_t n_tokens, float * y, int32_t ith, int32_t nth);

/* The first value that is not finite. */
typedef struct statecells_finding {
    int32_t place; /* 1 an input, 2 an output of a thread whose inputs were finite, 0 nothing */
    float   value;
    int64_t token; /* column of the product */
    int64_t index; /* input or output within the column */
} statecells_finding;

/* Looks at this thread's share of the product, after statecells_apply with the same numbers: every nth token of x and
 * the rows of y that this thread wrote. 1 and `finding` if a value is not finite, else 0. */
int32_t statecells_check(const statecells_matrix * matrix, const float * x, const float * y, int64_t n_tokens,
                         int32_t ith, int32_t nth, statecells_finding * finding);

/* The matrices of all experts of a layer, [d_in, d_out, n_experts], checked and ready to run. As statecells_matrix. */
typedef struct statecells_experts statecells_experts;

/* Which experts multiply which inputs. */
typedef struct statecells_routed {
    const float   * x;          /* [d_in, n_columns], contiguous */
    const int32_t * ids;        /* [n_used, n_tokens]: the experts of every token */
    int64_t         n_columns;  /* n_tokens: the experts of a token read one column; n_used * n_tokens: each has its own */
    int64_t         n_used;
    int64_t         n_tokens;
    int64_t         ids_stride; /* elements from the ids of one token to those of the next */
} statecells_routed;

/* As statecells_plan_matrix; of the plan, a token is a column of x, and project is 0. */
int32_t statecells_plan_experts(const char * scheme, int64_t d_in, int64_t d_out, int64_t n_experts,
                                const statecells_tensor * tensors, size_t n_tensors,
                                statecells_plan * plan, char * error, size_t error_size);

/* As statecells_matrix_new. */
statecells_experts * statecells_experts_new(const char * scheme, int64_t d_in, int64_t d_out, int64_t n_experts,
                                            const statecells_tensor * tensors, size_t n_tensors,
                                            char * error, size_t error_size);

/* Accepts null. */
void statecells_experts_free(statecells_experts * experts);

/* 1 if what `a` prepares of an input does for `b` as well: their dictionaries are the same. */
int32_t statecells_experts_prepares_like(const statecells_experts * a, const statecells_experts * b);

/* As statecells_prepare and statecells_apply; prepared: [prepared_ne0, n_columns], y: [d_out, n_used, n_tokens] F32. An id
 * that is no expert's makes both fail; y is then left alone. */
int32_t statecells_prepare_experts(const statecells_experts * experts, const statecells_routed * routed,
                                   void * prepared, size_t prepared_bytes, int32_t ith, int32_t nth);
int32_t statecells_apply_experts(const statecells_experts * experts, const statecells_routed * routed,
                                 const void * prepared, size_t prepared_bytes, float * y, int32_t ith, int32_t nth);

/* As statecells_check, after statecells_apply_experts; the finding's token is the model's, not the column. */
int32_t statecells_check_experts(const statecells_experts * experts, const statecells_routed * routed, const float * y,
                                 int32_t ith, int32_t nth, statecells_finding * finding);

/* Decoded parts of matrices, kept for the next batch that is large enough to be computed from decoded weights. Any number of
 * matrices and threads may use one at once. */
typedef struct statecells_cache statecells_cache;

typedef struct statecells_cache_use {
    size_t   n_bytes; /* of decoded weights now */
    size_t   limit;
    uint64_t n_hits;  /* parts that were found, of n_asked */
    uint64_t n_asked;
} statecells_cache_use;

/* Holds at most n_bytes of decoded weights, at no time more. Null if it cannot be made. */
statecells_cache * statecells_cache_new(size_t n_bytes);

/* Accepts null. Matrices that keep decoded weights in it go on as they were. */
void statecells_cache_free(statecells_cache * cache);

void statecells_cache_usage(const statecells_cache * cache, statecells_cache_use * usage);

/* From now on decoded weights of the matrix, or of the experts, are kept in the cache, if the scheme decodes any; products
 * stay the same, bit by bit. No other call on the matrix may be under way. */
void statecells_matrix_keep(statecells_matrix * matrix, const statecells_cache * cache);
void statecells_experts_keep(statecells_experts * experts, const statecells_cache * cache);

#ifdef __cplusplus
}
#endif
