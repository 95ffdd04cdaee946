#pragma once

#include "llama-statecells.h"

// version of the library and hash of the patches, for --version
extern "C" LLAMA_API const char * llama_statecells_version(void);

// why this graph cannot be computed, or empty: a node reads a coded weight, which has no data, past llama_statecells_mul_mat
std::string llama_statecells_graph_error(const llama_statecells_ptr & sc, ggml_cgraph * gf);

// what the products of a graph that was computed have to tell
enum llama_statecells_verdict {
    LLAMA_STATECELLS_FINE,
    LLAMA_STATECELLS_REDO, // coded weights were replaced by their dense ones: build the graph again
    LLAMA_STATECELLS_FAIL,
};

// names a product that failed or, with --statecells-check, the first value that is not finite. `pos`: positions of the
// n_tokens tokens of the batch
llama_statecells_verdict llama_statecells_check(const llama_statecells_graph_ptr & graph, int64_t n_tokens, const llama_pos * pos, bool can_redo);
