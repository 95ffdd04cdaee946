// Glue between the loader, the graph and the Rust library behind statecells.h. Format, checks and arithmetic are there.

#include "llama-statecells-check.h"

#include "llama-impl.h"
#include "llama-model.h"
#include "llama-model-loader.h"
#include "statecells.h"

#if __has_include("statecells-build.h")
#include "statecells-build.h" // STATECELLS_PATCHES
#else
#define STATECELLS_PATCHES "unknown"
#endif

#include <algorithm>
#include <atomic>
#include <cmath>
#include <map>
#include <mutex>
#include <stdexcept>

struct statecells_deleter {
    void operator()(statecells_matrix * m) { statecells_matrix_free(m); }
    void operator()(statecells_experts * e) { statecells_experts_free(e); }
    void operator()(statecells_cache * c) { statecells_cache_free(c); }
};

template <typename T>
using statecells_owned = std::unique_ptr<T, statecells_deleter>;

// a coded matrix, or those of all experts of a layer
struct llama_statecells_matrix {
    std::string scheme;
    ggml_tensor * handle = nullptr; // stands for the dense weight: its name and shape, no data
    std::vector<std::pair<const char *, ggml_tensor *>> sidecars;
    statecells_owned<statecells_matrix> matrix; // null until the data is loaded
    statecells_owned<statecells_experts> experts; // in its place where there are three dimensions
    statecells_plan plan = {};
    bool is_experts = false;
    int layer = -1;

    // --statecells-check
    bool checked = false;
    ggml_tensor * dense = nullptr;
    std::atomic<bool> runs_dense = false;

    ggml_tensor * find(const char * suffix) const {
        for (const auto & [s, t] : sidecars) {
            if (strcmp(s, suffix) == 0) { return t; }
        }
        return nullptr;
    }
};

struct llama_statecells {
    ggml_context_ptr ctx; // of the stand-ins
    std::vector<std::unique_ptr<llama_statecells_matrix>> matrices;
    size_t n_dense = 0, n_bytes_dense = 0;
    // coded weights that the model has asked for, as blk.N.ffn_X; null: they run dense or are skipped
    std::map<std::string, llama_statecells_matrix *> asked_for;
    statecells_owned<statecells_cache> cache; // --statecells-cache

    ~llama_statecells() {
        if (cache) { // a warning, as below
            statecells_cache_use use = {};
            statecells_cache_usage(cache.get(), &use);
            const double mib = 1024.0 * 1024.0;
            LLAMA_LOG_WARN("statecells: cache %.0f of %.0f MiB, %.0f %% hits\n", use.n_bytes / mib, use.limit / mib,
                    use.n_asked > 0 ? 100.0 * use.n_hits / use.n_asked : 0.0);
        }
    }

    bool is_handle(const ggml_tensor * t) const {
        return t && t->type == GGML_TYPE_I8 && t->extra &&
            std::any_of(matrices.begin(), matrices.end(), [&](const auto & m) { return m->handle == t; });
    }
};

// One product in one graph. What it finds belongs to the graph: other contexts of the model have graphs of their own.
struct llama_statecells_product {
    llama_statecells_matrix & m;
    std::atomic<bool> & told; // of the graph
    std::atomic<bool> failed = false;
    std::mutex mutex; // of the finding
    statecells_finding finding = {};
    int64_t n_tokens = 0; // of the product with the finding

    llama_statecells_product(llama_statecells_matrix & m, std::atomic<bool> & told) : m(m), told(told) {}

    void fail() {
        failed = true;
        told   = true;
    }

    void look(const float * x, const float * y, int64_t n, int ith, int nth) {
        statecells_finding found = {};
        if (statecells_check(m.matrix.get(), x, y, n, ith, nth, &found) != 0) {
            keep(found, n);
        }
    }

    void look(const statecells_routed & routed, const float * y, int ith, int nth) {
        statecells_finding found = {};
        if (statecells_check_experts(m.experts.get(), &routed, y, ith, nth, &found) != 0) {
            keep(found, routed.n_tokens);
        }
    }

    void keep(const statecells_finding & found, int64_t n) {
        std::lock_guard<std::mutex> lock(mutex);
        const bool first = finding.place == 0 || std::make_pair(found.place, found.token) < std::make_pair(finding.place, finding.token);
        if (first) {
            finding  = found;
            n_tokens = n;
        }
        told = true;
    }
};

