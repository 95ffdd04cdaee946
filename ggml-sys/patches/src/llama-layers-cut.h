#pragma once

#include "llama-layers.h"

// A run while it is in the graph: between building and allocating, between allocating and computing, and afterwards.
struct llama_layers_cut {
    llama_layers_run * run;
    ggml_tensor * begin = nullptr; // null: from the tokens
    ggml_tensor * end   = nullptr;

    // the graph of the part, in the context of `gf`; null with run->error
    ggml_cgraph * cut(ggml_context * ctx, ggml_cgraph * gf);

    void set_input() const;
    void get_output() const;
};
