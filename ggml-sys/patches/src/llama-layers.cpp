// Runs a part of a model: cuts the graph where a single tensor carries on what was computed before.

#include "llama-layers-cut.h"

#include "ggml-backend.h"
#include "llama-context.h"
#include "llama-impl.h"
#include "llama-model.h"

#include <algorithm>
#include <cstring>
#include <set>
#include <string>
#include <unordered_map>
#include <vector>

#if defined(__unix__) || defined(__APPLE__)
#include <sys/mman.h>
#include <unistd.h>
#endif

namespace {

constexpr int NO_LAYER = -1;

bool starts_with(const char * text, const char * prefix) {
    return strncmp(text, prefix, strlen(prefix)) == 0;
}

// the number behind `marker` in the name of a weight (blk.N.) or of what a layer keeps between batches (cache_k_lN)
int number_in(const char * name, const char * marker, bool at_start) {
    const char * found = at_start ? (starts_with(name, marker) ? name : nullptr) : strstr(name, marker);
    if (!found || !isdigit((unsigned char) found[strlen(marker)])) {
        return NO_LAYER;
    }
    return atoi(found + strlen(marker));
}

bool is_kept(const ggml_tensor * leaf) {
    return starts_with(leaf->name, "cache_");
}

// operations that a part may repeat: by value or by row, whatever their weights
bool is_cheap(const ggml_tensor * node) {
    switch (node->op) {
        case GGML_OP_ADD: case GGML_OP_ADD1: case GGML_OP_SUB: case GGML_OP_MUL: case GGML_OP_DIV: case GGML_OP_SCALE:
        case GGML_OP_NORM: case GGML_OP_RMS_NORM: case GGML_OP_UNARY: case GGML_OP_GLU: case GGML_OP_CLAMP:
        case GGML_OP_RESHAPE: case GGML_OP_VIEW: case GGML_OP_PERMUTE: case GGML_OP_TRANSPOSE: case GGML_OP_CONT: case GGML_OP_CPY:
        case GGML_OP_CONCAT: case GGML_OP_REPEAT: case GGML_OP_GET_ROWS: case GGML_OP_SUM_ROWS:
            return true;
        default:
            return false;
    }
}

struct graph_view {
    ggml_cgraph * gf;
    int n;
    std::unordered_map<const ggml_tensor *, int> index;
    std::vector<int> layers; // of the weights or of what is kept that a node reads; NO_LAYER: none, or by value only

    explicit graph_view(ggml_cgraph * gf) : gf(gf), n(ggml_graph_n_nodes(gf)) {
        for (int i = 0; i < n; i++) {
            index[node(i)] = i;
        }
        for (int i = 0; i < n; i++) {
            layers.push_back(layer_of(node(i)));
        }
    }

    ggml_tensor * node(int i) const { return ggml_graph_node(gf, i); }

    // -1 for leaves
    int find(const ggml_tensor * t) const {
        const auto it = index.find(t);
        return it == index.end() ? -1 : it->second;
    }

    template <typename F> void each_source(int i, F f) const {
        for (const ggml_tensor * src : node(i)->src) {
            if (src) { f(src, find(src)); }
        }
    }

    int layer_of(const ggml_tensor * t) const {
        int layer = NO_LAYER;
        for (const ggml_tensor * src : t->src) {
            if (!src || find(src) >= 0) { continue; }
            if (is_kept(src)) {
                layer = std::max(layer, number_in(src->name, "_l", false));
            } else if (!is_cheap(t)) {
                layer = std::max(layer, number_in(src->name, "blk.", true));
            }
        }
        return layer;
    }

    // nodes that are made of one of those in `from`
    std::vector<bool> made_of(std::vector<bool> from) const {
        for (int i = 0; i < n; i++) {
            each_source(i, [&](const ggml_tensor *, int s) { from[i] = from[i] || (s >= 0 && from[s]); });
        }
        return from;
    }