// What a product has prepared of an input, for others with the same dictionary; without ids: one of a matrix.
struct llama_statecells_prepared {
    const ggml_tensor * x;
    ggml_tensor * plain; // x in F32, contiguous
    const ggml_tensor * ids;
    const llama_statecells_matrix * m;
    ggml_tensor * node;
};

struct llama_statecells_graph {
    std::vector<std::unique_ptr<llama_statecells_product>> products;
    llama_statecells_prepared prepared = {}; // the last
    std::atomic<bool> told = false; // one of them has failed or found something
};

static std::vector<statecells_tensor> describe(const llama_statecells_matrix & m) {
    std::vector<statecells_tensor> res;
    for (const auto & [suffix, t] : m.sidecars) {
        res.push_back({ suffix, (int32_t) t->type, { t->ne[0], t->ne[1], t->ne[2], t->ne[3] }, t->data, t->data ? ggml_nbytes(t) : 0 });
    }
    return res;
}

// the line that a function of statecells.h wrote
struct statecells_error {
    char text[256] = "";
};

static void check_version(llama_model_loader & ml) {
    uint32_t version = 0;
    ml.get_key("statecells.version", version);
    if (version != STATECELLS_FORMAT_VERSION) {
        throw std::runtime_error(format("StateCells format version %u is unknown here (known: %d): update the programs", version, STATECELLS_FORMAT_VERSION));
    }
}

// what the command line says; the file's own metadata do not count here
static bool flag_is_on(const llama_model_loader & ml, const std::string & key) {
    const auto flag = ml.kv_overrides.find(key);
    return flag != ml.kv_overrides.end() && flag->second.val_bool;
}

// what --statecells-cache says
static statecells_owned<statecells_cache> cache_of(const llama_model_loader & ml) {
    const auto flag = ml.kv_overrides.find("statecells.cache");
    if (flag == ml.kv_overrides.end() || flag->second.val_i64 < 1) {
        return nullptr;
    }
    const auto mib = std::min<uint64_t>(flag->second.val_i64, SIZE_MAX >> 20);
    return statecells_owned<statecells_cache>(statecells_cache_new((size_t) mib << 20));
}

// whether the weight runs from its code; throws where it cannot run at all
static bool runs_coded(llama_model_loader & ml, const std::string & name, const std::string & stem, const std::string & scheme, bool has_dense) {
    float gap = 0.0f;
    ml.get_key("statecells." + stem + ".gap", gap, false);
    const char * flag  = statecells_flag(scheme.c_str());
    const auto max_gap = ml.kv_overrides.find("statecells.gap");
    const bool enabled = flag_is_on(ml, std::string(flag) + ".enable");
    const bool too_far = enabled && max_gap != ml.kv_overrides.end() && !(gap <= max_gap->second.val_f64);
    if (!has_dense && !enabled) {
        throw std::runtime_error(format("tensor '%s' is stored in coded form only (scheme %s): run with --%s", name.c_str(), scheme.c_str(), flag));
    }
    if (!has_dense && too_far) {
        throw std::runtime_error(format("tensor '%s' has gap %.4f, above --statecells-gap %.4f, and the file holds no dense weight: "
                "raise --statecells-gap or build with --dense keep", name.c_str(), gap, max_gap->second.val_f64));
    }
    return enabled && !too_far;
}

// a tensor of the file that is not loaded has to be counted all the same
static void leave_out(llama_model_loader & ml, const ggml_tensor * meta) {
    ml.n_created++;
    ml.size_data -= ggml_nbytes(meta);
}

