#pragma once

#include "llama-layers.h"

#include <utility>
#include <vector>

// A run while it is in the graph: between building and allocating, between allocating and computing, and afterwards.
struct llama_layers_cut {
    llama_layers_run * run = nullptr;
    ggml_tensor * begin = nullptr; // null: from the tokens
    ggml_tensor * end   = nullptr;
    std::vector<std::pair<ggml_tensor *, size_t>> taken, given; // from earlier layers, for later ones: where in run->shared

    // the graph of the part, in the context of `gf`; null with run->error
    ggml_cgraph * cut(ggml_context * ctx, ggml_cgraph * gf);

    void set_input() const;
    void get_output() const;
};
