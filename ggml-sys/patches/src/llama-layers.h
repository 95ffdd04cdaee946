#pragma once

#include "llama.h"

#ifdef __cplusplus
extern "C" {
#endif

// name of the node of a product that counts as zero, whose input is its only source
#define LLAMA_LAYERS_OMITTED "omitted product"

// A place in the graph of a model where one tensor carries on all that was computed before, or that is the input of a product.
enum llama_layers_place {
    LLAMA_LAYERS_BEFORE = 0, // the state before `layer`; of the number of layers: the one behind the last
    LLAMA_LAYERS_MIDDLE = 1, // the state in `layer` behind everything that comes before the products with the input of `weight`
    LLAMA_LAYERS_INPUT  = 2, // the input of the product with `weight`, in `layer`
};

struct llama_layers_point {
    int32_t layer;
    enum llama_layers_place place;
    const char * weight; // name in the file, null for LLAMA_LAYERS_BEFORE
};

// a tensor with data, in place of the model's weight of that name and shape
struct llama_layers_swap {
    const char * weight;
    struct ggml_tensor * tensor;
};

// A part of the model, computed on one batch.
struct llama_layers_run {
    struct llama_layers_point from; // LLAMA_LAYERS_BEFORE 0: from the tokens
    struct llama_layers_point to;

    const float * in; // what is at `from`: n_in values, one row per token; ignored from the tokens
    size_t n_in;
    float * out; // receives what is at `to`; null: the part is cut out, sizes do not matter, and nothing is allocated or computed
    size_t n_out;

    // What layers keep that later ones read, such as keys and values that several layers share: written where the part has the
    // layer that keeps it, read where it has only the later one. Belongs to one sequence of tokens.
    void * shared;
    size_t n_shared; // bytes

    const struct llama_layers_swap * swaps;
    size_t n_swaps;

    // told: the values at `to`, and the bytes of `shared` that the model needs
    size_t n_state;
    size_t n_shared_needed;

    // told: the factor with which the product with `added` is added to what is at `to`, 0 where it gets there in any other
    // way. `added` may be null
    const char * added;
    bool omits; // the product counts as zero and is not computed, see LLAMA_LAYERS_OMITTED
    float gain;
    char error[256]; // why the part cannot be run, or empty
};

// As llama_decode, but of the part alone: layers that are not in it are neither computed nor read. Nothing is in the outputs
// of the context afterwards. The caller clears the memory of the context before.
LLAMA_API int32_t llama_layers_decode(struct llama_context * ctx, struct llama_batch batch, struct llama_layers_run * run);

// Lets the operating system take back the pages of a mapped model that hold the weights of `layer`: they are read again when needed.
LLAMA_API void llama_layers_release(const struct llama_model * model, int32_t layer);

#ifdef __cplusplus
}
#endif