bool llama_statecells_create_tensor(
        llama_statecells_ptr & sc, llama_model_loader & ml, const llama_hparams & hparams, const LLM_TN_IMPL & tn, const std::vector<int64_t> & ne,
        int flags, ggml_tensor *& res) {
    const std::string name = tn.str();
    const std::string stem = LLM_TN_IMPL(ml.get_arch(), tn.tensor, nullptr, tn.bid, tn.xid).str();
    std::string scheme;
    if (tn.suffix == nullptr || strcmp(tn.suffix, "weight") != 0 || !ml.get_key("statecells." + stem + ".scheme", scheme, false)) {
        return false;
    }
    statecells_error error;
    if (statecells_may_code(ml.get_arch_name().c_str(), name.c_str(), ne.size(), error.text, sizeof(error.text)) != 0) {
        throw std::runtime_error(format("tensor '%s': %s", name.c_str(), error.text));
    }
    if (!sc) {
        check_version(ml);
        sc = std::make_shared<llama_statecells>();
        sc->cache = cache_of(ml);
        sc->ctx.reset(ggml_init({ ggml_tensor_overhead() * (ml.weights_map.size() + 1), nullptr, true }));
    }
    if (const auto before = sc->asked_for.find(stem); before != sc->asked_for.end() || (flags & llama_model_loader::TENSOR_DUPLICATED)) {
        if (before == sc->asked_for.end() || !(flags & llama_model_loader::TENSOR_DUPLICATED)) { // it would be counted twice or not at all
            throw std::runtime_error(format("tensor '%s' has two places in the model: it cannot be coded", name.c_str()));
        }
        res = before->second ? before->second->handle : nullptr;
        return before->second != nullptr;
    }
    sc->asked_for[stem] = nullptr;

    const ggml_tensor * dense = ml.get_tensor_meta(name.c_str());
    const bool skip  = flags & llama_model_loader::TENSOR_SKIP;
    const bool coded = !skip && runs_coded(ml, name, stem, scheme, dense != nullptr);

    auto m = std::make_unique<llama_statecells_matrix>();
    m->scheme  = scheme;
    m->layer   = tn.bid;
    m->checked = flag_is_on(ml, "statecells.check");
    m->is_experts = ne.size() > 2;
    auto * cpu = ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_CPU);
    const buft_list_t plain = { { cpu, ggml_backend_cpu_buffer_type() } }; // no repacking, no device memory
    for (const char * const * suffix = statecells_suffixes(); *suffix; suffix++) {
        const LLM_TN_IMPL tn_sidecar(ml.get_arch(), tn.tensor, *suffix, tn.bid, tn.xid);
        const ggml_tensor * meta = ml.get_tensor_meta(tn_sidecar.str().c_str());
        if (meta && meta->ne[3] != 1) { // the loader tries a product with experts
            throw std::runtime_error(format("tensor '%s': sidecar '%s' has four dimensions: the file is damaged", name.c_str(), *suffix));
        }
        if (meta && ggml_nelements(meta) == 0) { // ggml divides by dimensions
            throw std::runtime_error(format("tensor '%s': sidecar '%s' is empty: the file is damaged", name.c_str(), *suffix));
        }
        if (meta && coded) {
            m->sidecars.emplace_back(*suffix, ml.create_tensor(hparams, &plain, &plain, &plain, &plain, tn_sidecar,
                    { meta->ne[0], meta->ne[1], meta->ne[2], meta->ne[3] }, 0));
        } else if (meta) {
            leave_out(ml, meta);
        }
    }
    if (skip) {
        if (dense) { leave_out(ml, dense); }
        res = nullptr;
        return true;
    }
    if (!coded) {
        sc->n_dense++;
        sc->n_bytes_dense += ggml_nbytes(dense);
        return false;
    }
    const auto tensors = describe(*m);
    const int32_t refused = m->is_experts ?
        statecells_plan_experts(scheme.c_str(), ne[0], ne[1], ne[2], tensors.data(), tensors.size(), &m->plan, error.text, sizeof(error.text)) :
        statecells_plan_matrix(scheme.c_str(), ne[0], ne[1], tensors.data(), tensors.size(), &m->plan, error.text, sizeof(error.text));
    if (refused != 0) {
        throw std::runtime_error(format("tensor '%s': %s", name.c_str(), error.text));
    }
    if (dense && m->checked) {
        if (m->is_experts) {
            m->dense = ml.create_tensor(hparams, &plain, &plain, &plain, &plain, tn, { ne[0], ne[1], ne[2] }, 0);
        } else {
            m->dense = ml.create_tensor(hparams, &plain, &plain, &plain, &plain, tn, { ne[0], ne[1] }, 0);
        }
    } else if (dense) {
        leave_out(ml, dense);
    }
    m->handle = ggml_new_tensor(sc->ctx.get(), GGML_TYPE_I8, (int) ne.size(), ne.data());
    m->handle->extra = m.get();
    ggml_set_name(m->handle, name.c_str());
    sc->matrices.push_back(std::move(m));
    sc->asked_for[stem] = sc->matrices.back().get();
    res = sc->matrices.back()->handle;
    return true;
}