    // node with the product, coded or not; -1 if there is none
    int product(const char * weight) const {
        const std::string stem = std::string(weight).substr(0, strlen(weight) - std::min(strlen(weight), strlen("weight")));
        for (int i = 0; i < n; i++) {
            const ggml_tensor * t = node(i);
            if (t->op == GGML_OP_MUL_MAT && strcmp(t->src[0]->name, weight) == 0) {
                return i;
            }
            // an operation of the hook: the input, what was made of it, a sidecar of the matrix
            const bool coded = t->op == GGML_OP_CUSTOM && t->src[2] && starts_with(t->src[2]->name, stem.c_str()) && !stem.empty();
            if (coded) {
                return i;
            }
        }
        return -1;
    }

    ggml_tensor * input_of(int product) const {
        return node(product)->op == GGML_OP_MUL_MAT ? node(product)->src[1] : node(product)->src[0];
    }

    // The last node through which everything goes from `early` nodes to `late` ones; -1 if there is none that can be had
    // without doing an early product again.
    int waist(const std::vector<bool> & early, const std::vector<bool> & late) const {
        const auto behind = made_of(early);
        const auto after  = made_of(late);
        std::set<int> open;
        for (int i = 0; i < n; i++) {
            if (!after[i]) { continue; }
            each_source(i, [&](const ggml_tensor *, int s) {
                if (s >= 0 && behind[s] && !after[s]) { open.insert(s); }
            });
        }
        while (open.size() > 1) {
            const int last = *open.rbegin();
            if (early[last] || !is_cheap(node(last))) {
                return -1;
            }
            open.erase(last);
            each_source(last, [&](const ggml_tensor *, int s) {
                if (s >= 0 && behind[s]) { open.insert(s); }
            });
        }
        return open.empty() ? -1 : *open.begin();
    }

    int before_layer(int layer) const {
        std::vector<bool> early(n), late(n);
        for (int i = 0; i < n; i++) {
            early[i] = layers[i] != NO_LAYER && layers[i] < layer;
            late[i]  = layers[i] != NO_LAYER && layers[i] >= layer;
        }
        if (std::find(late.begin(), late.end(), true) == late.end()) {
            late = behind_layers(early);
        }
        return waist(early, late);
    }

    // what is made of the last layer's state: by weights that belong to no layer, and what alone leads there
    std::vector<bool> behind_layers(const std::vector<bool> & early) const {
        const auto behind = made_of(early);
        std::vector<bool> late(n), leads_elsewhere(n), is_used(n), leads_to_early = early;
        for (int i = n - 1; i >= 0; i--) {
            bool outside = false;
            int  n_states = 0;
            each_source(i, [&](const ggml_tensor * src, int s) {
                outside = outside || (s < 0 && strstr(src->name, ".weight") && number_in(src->name, "blk.", true) == NO_LAYER);
                n_states += s >= 0 && behind[s];
            });
            // a state is a sum: what is made of one tensor only is on the way to the output
            const bool on_the_way = n_states == 1 && layers[i] == NO_LAYER && is_cheap(node(i)) && is_used[i] && !leads_elsewhere[i];
            late[i] = n_states > 0 && !leads_to_early[i] && (outside || on_the_way);
            each_source(i, [&](const ggml_tensor *, int s) {
                if (s >= 0) {
                    is_used[s]         = true;
                    leads_elsewhere[s] = leads_elsewhere[s] || !late[i];
                    leads_to_early[s]  = leads_to_early[s] || leads_to_early[i];
                }
            });
        }
        return late;
    }

    int middle(int layer, const ggml_tensor * input) const {
        std::vector<bool> early(n), late(n);
        for (int i = 0; i < n; i++) {
            each_source(i, [&](const ggml_tensor * src, int) { late[i] = late[i] || (src == input && layers[i] == layer); });
        }
        const auto after = made_of(late);
        for (int i = 0; i < n; i++) {
            early[i] = layers[i] != NO_LAYER && layers[i] <= layer && !after[i];
        }
        return waist(early, late);
    }

