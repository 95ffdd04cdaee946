// Runs a part of a model: cuts the graph where a single tensor carries on what was computed before.

#include "llama-layers-cut.h"
#include "llama-layers-graph.h"

#include "ggml-backend.h"
#include "llama-context.h"
#include "llama-impl.h"
#include "llama-model.h"

#include <algorithm>
#include <cstring>
#include <string>
#include <vector>

#if defined(__unix__) || defined(__APPLE__)
#include <sys/mman.h>
#include <unistd.h>
#endif

namespace {

std::string check_layers(const graph_view & graph, const std::vector<int> & needed, const llama_layers_run & run) {
    const int last = run.to.layer - (run.to.place == LLAMA_LAYERS_BEFORE ? 1 : 0);
    for (const int i : needed) {
        const int layer = graph.layers[i];
        if (layer != NO_LAYER && (layer < run.from.layer || layer > last)) {
            return format("layers %d to %d need what layer %d computes ('%s')", run.from.layer, last, layer, graph.node(i)->name);
        }
    }
    return "";
}

std::string check_size(const ggml_tensor * t, size_t n, const char * what) {
    if (t->type == GGML_TYPE_F32 && (size_t) ggml_nelements(t) == n) {
        return "";
    }
    return format("the %s ('%s') is %s [%lld, %lld, %lld, %lld], not %zu values", what, t->name, ggml_type_name(t->type),
            (long long) t->ne[0], (long long) t->ne[1], (long long) t->ne[2], (long long) t->ne[3], n);
}

// what the part takes from earlier layers and gives to later ones
std::string share(const graph_view & graph, const std::vector<int> & needed, llama_layers_cut & cut) {
    size_t offset = 0;
    for (const auto & [name, leaf] : graph.shared) {
        const auto any = [&](auto f) { return std::any_of(needed.begin(), needed.end(), f); };
        if (any([&, leaf = leaf](int i) { return graph.writes(i, leaf); })) {
            cut.given.push_back({ leaf, offset });
        } else if (any([&, leaf = leaf](int i) { return graph.viewed(i) == leaf; })) {
            cut.taken.push_back({ leaf, offset });
        }
        offset += ggml_nbytes(leaf);
    }
    cut.run->n_shared_needed = offset;
    const bool has_room = cut.run->n_shared == offset || (cut.taken.empty() && cut.given.empty()) || !cut.run->out;
    return has_room ? "" : format("layers share %zu bytes, not %zu", offset, cut.run->n_shared);
}

std::string swap_weights(const graph_view & graph, const std::vector<int> & needed, const llama_layers_run & run) {
    for (size_t k = 0; k < run.n_swaps; k++) {
        const auto & swap = run.swaps[k];
        for (const int i : needed) {
            ggml_tensor * t = graph.node(i);
            if (t->op != GGML_OP_MUL_MAT || strcmp(t->src[0]->name, swap.weight) != 0) { continue; }
            if (!ggml_are_same_shape(t->src[0], swap.tensor)) {
                return format("what takes the place of '%s' has another shape", swap.weight);
            }
            t->src[0] = swap.tensor;
        }
    }
    return "";
}

// makes the product zeros
std::string omit(const graph_view & graph, const char * weight) {
    const int product = graph.product(weight);
    ggml_tensor * t = product < 0 ? nullptr : graph.node(product);
    if (!t || t->op != GGML_OP_MUL_MAT || t->src[1]->type != GGML_TYPE_F32) {
        return format("the product with '%s' cannot be left out", weight);
    }
    t->op     = GGML_OP_FILL;
    t->src[0] = t->src[1];
    t->src[1] = nullptr;
    std::fill(std::begin(t->op_params), std::end(t->op_params), 0);
    ggml_set_name(t, LLAMA_LAYERS_OMITTED);
    ggml_set_output(t->src[0]); // or the zeros could take its place in memory
    return "";
}

void become_input(ggml_tensor * t) {
    t->op       = GGML_OP_NONE;
    t->view_src = nullptr;
    t->view_offs = 0;
    std::fill(std::begin(t->src), std::end(t->src), nullptr);
    ggml_set_input(t);
}

} // namespace