void llama_statecells_check_names(const llama_statecells_ptr & sc, const llama_model_loader & ml) {
    const auto refuse_unknown = [&](const std::string & stem) {
        if (sc && sc->asked_for.count(stem) > 0) {
            return;
        }
        const std::string name = stem + ".weight";
        statecells_error error;
        statecells_may_code(ml.get_arch_name().c_str(), name.c_str(), stem.find("_exps") == std::string::npos ? 2 : 3, error.text, sizeof(error.text));
        throw std::runtime_error(format("tensor '%s': %s", stem.c_str(), error.text[0] ? error.text :
                "the model has no such weight, or the file no scheme for it"));
    };
    // the name between `before` and `after`, if there is one
    const auto between = [](const std::string & text, const std::string & before, const std::string & after) {
        const bool fits = text.size() > before.size() + after.size() && text.compare(0, before.size(), before) == 0 &&
            text.compare(text.size() - after.size(), after.size(), after) == 0;
        return fits ? text.substr(before.size(), text.size() - before.size() - after.size()) : std::string();
    };
    for (int64_t i = 0; i < gguf_get_n_kv(ml.metadata); i++) {
        const std::string stem = between(gguf_get_key(ml.metadata, i), "statecells.", ".scheme");
        if (!stem.empty()) {
            refuse_unknown(stem);
        }
    }
    for (const auto & [name, weight] : ml.weights_map) {
        const std::string stem = between(name, "", ".codes");
        if (stem.find(".ffn_") != std::string::npos) {
            refuse_unknown(stem);
        }
    }
}

void llama_statecells_add_names(const llama_statecells_ptr & sc, std::vector<std::pair<std::string, ggml_tensor *>> & tensors_by_name) {
    for (size_t i = 0; sc && i < sc->matrices.size(); i++) {
        // in front of a dense weight of the same name: the graph asks for the stand-in
        tensors_by_name.emplace(tensors_by_name.begin(), sc->matrices[i]->handle->name, sc->matrices[i]->handle);
    }
}

void llama_statecells_load(const llama_statecells_ptr & sc) {
    if (!sc) {
        return;
    }
    size_t n_bytes = 0;
    for (auto & m : sc->matrices) {
        for (const auto & [suffix, t] : m->sidecars) {
            if (!ggml_backend_buffer_is_host(t->buffer)) {
                throw std::runtime_error(format("tensor '%s' must be in CPU memory: remove --override-tensor for it", t->name));
            }
            n_bytes += ggml_nbytes(t);
        }
        m->handle->buffer = m->sidecars[0].second->buffer;
        const auto tensors = describe(*m);
        statecells_error error;
        const int64_t * ne = m->handle->ne;
        if (m->is_experts) {
            m->experts.reset(statecells_experts_new(m->scheme.c_str(), ne[0], ne[1], ne[2], tensors.data(), tensors.size(), error.text, sizeof(error.text)));
        } else {
            m->matrix.reset(statecells_matrix_new(m->scheme.c_str(), ne[0], ne[1], tensors.data(), tensors.size(), error.text, sizeof(error.text)));
        }
        if (!m->matrix && !m->experts) {
            throw std::runtime_error(format("tensor '%s': %s", m->handle->name, error.text));
        }
        if (sc->cache && m->is_experts) {
            statecells_experts_keep(m->experts.get(), sc->cache.get());
        } else if (sc->cache) {
            statecells_matrix_keep(m->matrix.get(), sc->cache.get());
        }
    }
    // a warning, because the programs hide what the library says below that level
    LLAMA_LOG_WARN("statecells: %zu FFN tensors run from codes (%.2f MiB), %zu dense (%.2f MiB), kernels: %s\n",
            sc->matrices.size(), n_bytes / 1024.0 / 1024.0, sc->n_dense, sc->n_bytes_dense / 1024.0 / 1024.0, statecells_kernels());
}

static void statecells_op_prepare(ggml_tensor * dst, int ith, int nth, void * userdata) {
    auto * p = (llama_statecells_product *) userdata;
    const ggml_tensor * x = dst->src[0];
    if (statecells_prepare(p->m.matrix.get(), (const float *) x->data, ggml_nrows(x), dst->data, ggml_nbytes(dst), ith, nth) != 0) {
        p->fail();
    }
}

static void statecells_op_apply(ggml_tensor * dst, int ith, int nth, void * userdata) {
    auto * p = (llama_statecells_product *) userdata;
    const auto * m = p->m.matrix.get();
    const auto * x = (const float *) dst->src[0]->data;
    const ggml_tensor * prepared = dst->src[1];
    const int64_t n = ggml_nrows(dst->src[0]);
    if (statecells_apply(m, x, prepared->data, ggml_nbytes(prepared), n, (float *) dst->data, ith, nth) != 0) {
        p->fail();
    } else if (p->m.checked) {
        p->look(x, (const float *) dst->data, n, ith, nth);
    }
}