    // null with `error`
    ggml_tensor * at(const llama_layers_point & point, std::string & error) const {
        if (point.place == LLAMA_LAYERS_BEFORE) {
            const int found = before_layer(point.layer);
            error = found < 0 ? format("no single state stands before layer %d", point.layer) : "";
            return found < 0 ? nullptr : node(found);
        }
        const int reader = product(point.weight);
        if (reader < 0) {
            error = format("no product with '%s' is in the graph", point.weight);
            return nullptr;
        }
        ggml_tensor * input = input_of(reader);
        if (point.place == LLAMA_LAYERS_INPUT) {
            return input;
        }
        const int found = middle(point.layer, input);
        error = found < 0 ? format("no single state stands before '%s' in its layer", point.weight) : "";
        return found < 0 ? nullptr : node(found);
    }

    // with which factor the product is added to `end`; 0: it is not
    float gain(const ggml_tensor * end, int product) const {
        float factor = 1.0f;
        std::vector<std::pair<const ggml_tensor *, float>> open = { { end, factor } };
        float found = 0.0f;
        while (!open.empty()) {
            const auto [t, f] = open.back();
            open.pop_back();
            const int i = find(t);
            if (i < 0) { continue; }
            if (i == product) {
                found += f;
                continue;
            }
            switch (t->op) {
                case GGML_OP_ADD:
                    open.push_back({ t->src[0], f });
                    open.push_back({ t->src[1], f });
                    break;
                case GGML_OP_SCALE: {
                    float scale, bias;
                    memcpy(&scale, (const float *) t->op_params + 0, sizeof(float));
                    memcpy(&bias,  (const float *) t->op_params + 1, sizeof(float));
                    if (bias == 0.0f) { open.push_back({ t->src[0], f * scale }); }
                    break;
                }
                case GGML_OP_RESHAPE: case GGML_OP_CONT:
                    open.push_back({ t->src[0], f });
                    break;
                default:
                    break;
            }
        }
        return found;
    }

    // What `end` needs that is not before `begin`, in the order of the graph: what it is made of, and what is written into
    // memory that is read on the way.
    std::vector<int> needed(int begin, int end) const {
        std::vector<bool> wanted(n);
        std::set<const ggml_tensor *> read;
        const auto want = [&](int last) {
            wanted[last] = true;
            for (int i = last; i >= 0; i--) {
                if (!wanted[i] || i == begin) { continue; }
                each_source(i, [&](const ggml_tensor * src, int s) {
                    if (s >= 0) {
                        wanted[s] = true;
                    } else if (is_kept(src)) {
                        read.insert(src);
                    }
                });
            }
        };
        want(end);
        for (int i = begin + 1; i < end; i++) {
            const ggml_tensor * root = node(i)->view_src ? node(i)->view_src : node(i);
            const bool writes = node(i)->op == GGML_OP_SET_ROWS || node(i)->op == GGML_OP_CPY;
            if (writes && !wanted[i] && read.count(root) > 0) {
                want(i);
            }
        }
        std::vector<int> res;
        for (int i = 0; i < n; i++) {
            if (wanted[i] && i != begin) { res.push_back(i); }
        }
        return res;
    }
};

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
    if (begin) {
        if (error = check_size(begin, run->n_in, "state that it begins with"); !error.empty()) { return fail(error); }
    }
    if (error = check_size(end, run->n_out, "state that it ends with"); !error.empty()) { return fail(error); }
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
}

void llama_layers_cut::get_output() const {
    ggml_backend_tensor_get(end, run->out, 0, ggml_nbytes(end));
}

int32_t llama_layers_decode(llama_context * ctx, llama_batch batch, llama_layers_run * run) {
    llama_layers_cut cut = { run };
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
