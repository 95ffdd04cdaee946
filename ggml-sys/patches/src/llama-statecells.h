#pragma once

#include "llama.h"

#include <memory>
#include <string>
#include <utility>
#include <vector>

struct llama_hparams;
struct llama_model_loader;
struct LLM_TN_IMPL;
struct llama_statecells; // the coded FFN matrices of one model

using llama_statecells_ptr = std::shared_ptr<llama_statecells>;

// the stand-in for a coded weight (shape [d_in, d_out], no data), or null where `tn` is to be loaded as usual
ggml_tensor * llama_statecells_create_tensor(
        llama_statecells_ptr & sc, llama_model_loader & ml, const llama_hparams & hparams, const LLM_TN_IMPL & tn, const std::vector<int64_t> & ne);

// throws an error that names a code of the file which belongs to no weight of the model
void llama_statecells_check_names(const llama_statecells_ptr & sc, const llama_model_loader & ml);

// makes the stand-ins known by name (LoRA looks them up); before the data is there
void llama_statecells_add_names(const llama_statecells_ptr & sc, std::vector<std::pair<std::string, ggml_tensor *>> & tensors_by_name);

// checks the loaded data; throws an error that names the tensor
void llama_statecells_load(const llama_statecells_ptr & sc);

// the product with a coded weight, or null where `w` is a plain tensor
ggml_tensor * llama_statecells_mul_mat(ggml_context * ctx, ggml_tensor * w, ggml_tensor * x);