ggml_tensor * llama_statecells_mul_mat(ggml_context * ctx, ggml_tensor * w, ggml_tensor * x, llama_statecells_graph_ptr & graph) {
    if (w->type != GGML_TYPE_I8 || w->extra == nullptr) {
        return nullptr;
    }
    auto & m = *(llama_statecells_matrix *) w->extra;
    if (m.runs_dense) {
        return ggml_mul_mat(ctx, m.dense, x);
    }
    if (!graph) {
        graph = std::make_shared<llama_statecells_graph>();
    }
    graph->products.push_back(std::make_unique<llama_statecells_product>(m, graph->told));
    auto * product = graph->products.back().get();
    auto & last = graph->prepared;
    if (last.x != x || last.ids || !statecells_matrix_prepares_like(last.m->matrix.get(), m.matrix.get())) {
        ggml_tensor * plain = x->type == GGML_TYPE_F32 && ggml_is_contiguous(x) ? x : ggml_cont(ctx, ggml_cast(ctx, x, GGML_TYPE_F32));
        ggml_tensor * node = plain;
        if (m.plan.prepared_ne0 > 0) {
            ggml_tensor * args[] = { plain, m.sidecars[0].second };
            node = ggml_custom_4d(ctx, (ggml_type) m.plan.prepared_type, m.plan.prepared_ne0, ggml_nrows(plain) * m.plan.prepared_columns, 1, 1,
                    args, 2, statecells_op_prepare, GGML_N_TASKS_MAX, product);
        }
        if (m.plan.project) {
            node = ggml_mul_mat(ctx, m.find("dict"), node);
        }
        last = { x, plain, nullptr, &m, node };
    }
    ggml_tensor * args[] = { last.plain, last.node, m.sidecars[0].second };
    return ggml_custom_4d(ctx, GGML_TYPE_F32, w->ne[1], x->ne[1], x->ne[2], x->ne[3], args, 3, statecells_op_apply, GGML_N_TASKS_MAX, product);
}

// inputs and ids of a node whose first two sources they are
static statecells_routed routed_of(const ggml_tensor * node) {
    const ggml_tensor * x   = node->src[0];
    const ggml_tensor * ids = node->src[1];
    return { (const float *) x->data, (const int32_t *) ids->data, x->ne[1] * x->ne[2], ids->ne[0], ids->ne[1], (int64_t) (ids->nb[1] / sizeof(int32_t)) };
}

static void statecells_op_prepare_experts(ggml_tensor * dst, int ith, int nth, void * userdata) {
    auto * p = (llama_statecells_product *) userdata;
    const auto routed = routed_of(dst);
    if (statecells_prepare_experts(p->m.experts.get(), &routed, dst->data, ggml_nbytes(dst), ith, nth) != 0) {
        p->fail();
    }
}

static void statecells_op_apply_experts(ggml_tensor * dst, int ith, int nth, void * userdata) {
    auto * p = (llama_statecells_product *) userdata;
    const auto routed = routed_of(dst);
    const ggml_tensor * prepared = dst->src[2];
    if (statecells_apply_experts(p->m.experts.get(), &routed, prepared->data, ggml_nbytes(prepared), (float *) dst->data, ith, nth) != 0) {
        p->fail();
    } else if (p->m.checked) {
        p->look(routed, (const float *) dst->data, ith, nth);
    }
}

