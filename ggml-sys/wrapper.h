/* Everything that is bound. llama.h is left out unless the feature `llama` asks for it. */
#include "ggml.h"
#include "ggml-backend.h"
#include "ggml-cpu.h"
#include "gguf.h"
#ifdef BIND_LLAMA
#include "llama.h"
#include "llama-layers.h"
#endif
