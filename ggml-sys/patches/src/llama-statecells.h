#pragma once

#include "llama.h"

#include <memory>
#include <string>
#include <utility>
#include <vector>

struct llama_hparams;
struct llama_model_loader;
struct LLM_TN_IMPL;
struct llama_statecells;       // the coded FFN matrices of one model
struct llama_statecells_graph; // the products of one graph with them, and what they have to tell

using llama_statecells_ptr       = std::shared_ptr<llama_statecells>;
using llama_statecells_graph_ptr = std::shared_ptr<llama_statecells_graph>;

// true where `tn` is no business of the loader: `res` is the stand-in for a coded weight (shape [d_in, d_out] or, with experts, [d_in, d_out, n_expert], no data), or null
// for one that is skipped. `flags`: those of llama_model_loader. Throws for a weight that may not be coded
bool llama_statecells_create_tensor(
        llama_statecells_ptr & sc, llama_model_loader & ml, const llama_hparams & hparams, const LLM_TN_IMPL & tn, const std::vector<int64_t> & ne,
        int flags, ggml_tensor *& res);

// throws an error that names a code of the file which belongs to no weight of the model
void llama_statecells_check_names(const llama_statecells_ptr & sc, const llama_model_loader & ml);

// makes the stand-ins known by name (LoRA looks them up); before the data is there
void llama_statecells_add_names(const llama_statecells_ptr & sc, std::vector<std::pair<std::string, ggml_tensor *>> & tensors_by_name);

// checks the loaded data; throws an error that names the tensor
void llama_statecells_load(const llama_statecells_ptr & sc);

// the product with a coded weight, or null where `w` is a plain tensor. `graph` has to live as long as the nodes in `ctx`
ggml_tensor * llama_statecells_mul_mat(ggml_context * ctx, ggml_tensor * w, ggml_tensor * x, llama_statecells_graph_ptr & graph);

// the same for the experts `ids` ([n_used, n_tokens]) of `w`
ggml_tensor * llama_statecells_mul_mat_id(
        ggml_context * ctx, ggml_tensor * w, ggml_tensor * x, ggml_tensor * ids, llama_statecells_graph_ptr & graph);