ggml_tensor * llama_statecells_mul_mat_id(
        ggml_context * ctx, ggml_tensor * w, ggml_tensor * x, ggml_tensor * ids, llama_statecells_graph_ptr & graph) {
    if (w->type != GGML_TYPE_I8 || w->extra == nullptr) {
        return nullptr;
    }
    auto & m = *(llama_statecells_matrix *) w->extra;
    if (m.runs_dense) {
        return ggml_mul_mat_id(ctx, m.dense, x, ids);
    }
    if (!graph) {
        graph = std::make_shared<llama_statecells_graph>();
    }
    graph->products.push_back(std::make_unique<llama_statecells_product>(m, graph->told));
    auto * product = graph->products.back().get();
    auto & last = graph->prepared;
    if (last.x != x || last.ids != ids || !statecells_experts_prepares_like(last.m->experts.get(), m.experts.get())) {
        ggml_tensor * plain = x->type == GGML_TYPE_F32 && ggml_is_contiguous(x) ? x : ggml_cont(ctx, ggml_cast(ctx, x, GGML_TYPE_F32));
        ggml_tensor * args[] = { plain, ids, m.sidecars[0].second };
        ggml_tensor * node = ggml_custom_4d(ctx, (ggml_type) m.plan.prepared_type, m.plan.prepared_ne0, plain->ne[1] * plain->ne[2], 1, 1,
                args, 3, statecells_op_prepare_experts, GGML_N_TASKS_MAX, product);
        last = { x, plain, ids, &m, node };
    }
    ggml_tensor * args[] = { last.plain, ids, last.node, m.sidecars[0].second };
    return ggml_custom_4d(ctx, GGML_TYPE_F32, w->ne[1], ids->ne[0], ids->ne[1], 1, args, 4, statecells_op_apply_experts, GGML_N_TASKS_MAX, product);
}

std::string llama_statecells_graph_error(const llama_statecells_ptr & sc, ggml_cgraph * gf) {
    for (int i = 0; sc && gf && i < ggml_graph_n_nodes(gf); i++) {
        const ggml_tensor * node = ggml_graph_node(gf, i);
        for (const ggml_tensor * src : node->src) {
            if (sc->is_handle(src)) {
                return format("tensor '%s': the model uses it in an operation (%s) that cannot run from codes", src->name, ggml_op_name(node->op));
            }
        }
    }
    return "";
}

static std::string describe(const llama_statecells_product & p, int64_t n_tokens, const llama_pos * pos) {
    const auto & f = p.finding;
    // the last layer sees only those tokens whose output is wanted
    const std::string position = p.n_tokens == n_tokens && pos ? format(" (position %d)", (int) pos[f.token]) : "";
    return format("layer %d, tensor '%s': %s %lld of token %lld%s is %s", p.m.layer, p.m.handle->name, f.place == 1 ? "input" : "output",
            (long long) f.index, (long long) f.token, position.c_str(), std::isnan(f.value) ? "NaN" : f.value > 0 ? "inf" : "-inf");
}

// Of the first layer that has a finding: a bad output is the cause of the bad inputs behind it.
static llama_statecells_product * find_cause(const llama_statecells_graph & graph) {
    const auto rank = [](const llama_statecells_product & p) { return std::make_pair(p.m.layer, -p.finding.place); };
    llama_statecells_product * cause = nullptr;
    for (const auto & p : graph.products) {
        if (p->finding.place != 0 && (!cause || rank(*p) < rank(*cause))) {
            cause = p.get();
        }
    }
    return cause;
}

llama_statecells_verdict llama_statecells_check(const llama_statecells_graph_ptr & graph, int64_t n_tokens, const llama_pos * pos, bool can_redo) {
    if (!graph || !graph->told) { // the threads of the graph are done, so nothing needs a lock
        return LLAMA_STATECELLS_FINE;
    }
    llama_statecells_verdict verdict = LLAMA_STATECELLS_FAIL;
    const auto failed = std::find_if(graph->products.begin(), graph->products.end(), [](const auto & p) { return p->failed.load(); });
    if (failed != graph->products.end()) {
        LLAMA_LOG_ERROR("statecells: layer %d, tensor '%s': the product failed: a defect of the library, the request is stopped\n",
                (*failed)->m.layer, (*failed)->m.handle->name);
    } else if (auto * cause = find_cause(*graph)) {
        auto & m = cause->m;
        const std::string what = describe(*cause, n_tokens, pos);
        if (cause->finding.place == 2 && m.dense && can_redo) {
            if (!m.runs_dense.exchange(true)) { // not where another context has said so
                LLAMA_LOG_WARN("statecells: %s: it runs from its dense weight from now on\n", what.c_str());
            }
            verdict = LLAMA_STATECELLS_REDO;
        } else {
            const char * why = cause->finding.place == 1 ? "it was not finite before" : m.dense ? "this model cannot repeat a batch" : "the file holds no dense weight";
            LLAMA_LOG_ERROR("statecells: %s: %s, the request is stopped\n", what.c_str(), why);
        }
    }
    graph->told = false;
    for (auto & p : graph->products) {
        p->failed  = false;
        p->finding = {};
    }
    return verdict;
}

const char * llama_statecells_version(void) {
    static const std::string version = format("%s, patches %s", statecells_version(), STATECELLS_PATCHES);
    return version.c_str();
}
