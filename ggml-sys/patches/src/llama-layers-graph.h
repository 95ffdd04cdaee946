// The graph of a whole model as one that is cut sees it. Included by llama-layers.cpp alone.

#pragma once

#include "llama-layers.h"

#include "ggml.h"
#include "llama-impl.h"

#include <algorithm>
#include <cstring>
#include <map>
#include <set>
#include <string>
#include <unordered_map>
#include <vector>

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

int layer_of_kept(const ggml_tensor * leaf) {
    return number_in(leaf->name, "_l", false);
}

// operations that a part may repeat: by value or by row, whatever their weights
bool is_cheap(const ggml_tensor * node) {
    switch (node->op) {
        case GGML_OP_ADD: case GGML_OP_ADD1: case GGML_OP_SUB: case GGML_OP_MUL: case GGML_OP_DIV: case GGML_OP_SCALE:
        case GGML_OP_NORM: case GGML_OP_RMS_NORM: case GGML_OP_UNARY: case GGML_OP_GLU: case GGML_OP_CLAMP:
        case GGML_OP_RESHAPE: case GGML_OP_VIEW: case GGML_OP_PERMUTE: case GGML_OP_TRANSPOSE: case GGML_OP_CONT: case GGML_OP_CPY:
        case GGML_OP_CONCAT: case GGML_OP_REPEAT: case GGML_OP_GET_ROWS: case GGML_OP_SUM_ROWS: case GGML_OP_SQR: case GGML_OP_SQRT:
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
    std::map<std::string, ggml_tensor *> shared; // what a layer keeps and later ones read, such as keys and values

    explicit graph_view(ggml_cgraph * gf) : gf(gf), n(ggml_graph_n_nodes(gf)) {
        for (int i = 0; i < n; i++) {
            index[node(i)] = i;
        }
        for (int i = 0; i < n; i++) {
            layers.push_back(layer_of(node(i)));
        }
        find_shared();
        for (int i = 0; i < n; i++) {
            // a view of what is shared belongs to no layer: it is read wherever it is needed
            const ggml_tensor * leaf = viewed(i);
            if (leaf && shared.count(leaf->name) == 0) { layers[i] = std::max(layers[i], layer_of_kept(leaf)); }
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
                if (t->op != GGML_OP_VIEW) { layer = std::max(layer, layer_of_kept(src)); }
            } else if (!is_cheap(t)) {
                layer = std::max(layer, number_in(src->name, "blk.", true));
            }
        }
        return layer;
    }

    // what the node is a view of, if that is kept; null otherwise
    ggml_tensor * viewed(int i) const {
        ggml_tensor * t = node(i);
        return t->op == GGML_OP_VIEW && is_kept(t->src[0]) ? t->src[0] : nullptr;
    }

    void find_shared() {
        std::vector<int> last = layers; // the last layer that a node is made of
        std::vector<ggml_tensor *> read(n); // what is kept and read in other shapes, nothing else in it
        for (int i = 0; i < n; i++) {
            read[i] = viewed(i);
            each_source(i, [&](const ggml_tensor *, int s) { last[i] = s < 0 ? last[i] : std::max(last[i], last[s]); });
            each_source(i, [&](const ggml_tensor *, int s) {
                if (s < 0 || !read[s]) { return; }
                if (last[i] == NO_LAYER) {
                    read[i] = read[s];
                } else if (last[i] > layer_of_kept(read[s])) {
                    shared[read[s]->name] = read[s];
                }
            });
        }
    }

    // whether the node writes into what is kept
    bool writes(int i, const ggml_tensor * leaf) const {
        const ggml_tensor * root = node(i)->view_src ? node(i)->view_src : node(i);
        return (node(i)->op == GGML_OP_SET_ROWS || node(i)->op == GGML_OP_CPY) && root == leaf;
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
            bool outside = false, inside = false;
            int  n_states = 0;
            each_source(i, [&](const ggml_tensor * src, int s) {
                const bool of_layer = number_in(src->name, "blk.", true) != NO_LAYER;
                outside = outside || (s < 0 && strstr(src->name, ".weight") && !of_layer);
                inside  = inside || (s < 0 && of_layer);
                n_states += s >= 0 && behind[s];
            });
            // a state is a sum, or scaled by its layer: what is made of one tensor only is on the way to the output
            const bool on_the_way = n_states == 1 && layers[i] == NO_LAYER && !inside && is_cheap(node(i)) && is_used[i] && !leads_elsewhere[i];
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
            const bool is_read = std::any_of(read.begin(), read.end(), [&](const ggml_tensor * leaf) { return writes(i, leaf); });
            if (is_read && !wanted[i]) {
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

} // namespace
