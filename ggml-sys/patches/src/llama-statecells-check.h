#pragma once

#include "llama-statecells.h"

// version of the library and hash of the patches, for --version
extern "C" LLAMA_API const char * llama_statecells_version(void);

// what --statecells-check found in the graph that was computed last
enum llama_statecells_verdict {
    LLAMA_STATECELLS_FINE,
    LLAMA_STATECELLS_REDO, // coded weights were replaced by their dense ones: build the graph again
    LLAMA_STATECELLS_FAIL,
};

// names the first value that is not finite. `pos`: positions of the n_tokens tokens of the batch
llama_statecells_verdict llama_statecells_check(const llama_statecells_ptr & sc, int64_t n_tokens, const llama_pos * pos, bool can_redo);