ggml_cgraph * llama_layers_cut::cut(ggml_context * ctx, ggml_cgraph * gf) {
    const graph_view graph(gf);
    const auto fail = [&](const std::string & error) {
        snprintf(run->error, sizeof(run->error), "%s", error.c_str());
        return nullptr;
    };
    std::string error;
    const bool from_tokens = run->from.place == LLAMA_LAYERS_BEFORE && run->from.layer == 0;
    begin = from_tokens ? nullptr : graph.at(run->from, error);
    if (!error.empty()) { return fail(error); }
    end = graph.at(run->to, error);
    if (!error.empty()) { return fail(error); }

    const int first = begin ? graph.find(begin) : -1;
    const auto needed = graph.needed(first, graph.find(end));
    if (error = check_layers(graph, needed, *run); !error.empty()) { return fail(error); }
    if (error = share(graph, needed, *this); !error.empty()) { return fail(error); }
    run->n_state = ggml_nelements(end);
    if (run->out) {
        error = begin ? check_size(begin, run->n_in, "state that it begins with") : "";
        if (error.empty()) { error = check_size(end, run->n_out, "state that it ends with"); }
        if (!error.empty()) { return fail(error); }
    }
    if (run->added) {
        const int product = graph.product(run->added);
        run->gain = product < 0 ? 0.0f : graph.gain(end, product);
    }
    if (!run->out) { return nullptr; }
    if (error = swap_weights(graph, needed, *run); !error.empty()) { return fail(error); }
    if (run->omits) {
        if (error = omit(graph, run->added); !error.empty()) { return fail(error); }
    }

    std::vector<ggml_tensor *> nodes;
    for (const int i : needed) {
        nodes.push_back(graph.node(i));
    }
    if (begin) { become_input(begin); }
    if (!ggml_is_contiguous(end)) {
        end = ggml_cont(ctx, end);
        nodes.push_back(end);
    }
    ggml_set_output(end);
    // set_inputs writes every input of the model, so all have to be allocated
    std::vector<ggml_tensor *> inputs;
    for (ggml_tensor * t = ggml_get_first_tensor(ctx); t; t = ggml_get_next_tensor(ctx, t)) {
        if (t->flags & GGML_TENSOR_FLAG_INPUT) { inputs.push_back(t); }
    }
    ggml_cgraph * res = ggml_new_graph_custom(ctx, ggml_graph_size(gf), false);
    for (ggml_tensor * t : inputs) { ggml_build_forward_expand(res, t); }
    for (ggml_tensor * t : nodes)  { ggml_build_forward_expand(res, t); }
    return res;
}

void llama_layers_cut::set_input() const {
    if (begin) {
        ggml_backend_tensor_set(begin, run->in, 0, ggml_nbytes(begin));
    }
    for (const auto & [leaf, offset] : taken) {
        ggml_backend_tensor_set(leaf, (const char *) run->shared + offset, 0, ggml_nbytes(leaf));
    }
}

void llama_layers_cut::get_output() const {
    ggml_backend_tensor_get(end, run->out, 0, ggml_nbytes(end));
    for (const auto & [leaf, offset] : given) {
        ggml_backend_tensor_get(leaf, (char *) run->shared + offset, 0, ggml_nbytes(leaf));
    }
}

int32_t llama_layers_decode(llama_context * ctx, llama_batch batch, llama_layers_run * run) {
    llama_layers_cut cut;
    cut.run = run;
    run->error[0] = 0;
    ctx->layers = &cut;
    const int32_t res = llama_decode(ctx, batch);
    ctx->layers = nullptr;
    return res;
}

void llama_layers_release(const llama_model * model, int32_t layer) {
#if defined(__unix__) || defined(__APPLE__)
    const std::string prefix = "blk." + std::to_string(layer) + ".";
    const uintptr_t page = sysconf(_SC_PAGESIZE);
    for (const auto & [name, t] : model->tensors_by_name) {
        // pages of any other memory would not come back
        const bool mapped = t->buffer && t->data && strcmp(ggml_backend_buffer_name(t->buffer), "CPU_Mapped") == 0;
        if (!mapped || name.compare(0, prefix.size(), prefix) != 0) { continue; }
        const uintptr_t from = ((uintptr_t) t->data + page - 1) / page * page;
        const uintptr_t to   = ((uintptr_t) t->data + ggml_nbytes(t)) / page * page;
        if (to > from) { madvise((void *) from, to - from, MADV_DONTNEED); }
    }
#else
    (void) model;
    (void) layer;
#endif
}
